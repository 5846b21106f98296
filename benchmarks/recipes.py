"""Fits both recipes to one zoo in one run and times fitting and the sampling of 200 networks.

python benchmarks/recipes.py runs/flagship/checkpoints
"""

from __future__ import annotations

import argparse
import time

import torch

from pdiff_hf import fit, load_checkpoints
from pdiff_hf.hub.cards import describe_hardware


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoints")
    parser.add_argument("--num_models", type=int, default=200)
    arguments = parser.parse_args()
    checkpoints = load_checkpoints(arguments.checkpoints)
    print(f"on {describe_hardware()}: zoo {tuple(checkpoints.zoo.parameters.shape)}")

    fitting, sampling = {}, {}
    for recipe in ("fast", "paper"):
        started = time.perf_counter()
        pipe = fit(checkpoints, recipe)
        fitting[recipe] = time.perf_counter() - started
        pipe.set_progress_bar_config(disable=True)
        if recipe == "fast":
            pipe(2, output_type="pt")  # the first call of a process pays for starting threads
        started = time.perf_counter()
        pipe(arguments.num_models, generator=torch.Generator().manual_seed(0), output_type="pt")
        sampling[recipe] = time.perf_counter() - started
        print(f"{recipe}: fitting {fitting[recipe]:.1f} s, sampling {arguments.num_models} {sampling[recipe]:.3f} s")
    print(
        f"fast is {fitting['paper'] / fitting['fast']:.1f} times faster to fit and "
        f"{sampling['paper'] / sampling['fast']:.0f} times faster to sample"
    )


if __name__ == "__main__":
    main()
