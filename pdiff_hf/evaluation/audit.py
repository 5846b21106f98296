"""The audit: is it a generator, an average, or a copier? The rule is written down in `docs/audit.md`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import PreTrainedModel

from ..data.inputs import LabeledData, take_inputs
from ..models.linear_autoencoder import LinearParameterAutoencoder
from ..targets.processing_parameters import ParameterProcessor
from ..targets.symmetries import Symmetries
from .baselines import Autoencoder, gaussian_full, in_codes, swept_baselines
from .criteria import (
    BaselineFigures,
    Criteria,
    NotAssessable,
    beyond_curve,
    disperses,
    distinguishable,
    novel,
    performs,
)
from .evaluated import EvaluatedSet, Zoo, evaluate_sets, place_in_time
from .intervals import resampling_units
from .metrics import iou
from .novelty import correlation_length
from .verdict import decide

PROBE_IMAGES = 32
ALIGNMENT_ROUNDS = 3
UNKNOWN = "runs and steps of the zoo are not known"


@dataclass(frozen=True)
class Audit:
    """The answer and its evidence."""

    verdict: str  # one of the keys of MEANINGS
    reason: str  # the figures that decided
    criteria: Criteria
    curve: list[BaselineFigures]  # of each baseline at each setting
    # Every set that was evaluated, by group and name: "real" (zoo, heldout), "further", "samples" by setting,
    # "baselines" by name and setting, and "null".
    networks: dict[str, dict[str, EvaluatedSet]]


@torch.no_grad()
def audit(
    samples: torch.Tensor | dict[str, torch.Tensor],
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
    further: dict[str, torch.Tensor] | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Audit:
    """Audits samples of any generator against the zoo they were learned from.

    Args:
        samples: `(n, D)` unselected samples, or those of several settings of the generator by name, the first of
            which is the one that gets the verdict.
        zoo: `(N, D)` training checkpoints.
        heldout: `(H, D)` real checkpoints the generator never saw. Without them the zoo's leave-one-out stands in.
        runs, steps: Run and step of each zoo member; without them novelty is not assessable.
        heldout_runs, heldout_steps: Run and step of each held-out checkpoint.
        model: The target network, in eval mode. Its configuration names the task.
        images: Validation images choose baselines' settings, test images are reported. Any labeled examples will do.
        autoencoder: The generator's, whose codes the Gaussian null is fitted in; by default all principal codes.
        num_baseline_models: Networks drawn from each baseline at each setting.
        further: Other sets `(n, D)` to be evaluated along, by name; they take no part in the answer.

    Raises:
        ValueError: If there are fewer than two samples or zoo members.
        LayoutError, NonFiniteParametersError: If vectors do not fit the layout or are not finite.
    """
    # 1. The first setting of the generator gets the verdict.
    settings = samples if isinstance(samples, dict) else {"samples": samples}
    shipped, drawn = next(iter(settings.items()))
    if len(drawn) < 2 or len(zoo) < 2:
        raise ValueError(
            f"An audit needs at least two samples and two zoo members, but there are {len(drawn)} and {len(zoo)}."
        )
    # 2. Alignment: what differs by a symmetry of the network alone is the same network.
    probe = take_inputs(images.inputs(images.validation), slice(PROBE_IMAGES))
    symmetries = Symmetries(model, processor, zoo[0], probe)
    aligned_zoo, align = align_to_zoo(symmetries, zoo)
    aligned = align(drawn)
    # 3. Baselines at all their settings, and the Gaussian null with the codes that samples and null are compared in.
    principal = LinearParameterAutoencoder.from_zoo(aligned_zoo, explained_variance=1.0)
    own = principal if autoencoder is None else autoencoder
    generator = torch.Generator().manual_seed(seed + 7)
    null = in_codes(aligned_zoo if autoencoder is None else zoo, len(drawn), generator, own, gaussian_full, scale=1.0)
    compared = (aligned, align(null)) if autoencoder is None else (drawn, null)
    codes = [own.encode(vectors.to(own.device)).latents.cpu() for vectors in compared]
    sources: dict[str, tuple[torch.Tensor, Autoencoder]] = {"": (zoo, own)}
    if symmetries.layers:
        raw_codes = LinearParameterAutoencoder.from_zoo(zoo) if autoencoder is None else autoencoder
        sources = {"raw/": (zoo, raw_codes), "": (aligned_zoo, principal)}
    swept = {}
    for prefix, (vectors, coder) in sources.items():
        for i, (name, draw) in enumerate(swept_baselines(vectors, processor.sizes, coder).items()):
            generator = torch.Generator().manual_seed(1000 * seed + i)
            swept[prefix + name] = draw(vectors, num_baseline_models, generator)
    # 4. Every set is evaluated by the same code; the best of the zoo by validation score are one more baseline.
    groups = {
        "real": {"zoo": zoo} if heldout is None else {"zoo": zoo, "heldout": heldout},
        "further": further or {},
        "samples": settings,
        "baselines": swept,
        "null": {"null": null},
    }
    networks = evaluate_sets(groups, model, processor, images, progress)
    members, sample, baselines = networks["real"]["zoo"], networks["samples"][shipped], networks["baselines"]
    baselines["best_of_zoo"] = members.take(members.scores["validation"].topk(max(2, len(zoo) // 10)).indices)
    # 5. What is independent in the zoo and the held-out checkpoints, and resampled for intervals.
    known = describe_zoo(networks["real"], aligned_zoo, runs, steps, heldout_runs, heldout_steps)
    # 6. The criteria.
    assessable = runs is not None and (len(set(runs)) > 1 or steps is not None)
    curve, outside = beyond_curve(list(networks["samples"].values()), baselines, known)
    criteria = Criteria(
        performs(sample, known, members.task.chance(len(images.label_names))),
        disperses(sample, aligned, known, processor),
        novel(sample, known, symmetries) if assessable else NotAssessable(UNKNOWN),
        distinguishable(sample, networks["null"]["null"], codes, known.heldout, seed),
        outside,
    )
    # 7. The verdict.
    return Audit(*decide(criteria), criteria, curve, networks)


def align_to_zoo(
    symmetries: Symmetries, zoo: torch.Tensor
) -> tuple[torch.Tensor, Callable[[torch.Tensor], torch.Tensor]]:
    """Returns the zoo `(N, D)` aligned to its mean, and the function that aligns other vectors `(n, D)` to that."""
    if not symmetries.layers:
        return zoo, lambda vectors: vectors
    aligned, mean = symmetries.align_to_mean(symmetries.canonicalize(zoo), ALIGNMENT_ROUNDS)
    return aligned, lambda vectors: symmetries.align(symmetries.canonicalize(vectors), mean)


def describe_zoo(
    networks: dict[str, EvaluatedSet],
    aligned: torch.Tensor,
    runs: Sequence[Any] | None,
    steps: Sequence[int] | None,
    heldout_runs: Sequence[Any] | None,
    heldout_steps: Sequence[int] | None,
) -> Zoo:
    """Returns zoo and held-out checkpoints with their resampling units; of one trajectory, its correlated blocks."""
    members, heldout = networks["zoo"], networks.get("heldout")
    (run, step), length = place_in_time(runs, steps, len(members)), None
    if len(run.unique()) == 1 and steps is not None:
        wrong = members.wrong["validation"]
        length = correlation_length(iou(wrong, wrong), step)
    members = replace(members, units=resampling_units(run, step, length))
    if heldout is not None:
        units = resampling_units(*place_in_time(heldout_runs, heldout_steps, len(heldout)), length)
        heldout = replace(heldout, units=units)
    return Zoo(members, aligned, run, step, length, heldout)
