"""Loading a pipeline in this fresh process, and drawing 200 networks against one.

python benchmarks/pipeline.py runs/demo/pipeline
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from pdiff_hf import PDiffPipeline, PDiffPipelineOutput
from pdiff_hf.hub.cards import describe_hardware


def seconds(function: Callable[[], object], repeats: int) -> float:
    """Returns the median time of a call, after one that does not count."""
    function()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        function()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pipeline")
    parser.add_argument("--repeats", type=int, default=9)
    arguments = parser.parse_args()

    started = time.perf_counter()
    pipe = PDiffPipeline.from_pretrained(arguments.pipeline)
    out = pipe(num_models=10, generator=torch.Generator().manual_seed(0))
    assert isinstance(out, PDiffPipelineOutput)
    assert out.models is not None
    networks = list(out.models)
    first = time.perf_counter() - started
    config = networks[0].config
    size = pipe.config.image_processor_config["size"]["height"]
    logits = networks[3](torch.zeros(2, config.num_channels, size, size)).logits
    print(f"on {describe_hardware()}")
    print(f"load, draw and build 10 networks in a fresh process: {first:.2f} s after imports; logits {logits.shape}")

    pipe.set_progress_bar_config(disable=True)
    one = seconds(lambda: pipe(1, output_type="pt"), arguments.repeats)
    many = seconds(lambda: pipe(200, output_type="pt"), arguments.repeats)
    print(f"1 network {1000 * one:.1f} ms, 200 networks {1000 * many:.1f} ms: ratio {many / one:.2f}")


if __name__ == "__main__":
    main()
