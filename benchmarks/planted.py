"""Zoos on digits, and generators that are known to be what they are: the audit has to find out."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from pdiff_hf import (
    LinearParameterAutoencoder,
    MLPConfig,
    MLPForImageClassification,
    ParameterProcessor,
    TrajectorySettings,
    collect,
    make_processor,
    network_predictions,
)
from pdiff_hf.data.images import ImageData, load_images
from pdiff_hf.evaluation.audit import align_to_zoo
from pdiff_hf.evaluation.baselines import (
    averages,
    gaussian_diagonal,
    gaussian_full,
    kernel_density,
    smoothed_bootstrap,
)
from pdiff_hf.evaluation.metrics import iou
from pdiff_hf.evaluation.novelty import correlation_length, neighbors_in_time, pairwise_distances
from pdiff_hf.evaluation.reference import place_in_time
from pdiff_hf.evaluation.verdict import MEANINGS
from pdiff_hf.targets.symmetries import Symmetries
from pdiff_hf.targets.units import scale_units
from pdiff_hf.zoo.settings import load_images_of, load_target

HIDDEN = 16
PRAISE = {"faithful", "better than real"}
FAULTS = set(MEANINGS) - PRAISE - {"inconclusive", "not assessable"}
MIXED = FAULTS | {"inconclusive"}  # of mixtures with half real networks
BAD = {"broken", "partly broken", "worse than real", "off the zoo"}


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
    """One trajectory of the last two norms of a small ResNet or ViT, in ten alternating blocks."""
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
        num_blocks=20,
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


class Planter:
    """Draws samples `(n, D)` of known generators from a case; every draw takes the next numbers of one seed."""

    def __init__(self, case: Case, seed: int, count: int = 100) -> None:
        self.case, self.count = case, count
        self.generator = torch.Generator().manual_seed(seed)
        probe = case.images.preprocessing(case.images.validation.pixels[:32])
        self.symmetries = Symmetries(case.model, case.processor, case.zoo[0], probe)
        self.zoo, self.align = align_to_zoo(self.symmetries, case.zoo)
        self.std = self.zoo.std(0)
        apart = pairwise_distances(self.zoo, self.zoo)
        apart[apart < 1e-3 * apart.median()] = torch.inf
        run, step = place_in_time(case.runs, case.steps, len(case.zoo))
        length = None
        if case.steps is not None:
            inputs, part = case.images.inputs(case.images.validation), case.images.validation
            predicted, _ = network_predictions(case.model, case.processor, case.zoo, inputs, part.labels)
            length = correlation_length(iou(predicted != part.labels, predicted != part.labels), step)
        apart[neighbors_in_time(run, step, length)] = torch.inf
        self.natural = apart.min(1).values.median().float()

    def noise(self, count: int | None = None) -> torch.Tensor:
        return torch.randn(count or self.count, self.zoo.shape[1], generator=self.generator)

    def idle_noise(self, size: torch.Tensor) -> torch.Tensor:
        """Noise of about norm `size` that changes no prediction."""
        drawn = self.noise() @ self.case.idle.T @ self.case.idle
        return drawn * size / drawn.norm(dim=1).mean()

    def members(self, count: int | None = None) -> torch.Tensor:
        return self.zoo[torch.randint(len(self.zoo), (count or self.count,), generator=self.generator)]

    def real(self, count: int | None = None) -> torch.Tensor:
        rows = torch.randperm(len(self.case.unseen), generator=self.generator)[: count or self.count]
        return self.case.unseen[rows]

    def random(self, count: int) -> torch.Tensor:
        return self.zoo.std() * self.noise(count) * 3

    def averages(self, k: int, count: int | None = None) -> torch.Tensor:
        return averages(self.zoo, count or self.count, self.generator, k)

    def crossover(self) -> torch.Tensor:
        """Each unit of another member; without units each tensor's entries."""
        parents = [self.members() for _ in range(4)]
        layer = self.symmetries.layers[0] if self.symmetries.layers else None
        mask = torch.randint(4, (self.count, self.zoo.shape[1]), generator=self.generator)
        if layer is not None:
            choice = torch.randint(4, (self.count, layer.count), generator=self.generator)
            tensors = self.case.processor.unflatten(torch.zeros(self.count, self.zoo.shape[1]))
            for names, axis in ((layer.incoming, 1), (layer.outgoing, 2)):
                for name in names:
                    tensors[name] = scale_units(tensors[name] + 1, axis, choice.float())
            mask = torch.cat([tensors[n].flatten(1) for n in self.case.processor.names], 1).long()
        return torch.stack(parents).gather(0, mask[None])[0]

    def tuned_averages(self) -> torch.Tensor:
        """Averages with noise that makes them disagree as held-out checkpoints do, and idle noise that makes R = 1."""
        case, centers, noise = self.case, self.averages(min(16, len(self.zoo) // 2)), self.std * self.noise()
        part = case.images.test

        def disagreement(vectors: torch.Tensor) -> float:
            inputs = case.images.inputs(part)
            predicted, _ = network_predictions(case.model, case.processor, vectors, inputs, part.labels)
            return sum((predicted[i] != predicted[i + 1 :]).double().mean(1).sum().item() for i in range(len(vectors)))

        pairs = len(case.heldout) * (len(case.heldout) - 1), self.count * (self.count - 1)
        wanted = disagreement(case.heldout) / pairs[0] * pairs[1]
        low, high = 0.0, 2.0
        for _ in range(8):
            middle = (low + high) / 2
            low, high = (middle, high) if disagreement(centers + middle * noise) < wanted else (low, middle)
        drawn = centers + low * noise
        missing = (self.zoo.var(0).sum() - drawn.var(0).sum()).clamp(min=0).sqrt()
        return drawn + self.idle_noise(missing)


def planted_generators(case: Case, seed: int, count: int = 100) -> dict[str, tuple[torch.Tensor, set[str]]]:
    """Returns, by name, samples `(n, D)` and the verdicts that are right for them."""
    p = Planter(case, seed, count)
    tenth, fifth = count // 10, count // 5
    codes = LinearParameterAutoencoder.from_zoo(p.zoo)
    gaussian = {"Gaussian-equivalent", *BAD}
    # A few checkpoints of one trajectory are more alike than all of it.
    repeated = {"repeats itself", "averager"} if case.steps is not None else {"repeats itself"}
    spread = (2 * p.zoo.var(0).sum()).sqrt()
    planted: dict[str, tuple[Callable[[], torch.Tensor], set[str]]] = {
        "real checkpoints": (p.real, {"faithful"}),
        "half as many real checkpoints": (lambda: p.real(count // 2), {"faithful"}),
        "twice as many real checkpoints": (lambda: p.real(2 * count), {"faithful"}),
        "copies": (p.members, {"copier"}),
        "copies with small noise": (lambda: p.members() + 0.05 * p.std * p.noise(), {"copier"}),
        "copies with idle noise": (lambda: p.members() + p.idle_noise(3 * p.natural), {"copier"}),
        "a tenth copies, else real": (
            lambda: torch.cat([p.members(tenth), p.real(count - tenth)]),
            {"copier in part"},
        ),
        "half copies, half real": (
            lambda: torch.cat([p.members(count // 2), p.real(count - count // 2)]),
            {"copier", "copier in part"},
        ),
        "interpolation of two": (
            lambda: (p.members() + p.members()) / 2,
            {"averager", "copier", "copier in part", *BAD},
        ),
        "three quarters of one": (
            lambda: 0.75 * p.members() + 0.25 * p.members(),
            {"averager", "copier", "copier in part", *BAD},
        ),
        "mean with small noise": (lambda: p.zoo.mean(0) + 0.05 * p.std * p.noise(), {"averager"}),
        "mean with idle noise": (lambda: p.zoo.mean(0) + p.idle_noise(spread / 2**0.5), {"averager"}),
        "averages of 4": (lambda: p.averages(4), {"averager", "worse than real"}),
        "averages of 16": (lambda: p.averages(16), {"averager", "worse than real"}),
        "averages tuned to R = F = 1": (p.tuned_averages, {"averager", *gaussian}),
        "half real, half averages of 16": (
            lambda: torch.cat([p.real(count // 2), p.averages(16, count - count // 2)]),
            MIXED,
        ),
        "Gaussian": (lambda: gaussian_full(p.zoo, count, p.generator), gaussian),
        "Gaussian, 3 times the spread": (lambda: gaussian_full(p.zoo, count, p.generator, 3.0), BAD),
        "Gaussian, .9 times the spread": (lambda: gaussian_full(p.zoo, count, p.generator, 0.9), FAULTS),
        "Gaussian, 1.1 times the spread": (lambda: gaussian_full(p.zoo, count, p.generator, 1.1), FAULTS),
        "Gaussian, diagonal": (lambda: gaussian_diagonal(p.zoo, count, p.generator, 1.0), FAULTS),
        "half real, half Gaussian": (
            lambda: torch.cat([p.real(count // 2), gaussian_full(p.zoo, count - count // 2, p.generator)]),
            MIXED,
        ),
        "kernel density, narrow": (lambda: _in_codes(codes, p, 0.5), FAULTS),
        "kernel density, wide": (lambda: _in_codes(codes, p, 1.0), FAULTS),
        "smoothed bootstrap": (lambda: smoothed_bootstrap(p.zoo, count, p.generator, 0.5), FAULTS),
        "unit crossover": (p.crossover, gaussian | {"copier", "copier in part", "averager"}),
        "five real runs repeated": (lambda: p.real(5).repeat(-(-count // 5), 1)[:count], repeated),
        "ten real runs repeated": (lambda: p.real(10).repeat(-(-count // 10), 1)[:count], repeated),
        "ten real runs repeated with noise": (
            lambda: p.align(p.real(10)).repeat(-(-count // 10), 1)[:count] + 0.05 * p.std * p.noise(),
            repeated,
        ),
        "random weights": (lambda: p.random(count), {"broken"}),
        "a fifth random, else real": (lambda: torch.cat([p.real(count - fifth), p.random(fifth)]), {"partly broken"}),
        "a tenth broken, else averages": (
            lambda: torch.cat([p.averages(16, count - tenth), p.random(tenth)]),
            {"partly broken", "averager", "worse than real", "repeats itself"},
        ),
        "real checkpoints shifted": (
            lambda: p.align(p.real()) + 11.7 * p.natural * nn.functional.normalize(p.noise(1)),
            BAD,
        ),
        "real checkpoints shifted idly": (
            lambda: p.align(p.real()) + 11.7 * p.natural * nn.functional.normalize(p.case.idle[:3].sum(0), dim=0),
            {"off the zoo"},
        ),
    }
    if p.symmetries.layers:
        planted["permuted and rescaled copies"] = (
            lambda: p.symmetries.transform(p.members(), p.generator),
            {"copier"},
        )
    better = case.better
    if better is not None:
        planted["better real checkpoints"] = (lambda: better[:count], {"better than real"})
    return {name: (draw(), right) for name, (draw, right) in planted.items()}


def _in_codes(codes: LinearParameterAutoencoder, p: Planter, scale: float) -> torch.Tensor:
    latents = kernel_density(codes.encode(p.zoo).latents, p.count, p.generator, scale)
    return codes.decode(latents).sample.detach()


CASES: dict[str, Callable[[int], Case]] = {
    "one hidden layer": lambda seed: multi_run_case(seed),
    "two hidden layers": lambda seed: multi_run_case(seed, hidden=(HIDDEN, HIDDEN)),
    "three checkpoints a run": lambda seed: multi_run_case(seed, kept=3),
    "two clusters": lambda seed: multi_run_case(seed, clusters=2),
    "60 % duplicates": lambda seed: multi_run_case(seed, duplicates=0.6),
    "trajectory, ResNet norms": trajectory_case,
    "trajectory, ViT norms": lambda seed: trajectory_case(seed, vit=True),
}
