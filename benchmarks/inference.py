"""Logits of 200 ResNet-18s that differ in their last two norms: together, against one full forward pass after another.

python benchmarks/inference.py
"""

from __future__ import annotations

import argparse
import resource
import time

import torch
from transformers import ResNetConfig, ResNetForImageClassification

from pdiff_hf import build_network, make_processor, network_predictions
from pdiff_hf.evaluation import iou
from pdiff_hf.hub.cards import describe_hardware


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num_models", type=int, default=200)
    parser.add_argument("--num_images", type=int, default=1000)
    parser.add_argument("--num_one_by_one", type=int, default=None, help="Do only so many one at a time.")
    arguments = parser.parse_args()

    torch.manual_seed(0)
    config = ResNetConfig(
        embedding_size=64, hidden_sizes=[64, 128, 256, 512], depths=[2, 2, 2, 2], layer_type="basic", num_labels=10
    )
    model = ResNetForImageClassification(config).eval()
    processor = make_processor(model, "last_norms")
    average = processor.flatten(model.state_dict())
    parameters = average + 0.3 * torch.randn(arguments.num_models, processor.parameter_dim)
    images = torch.randn(arguments.num_images, 3, 32, 32)
    labels = torch.zeros(arguments.num_images, dtype=torch.long)

    started = time.perf_counter()
    together, _ = network_predictions(model, processor, parameters, images, labels)
    fast = time.perf_counter() - started

    part = parameters[: arguments.num_one_by_one]
    started = time.perf_counter()
    with torch.no_grad():
        each = [
            torch.cat(
                [build_network(model, processor, vector)(batch).logits.argmax(-1) for batch in images.split(256)]
            )
            for vector in part
        ]
    slow = (time.perf_counter() - started) * len(parameters) / len(part)

    different = int((torch.stack(each) != together[: len(part)]).sum())
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"on {describe_hardware()}: {arguments.num_models} networks, {arguments.num_images} images")
    print(f"together {fast:.1f} s, one at a time {slow:.1f} s: {slow / fast:.1f} times faster; peak {memory:.1f} GiB")
    print(f"different predictions: {different} of {len(part) * arguments.num_images}")

    wrong = torch.rand(arguments.num_models, 10_000) < 0.2
    started = time.perf_counter()
    iou(wrong, wrong)
    print(f"similarity of all pairs on 10,000 images: {time.perf_counter() - started:.2f} s")


if __name__ == "__main__":
    main()
