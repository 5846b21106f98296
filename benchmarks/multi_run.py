"""Multi-run zoos: how long they take and how good the runs are.

    ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes 2 benchmarks/multi_run.py
    (the same) --case mnist --dataset_name path/or/id --num_runs 1000

Settings were chosen on validation images; test images are read here alone.
"""

from __future__ import annotations

import argparse
import os
import time

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from pdiff_hf import MultiRunSettings, collect_runs, network_predictions
from pdiff_hf.zoo.settings import load_images_of, load_target

CASES = {
    "digits": MultiRunSettings(
        image_size=8,
        model_config='{"hidden_sizes": [32]}',
        target_train_steps=500,
        target_learning_rate=0.01,
        adam_weight_decay=1.0,
    ),
    "mnist": MultiRunSettings(
        image_size=28,
        model_config='{"hidden_sizes": [32, 32]}',
        target_train_steps=1055,  # two and a half times through 54,000 images
        target_learning_rate=0.01,
        adam_weight_decay=0.1,
        train_batch_size=128,
    ),
}


def main() -> None:
    """Prints one row of a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=CASES, default="digits")
    parser.add_argument("--dataset_name", default="digits")
    parser.add_argument("--num_runs", type=int, default=300)
    parser.add_argument("--runs_per_group", type=int, default=MultiRunSettings.runs_per_group)
    parser.add_argument("--canonicalize", action="store_true")
    arguments = parser.parse_args()

    settings = CASES[arguments.case]
    settings.dataset_name, settings.model_type, settings.subset = arguments.dataset_name, "pdiff_mlp", ["full"]
    settings.num_runs, settings.num_validation_runs, settings.num_test_runs = arguments.num_runs, 0, 0
    settings.runs_per_group, settings.canonicalize = arguments.runs_per_group, arguments.canonicalize
    accelerator = Accelerator()
    images = load_images_of(settings)
    model = load_target(settings, images)
    accelerator.wait_for_everyone()
    wall, processor_time = time.perf_counter(), time.process_time()
    checkpoints = collect_runs(images, model, settings)
    seconds = time.perf_counter() - wall
    spent = sum(gather_object([time.process_time() - processor_time]))
    if accelerator.is_main_process:
        test = images.test
        pixel_values = images.preprocessing(test.pixels)
        predicted, _ = network_predictions(
            model, checkpoints.processor, checkpoints.zoo.parameters, pixel_values, test.labels
        )
        accuracy = 100 * (predicted == test.labels).float().mean(1)
        print(
            "| case | runs | D | processes x threads | load before | wall s | processor s | ms a run | test accuracy |"
        )
        print("|---|---|---|---|---|---|---|---|---|")
        cells = [
            arguments.case,
            len(checkpoints.zoo),
            checkpoints.processor.parameter_dim,
            f"{accelerator.num_processes} x {torch.get_num_threads()}",
            f"{os.getloadavg()[0]:.1f}",
            f"{seconds:.1f}",
            f"{spent:.1f}",
            f"{1000 * seconds / len(checkpoints.zoo):.0f}",
            f"{accuracy.mean():.2f} ± {accuracy.std():.2f} ({accuracy.min():.2f} to {accuracy.max():.2f})",
        ]
        print("| " + " | ".join(map(str, cells)) + " |")
    accelerator.end_training()


if __name__ == "__main__":
    main()
