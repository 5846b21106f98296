"""Zoos on digits, and generators that are known to be what they are: the audit has to find out."""

from __future__ import annotations

import json
from dataclasses import dataclass

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
from pdiff_hf.evaluation.audit import align_to_zoo
from pdiff_hf.evaluation.baselines import gaussian_full
from pdiff_hf.targets.symmetries import Symmetries
from pdiff_hf.zoo.settings import load_images_of, load_target

HIDDEN, SAMPLES = 16, 100


@dataclass
class Case:
    """A zoo with everything an audit takes, real checkpoints to play a perfect generator, and idle directions.

    `idle` `(k, D)` spans directions in which parameters can move without changing a prediction.
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

    def arguments(self) -> dict:
        names = ("heldout", "runs", "steps", "heldout_runs", "heldout_steps", "processor", "model", "images")
        return {name: getattr(self, name) for name in names}


def multi_run_case(seed: int, runs: int = 300, steps: int = 300) -> Case:
    """Independent trainings of an MLP, all at once: half of them the zoo, a sixth held out, the rest never seen."""
    images = load_images("digits", image_size=8)
    models = []
    for i in range(runs):
        torch.manual_seed(1000 * seed + i)
        models.append(MLPForImageClassification(MLPConfig(image_size=8, hidden_sizes=[HIDDEN], num_labels=10)).eval())
    names = list(models[0].state_dict())
    stacked = {name: torch.stack([m.state_dict()[name] for m in models]).requires_grad_() for name in names}
    pixels, labels = images.preprocessing(images.train.pixels).flatten(1), images.train.labels
    optimizer = torch.optim.AdamW(stacked.values(), lr=1e-2, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        rows = torch.randint(len(pixels), (runs, 64), generator=generator)
        hidden = pixels[rows] @ stacked["layers.0.weight"].transpose(1, 2) + stacked["layers.0.bias"][:, None]
        logits = hidden.relu() @ stacked["classifier.weight"].transpose(1, 2) + stacked["classifier.bias"][:, None]
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), labels[rows].flatten(), reduction="sum") / 64
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    processor = make_processor(models[0], "full")
    vectors = torch.cat([stacked[name].detach().flatten(1) for name in processor.names], dim=1)
    half, sixth = runs // 2, runs // 6
    zoo, heldout, unseen = vectors.split([half, sixth, runs - half - sixth])
    # Two pixels that are black in every image: what a unit adds to the weight of one, it takes from the other's.
    black = [int(p) for p in ((pixels == pixels[0]).all(0)).nonzero()[:2]]
    idle = torch.zeros(HIDDEN, processor.parameter_dim)
    for unit in range(HIDDEN):
        idle[unit, unit * 64 + black[0]], idle[unit, unit * 64 + black[1]] = 0.5**0.5, -(0.5**0.5)
    return Case(
        images, models[0], processor, zoo, list(range(half)), None, heldout, list(range(sixth)), None, unseen, idle
    )


def trajectory_case(seed: int, checkpoints: int = 300, width: int = 32) -> Case:
    """One trajectory of the last two norms of a small ResNet, in ten alternating blocks."""
    network = {"embedding_size": width, "hidden_sizes": [width, 2 * width], "depths": [1, 1], "layer_type": "basic"}
    settings = TrajectorySettings(
        image_size=16,
        model_config=json.dumps(network),
        learning_rate=0.1,
        augmentation_shift=2,
        augmentation_noise=1.4,
        num_checkpoints=checkpoints,
        num_validation_checkpoints=2 * checkpoints // 3,
        num_test_checkpoints=2 * checkpoints // 3,
        num_blocks=20,
        num_branches=0,
        seed=seed,
        split_seed=seed,
    )
    images = load_images_of(settings)
    checkpoints = collect(images, load_target(settings, images), settings)
    zoo, heldout, unseen = (checkpoints.splits[split] for split in ("train", "test", "validation"))
    model, processor = checkpoints.target_model, checkpoints.processor
    known = [rows for split in (zoo, heldout) for rows in (split.parameters, split.run, split.step)]
    idle = _directions_without_derivative(model, processor, zoo.parameters.mean(0), images)
    return Case(images, model, processor, *known, unseen.parameters, idle)


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


def planted_generators(case: Case, seed: int) -> dict[str, tuple[torch.Tensor, set[str]]]:
    """Returns, by name, samples `(n, D)` and the verdicts that are right for them."""
    generator = torch.Generator().manual_seed(seed)
    probe = case.images.preprocessing(case.images.validation.pixels[:32])
    symmetries = Symmetries(case.model, case.processor, case.zoo[0], probe)
    zoo = align_to_zoo(symmetries, case.zoo)[0]
    mean, std = zoo.mean(0), zoo.std(0)

    def noise() -> torch.Tensor:
        return torch.randn(SAMPLES, zoo.shape[1], generator=generator)

    def idle_noise() -> torch.Tensor:  # of the zoo's own spread
        drawn = noise() @ case.idle.T @ case.idle
        return drawn * (zoo.var(0).sum() / drawn.var(0).sum()).sqrt()

    def members() -> torch.Tensor:
        return zoo[torch.randint(len(zoo), (SAMPLES,), generator=generator)]

    never = {"copier", "averager"}
    planted = {
        "copies": (members(), {"copier"}),
        "copies with small noise": (members() + 0.05 * std * noise(), {"copier"}),
        "mean with small noise": (mean + 0.05 * std * noise(), {"averager"}),
        "mean with idle noise": (mean + idle_noise(), {"averager"}),
        "interpolation of two": ((members() + members()) / 2, never),
        "Gaussian": (gaussian_full(zoo, SAMPLES, generator), {"Gaussian-equivalent"}),
        "real checkpoints": (
            case.unseen[torch.randperm(len(case.unseen), generator=generator)[:SAMPLES]],
            {"faithful", "Gaussian-equivalent"},
        ),
        "random weights": (zoo.std() * noise() * 3, {"broken"}),
    }
    if symmetries.layers:
        planted["permuted and rescaled copies"] = (symmetries.transform(members(), generator), {"copier"})
    return planted
