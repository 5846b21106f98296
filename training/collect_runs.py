"""Trains many networks of one architecture and collects their last checkpoints; processes and jobs share the runs.

accelerate launch training/collect_runs.py --dataset_name digits --image_size 8 --model_type pdiff_mlp --subset full \\
    --output_dir runs/digits/checkpoints
"""

from __future__ import annotations

from collections.abc import Sequence

from pdiff_hf.settings import run_script
from pdiff_hf.zoo.collection_scripts import clearing_diverged, start_collection, summarize_zoo
from pdiff_hf.zoo.runs import collect_runs
from pdiff_hf.zoo.settings import MultiRunSettings, load_images_of, load_target


def main(argv: Sequence[str] | None = None) -> None:
    """Parses the flags and collects; every process trains a share of the runs, the main one writes the result."""
    run, hub, settings, accelerator = start_collection(MultiRunSettings, __doc__, argv)
    if accelerator.is_main_process:
        hub.prepare_push(run.output_dir, "dataset")
    images = load_images_of(settings)
    with clearing_diverged(run):
        checkpoints = collect_runs(images, load_target(settings, images), settings, run)
    if accelerator.is_main_process:
        checkpoints.save(run.output_dir)
        run.clear()
        print(summarize_zoo(checkpoints, run.output_dir))
        hub.push(run.output_dir)
    accelerator.wait_for_everyone()
    if accelerator.is_local_main_process:
        run.clear()  # what other machines saved on disks of their own
    accelerator.end_training()


if __name__ == "__main__":
    run_script(main)
