"""Training a group of runs at once: stacked parameters, with initial weights and batches drawn by each run alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch.func import functional_call
from transformers import PreTrainedModel

from ..folders import replace_file
from ..loops import make_optimizer, require_identity, seeded, step_generator
from ..settings import OptimizationSettings, RunSettings
from ..targets.processing_parameters import ParameterProcessor
from ..targets.task import logits_of, task_of

# Up to so many positions in a batch of one run, stacked kernels (grouped convolutions) are faster than one network
# after the other: 1.5 against 2.4 ms a step for (8, 16) channels on 64 images of 8x8; 16 against 14 ms on 28x28.
STACKED_POSITIONS = 8192

BLOCK = 32  # batches of a run that are put together at once

Augmentation = Callable[[torch.Tensor, torch.Generator], torch.Tensor]
Examples = tuple[torch.Tensor, torch.Tensor]  # images `(n, channels, height, width)` and labels `(n,)`


def run_seed(seed: int, run: int, stream: str = "runs") -> int:
    """Returns the seed of one run, or in the stream `references` of a run that others are aligned to."""
    return int(torch.randint(2**63 - 1, (), generator=step_generator(seed, run, stream)))


def initial_parameters(model: PreTrainedModel, processor: ParameterProcessor, seeds: Sequence[int]) -> torch.Tensor:
    """Returns fresh weights of the model's class and configuration, one vector for each seed, `(n, D)` float32."""
    vectors = []
    for seed in seeds:
        with seeded(seed):
            vectors.append(processor.flatten(type(model)(model.config).state_dict()))
    return torch.stack(vectors)


def batch_rows(seeds: Sequence[int], counts: Sequence[int], batch_size: int) -> Iterator[torch.Tensor]:
    """Yields the rows of each run's next batch, `(n, batch_size)` int64, without end.

    A run goes through all its images, whose number is in `counts`, in an order that its seed alone decides, then in
    another.
    """
    runs = [_rows(seed, count, BLOCK * batch_size) for seed, count in zip(seeds, counts, strict=True)]
    while True:
        yield from torch.stack([next(run) for run in runs]).split(batch_size, dim=1)


def _rows(seed: int, count: int, size: int) -> Iterator[torch.Tensor]:
    """Yields the next rows of one run, `(size,)` int64, without end."""
    pending, epoch = torch.empty(0, dtype=torch.long), 0
    while True:
        while len(pending) < size:
            order = torch.randperm(count, generator=step_generator(seed, epoch, "order"))
            pending, epoch = torch.cat([pending, order]), epoch + 1
        yield pending[:size]
        pending = pending[size:]


def train_group(
    model: PreTrainedModel,
    processor: ParameterProcessor,
    start: torch.Tensor,
    seeds: Sequence[int],
    examples: Sequence[Examples],
    optimization: OptimizationSettings,
    recorded: Sequence[int],
    augmentation: Augmentation | None = None,
) -> torch.Tensor:
    """Trains n networks of one architecture side by side and returns their checkpoints, `(n, k, D)` float32.

    The generated tensors are stacked, and AdamW, which treats every number alone, steps all runs in one go; gradients
    are not clipped. The model is in evaluation mode: no dropout, and a BatchNorm takes its statistics from the trunk,
    which is frozen. The same group gives the same bits; a run in another group, or with another number of threads, has
    the same batches, but its sums may be added in another order.

    Args:
        model, processor: The target, and the layout of what is trained.
        start: Where the runs start, `(n, D)`.
        seeds: The seed of each run, which decides its batches.
        examples: The images and labels of each run; many runs may share tensors.
        optimization: How each run is trained.
        recorded: The k steps, ascending and from 0, after which a checkpoint is kept.
        augmentation: A function of a run's batch and its own generator.
    """
    device, batch_size = model.device, optimization.train_batch_size
    images, first_image = _join([pixel_values for pixel_values, _ in examples], device)
    labels, first_label = _join([labels for _, labels in examples], device)
    stacked = {
        name: tensor.to(device, copy=True, memory_format=torch.contiguous_format).requires_grad_()
        for name, tensor in processor.unflatten(start).items()
    }
    optimizer, lr_scheduler = make_optimizer(stacked.values(), optimization, fused=True)
    positions = batch_size * images[0, 0].numel()
    forward, task = _stacked_forward(model, processor, positions), task_of(model.config)
    batches = batch_rows(seeds, [len(labels) for _, labels in examples], batch_size)
    flat_images = images.flatten(1)
    flat_batch = flat_images.new_empty(len(seeds) * batch_size, flat_images.shape[1])  # the largest tensor, made once
    kept = []
    for step in range(optimization.max_train_steps):
        rows = next(batches).to(device)  # (n, batch_size)
        torch.index_select(flat_images, 0, (first_image + rows).flatten(), out=flat_batch)
        batch = flat_batch.view(len(seeds), batch_size, *images.shape[1:])
        if augmentation is not None:
            generators = [step_generator(seed, step, "augmentation") for seed in seeds]
            batch = torch.stack([augmentation(own, g) for own, g in zip(batch, generators, strict=True)])
        logits = forward(stacked, batch)  # (n, batch_size, classes)
        # The sum over runs of each run's mean loss: every run gets the gradient of its own.
        loss = task.loss(logits.float(), labels[first_label + rows], reduction="sum") / batch_size
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        lr_scheduler.step()
        if step in recorded:
            kept.append(torch.cat([tensor.detach().flatten(1) for tensor in stacked.values()], dim=1).float().cpu())
    return torch.stack(kept, dim=1)


