"""Trains a target network and records a trajectory of a few of its tensors as a checkpoint zoo.

accelerate launch training/collect_trajectory.py --dataset_name digits --output_dir runs/digits/checkpoints
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from accelerate import Accelerator, InitProcessGroupKwargs
from transformers import HfArgumentParser

from pdiff_hf.folders import require_writable_folder
from pdiff_hf.settings import HubSettings, RunSettings, run_script
from pdiff_hf.zoo.settings import TrajectorySettings, clearing_diverged, load_images_of, load_target, summarize_zoo
from pdiff_hf.zoo.trajectory import collect


def main(argv: Sequence[str] | None = None) -> None:
    """Parses the flags and collects, in the main process alone."""
    parser = HfArgumentParser((RunSettings, HubSettings, TrajectorySettings), description=__doc__)
    run, hub, settings = parser.parse_args_into_dataclasses(argv, look_for_args_file=False)
    require_writable_folder(run.output_dir)
    accelerator = Accelerator(
        mixed_precision=run.mixed_precision, kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(days=2))]
    )
    if accelerator.is_main_process:
        hub.prepare_push(run.output_dir, "dataset")
        images = load_images_of(settings)
        with clearing_diverged(run):
            checkpoints = collect(images, load_target(settings, images), settings, run)
        checkpoints.save(run.output_dir)
        run.clear()
        print(summarize_zoo(checkpoints, run.output_dir))
        hub.push(run.output_dir)
    accelerator.wait_for_everyone()
    accelerator.end_training()


if __name__ == "__main__":
    run_script(main)
