"""What the collecting scripts have in common around a collection: their flags and processes, and what they print."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from statistics import fmean
from typing import TypeVar

from accelerate import Accelerator, InitProcessGroupKwargs
from transformers import HfArgumentParser

from ..folders import require_writable_folder
from ..settings import HubSettings, RunSettings
from ..targets.processing_parameters import NonFiniteParametersError
from ..targets.task import task_of
from .checkpoints import Checkpoints
from .settings import CollectionSettings

Settings = TypeVar("Settings", bound=CollectionSettings)


def start_collection(
    kind: type[Settings], description: str | None, argv: Sequence[str] | None
) -> tuple[RunSettings, HubSettings, Settings, Accelerator]:
    """Parses the flags of a collecting script, and connects its processes, which may wait for each other for days.

    Raises:
        UnwritableFolderError: If the output folder cannot be written.
    """
    parser = HfArgumentParser((RunSettings, HubSettings, kind), description=description)
    run, hub, settings = parser.parse_args_into_dataclasses(argv, look_for_args_file=False)
    require_writable_folder(run.output_dir)
    timeout = InitProcessGroupKwargs(timeout=timedelta(days=2))
    return run, hub, settings, Accelerator(mixed_precision=run.mixed_precision, kwargs_handlers=[timeout])


@contextmanager
def clearing_diverged(run: RunSettings) -> Iterator[None]:
    """Removes the saved states if a training in the block diverges: they would be in the way of a corrected one."""
    try:
        yield
    except NonFiniteParametersError:
        run.clear()
        raise


def summarize_zoo(checkpoints: Checkpoints, folder: str) -> str:
    """Returns how many checkpoints were written to a folder, their mean validation score, and what to do next."""
    scores = checkpoints.zoo.validation_score or []
    mean = f"; mean {task_of(checkpoints.target_model.config).score_name} {100 * fmean(scores):.2f}" if scores else ""
    return (
        f"{len(checkpoints.zoo)} checkpoints of {checkpoints.processor.parameter_dim} parameters to fit{mean}\n"
        f"Written: {folder}\n"
        f"Next: accelerate launch training/train_autoencoder.py --checkpoints {folder} --output_dir …"
    )


def summarize_import(checkpoints: Checkpoints, folder: str) -> str:
    """Returns what an import has made: networks, runs, splits and layout, what was left out, and what to do next."""
    imported, layout = checkpoints.collection["imported"], checkpoints.processor
    splits = {name: rows for name, rows in checkpoints.splits.items() if len(rows)}
    counts = ", ".join(f"{name} {len(rows)} of {len(set(rows.run))} runs" for name, rows in splits.items())
    lines = [
        f"Imported {sum(map(len, splits.values()))} of {imported['files']} networks: {counts}",
        f"Layout: {len(layout.names)} tensors of {type(checkpoints.target_model).__name__}, from {layout.names[0]} to "
        f"{layout.names[-1]}",
    ]
    if layout.statistics:
        lines.append(f"Each network has BatchNorm statistics of its own in {len(layout.statistics)} layers")
    lines += [f"Left out: {name}: {reason}" for name, reason in imported["left_out"].items()]
    if imported.get("at_chance"):
        lines.append(
            "Warning: half of the networks or more do no better than chance on these images. Their preprocessing, the "
            "numbers of their classes or the architecture are probably not those that they were trained with."
        )
    return "\n".join([*lines, summarize_zoo(checkpoints, folder)])
