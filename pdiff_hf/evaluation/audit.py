"""The audit: is it a generator, an average, or a copier? The rule is written down in `docs/audit.md`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedModel

from ..data.inputs import LabeledData, take_inputs
from ..models.linear_autoencoder import LinearParameterAutoencoder
from ..targets.processing_parameters import ParameterProcessor
from ..targets.symmetries import Symmetries
from .baselines import Autoencoder, gaussian_codes, swept_baselines
from .criteria import Judged, align_to_zoo, disperses, distinguishable, judge, novel, outside_the_curve, performs
from .intervals import resampling_units
from .metrics import iou
from .novelty import correlation_length

BROKEN = 0.5  # of what the zoo does above chance
COPY = 0.5  # of the natural distance between zoo members
NEARER = 0.25  # chance of being further from the zoo than a held-out checkpoint
AVERAGER = 0.8  # of the zoo's spread, or of held-out checkpoints' disagreement
PROBE_IMAGES = 32


@dataclass
class Audit:
    """The answer and its evidence.

    Args:
        verdict: One of broken, copier, averager, beyond the curve, Gaussian-equivalent, faithful, inconclusive, not
            assessable.
        reason: The figures that decided.
        axes: For each of performs, disperses, novel, distinguishable and outside_the_curve its evidence (JSON types).
        curve: Each baseline setting with its figures, for the picture.
        judged: Every set that was evaluated: `zoo`, `heldout`, `samples/…`, `baselines/…` and the further ones.
    """

    verdict: str
    reason: str
    axes: dict[str, dict[str, Any]]
    curve: list[dict[str, Any]] = field(default_factory=list)
    judged: dict[str, Judged] = field(default_factory=dict)


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
        samples: `(n, D)` unselected samples, or several settings of the generator's knob by name, the first of which
            is the one that is judged.
        zoo: `(N, D)` training checkpoints.
        heldout: `(H, D)` real checkpoints the generator never saw. Without them the zoo's leave-one-out stands in.
        runs: Run of each zoo member; without runs and steps novelty is not assessable.
        steps: Step of each zoo member.
        heldout_runs: Run of each held-out checkpoint.
        heldout_steps: Step of each held-out checkpoint.
        processor: The layout.
        model: The target network, in eval mode.
        images: Validation images choose baselines' knobs, test images are reported. Any labeled examples will do.
        autoencoder: The generator's, whose codes the Gaussian null is fitted in; by default all principal codes.
        num_baseline_models: Networks drawn from each baseline at each setting.
        further: Other sets `(n, D)` to be evaluated along, by name; they take no part in the answer.
        seed: Decides baselines and resampling.
        progress: Show progress bars.

    Returns:
        The answer with its evidence.

    Raises:
        ValueError: If there are fewer than two samples or zoo members.
        LayoutError, NonFiniteParametersError: If vectors do not fit the layout or are not finite.
    """
    settings = samples if isinstance(samples, dict) else {"samples": samples}
    judged_samples = next(iter(settings))
    if len(settings[judged_samples]) < 2 or len(zoo) < 2:
        raise ValueError(
            "An audit needs at least two samples and two zoo members, but there are "
            f"{len(settings[judged_samples])} and {len(zoo)}."
        )
    probe = take_inputs(images.inputs(images.validation), slice(PROBE_IMAGES))
    symmetries = Symmetries(model, processor, zoo[0], probe)
    aligned, aligned_zoo = align_to_zoo(symmetries, settings[judged_samples], zoo)
    whole = LinearParameterAutoencoder.from_zoo(aligned_zoo, explained_variance=1.0)
    if autoencoder is None:
        autoencoder, null_zoo, coded = whole, aligned_zoo, aligned
    else:
        null_zoo, coded = zoo, settings[judged_samples]
    null = gaussian_codes(null_zoo, len(coded), torch.Generator().manual_seed(seed + 7), autoencoder)
    coded_null = align_to_zoo(symmetries, null, zoo)[0] if coded is aligned else null
    sources = {"": (zoo, autoencoder if null_zoo is zoo else LinearParameterAutoencoder.from_zoo(zoo))}
    if symmetries.layers:
        sources = {"raw/": sources[""], "": (aligned_zoo, whole)}
    sets = {"zoo": zoo, **({} if heldout is None else {"heldout": heldout}), **(further or {})}
    sets |= {f"samples/{name}": vectors for name, vectors in settings.items()}
    for prefix, (source, codes) in sources.items():
        for i, baseline in enumerate(swept_baselines(source, processor.sizes, codes)):
            generator = torch.Generator().manual_seed(1000 * seed + i)
            sets[f"baselines/{prefix}{baseline.name}"] = baseline.sample(source, num_baseline_models, generator)
    sets["null"] = null
    judged = judge(sets, processor, model, images, progress)
    best = judged["zoo"].accuracy["validation"].topk(max(2, len(zoo) // 10)).indices
    judged["baselines/best_of_zoo"] = judged["zoo"].take(best)
    sample, reference = judged[f"samples/{judged_samples}"], judged["zoo"]

    assessable = runs is not None and (len(set(runs)) > 1 or steps is not None)
    run = _numbers(runs, len(zoo))
    step = torch.arange(len(zoo)) if steps is None else torch.as_tensor(steps)
    length = None
    if len(run.unique()) == 1 and steps is not None:
        wrong = judged["zoo"].predicted["validation"] != images.validation.labels
        length = correlation_length(iou(wrong, wrong), step)
    zoo_units = resampling_units(run, step, length)
    heldout_units = reference_units = zoo_units
    if heldout is not None:
        held_run = _numbers(heldout_runs, len(heldout))
        held_step = torch.arange(len(heldout)) if heldout_steps is None else torch.as_tensor(heldout_steps)
        heldout_units = resampling_units(held_run, held_step, length)
        if len(heldout) > 1:
            reference, reference_units = judged["heldout"], heldout_units

    axes = {
        "performs": performs(sample, judged["zoo"], zoo_units, len(images.label_names)),
        "disperses": disperses(sample, aligned, aligned_zoo, reference, zoo_units, reference_units, processor),
        "novel": (
            novel(
                sample, judged["zoo"], judged.get("heldout"), run, step, length, zoo_units, heldout_units, symmetries
            )
            if assessable
            else {"assessable": False, "reason": "runs and steps of the zoo are not known"}
        ),
        "distinguishable": distinguishable(
            sample, judged["null"], judged.get("heldout"), coded, coded_null, autoencoder, seed
        ),
    }
    curve, axes["outside_the_curve"] = outside_the_curve(
        [judged[f"samples/{name}"] for name in settings],
        {name.removeprefix("baselines/"): rows for name, rows in judged.items() if name.startswith("baselines/")},
        judged["zoo"],
        reference,
        zoo_units,
    )
    return Audit(*_verdict(axes), axes, curve, judged)


def _numbers(names: Sequence[Any] | None, count: int) -> torch.Tensor:
    if names is None:
        return torch.zeros(count, dtype=torch.long)
    known = {name: i for i, name in enumerate(dict.fromkeys(names))}
    return torch.tensor([known[name] for name in names])


def _verdict(axes: dict[str, dict[str, Any]]) -> tuple[str, str]:
    """The one word, by the precedence of `docs/audit.md`, and what decided."""
    share = axes["performs"]["share_above_chance"]
    r, f = axes["disperses"]["R"], axes["disperses"]["F"]
    if share["high"] < BROKEN:
        return "broken", f"share above chance {_shown(share)}"
    if share["low"] < BROKEN:
        return "inconclusive", f"share above chance {_shown(share)} straddles {BROKEN:g}"
    averager = r["high"] < AVERAGER or f["high"] < AVERAGER
    novel = axes["novel"]
    if novel["assessable"]:
        ratio, auc = novel["weights"]["r"], novel["weights"]["auc"]
        if ratio["high"] < COPY:
            return "copier", f"r = {_shown(ratio)}"
        if not averager and auc["high"] < NEARER and ratio["high"] < 1:
            return "copier", f"AUC = {_shown(auc)} and r = {_shown(ratio)}"
        if ratio["low"] < COPY:
            return "inconclusive", f"r = {_shown(ratio)} straddles {COPY:g}"
    if averager:
        return "averager", f"R = {_shown(r)}, F = {_shown(f)}"
    for name, value in (("R", r), ("F", f)):
        if value["low"] < AVERAGER:
            return "inconclusive", f"{name} = {_shown(value)} straddles {AVERAGER:g}"
    if not novel["assessable"]:
        return "not assessable", novel["reason"]
    area = axes["outside_the_curve"]["area"]
    if area["low"] > 0:
        return "beyond the curve", f"gain over the curve {_shown(area)}"
    p_value = f"p = {axes['distinguishable']['energy_p_value']:.3f}"
    return ("faithful" if axes["distinguishable"]["answer"] else "Gaussian-equivalent"), p_value


def _shown(value: dict[str, float]) -> str:
    return f"{value['value']:.2f} [{value['low']:.2f}, {value['high']:.2f}]"
