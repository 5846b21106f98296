"""Training a group of runs at once: stacked parameters, with initial weights and batches drawn by each run alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.func import functional_call
from transformers import PreTrainedModel

from ..loops import RunSettings, make_optimizer, seeded, step_generator
from ..settings import OptimizationSettings
from ..targets.processing_parameters import ParameterProcessor
from ..targets.task import task_of

# Up to so many positions in a batch of one run, stacked kernels (grouped convolutions) are faster than one network
# after the other: 1.5 against 2.4 ms a step for (8, 16) channels on 64 images of 8x8; 16 against 14 ms on 28x28.
STACKED_POSITIONS = 8192

Augmentation = Callable[[torch.Tensor, torch.Generator], torch.Tensor]


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


def batch_rows(seeds: Sequence[int], num_images: int, batch_size: int) -> Iterator[torch.Tensor]:
    """Yields the rows of each run's next batch, `(n, batch_size)` int64, without end.

    A run goes through all images in an order that its seed alone decides, then in another.
    """
    pending, epoch = torch.empty(len(seeds), 0, dtype=torch.long), 0
    while True:
        while pending.shape[1] < batch_size:
            orders = [torch.randperm(num_images, generator=step_generator(seed, epoch, "order")) for seed in seeds]
            pending, epoch = torch.cat([pending, torch.stack(orders)], dim=1), epoch + 1
        yield pending[:, :batch_size]
        pending = pending[:, batch_size:]


def train_group(
    model: PreTrainedModel,
    processor: ParameterProcessor,
    start: torch.Tensor,
    seeds: Sequence[int],
    pixel_values: torch.Tensor,
    labels: torch.Tensor,
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
        pixel_values, labels: `(images, channels, height, width)` and `(images,)`, on the device of the model.
        optimization: How each run is trained.
        recorded: The k steps, ascending and from 0, after which a checkpoint is kept.
        augmentation: A function of a run's batch and its own generator.
    """
    device, batch_size = pixel_values.device, optimization.train_batch_size
    stacked = {
        name: tensor.to(device, copy=True, memory_format=torch.contiguous_format).requires_grad_()
        for name, tensor in processor.unflatten(start).items()
    }
    optimizer, lr_scheduler = make_optimizer(stacked.values(), optimization, fused=True)
    positions = batch_size * pixel_values[0, 0].numel()
    logits_of, task = _stacked_forward(model, processor, positions), task_of(model.config)
    batches = batch_rows(seeds, len(labels), batch_size)
    flat_images = pixel_values.flatten(1)
    flat_batch = flat_images.new_empty(len(seeds) * batch_size, flat_images.shape[1])  # the largest tensor, made once
    kept = []
    for step in range(optimization.max_train_steps):
        rows = next(batches).flatten().to(device)
        torch.index_select(flat_images, 0, rows, out=flat_batch)
        batch = flat_batch.view(len(seeds), batch_size, *pixel_values.shape[1:])
        if augmentation is not None:
            generators = [step_generator(seed, step, "augmentation") for seed in seeds]
            batch = torch.stack([augmentation(own, g) for own, g in zip(batch, generators, strict=True)])
        logits = logits_of(stacked, batch)  # (n, batch_size, classes)
        # The sum over runs of each run's mean loss: every run gets the gradient of its own.
        loss = task.loss(logits.float(), labels[rows].view(len(seeds), -1), reduction="sum") / batch_size
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        lr_scheduler.step()
        if step in recorded:
            kept.append(torch.cat([tensor.detach().flatten(1) for tensor in stacked.values()], dim=1).float().cpu())
    return torch.stack(kept, dim=1)


def _stacked_forward(
    model: PreTrainedModel, processor: ParameterProcessor, positions: int
) -> Callable[[dict[str, torch.Tensor], torch.Tensor], torch.Tensor]:
    """Returns the function from stacked tensors and batches `(n, batch, …)` to logits `(n, batch, classes)`.

    `positions` are those of all images in the batch of one run.
    """

    def logits_of(tensors: dict[str, torch.Tensor], batch: torch.Tensor) -> torch.Tensor:
        return functional_call(model, tensors, (batch,)).logits

    def one_after_the_other(tensors: dict[str, torch.Tensor], batch: torch.Tensor) -> torch.Tensor:
        runs = zip(*(tensor.unbind() for tensor in tensors.values()), batch, strict=True)
        return torch.stack([logits_of(dict(zip(tensors, run[:-1], strict=True)), run[-1]) for run in runs])

    if positions > STACKED_POSITIONS and any(len(shape) > 2 for shape in processor.shapes):
        return one_after_the_other
    return torch.vmap(logits_of)


@dataclass
class RunGroup:
    """n consecutive runs that were computed together, k checkpoints of each."""

    runs: list[int]
    parameters: torch.Tensor  # (n, k, D) float32
    validation_score: torch.Tensor  # (n, k) float32
    validation_loss: torch.Tensor  # (n, k) float32
    seconds: dict[str, float]


class SavedGroups:
    """Finished groups of the collection `identity` in the folder of `state`, which an interrupted one goes on with."""

    def __init__(self, state: RunSettings, identity: str) -> None:
        self.folder, self.identity = state.folder, identity
        saved = sorted(self.folder.glob("group-*.safetensors"))
        if saved and state.resume_from_checkpoint is None:
            raise FileExistsError(
                f"{str(self.folder)!r} holds groups of runs of a collection that was not finished; pass "
                "--resume_from_checkpoint latest to go on with it, or remove the folder to start afresh."
            )
        for path in saved:
            if _metadata(path)["identity"] != identity:
                raise FileExistsError(
                    f"{str(path)!r} belongs to a collection with other settings; resume with the settings it was "
                    "started with, or remove the folder to start afresh."
                )

    def load(self, runs: list[int]) -> RunGroup | None:
        """Returns the group of these runs, if it was finished."""
        path = self._path(runs)
        if not path.is_file():
            return None
        return RunGroup(runs, **load_file(path), seconds=json.loads(_metadata(path)["seconds"]))

    def save(self, group: RunGroup) -> None:
        """Writes a group under a temporary name, then renames it."""
        path = self._path(group.runs)
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f"unfinished-{path.name}")
        tensors = {name: getattr(group, name) for name in ("parameters", "validation_score", "validation_loss")}
        save_file(tensors, unfinished, {"identity": self.identity, "seconds": json.dumps(group.seconds)})
        unfinished.rename(path)

    def _path(self, runs: list[int]) -> Path:
        return self.folder / f"group-{runs[0]:06d}.safetensors"


def _metadata(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return file.metadata()
