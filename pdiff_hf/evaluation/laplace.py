"""Last-layer Laplace: a Gaussian posterior of one trained network's last layer, from its curvature."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

from ..data.inputs import Inputs, count_inputs, forward, move_inputs, take_inputs
from ..targets.calibration import ensemble_log_probabilities
from ..targets.statistics import watched
from ..targets.task import logits_of
from .uncertainty import fit_temperature

SAMPLES = 100  # of the posterior
BATCH_SIZE = 256
LARGEST = 6000  # weights of a last layer whose full covariance is computed
PRIOR_PRECISIONS = torch.logspace(-3, 5, 17, dtype=torch.float64)


class LastLayerLaplace:
    """A network whose last layer has a Gaussian posterior with a full covariance (arXiv 2106.14806).

    Its mean are the trained weights. Its precision is the generalized Gauss-Newton matrix of the training loss, summed
    over the training images, plus a prior precision, which is chosen among `PRIOR_PRECISIONS` by the NLL of validation
    images, each at its best temperature. Predictions average `SAMPLES` draws, the same for all images.

    Args:
        network: A classifier in eval mode whose logits are the output of a linear layer; see `last_layer`.
        train: Inputs that the network was trained on; their labels are not needed.
        validation, labels: Inputs and their classes `(images,)` int64.
    """

    @torch.no_grad()
    def __init__(
        self,
        network: PreTrainedModel,
        train: Inputs,
        validation: Inputs,
        labels: torch.Tensor,
        seed: int = 0,
    ) -> None:
        layer = last_layer(network, train)
        if layer is None:
            raise ValueError(
                f"The logits of {type(network).__name__} are not the output of a linear layer of at most {LARGEST} "
                "weights, which a last-layer Laplace approximation needs."
            )
        self.network, self.layer = network, layer
        weights = layer.weight.detach().double().cpu()  # (classes, features)
        if layer.bias is not None:
            weights = torch.cat([weights, layer.bias.detach().double().cpu()[:, None]], 1)
        self.weights = weights
        self.eigenvalues, self.directions = torch.linalg.eigh(self._curvature(train))
        self.noise = torch.randn(SAMPLES, weights.numel(), generator=torch.Generator().manual_seed(seed)).double()
        known = torch.cat(list(self._features(validation)))
        losses = []
        for precision in PRIOR_PRECISIONS:
            drawn = ensemble_log_probabilities(self._logits(known, self._draw(precision)))
            losses.append(functional.nll_loss((drawn / fit_temperature(drawn, labels)).log_softmax(-1), labels))
        self.prior_precision = PRIOR_PRECISIONS[torch.stack(losses).argmin()].item()
        self.samples = self._draw(self.prior_precision)

    @torch.no_grad()
    def iter_logits(self, inputs: Inputs) -> Iterator[torch.Tensor]:
        """Yields logits `(SAMPLES, batch, classes)` of consecutive batches."""
        for features in self._features(inputs):
            yield self._logits(features, self.samples)

    @torch.no_grad()
    def _features(self, inputs: Inputs) -> Iterator[torch.Tensor]:
        """Yields what the last layer reads `(batch, features)` float64, with a 1 for its bias."""
        seen: list[torch.Tensor] = []
        inputs = move_inputs(inputs, self.layer.weight)
        with watched({"": self.layer}, lambda _, x: seen.append(x.double().cpu())):
            for start in range(0, count_inputs(inputs), BATCH_SIZE):
                forward(self.network, take_inputs(inputs, slice(start, start + BATCH_SIZE)))
                features = seen.pop()
                yield features if self.layer.bias is None else functional.pad(features, (0, 1), value=1.0)

    def _curvature(self, train: Inputs) -> torch.Tensor:
        """Returns the sum over images of (diag p - p p') x (features features'), `(weights, weights)`."""
        classes, width = self.weights.shape
        curvature = torch.zeros(classes, width, classes, width, dtype=torch.float64)
        for features in self._features(train):
            p = (features @ self.weights.T).softmax(-1)  # (batch, classes)
            outer = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]  # (batch, classes, classes)
            for i in range(classes):
                weighted = outer[:, i, :, None] * features[:, None, :]  # (batch, classes, features)
                curvature[i] += (features.T @ weighted.flatten(1)).view(width, classes, width)
        return curvature.view(classes * width, classes * width)

    def _draw(self, prior_precision: torch.Tensor | float) -> torch.Tensor:
        """Returns draws of the posterior `(SAMPLES, classes, features)`."""
        scale = (self.eigenvalues.clamp(min=0) + prior_precision).rsqrt()
        return self.weights + ((self.noise * scale) @ self.directions.T).view(-1, *self.weights.shape)

    @staticmethod
    def _logits(features: torch.Tensor, samples: torch.Tensor) -> torch.Tensor:
        return torch.einsum("bf,scf->sbc", features, samples)


@torch.no_grad()
def last_layer(network: PreTrainedModel, inputs: Inputs) -> nn.Linear | None:
    """Returns the linear layer whose output are the logits; None without one, or if it is larger than `LARGEST`."""
    called: list[tuple[nn.Linear, torch.Tensor]] = []
    linear: dict[str, Any] = {name: layer for name, layer in network.named_modules() if isinstance(layer, nn.Linear)}
    few = move_inputs(take_inputs(inputs, slice(2)), next(network.parameters()))
    with watched(linear, lambda name, x: called.append((linear[name], x))):
        logits = logits_of(network, forward(network, few))
    for layer, x in reversed(called):
        parts = sum(parameter.numel() for parameter in layer.parameters())
        if x.ndim == 2 and parts <= LARGEST and torch.equal(layer(x), logits):
            return layer
    return None
