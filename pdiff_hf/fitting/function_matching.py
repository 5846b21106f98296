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
from ..targets.task import classification, task_of


class FunctionMatching:
    """The loss on what networks compute, on random training images; their labels are not used.

    Args:
        autoencoder: Decodes latents; differentiable.
        target_model: The target with its trunk, in eval mode.
        processor: The layout.
        images: Of which the train split is used.
        networks: Vectors of the real networks of each split, `(n, D)`, in the order of its latents.
    """

    def __init__(
        self,
        autoencoder: ModelMixin,
        target_model: PreTrainedModel,
        processor: ParameterProcessor,
        images: LabeledData,
        networks: Mapping[str, torch.Tensor],
    ) -> None:
        # Copies that collect no gradients.
        self.autoencoder = copy.deepcopy(autoencoder).requires_grad_(False)
        self.target_model = copy.deepcopy(target_model).eval().requires_grad_(False)
        self.processor, self.networks = processor, networks
        self.inputs = images.inputs(images.train)
        self.is_classification = task_of(target_model.config) is classification
        self.source: dict[str, Any] = {"images": images.train.fingerprint(), "count": len(images.train)}
        tensors = processor.unflatten(networks["train"])  # their number bounds how many are evaluated at once
        one = take_inputs(self.inputs, slice(1))
        self._evaluate, _ = plan_evaluation(self.target_model, processor, tensors, one, stacks_convolutions=True)

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
        """Returns the weighted mean over networks of the squared difference of logits, relative to their variance.

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
        logits = self.logits(self.autoencoder.decode(predicted).sample, inputs)
        return (weights * (logits - real).square().mean((1, 2)) / real.var().clamp(min=1e-12)).mean()

    def logits(self, parameters: torch.Tensor, inputs: Inputs) -> torch.Tensor:
        """Returns the logits `(n, images, outputs)` of vectors `(n, D)`, without the shift that no prediction sees."""
        logits = self._evaluate(self.processor.unflatten(parameters), inputs)
        return logits - logits.mean(-1, keepdim=True) if self.is_classification else logits