def _join(tensors: Sequence[torch.Tensor], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Joins the tensors of n runs, each tensor once, and returns where those of each run begin, `(n, 1)` int64."""
    distinct = {id(tensor): tensor for tensor in tensors}
    starts = dict(zip(distinct, accumulate(map(len, distinct.values()), initial=0), strict=False))
    joined = tensors[0] if len(distinct) == 1 else torch.cat(list(distinct.values()))
    return joined.to(device), torch.tensor([[starts[id(tensor)]] for tensor in tensors], device=device)


def _stacked_forward(
    model: PreTrainedModel, processor: ParameterProcessor, positions: int
) -> Callable[[dict[str, torch.Tensor], torch.Tensor], torch.Tensor]:
    """Returns the function from stacked tensors and batches `(n, batch, …)` to logits `(n, batch, classes)`.

    `positions` are those of all images in the batch of one run.
    """

    def forward(tensors: dict[str, torch.Tensor], batch: torch.Tensor) -> torch.Tensor:
        return logits_of(model, functional_call(model, tensors, (batch,)))

    def one_after_the_other(tensors: dict[str, torch.Tensor], batch: torch.Tensor) -> torch.Tensor:
        runs = zip(*(tensor.unbind() for tensor in tensors.values()), batch, strict=True)
        return torch.stack([forward(dict(zip(tensors, run[:-1], strict=True)), run[-1]) for run in runs])

    if positions > STACKED_POSITIONS and any(len(shape) > 2 for shape in processor.shapes):
        return one_after_the_other
    return torch.vmap(forward)


@dataclass
class RunGroup:
    """n consecutive runs that were computed together, k checkpoints of each."""

    runs: list[int]
    parameters: torch.Tensor  # (n, k, D) float32
    validation_score: torch.Tensor  # (n, k) float32
    validation_loss: torch.Tensor  # (n, k) float32
    seconds: dict[str, float]


class SavedGroups:
    """Finished groups of a collection in the folder of `state`, which an interrupted one goes on with.

    Raises:
        FileExistsError: If there are any, but resuming was not asked for.
        IdentityError: If they are of another collection than `identity`, which has JSON types.
        ValueError: If one is damaged.
    """

    def __init__(self, state: RunSettings, identity: dict[str, Any]) -> None:
        self.folder, self.identity = state.folder, identity
        saved = sorted(self.folder.glob("group-*.safetensors"))
        if saved and state.resume_from_checkpoint is None:
            raise FileExistsError(
                f"{str(self.folder)!r} holds groups of runs of a collection that was not finished; pass "
                "--resume_from_checkpoint latest to go on with it, or remove the folder to start afresh."
            )
        for path in saved:
            require_identity(path, json.loads(_metadata(path)["identity"]), identity)

    def load(self, runs: list[int]) -> RunGroup | None:
        """Returns the group of these runs, if it was finished."""
        path = self._path(runs)
        if not path.is_file():
            return None
        return RunGroup(runs, **load_file(path), seconds=json.loads(_metadata(path)["seconds"]))

    def save(self, group: RunGroup) -> None:
        """Writes a group atomically."""
        tensors = {name: getattr(group, name) for name in ("parameters", "validation_score", "validation_loss")}
        notes = {"identity": json.dumps(self.identity), "seconds": json.dumps(group.seconds)}
        with replace_file(self._path(group.runs)) as temporary:
            save_file(tensors, temporary, notes)

    def _path(self, runs: list[int]) -> Path:
        return self.folder / f"group-{runs[0]:06d}.safetensors"


def _metadata(path: Path) -> dict[str, str]:
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata()
    except SafetensorError as error:
        raise ValueError(
            f"The saved group {str(path)!r} is damaged ({error}); remove it, and its runs are trained again."
        ) from error
