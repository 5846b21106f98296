"""The audit: is it a generator, an average, or a copier? The rule is written down in `docs/audit.md`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedModel

from ..data.inputs import LabeledData, take_inputs
from ..models.linear_autoencoder import LinearParameterAutoencoder
from ..targets.processing_parameters import ParameterProcessor
from ..targets.statistics import OwnStatistics
from ..targets.symmetries import Symmetries
from .baselines import Autoencoder, gaussian_full, in_codes, swept_baselines
from .criteria import Evidence, criteria_of
from .evaluated import EvaluatedSet, evaluate_sets
from .evidence import disperses, novel, outliers, performs
from .measures import Criterion
from .reference import Networks, Reference
from .resemblance import BaselineFigures, baseline_figures, beyond_curve, distinguishable
from .verdict import decide

PROBE_IMAGES = 32
NULL = 200  # networks of the Gaussian null
ALIGNMENT_ROUNDS = 3
CODES = 8  # leading codes in which samples are compared with Gaussians and held-out checkpoints
GAUSSIANS = ("gaussian_full@", "gaussian_diagonal@", "gaussian_codes@")
SCALES = (0.85, 1.0, 1.15)  # of Gaussians that spread as much as real networks do


@dataclass(frozen=True)
class Audit:
    """The answer and its evidence."""

    verdict: str  # one of the keys of MEANINGS
    reason: str  # the figures that decided
    criteria: dict[str, Criterion]  # by name: passed, failed or undecided
    evidence: Evidence  # everything that was measured
    curve: list[BaselineFigures]  # of each baseline at each setting
    # Every set that was evaluated, by group and name: "real" (zoo, heldout), "further", "samples" by setting,
    # "baselines" by name and setting, and "null".
    networks: dict[str, dict[str, EvaluatedSet]]


class Auditor:
    """A zoo with held-out checkpoints and baselines, which samples of any number of generators are audited against.

    Args:
        zoo: `(N, D)` training checkpoints.
        heldout: `(H, D)` real checkpoints the generator never saw. Without them the zoo's leave-one-out stands in.
            Checkpoints that the zoo holds too do not count.
        runs: Run of each zoo member; without them novelty is not assessable.
        steps: Step of each zoo member; without them novelty is not assessable.
        heldout_runs: Run of each held-out checkpoint. Without them those of one run are found by their distance, if
            the zoo has several checkpoints of a run.
        heldout_steps: Step of each held-out checkpoint.
        model: The target network, in eval mode. Its configuration names the task.
        images: Validation images choose baselines' settings, test images are reported. Train images are used only to
            estimate the BatchNorm statistics of networks that have their own. Any labeled examples will do.
        autoencoder: The generator's, whose codes the Gaussian null is fitted in; by default all principal codes.
        num_baseline_models: Networks drawn from each baseline at each setting.

    Raises:
        ValueError: If there are fewer than two zoo members.
        LayoutError, NonFiniteParametersError: If vectors do not fit the layout or are not finite.
    """

    @torch.no_grad()
    def __init__(
        self,
        zoo: torch.Tensor,
        *,
        heldout: torch.Tensor | None = None,
        runs: Sequence[Any] | None = None,
        steps: Sequence[int] | None = None,
        heldout_runs: Sequence[Any] | None = None,
        heldout_steps: Sequence[int] | None = None,
        processor: ParameterProcessor,
        model: PreTrainedModel,
        images: LabeledData,
        autoencoder: Autoencoder | None = None,
        num_baseline_models: int = 50,
        seed: int = 0,
        progress: bool = False,
    ) -> None:
        if len(zoo) < 2:
            raise ValueError(f"An audit needs at least two zoo members, but there is {len(zoo)}.")
        self.processor, self.seed = processor, seed
        # 1. Alignment: what differs by a symmetry of the network alone is the same network.
        probe = take_inputs(images.inputs(images.validation), slice(PROBE_IMAGES))
        symmetries = Symmetries(model, processor, zoo[0], probe)
        aligned_zoo, align = align_to_zoo(symmetries, zoo)
        # 2. Baselines at all their settings, and the Gaussian null in the generator's codes.
        self._principal = LinearParameterAutoencoder.from_zoo(aligned_zoo, explained_variance=1.0)
        own = self._principal if autoencoder is None else autoencoder
        generator = torch.Generator().manual_seed(seed + 7)
        null = in_codes(aligned_zoo if autoencoder is None else zoo, NULL, generator, own, gaussian_full, scale=1.0)
        sources: dict[str, tuple[torch.Tensor, Autoencoder]] = {"": (zoo, own)}
        if symmetries.layers:
            raw_codes = LinearParameterAutoencoder.from_zoo(zoo) if autoencoder is None else autoencoder
            sources = {"raw/": (zoo, raw_codes), "": (aligned_zoo, self._principal)}
        swept = {}
        for prefix, (vectors, coder) in sources.items():
            for i, (name, draw) in enumerate(swept_baselines(vectors, processor.sizes, coder).items()):
                generator = torch.Generator().manual_seed(1000 * seed + i)
                swept[prefix + name] = draw(vectors, num_baseline_models, generator)
        # 3. Every set is evaluated by the same code; the best of the zoo by validation score are one more baseline.
        self.own_statistics = OwnStatistics(model, processor, images)
        self._evaluate = partial(evaluate_sets, own_statistics=self.own_statistics, progress=progress)
        groups = {
            "real": {"zoo": zoo} if heldout is None else {"zoo": zoo, "heldout": heldout},
            "baselines": swept,
            "null": {"null": null},
        }
        self.networks = self._evaluate(groups)
        members, baselines = self.networks["real"]["zoo"], self.networks["baselines"]
        best = members.scores["validation"].topk(max(2, len(zoo) // 10)).indices
        baselines["best_of_zoo"] = members.take(best)
        # 4. What is related, and independent, among zoo members and held-out checkpoints.
        self.chance = members.task.chance(len(images.label_names))
        self.reference = Reference(
            members,
            self.networks["real"].get("heldout"),
            symmetries,
            aligned_zoo,
            align,
            runs,
            steps,
            heldout_runs,
            heldout_steps,
        )
        self.curve = baseline_figures(baselines, self.reference)
        self._null = self._aligned(self.networks["null"]["null"])
        self._gaussians = {
            name: self._aligned(baselines[name])
            for name in (f"{prefix}{g}{scale:g}" for prefix in sources for g in GAUSSIANS for scale in SCALES)
        }

    @torch.no_grad()
    def audit(
        self,
        samples: torch.Tensor | dict[str, torch.Tensor],
        further: dict[str, torch.Tensor] | None = None,
        drop_broken: bool = False,
    ) -> Audit:
        """Audits samples.

        Args:
            samples: `(n, D)` unselected samples, or those of several settings of the generator by name, the first of
                which is the one that gets the verdict.
            further: Other sets `(n, D)` to be evaluated along, by name; they take no part in the answer.
            drop_broken: Leave out samples that are not finite, and count them as broken.

        Raises:
            ValueError: If there are fewer than two samples.
            LayoutError, NonFiniteParametersError: If vectors do not fit the layout or are not finite.
        """
        # 1. The first setting of the generator gets the verdict.
        settings, dropped = check_samples(samples, self.processor, drop_broken)
        shipped = next(iter(settings))
        networks = self._evaluate({"further": further or {}, "samples": settings})
        networks = {"real": self.networks["real"], **networks, **self.networks}
        sample = self.reference.joined(self._aligned(networks["samples"][shipped]))
        # 2. What single samples must not decide: up to a twentieth of outliers is counted, but not averaged.
        ratios = self.reference.ratios(sample, "weights")
        kept = ~outliers(sample, self.reference, self.chance, ratios)
        bulk = sample.take(kept.nonzero()[:, 0])
        # 3. The evidence, the criteria and the verdict.
        evidence = Evidence(
            performs(sample, self.reference, self.chance, kept, dropped),
            disperses(bulk, self.reference, self._leading_directions(), self.processor),
            novel(sample, self.reference, ratios, self.seed),
            distinguishable(bulk, self._null, self._gaussians, self.reference, self._leading_codes, self.seed),
            beyond_curve(sample.evaluated, self.curve, self.reference),
        )
        criteria = criteria_of(evidence)
        return Audit(*decide(evidence, criteria), criteria, evidence, self.curve, networks)

    def _aligned(self, networks: EvaluatedSet) -> Networks:
        return Networks(networks, self.reference.align(networks.parameters))

    def _leading_codes(self, aligned: torch.Tensor) -> torch.Tensor:
        """Returns leading principal codes of aligned vectors `(n, D)`, `(n, CODES)`, of variance 1 in the zoo."""
        return self._principal.encode(aligned).latents[:, :CODES]

    def _leading_directions(self) -> torch.Tensor:
        """Returns the fewest principal directions that hold half of the zoo's variance, `(D, k)`.

        What they were fitted to varies more along them than other networks do: without held-out checkpoints, every
        other zoo member is left out to be compared.
        """
        reference, fitted = self.reference, self._principal
        if reference.heldout is not reference.real:
            members = reference.zoo.aligned[::2]
            if len(members) > 2:
                fitted = LinearParameterAutoencoder.from_zoo(members, explained_variance=1.0)
        variance = fitted.latent_std.double() ** 2
        count = int((variance.cumsum(0) < variance.sum() / 2).sum()) + 1
        return fitted.components[:count].T


def audit(
    samples: torch.Tensor | dict[str, torch.Tensor],
    zoo: torch.Tensor,
    *,
    further: dict[str, torch.Tensor] | None = None,
    drop_broken: bool = False,
    **known: Any,
) -> Audit:
    """Audits samples of any generator against the zoo they were learned from.

    Takes the arguments of `Auditor.audit`, and by name those of `Auditor`, which serves several generators.
    """
    check_samples(samples, known["processor"], drop_broken)
    return Auditor(zoo, **known).audit(samples, further, drop_broken)


def check_samples(
    samples: torch.Tensor | dict[str, torch.Tensor], processor: ParameterProcessor, drop_broken: bool
) -> tuple[dict[str, torch.Tensor], int]:
    """Returns the samples of each setting, those that are not finite dropped, and how many the first one lost.

    Raises:
        ValueError: If there are fewer than two samples.
        LayoutError, NonFiniteParametersError: If vectors do not fit the layout, or are not finite and kept.
    """
    settings = samples if isinstance(samples, dict) else {"samples": samples}
    first, drawn = next(iter(settings.items()))
    if drop_broken:
        settings = {name: vectors[vectors.isfinite().all(1)] for name, vectors in settings.items()}
    dropped = len(drawn) - len(settings[first])
    if len(settings[first]) < 2:
        raise ValueError(
            f"An audit needs at least two samples, but there are {len(drawn)}, of which {dropped} are not finite."
        )
    for vectors in settings.values():
        processor.check(vectors)
    return settings, dropped


def align_to_zoo(
    symmetries: Symmetries, zoo: torch.Tensor
) -> tuple[torch.Tensor, Callable[[torch.Tensor], torch.Tensor]]:
    """Returns the zoo `(N, D)` aligned to its mean, and the function that aligns other vectors `(n, D)` to that."""
    if not symmetries.layers:
        return zoo, lambda vectors: vectors
    aligned, mean = symmetries.align_to_mean(symmetries.canonicalize(zoo), ALIGNMENT_ROUNDS)
    return aligned, lambda vectors: symmetries.align(symmetries.canonicalize(vectors), mean)
