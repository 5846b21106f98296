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
from .baselines import Autoencoder, gaussian_codes, swept_baselines
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
from .evaluated import EvaluatedSet, References, Zoo, evaluate_sets, run_numbers
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
        runs: Run of each zoo member; without runs and steps novelty is not assessable.
        steps: Step of each zoo member.
        heldout_runs: Run of each held-out checkpoint.
        heldout_steps: Step of each held-out checkpoint.
        processor: The layout.
        model: The target network, in eval mode. Its configuration names the task.
        images: Validation images choose baselines' settings, test images are reported. Any labeled examples will do.
        autoencoder: The generator's, whose codes the Gaussian null is fitted in; by default all principal codes.
        num_baseline_models: Networks drawn from each baseline at each setting.
        further: Other sets `(n, D)` to be evaluated along, by name; they take no part in the answer.
        seed: Random seed for baselines and resampling.
        progress: Show progress bars.

    Raises:
        ValueError: If there are fewer than two samples or zoo members.
        LayoutError, NonFiniteParametersError: If vectors do not fit the layout or are not finite.
    """
    # 1. The first setting of the generator gets the verdict.
    settings = samples if isinstance(samples, dict) else {"samples": samples}
    shipped = next(iter(settings))
    drawn = settings[shipped]
    if len(drawn) < 2 or len(zoo) < 2:
        raise ValueError(
            f"An audit needs at least two samples and two zoo members, but there are {len(drawn)} and {len(zoo)}."
        )
    # 2. Alignment: what differs by a symmetry of the network alone is the same network.
    probe = take_inputs(images.inputs(images.validation), slice(PROBE_IMAGES))
    symmetries = Symmetries(model, processor, zoo[0], probe)
    aligned_zoo, align = align_to_zoo(symmetries, zoo)
    aligned = align(drawn)
    # 3. Baselines at all their settings, and the Gaussian null.
    principal = LinearParameterAutoencoder.from_zoo(aligned_zoo, explained_variance=1.0)
    generator = torch.Generator().manual_seed(seed + 7)
    if autoencoder is None:
        null, codes = gaussian_null(aligned, aligned_zoo, principal, align, generator)
    else:
        null, codes = gaussian_null(drawn, zoo, autoencoder, lambda vectors: vectors, generator)
    if symmetries.layers:
        raw_codes = LinearParameterAutoencoder.from_zoo(zoo) if autoencoder is None else autoencoder
        sources = {"raw/": (zoo, raw_codes), "": (aligned_zoo, principal)}
    else:
        sources = {"": (zoo, principal if autoencoder is None else autoencoder)}
    # 4. Every set is evaluated by the same code; the best of the zoo by validation score are one more baseline.
    groups = {
        "real": {"zoo": zoo} if heldout is None else {"zoo": zoo, "heldout": heldout},
        "further": further or {},
        "samples": settings,
        "baselines": draw_baselines(sources, processor, num_baseline_models, seed),
        "null": {"null": null},
    }
    networks = evaluate_sets(groups, model, processor, images, progress)
    members, sample, baselines = networks["real"]["zoo"], networks["samples"][shipped], networks["baselines"]
    best = members.scores["validation"].topk(max(2, len(zoo) // 10)).indices
    baselines["best_of_zoo"] = members.take(best)
    # 5. What is independent in the zoo and the held-out checkpoints, and resampled for intervals.
    known = describe_zoo(members, aligned_zoo, runs, steps)
    references = describe_references(known, networks["real"].get("heldout"), heldout_runs, heldout_steps)
    # 6. The criteria.
    assessable = runs is not None and (len(set(runs)) > 1 or steps is not None)
    curve, outside = beyond_curve(list(networks["samples"].values()), baselines, known, references)
    criteria = Criteria(
        performs(sample, known, members.task.chance(len(images.label_names))),
        disperses(sample, aligned, known, references, processor),
        novel(sample, known, references, symmetries) if assessable else NotAssessable(UNKNOWN),
        distinguishable(sample, networks["null"]["null"], codes, references.heldout, seed),
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


@torch.no_grad()
def gaussian_null(
    samples: torch.Tensor,
    zoo: torch.Tensor,
    autoencoder: Autoencoder,
    align: Callable[[torch.Tensor], torch.Tensor],
    generator: torch.Generator,
) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
    """Draws as many networks `(n, D)` from a Gaussian in the codes of the zoo; also returns the codes of both."""
    null = gaussian_codes(zoo, len(samples), generator, autoencoder)
    encoded = [autoencoder.encode(vectors.to(autoencoder.device)) for vectors in (samples, align(null))]
    return null, (encoded[0].latents.cpu(), encoded[1].latents.cpu())


def draw_baselines(
    sources: dict[str, tuple[torch.Tensor, Autoencoder]], processor: ParameterProcessor, count: int, seed: int
) -> dict[str, torch.Tensor]:
    """Draws `(count, D)` from every baseline at every setting, for each zoo with its codes; keys begin the names."""
    drawn = {}
    for prefix, (zoo, codes) in sources.items():
        for i, baseline in enumerate(swept_baselines(zoo, processor.sizes, codes)):
            name = replace(baseline, family=prefix + baseline.family).name
            drawn[name] = baseline.sample(zoo, count, torch.Generator().manual_seed(1000 * seed + i))
    return drawn


def describe_zoo(
    members: EvaluatedSet, aligned: torch.Tensor, runs: Sequence[Any] | None, steps: Sequence[int] | None
) -> Zoo:
    """Returns the zoo with its resampling units; of a single trajectory, blocks as long as its correlation."""
    run = run_numbers(runs, len(members))
    step = torch.arange(len(members)) if steps is None else torch.as_tensor(steps)
    length = None
    if len(run.unique()) == 1 and steps is not None:
        wrong = members.wrong["validation"]
        length = correlation_length(iou(wrong, wrong), step)
    members = replace(members, units=resampling_units(run, step, length))
    return Zoo(members, aligned, run, step, length)


def describe_references(
    zoo: Zoo, heldout: EvaluatedSet | None, runs: Sequence[Any] | None, steps: Sequence[int] | None
) -> References:
    """Returns the held-out checkpoints with their resampling units, and what stands in if they are too few."""
    if heldout is not None:
        step = torch.arange(len(heldout)) if steps is None else torch.as_tensor(steps)
        heldout = replace(heldout, units=resampling_units(run_numbers(runs, len(heldout)), step, zoo.length))
    return References(heldout if heldout is not None and len(heldout) > 1 else zoo.networks, heldout)
