"""Zoos on digits of several kinds, each with held-out checkpoints and real ones that no generator sees."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from pdiff_hf import (
    MLPConfig,
    MLPForImageClassification,
    ParameterProcessor,
    TrajectorySettings,
    collect,
    make_processor,
)
from pdiff_hf.data.images import ImageData, load_images
from pdiff_hf.zoo.settings import load_images_of, load_target

HIDDEN = 16


@dataclass
class Case:
    """A zoo with everything an audit takes, real checkpoints to play a perfect generator, and idle directions.

    `idle` `(k, D)` spans directions in which parameters can move without changing a prediction. `better` are real
    networks of longer training on more data.
    """

    images: ImageData
    model: nn.Module
    processor: ParameterProcessor
    zoo: torch.Tensor
    runs: list
    steps: list[int] | None
    heldout: torch.Tensor
    heldout_runs: list
    heldout_steps: list[int] | None
    unseen: torch.Tensor
    idle: torch.Tensor
    better: torch.Tensor | None = None

    def arguments(self) -> dict:
        names = ("heldout", "runs", "steps", "heldout_runs", "heldout_steps", "processor", "model", "images")
        return {name: getattr(self, name) for name in names}


def train_mlps(
    images: ImageData,
    hidden: list[int],
    seeds: list[int],
    steps: int,
    rows: int | None = None,
    start: torch.Tensor | None = None,
    kept: int = 1,
) -> tuple[nn.Module, torch.Tensor]:
    """Trains one MLP a seed, all at once; returns one of them and the vectors of the last `kept` checkpoints.

    `rows` training images are used; `start` `(D,)` is where all begin. Checkpoints `(runs * kept, D)` are 20 steps
    apart, those of one run next to each other.
    """
    models = []
    for seed in seeds:
        torch.manual_seed(seed)
        config = MLPConfig(image_size=8, hidden_sizes=hidden, num_labels=10)
        models.append(MLPForImageClassification(config).eval())
    processor = make_processor(models[0], "full")
    if start is not None:
        for model in models:
            model.load_state_dict(processor.unflatten(start))
    stacked = {name: torch.stack([m.state_dict()[name] for m in models]).requires_grad_() for name in processor.names}
    layers = [name.removesuffix(".weight") for name in processor.names if name.endswith(".weight")]
    pixels, labels = images.preprocessing(images.train.pixels).flatten(1)[:rows], images.train.labels[:rows]
    optimizer = torch.optim.AdamW(stacked.values(), lr=1e-2, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(seeds[0])
    checkpoints = []
    for step in range(steps):
        batch = torch.randint(len(pixels), (len(seeds), 64), generator=generator)
        x = pixels[batch]
        for layer in layers:
            x = x.relu() if layer != layers[0] else x
            x = x @ stacked[f"{layer}.weight"].transpose(1, 2) + stacked[f"{layer}.bias"][:, None]
        loss = nn.functional.cross_entropy(x.flatten(0, 1), labels[batch].flatten(), reduction="sum") / 64
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if (steps - 1 - step) % 20 == 0 and (steps - 1 - step) // 20 < kept:
            checkpoints.append(torch.cat([stacked[name].detach().flatten(1) for name in processor.names], dim=1))
    return models[0], torch.stack(checkpoints, dim=1).flatten(0, 1)


def multi_run_case(
    seed: int,
    runs: int = 400,
    steps: int = 300,
    hidden: tuple[int, ...] = (HIDDEN,),
    kept: int = 1,
    clusters: int = 0,
    duplicates: float = 0.0,
    rows: int | None = 250,
) -> Case:
    """Independent trainings of an MLP, all at once: three eighths the zoo, an eighth held out, the rest never seen.

    `clusters` trunks are what runs branch off, one after the other; 0 are independent. Of the zoo's rows a share of
    `duplicates` is replaced by copies of others.
    """
    images = load_images("digits", image_size=8)
    seeds = [1000 * seed + i for i in range(runs)]
    if clusters:
        parts = []
        for cluster in range(clusters):
            _, trunk = train_mlps(images, list(hidden), [10**6 + 100 * seed + cluster], steps, rows)
            model, branch = train_mlps(images, list(hidden), seeds[cluster::clusters], steps // 2, rows, trunk[0])
            parts.append(branch)
        vectors = torch.stack(parts, dim=1).flatten(0, 1)
    else:
        model, vectors = train_mlps(images, list(hidden), seeds, steps, rows, kept=kept)
    others = [10**7 + s for s in seeds[: max(100, runs // 4)]]
    _, better = train_mlps(images, list(hidden), others, 2 * steps, 7 * (rows or 250))
    processor = make_processor(model, "full")
    many, few = 3 * runs // 8, runs // 8
    zoo, heldout, unseen = vectors.split([many * kept, few * kept, (runs - many - few) * kept])
    if duplicates:
        generator = torch.Generator().manual_seed(seed)
        count = int(len(zoo) * duplicates)
        zoo = torch.cat([zoo[:-count], zoo[torch.randint(len(zoo) - count, (count,), generator=generator)]])
    # Two pixels that are black in every image: what a unit adds to the weight of one, it takes from the other's.
    pixels = images.preprocessing(images.train.pixels).flatten(1)
    black = [int(p) for p in ((pixels == pixels[0]).all(0)).nonzero()[:2]]
    idle = torch.zeros(hidden[0], processor.parameter_dim)
    for unit in range(hidden[0]):
        idle[unit, unit * 64 + black[0]], idle[unit, unit * 64 + black[1]] = 0.5**0.5, -(0.5**0.5)
    numbers = [[i for i in range(count) for _ in range(kept)] for count in (many, few)]
    known = (zoo, numbers[0], None, heldout, [many + i for i in numbers[1]], None)
    return Case(images, model, processor, *known, unseen, idle, None if clusters else better)


def trajectory_case(seed: int, checkpoints: int = 300, width: int = 32, vit: bool = False) -> Case:
    """One trajectory of the last two norms of a small ResNet or ViT, in 20 or 50 alternating blocks.

    With little weight decay the ViT's norms never settle: they drift at a constant rate, errors stay correlated over
    half of any trajectory, and two or three blocks are independent however long it is, from which nothing can be
    shown. With more of it they settle, and are correlated over some 70 steps: in 20 blocks, intervals of R and F
    still reach 15 % to both sides; in 50 of fewer checkpoints each, 10 %.
    """
    network: dict[str, Any] = {
        "embedding_size": width,
        "hidden_sizes": [width, 2 * width],
        "depths": [1, 1],
        "layer_type": "basic",
    }
    kind = "resnet"
    if vit:
        kind = "vit"
        network = {"hidden_size": width, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": width}
        network |= {"image_size": 16, "patch_size": 4}
    settings = TrajectorySettings(
        image_size=16,
        model_type=kind,
        model_config=json.dumps(network),
        learning_rate=0.1 if not vit else 0.03,
        augmentation_shift=2,
        augmentation_noise=1.4 if not vit else 0.7,
        num_checkpoints=checkpoints,
        num_validation_checkpoints=2 * checkpoints // 3,
        num_test_checkpoints=2 * checkpoints // 3,
        adam_weight_decay=0.1 if vit else 5e-4,
        burn_in_steps=500 if vit else 100,
        num_blocks=50 if vit else 20,
        num_branches=0,
        seed=seed,
        split_seed=seed,
    )
    images = load_images_of(settings)
    collected = collect(images, load_target(settings, images), settings)
    zoo, heldout, unseen = (collected.splits[split] for split in ("train", "test", "validation"))
    model, processor = collected.target_model, collected.processor
    idle = _directions_without_derivative(model, processor, zoo.parameters.mean(0), images)
    return Case(
        images,
        model,
        processor,
        zoo.parameters,
        zoo.run,
        zoo.step,
        heldout.parameters,
        heldout.run,
        heldout.step,
        unseen.parameters,
        idle,
    )


def _directions_without_derivative(
    model: nn.Module, processor: ParameterProcessor, vector: torch.Tensor, images: ImageData
) -> torch.Tensor:
    """Half of all directions: in those, random projections of the logits of 64 images do not change, `(D / 2, D)`."""
    vector = vector.clone().requires_grad_()
    pixel_values = images.preprocessing(images.test.pixels[:64])
    logits = torch.func.functional_call(model, processor.unflatten(vector), (pixel_values,)).logits
    projections = torch.randn(len(vector) // 2, *logits.shape, generator=torch.Generator().manual_seed(0))
    rows = [torch.autograd.grad((logits * p).sum(), vector, retain_graph=True)[0] for p in projections]
    _, _, directions = torch.linalg.svd(torch.stack(rows).double(), full_matrices=True)
    return directions[len(rows) :].float()


CASES: dict[str, Callable[[int], Case]] = {
    "one hidden layer": lambda seed: multi_run_case(seed),
    "two hidden layers": lambda seed: multi_run_case(seed, hidden=(HIDDEN, HIDDEN)),
    "three checkpoints a run": lambda seed: multi_run_case(seed, kept=3),
    "two clusters": lambda seed: multi_run_case(seed, clusters=2),
    "60 % duplicates": lambda seed: multi_run_case(seed, duplicates=0.6),
    "trajectory, ResNet norms": trajectory_case,
    "trajectory, ViT norms": lambda seed: trajectory_case(seed, vit=True),
}
