"""What is checked before networks are drawn: arguments, and that a scheduler belongs to the denoiser."""

from __future__ import annotations

import contextlib
import copy
import inspect
import math
import operator
from collections.abc import Sequence
from typing import Any

import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    SchedulerMixin,
    UniPCMultistepScheduler,
)

OUTPUT_TYPES = ("model", "pt", "np", "latent")
SCHEDULERS = (
    DDPMScheduler,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    UniPCMultistepScheduler,
    EulerDiscreteScheduler,
)
# What decides the noise levels of training; a sampler must pass through the same ones.
NOISE = ("num_train_timesteps", "beta_schedule", "beta_start", "beta_end", "trained_betas", "rescale_betas_zero_snr")
# Settings that change the distribution of samples, with the values that keep it; the first one is suggested.
ALLOWED: dict[str, tuple] = {
    "prediction_type": ("v_prediction", "epsilon"),
    "clip_sample": (False,),
    "thresholding": (False,),
    **dict.fromkeys([f"use_{kind}_sigmas" for kind in ("karras", "exponential", "beta", "flow")], (False,)),
    "use_lu_lambdas": (False,),
    "use_dynamic_shifting": (False,),
    "shift_terminal": (None,),
    "interpolation_type": ("linear",),  # of Euler
    "timestep_type": ("discrete",),
    "algorithm_type": ("dpmsolver++", "sde-dpmsolver++", "dpmsolver"),  # of DPM-Solver
    "variance_type": ("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log", None),  # none is learned
}
LARGEST_SETTING = 10_000  # no sampler has as many steps


class SchedulerError(ValueError):
    """A scheduler does not belong to the denoiser: it would draw other networks than the learned ones."""


def check_scheduler(scheduler: SchedulerMixin, trained: SchedulerMixin | None = None) -> None:
    """Checks that a scheduler samples the distribution that the denoiser has learned.

    Args:
        scheduler: The one to be checked.
        trained: One with the noise levels and the prediction type of the training, if known.

    Raises:
        SchedulerError: If it is of another family, or has a setting that changes the distribution.
    """
    name = type(scheduler).__name__
    if not isinstance(scheduler, SCHEDULERS):
        families = ", ".join(family.__name__ for family in SCHEDULERS)
        raise SchedulerError(
            f"{name} cannot draw from this denoiser; use one of {families}, made by its "
            "from_config(pipe.scheduler.config)."
        )
    needed = {key: values[0] for key, values in ALLOWED.items() if scheduler.config.get(key, values[0]) not in values}
    if trained is not None:
        levels, expected = scheduler.alphas_cumprod.cpu(), trained.alphas_cumprod.cpu()
        same_noise = levels.shape == expected.shape and torch.allclose(levels, expected, atol=1e-6)
        for key in ("prediction_type", *(() if same_noise else NOISE)):
            if scheduler.config.get(key) != trained.config.get(key):
                needed[key] = trained.config.get(key)
    if needed:
        given = ", ".join(f"{key}={scheduler.config.get(key)!r:.40}" for key in needed)
        settings = ", ".join(f"{key}={value!r:.40}" for key, value in needed.items())
        raise SchedulerError(
            f"{name} with {given} does not belong to this denoiser; use "
            f"{name}.from_config(pipe.scheduler.config, {settings})."
        )


def load_scheduler(cls: Any, config: dict[str, Any]) -> SchedulerMixin:
    """Builds a scheduler and lets a copy take two steps: many damaged settings are noticed only then.

    Raises:
        ValueError: If it cannot sample, or would sample another distribution; a damaged setting raises any error.
    """
    for key, value in config.items():
        if isinstance(value, int | float) and LARGEST_SETTING < abs(value) < math.inf:
            raise ValueError(f"{key} = {value} is out of all proportion")
    scheduler = cls.from_config(config)
    check_scheduler(scheduler)
    tried = copy.deepcopy(scheduler)
    tried.set_timesteps(2)
    own = "generator" in inspect.signature(tried.step).parameters
    extra = {"generator": torch.Generator().manual_seed(0)} if own else {}
    sample = torch.ones(1, 1) * tried.init_noise_sigma
    for t in tried.timesteps:
        tried.scale_model_input(sample, t)
        sample = tried.step(torch.zeros(1, 1), t, sample, **extra).prev_sample
    if not sample.isfinite().all():
        raise ValueError("it samples what is not finite")
    return scheduler


def as_count(name: str, value: Any, most: float = math.inf) -> int:
    """Returns a number of models, steps or the like as an int.

    Raises:
        ValueError: If it is not a whole number from 1 to `most`.
    """
    with contextlib.suppress(TypeError):
        if 1 <= operator.index(value) <= most:
            return operator.index(value)
    limit = "" if most == math.inf else f" and at most {most}"
    raise ValueError(f"{name} must be a whole number of at least 1{limit}, but is {value!r:.50}.")


def as_number(name: str, value: Any) -> float:
    """Returns a temperature or the like as a float.

    Raises:
        ValueError: If it is negative, infinite or no number.
    """
    with contextlib.suppress(TypeError, ValueError):
        if 0 <= float(value) < math.inf:
            return float(value)
    raise ValueError(f"{name} must be a finite number of at least 0, but is {value!r:.50}.")


def check_arguments(
    shape: tuple[int, int],
    generator: Any,
    latents: Any,
    output_type: str,
    callback_inputs: Sequence[str],
    known_inputs: Sequence[str],
) -> None:
    """Checks the arguments of a call that draws latents of `shape`, `(num_models, latent_dim)`.

    Raises:
        ValueError: If one does not fit.
    """
    check_generator(generator, shape[0])
    if latents is not None:
        check_latents(latents, shape)
    if output_type not in OUTPUT_TYPES:
        raise ValueError(f"output_type must be one of {OUTPUT_TYPES}, but is {output_type!r}.")
    if unknown := sorted(set(callback_inputs) - set(known_inputs)):
        raise ValueError(f"A callback may ask for {known_inputs}, but asks for {unknown}.")


def check_generator(generator: Any, num_models: int) -> None:
    """Raises a `ValueError` unless it is None, a generator, or a list of one for each network."""
    listed = generator if isinstance(generator, list) else [] if generator is None else [generator]
    if not all(isinstance(one, torch.Generator) for one in listed):
        raise ValueError(
            f"generator must be a torch.Generator or a list of them, but is {generator!r:.50}; "
            "use torch.Generator().manual_seed(0)."
        )
    if isinstance(generator, list) and len(generator) != num_models:
        raise ValueError(f"{len(generator)} generators were given for {num_models} networks; give one for each.")


def returned_latents(returned: Any, latents: torch.Tensor) -> torch.Tensor:
    """Returns the latents that a callback has returned in a dict, or those that it was given.

    Raises:
        ValueError: If it returned something else.
    """
    if not isinstance(returned, dict):
        raise ValueError(
            "callback_on_step_end must return a dict, which may be empty or hold latents, but returned "
            f"{returned!r:.50}."
        )
    changed = returned.get("latents", latents)
    check_latents(changed, tuple(latents.shape))
    return changed


def check_latents(latents: Any, shape: tuple[int, ...]) -> None:
    """Raises a `ValueError` unless they are a finite tensor of that shape."""
    if not isinstance(latents, torch.Tensor):
        raise ValueError(f"latents must be a torch.Tensor, but are a {type(latents).__name__}; use torch.as_tensor.")
    if tuple(latents.shape) != shape:
        raise ValueError(f"latents must have shape {shape}, but have {tuple(latents.shape)}.")
    if not latents.isfinite().all():
        raise ValueError("latents must be finite, but some are NaN or infinite.")
