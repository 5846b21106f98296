"""Generators that are known to be what they are, planted on the zoos of `planted_zoos`: the audit has to find out."""

from __future__ import annotations

from collections.abc import Callable

import torch
from planted_zoos import Case
from torch import nn

from pdiff_hf import (
    LinearParameterAutoencoder,
    network_predictions,
)
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

PRAISE = {"faithful", "better than real"}
FAULTS = set(MEANINGS) - PRAISE - {"inconclusive", "not assessable"}
MIXED = FAULTS | {"inconclusive"}  # of mixtures with half real networks
BAD = {"broken", "partly broken", "worse than real", "off the zoo"}


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
    # Of a trajectory's network, directions are idle to first order only: large steps change some functions.
    moved = {"copier", "copier in part", *BAD} if case.steps is not None else {"copier"}
    shifted = BAD if case.steps is not None else {"off the zoo"}
    # A few checkpoints of one trajectory are more alike than all of it.
    repeated = {"repeats itself", "averager"} if case.steps is not None else {"repeats itself"}
    spread = (2 * p.zoo.var(0).sum()).sqrt()
    planted: dict[str, tuple[Callable[[], torch.Tensor], set[str]]] = {
        "real checkpoints": (p.real, {"faithful"}),
        "half as many real checkpoints": (lambda: p.real(count // 2), {"faithful"}),
        "twice as many real checkpoints": (lambda: p.real(2 * count), {"faithful"}),
        "copies": (p.members, {"copier"}),
        "copies with small noise": (lambda: p.members() + 0.05 * p.std * p.noise(), {"copier"}),
        "copies with idle noise": (lambda: p.members() + p.idle_noise(3 * p.natural), moved),
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
            BAD | {"averager"},
        ),
        "real checkpoints shifted idly": (
            lambda: p.align(p.real()) + 11.7 * p.natural * nn.functional.normalize(p.case.idle[:3].sum(0), dim=0),
            shifted,
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
