"""Takes an architecture of the paper at full size, with random weights, through the whole way: seconds and memory.

python benchmarks/families.py resnet50 vit-base convnext-base
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time

import torch

from pdiff_hf import PDiffPipeline, PDiffPipelineOutput, TrajectorySettings, collect, fit
from pdiff_hf.evaluation import evaluate
from pdiff_hf.hub.cards import describe_hardware
from pdiff_hf.zoo.settings import load_images_of, load_target


def main() -> None:
    """Prints one line per step and architecture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("architectures", nargs="+")
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--max_eval_images", type=int, default=4)
    arguments = parser.parse_args()
    print(f"on {describe_hardware()}; random weights, 20 checkpoints, {arguments.max_eval_images} test images")
    for architecture in arguments.architectures:
        run(architecture, arguments.image_size, arguments.max_eval_images)


def run(architecture: str, image_size: int, max_eval_images: int) -> None:
    """Collects 20 checkpoints, fits, draws four networks, evaluates, saves and loads."""
    settings = TrajectorySettings(
        dataset_name="digits",
        image_size=image_size,
        architecture=architecture,
        target_train_steps=2,
        train_batch_size=4,
        burn_in_steps=0,
        num_checkpoints=20,
        num_validation_checkpoints=2,
        num_test_checkpoints=4,
        num_blocks=2,
        gap=0,
        num_branches=0,
        max_train_images=64,
        max_eval_images=max_eval_images,
    )
    images = load_images_of(settings)
    started = time.perf_counter()
    checkpoints = collect(images, load_target(settings, images), settings)
    size = checkpoints.target_model.num_parameters()
    report(architecture, f"collect ({size:,} parameters, {checkpoints.processor.parameter_dim:,} generated)", started)

    started = time.perf_counter()
    pipe = fit(checkpoints, "fast")
    report(architecture, "fit", started)

    started = time.perf_counter()
    out = pipe(4, generator=torch.Generator().manual_seed(0))
    assert isinstance(out, PDiffPipelineOutput)
    assert out.models is not None
    out.models.build(3)
    report(architecture, "draw 4 and build one", started)

    started = time.perf_counter()
    evaluate(pipe, checkpoints, images, num_models=4, num_baseline_models=4)
    report(architecture, "evaluate", started)

    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        pipe.save_pretrained(folder)
        PDiffPipeline.from_pretrained(folder)
    report(architecture, "save and load", started)


def report(architecture: str, step: str, started: float) -> None:
    """Prints a line."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"{architecture}: {step}: {time.perf_counter() - started:.1f} s, peak memory so far {peak:.2f} GiB", flush=True
    )


if __name__ == "__main__":
    main()
