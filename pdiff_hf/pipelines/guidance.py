"""What the networks of a call are guided by: a condition, and how far to extrapolate toward it and from the guide."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from diffusers import ModelMixin

from ..targets.conditions import ConditionError, Conditions
from .checks import as_number

LARGEST_SCALE = 10.0


@dataclass(frozen=True)
class KnownConditions:
    """What the conditions of a generator mean, and those that its zoo had, `(m, c)` float32."""

    meaning: Conditions
    trained: torch.Tensor

    @classmethod
    def of_pipeline(cls, content: Any, **denoisers: ModelMixin | None) -> KnownConditions | None:
        """Returns the conditions of a pipeline, None if `content` is.

        Raises:
            ConditionError: If they are damaged, or a denoiser takes conditions of another length, or any without any.
        """
        known = None if content is None else cls.from_dict(content)
        expected = known.meaning.dim if known else 0
        for role, denoiser in denoisers.items():
            if denoiser is not None and (found := denoiser.config.get("condition_dim", 0)) != expected:
                raise ConditionError(
                    f"The {role} takes conditions of {found} numbers, but `conditions` describes {expected}; pass the "
                    "`config.conditions` of the pipeline that it belongs to."
                )
        return known

    @classmethod
    def from_dict(cls, content: Any) -> KnownConditions:
        """Reads what `to_dict` returned; `ConditionError` if it is damaged, or there are none."""
        meaning, trained = Conditions.from_dict(content), content.get("trained")
        if not isinstance(trained, list) or not trained:
            raise ConditionError(
                f"The conditions of a generator list those of its zoo as `trained`, but {trained!r:.50} is there."
            )
        return cls(meaning, meaning.check(trained))

    def to_dict(self) -> dict[str, Any]:
        """Returns JSON types."""
        return {**self.meaning.to_dict(), "trained": self.trained.tolist()}


@dataclass(frozen=True)
class Guidance:
    """The predictions that a call samples with, and what they are guided by.

    Classifier-free guidance (Ho & Salimans 2022, arXiv 2207.12598) with a scale g, as diffusers has it, and
    autoguidance (Karras et al. 2024, arXiv 2406.02507) with a scale a: with v(c) the denoiser's prediction for the
    condition c, v() the unconditional and w(c) the guide's, `v(c) + (g - 1) (v(c) - v()) + a (v(c) - w(c))`.
    """

    denoiser: ModelMixin
    guide: ModelMixin | None
    condition: torch.Tensor | None  # (num_models, c)
    condition_distance: torch.Tensor | None  # (num_models,), to the nearest condition of the zoo
    guidance_scale: float
    autoguidance_scale: float

    @classmethod
    def of_call(
        cls, pipe: Any, num_models: int, condition: Any, guidance_scale: Any, autoguidance_scale: Any
    ) -> Guidance:
        """Checks the arguments of a pipeline's call; a scale that is None is the pipeline's own.

        Raises:
            ConditionError: If a condition is missing, not of the pipeline's kind, or given to one without conditions.
            ValueError: If a scale is out of range, or needs what the pipeline lacks.
        """
        known, defaults = pipe.conditions, pipe.config
        if autoguidance_scale is None:
            autoguidance_scale = defaults.default_autoguidance_scale
        if guidance_scale is None:
            guidance_scale = defaults.get("default_guidance_scale", 1.0)
        condition = as_condition(known, condition, num_models)
        return cls(
            pipe.denoiser,
            pipe.guide,
            condition,
            None if condition is None else known.meaning.distances(condition, known.trained),
            as_guidance_scale(guidance_scale, known),
            as_autoguidance_scale(autoguidance_scale, pipe.guide),
        )

    def __call__(self, sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        """Returns the guided prediction for noisy latents `(num_models, latent_dim)`."""
        condition = () if self.condition is None else (self.condition.to(sample.device),)
        own = self.denoiser(sample, timestep, *condition).sample
        predicted = own
        if self.guidance_scale != 1:
            predicted = predicted + (self.guidance_scale - 1) * (own - self.denoiser(sample, timestep).sample)
        if self.autoguidance_scale and self.guide is not None:
            worse = self.guide(sample, timestep, *condition).sample
            predicted = predicted + self.autoguidance_scale * (own - worse)
        return predicted

    def describe(self) -> dict[str, float]:
        """Returns the scales that have an effect, for the provenance of networks."""
        scales = {} if self.condition is None else {"guidance_scale": self.guidance_scale}
        return scales | ({"autoguidance_scale": self.autoguidance_scale} if self.autoguidance_scale else {})


def as_condition(known: KnownConditions | None, condition: Any, num_models: int) -> torch.Tensor | None:
    """Returns the conditions of networks, `(num_models, c)` float32; None of a generator without conditions.

    Raises:
        ConditionError: If one is missing, not of the generator's kind, or given to one without conditions.
    """
    if known is None:
        if condition is not None:
            raise ConditionError("This pipeline was fitted to a zoo without conditions; leave condition out.")
        return None
    if condition is None:
        meaning = known.meaning
        example = list(meaning.names[:2]) if meaning.kind == "bits" else known.trained[0].tolist()
        raise ConditionError(
            f"This pipeline draws networks for a condition, {meaning.dim} numbers ({meaning.kind}) for "
            f"{', '.join(meaning.names):.200}; pass one, for example condition={example!r:.200}."
        )
    return known.meaning.vectors(condition, num_models)


def as_autoguidance_scale(value: Any, guide: Any) -> float:
    """Returns the strength of autoguidance as a float; `ValueError` if it is none, or not 0 without a guide."""
    return _as_scale("autoguidance_scale", value, 0.0, None if guide else "guide")


def as_guidance_scale(value: Any, conditions: Any) -> float:
    """Returns the scale of classifier-free guidance; `ValueError` if it is none, or not 1 without conditions."""
    return _as_scale("guidance_scale", value, 1.0, None if conditions else "conditions")


def _as_scale(name: str, value: Any, off: float, lacking: str | None) -> float:
    """Returns a number from 0 to `LARGEST_SCALE`, which must be the one without effect if something is lacking."""
    scale = as_number(name, value)
    if scale > LARGEST_SCALE:
        raise ValueError(f"{name} must be at most {LARGEST_SCALE:g}, but is {scale}.")
    if scale != off and lacking:
        raise ValueError(f"{name} is {scale}, but this pipeline has no {lacking}; leave it out, or pass {off:g}.")
    return scale
