"""Trains a target network and collects its checkpoint zoo: one trajectory, or with `--num_runs` many runs.

accelerate launch training/collect_checkpoints.py --dataset_name digits --output_dir runs/digits/checkpoints
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from accelerate import Accelerator, InitProcessGroupKwargs
from transformers import HfArgumentParser

from pdiff_hf.folders import require_writable_folder
from pdiff_hf.settings import HubSettings, RunSettings
from pdiff_hf.zoo.checkpoints import Checkpoints
from pdiff_hf.zoo.runs import MultiRunSettings, collect_runs
from pdiff_hf.zoo.trajectory import CollectionSettings, collect, load_images_of, load_target


def main(argv: Sequence[str] | None = None) -> None:
    """Parses the flags and collects; processes share many runs, but a trajectory is recorded by the main one alone."""
    parser = HfArgumentParser((RunSettings, HubSettings, CollectionSettings, MultiRunSettings), description=__doc__)
    run, hub, settings, runs = parser.parse_args_into_dataclasses(argv, look_for_args_file=False)
    require_writable_folder(run.output_dir)
    accelerator = Accelerator(
        mixed_precision=run.mixed_precision, kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(days=2))]
    )
    if accelerator.is_main_process:
        hub.prepare_push(run.output_dir, "dataset")
    checkpoints: Checkpoints | None = None
    if runs.num_runs:
        images = load_images_of(settings)
        checkpoints = collect_runs(images, load_target(settings, images), settings, runs, run)
    elif accelerator.is_main_process:
        images = load_images_of(settings)
        checkpoints = collect(images, load_target(settings, images), settings, run)
    if checkpoints is not None and accelerator.is_main_process:
        checkpoints.save(run.output_dir)
        run.clear()
        hub.push(run.output_dir)
    accelerator.wait_for_everyone()
    if accelerator.is_local_main_process:
        run.clear()  # what other machines saved on disks of their own
    accelerator.end_training()


if __name__ == "__main__":
    main()
