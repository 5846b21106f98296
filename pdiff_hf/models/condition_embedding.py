"""The embedding of conditions, which denoisers share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn


class ConditionEmbedding(nn.Module):
    """Embeds conditions `(n, condition_dim)` as `W2 SiLU(W1 (condition - mean) / std)`, `(n, width)`.

    A row of NaN, or no condition at all, is embedded as a learned vector: the unconditional prediction of
    classifier-free guidance (Ho & Salimans 2022, arXiv 2207.12598). The statistics stay float32 under any dtype
    conversion.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, condition_dim: int, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(condition_dim))
        self.register_buffer("std", torch.ones(condition_dim))
        self.inner = nn.Linear(condition_dim, width)
        self.outer = nn.Linear(width, width)
        self.null = nn.Parameter(torch.zeros(width))

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Any:
        kept = dict(self.named_buffers())
        super()._apply(fn, recurse)
        for name, buffer in self.named_buffers():
            if buffer.dtype != torch.float32:  # rounded, large means would move the conditions
                self._buffers[name] = kept[name].to(buffer.device)
        return self

    def forward(self, condition: torch.Tensor | None, sample: torch.Tensor) -> torch.Tensor:
        """Embeds the conditions of the latents `sample`, `(n, latent_dim)`, in their dtype."""
        if condition is None:
            return self.null.expand(len(sample), -1)
        if condition.shape != (len(sample), len(self.mean)):
            raise ValueError(
                f"This denoiser takes a condition of shape {(len(sample), len(self.mean))}, one row a latent, but the "
                f"given one has shape {tuple(condition.shape)}."
            )
        standardized = (condition.float() - self.mean) / self.std
        embedded = self.outer(nn.functional.silu(self.inner(standardized.nan_to_num().to(sample.dtype))))
        return torch.where(standardized.isnan().any(1, keepdim=True), self.null.to(embedded.dtype), embedded)
