"""Peak memory of recording, saving, loading and fitting a zoo of random numbers, over the size of its matrix.

python benchmarks/memory.py --megabytes 800
python benchmarks/memory.py --zoos vit --stages save load fit
"""

from __future__ import annotations

import argparse
import math
import resource
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
from transformers import PreTrainedModel, ViTConfig, ViTForImageClassification

from pdiff_hf import CheckpointRecorder, Checkpoints, CheckpointSplit, fit, load_checkpoints, make_processor
from pdiff_hf.hub.cards import describe_hardware
from pdiff_hf.targets.networks import MLPConfig, MLPForImageClassification

TINY = (8, 16)  # a zoo that takes the memory of imports, threads and training alone
PEAK_UNIT = 1 if sys.platform == "darwin" else 1024  # bytes, of what `getrusage` returns


def zoo_shape(zoo: str, megabytes: float) -> tuple[int, int]:
    """Returns the number of checkpoints and of parameters of a zoo: 100 long ones, eight times as many as they have
    parameters, or six of a ViT-Base, whatever their size."""
    numbers = megabytes * 1e6 / 4
    if zoo == "vit":
        return 6, 86_567_656
    width = int(numbers / 100 if zoo == "long" else math.sqrt(numbers / 8))
    return int(numbers / width), width


def make_target(width: int) -> tuple[PreTrainedModel, str]:
    """Returns a network and the names of its tensors that have `width` numbers in all."""
    if width == zoo_shape("vit", 0)[1]:
        return ViTForImageClassification(ViTConfig(num_labels=1000)), "full"
    return MLPForImageClassification(MLPConfig(image_size=1, hidden_sizes=[width], num_labels=2)), "layers.0.bias"


def record(folder: str, count: int, width: int) -> None:
    """Records a zoo and saves it."""
    model, subset = make_target(width)
    recorder = CheckpointRecorder(model, subset)
    for step in range(count):
        with torch.no_grad():
            for name in recorder.processor.names:
                model.get_parameter(name).normal_()
        recorder.record(step)
    recorder.checkpoints().save(folder)


def save(folder: str, count: int, width: int) -> None:
    """Saves a zoo that is one matrix already."""
    model, subset = make_target(width)
    zoo = CheckpointSplit(torch.randn(count, width), run=["run-0"] * count, step=list(range(count)), seed=[0] * count)
    Checkpoints({"train": zoo}, make_processor(model, subset), model).save(folder)


def load(folder: str, count: int, width: int) -> None:
    """Loads a saved zoo."""
    assert load_checkpoints(folder).zoo.parameters.shape == (count, width)


def fit_saved(folder: str, count: int, width: int) -> None:
    """Loads a saved zoo and fits a generator to it."""
    fit(load_checkpoints(folder), "fast")


STAGES = {"record": record, "save": save, "load": load, "fit": fit_saved}


def peak(stage: str, folder: str, count: int, width: int) -> tuple[float, float]:
    """Returns the peak resident bytes of this process after one stage, and the seconds that it took."""
    started = time.perf_counter()
    STAGES[stage](folder, count, width)
    maximum = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return maximum * PEAK_UNIT, time.perf_counter() - started


def peak_of_child(stage: str, folder: str, count: int, width: int) -> tuple[float, float]:
    """Returns `peak` of a new process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(peak, stage, folder, count, width).result()


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=100, help="Size of the matrix, but for `vit`.")
    parser.add_argument("--zoos", nargs="+", choices=["long", "many", "vit"], default=["long", "many"])
    parser.add_argument("--stages", nargs="+", choices=list(STAGES), default=list(STAGES))
    arguments = parser.parse_args()

    print(f"on {describe_hardware()}; peaks less that of a zoo of {TINY[0]} x {TINY[1]}, over the size of the matrix")
    stages = [stage for stage in STAGES if stage in arguments.stages]
    with tempfile.TemporaryDirectory() as temporary:
        for zoo in arguments.zoos:
            count, width = zoo_shape(zoo, arguments.megabytes)
            print(f"{zoo}: {count} x {width}, {4e-6 * count * width:.0f} MB")
            for name, shape in (("tiny", TINY), (zoo, (count, width))):
                if not Path(temporary, name).exists() and not {"record", "save"} & set(stages):
                    peak_of_child("save", str(Path(temporary, name)), *shape)
            for stage in stages:
                imports, _ = peak_of_child(stage, str(Path(temporary, "tiny")), *TINY)
                maximum, seconds = peak_of_child(stage, str(Path(temporary, zoo)), count, width)
                print(f"  {stage}: {(maximum - imports) / (4 * count * width):.2f}, {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
