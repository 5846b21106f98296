"""What the training steps of both stages share."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch import nn

from ..settings import OptimizationSettings, RunSettings
from ..targets.processing_parameters import NonFiniteParametersError

BLOCK_BYTES = 8 * 2**20  # of vectors that are encoded at a time, at least one


def block_length(parameters: torch.Tensor) -> int:
    """Returns how many of the vectors `(n, D)` are encoded at a time."""
    return max(1, BLOCK_BYTES // (4 * parameters.shape[1]))


def share_of_process(batch: torch.Tensor, accelerator: Accelerator) -> torch.Tensor:
    """Returns this process's equal share of a whole batch, on its device; ValueError if there is none."""
    count = accelerator.num_processes
    if len(batch) % count:
        raise ValueError(
            f"train_batch_size={len(batch)} cannot be divided among {count} processes; choose a multiple."
        )
    return batch.chunk(count)[accelerator.process_index].to(accelerator.device)


def optimizer_step(
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    lr_scheduler: torch.optim.lr_scheduler.LambdaLR,
    loss: torch.Tensor,
    settings: OptimizationSettings,
) -> None:
    """Makes one step down the gradient of `loss`, clipped to the norm `max_grad_norm`."""
    optimizer.zero_grad()
    accelerator.backward(loss)
    if settings.max_grad_norm:
        accelerator.clip_grad_norm_(model.parameters(), settings.max_grad_norm)
    optimizer.step()
    lr_scheduler.step()


def check_finite(model: nn.Module, run: RunSettings | None) -> None:
    """Raises `NonFiniteParametersError` if a weight of a trained model is not finite, and removes its saved states."""
    if not all(torch.isfinite(parameter).all() for parameter in model.parameters()):
        if run is not None:
            run.clear()  # otherwise they would block a corrected training
        raise NonFiniteParametersError(
            f"The training diverged: weights of the {type(model).__name__} are NaN or infinite; "
            "lower the learning rate, or clip the gradient with --max_grad_norm."
        )
