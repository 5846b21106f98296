"""Function matching: the network decoded from a denoiser's prediction must compute what the real network does."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from diffusers import ModelMixin
from transformers import PreTrainedModel

from ..data.inputs import Inputs, LabeledData, count_inputs, move_inputs, take_inputs
from ..targets.inference import plan_evaluation
from ..targets.processing_parameters import ParameterProcessor
from ..targets.statistics import batch_statistics
from ..targets.task import task_of
from ..zoo.checkpoints import CheckpointSplit

COMPARED_PAIRS = 64  # of real networks, whose mean divergence is the unit
COMPARED_IMAGES = 512


class FunctionMatching:
    """The loss on what networks compute, on random training images; their labels are not used.

    The divergence of a predicted network from the real one (see `Task.divergence`) is taken in units of that between
    real networks of different runs, `unit`: the loss is `log(1 + divergence / unit)`. Where noise leaves open which
    network it is, the divergence is large and its gradient is small; it grows as predictions come close.

    Args:
        autoencoder: Decodes latents; differentiable.
        target_model: The target with its trunk, in eval mode.
        processor: The layout.
        images: Of which the train split is used.
        networks: Vectors of the real networks of each split, `(n, D)`, in the order of its latents.
        pairs: Rows of the train split whose networks are compared for the unit, `(k, 2)`; see `comparable_pairs`.
    """

    def __init__(
        self,
        autoencoder: ModelMixin,
        target_model: PreTrainedModel,
        processor: ParameterProcessor,
        images: LabeledData,
        networks: Mapping[str, torch.Tensor],
        pairs: torch.Tensor,
    ) -> None:
        # Copies that collect no gradients.
        self.autoencoder = copy.deepcopy(autoencoder).requires_grad_(False)
        self.target_model = copy.deepcopy(target_model).eval().requires_grad_(False)
        self.processor, self.networks = processor, networks
        self.inputs, self.task = images.inputs(images.train), task_of(target_model.config)
        self.source: dict[str, Any] = {"images": images.train.fingerprint(), "count": len(images.train)}
        tensors = processor.unflatten(networks["train"])  # their number bounds how many are evaluated at once
        few = take_inputs(self.inputs, slice(2))
        with batch_statistics(self.target_model, processor.statistics):
            self._evaluate, _ = plan_evaluation(self.target_model, processor, tensors, few, stacks_convolutions=True)
        rows = torch.linspace(0, len(images.train) - 1, min(len(images.train), COMPARED_IMAGES)).long()
        some = take_inputs(self.inputs, rows)
        one_of_each, other = (self.logits(networks["train"][side], some) for side in pairs.T)
        self.unit = self.task.divergence(one_of_each, other).mean().clamp(min=1e-12).item()

    def to(self, device: torch.device) -> FunctionMatching:
        """Moves the networks and their inputs to a device."""
        self.autoencoder.to(device)
        self.target_model.to(device)
        self.inputs = move_inputs(self.inputs, next(self.target_model.parameters()))
        return self

    def loss(
        self,
        predicted: torch.Tensor,
        parameters: torch.Tensor,
        weights: torch.Tensor,
        num_images: int,
        generator: torch.Generator,
    ) -> torch.Tensor:
        """Returns the weighted mean over networks of `log(1 + divergence / unit)`.

        Args:
            predicted: Predictions of the clean latents, `(n, latent_dim)` float32.
            parameters: The real networks, `(n, D)`.
            weights: How much each network counts, `(n,)`.
            num_images: Training images on which they are compared, drawn by `generator`.
        """
        rows = torch.randint(count_inputs(self.inputs), (num_images,), generator=generator)
        inputs = take_inputs(self.inputs, rows)
        with torch.no_grad():
            real = self.logits(parameters, inputs)
        divergence = self.task.divergence(real, self.logits(self.autoencoder.decode(predicted).sample, inputs))
        return (weights * torch.log1p(divergence / self.unit)).mean()

    def logits(self, parameters: torch.Tensor, inputs: Inputs) -> torch.Tensor:
        """Returns the logits `(n, images, outputs)` of vectors `(n, D)`.

        Where BatchNorm statistics are each network's own, they are those of these images.
        """
        with batch_statistics(self.target_model, self.processor.statistics):
            return self._evaluate(self.processor.unflatten(parameters), inputs)


def comparable_pairs(zoo: CheckpointSplit) -> torch.Tensor:
    """Returns pairs of rows `(k, 2)` of networks that differ as drawn networks should: of two runs, for one condition.

    In a zoo of one run they are merely different rows.
    """
    conditions = zoo.condition or [None] * len(zoo)
    groups: dict[tuple, list[int]] = {}  # rows of each condition
    for row, condition in enumerate(conditions):
        groups.setdefault(tuple(condition or ()), []).append(row)
    pairs = []
    for one in torch.linspace(0, len(zoo) - 1, min(len(zoo), COMPARED_PAIRS)).long().tolist():
        own = groups[tuple(conditions[one] or ())]
        others = [row for row in own if zoo.run[row] != zoo.run[one]] or [row for row in range(len(zoo)) if row != one]
        pairs.append((one, others[one * 7919 % len(others)]))  # a prime, so that neighbors are not all paired
    return torch.tensor(pairs)
