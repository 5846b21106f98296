"""Trains a target network and records a trajectory of a few of its tensors as a checkpoint zoo.

accelerate launch training/collect_trajectory.py --dataset_name digits --output_dir runs/digits/checkpoints
"""

from __future__ import annotations

from collections.abc import Sequence

from pdiff_hf.settings import run_script
from pdiff_hf.zoo.collection_scripts import clearing_diverged, start_collection, summarize_zoo
from pdiff_hf.zoo.settings import TrajectorySettings, load_images_of, load_target
from pdiff_hf.zoo.trajectory import collect


def main(argv: Sequence[str] | None = None) -> None:
    """Parses the flags and collects, in the main process alone."""
    run, hub, settings, accelerator = start_collection(TrajectorySettings, __doc__, argv)
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
