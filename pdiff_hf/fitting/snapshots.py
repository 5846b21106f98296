"""Averaged weights that are kept on the way: the guide, and those of the lowest loss on validation checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from .settings import DenoiserSettings

EVALUATIONS = 12  # of the loss on validation checkpoints during a training
PATIENCE = 3  # evaluations without a lower loss after which the training stops
LARGEST_RATIO = 1.2  # of the loss on validation checkpoints to that on the zoo; above, the denoiser begins to copy

Losses = dict[str, float]


class Snapshots:
    """Keeps copies of averaged weights; part of the saved state of a training.

    Attributes:
        guide: The weights after the share `guide_at` of the training; None before.
        best: The weights of the lowest loss on validation checkpoints, while the ratio to that on the zoo is below
            `LARGEST_RATIO`; None if nothing was evaluated.
        history: The steps and losses of every evaluation, JSON types.
        chosen: The place of the best weights in the history.
    """

    def __init__(self, settings: DenoiserSettings, has_validation: bool) -> None:
        self.guide: list[torch.Tensor] | None = None
        self.best: list[torch.Tensor] | None = None
        self.history: list[Losses] = []
        self.chosen = 0
        total = settings.max_train_steps
        self._guide_step = max(1, round(total * settings.guide_at)) if settings.guide_at else None
        is_selecting = settings.select_snapshot and has_validation
        self._steps = {round(total * (i + 1) / EVALUATIONS) for i in range(EVALUATIONS)} if is_selecting else set()

    def update(self, steps: int, weights: Sequence[torch.Tensor], evaluate: Callable[[], Losses]) -> bool:
        """Keeps the averaged weights after so many steps, if wanted, and returns whether to go on with the training.

        `evaluate` returns `validation_loss`, and the `validation` and `train` part of it that is compared for copying.
        """
        if steps == self._guide_step:
            self.guide = [tensor.clone() for tensor in weights]
        if steps not in self._steps:
            return True
        losses = evaluate()
        self.history.append({"steps": steps, **losses})
        is_copying = losses["validation"] > LARGEST_RATIO * losses["train"]
        lowest = min((past["validation_loss"] for past in self.history[:-1]), default=float("inf"))
        if self.best is None or (losses["validation_loss"] < lowest and not is_copying):
            self.best, self.chosen = [tensor.clone() for tensor in weights], len(self.history) - 1
        return not is_copying and len(self.history) - 1 - self.chosen < PATIENCE

    def describe(self) -> dict[str, Any]:
        """Returns what was chosen and the history, for `metrics.json`; empty if nothing was evaluated."""
        if not self.history:
            return {}
        chosen = self.history[self.chosen]
        ratio = chosen["validation"] / chosen["train"]
        return {"snapshot": {"steps": chosen["steps"], "validation_to_train_loss": ratio}, "losses": self.history}

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("guide", "best", "history", "chosen")}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name, value in state_dict.items():
            setattr(self, name, value)
