"""A training loop that can be interrupted: numbered steps, randomness that depends on them alone, saved states."""

from __future__ import annotations

import dataclasses
import re
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from diffusers.optimization import get_scheduler
from torch import nn
from tqdm.auto import tqdm

from .settings import OptimizationSettings, RunSettings


@dataclass(frozen=True)
class TrainingState:
    """Where and how often the state of a training is saved; it holds pickles and is never pushed.

    Args:
        folder: Holds `checkpoint-{step}` folders.
        checkpointing_steps: Save every so many steps, and after the last one.
        checkpoints_total_limit: Keep at most so many.
        resume_from_checkpoint: `latest`, or the path of one `checkpoint-{step}`; `latest` starts afresh if there is
            none.
        all_processes: Whether every process runs the loop, or the main process alone.
    """

    folder: Path
    checkpointing_steps: int = 500
    checkpoints_total_limit: int = 2
    resume_from_checkpoint: str | None = None
    all_processes: bool = True

    @classmethod
    def from_run(cls, run: RunSettings, all_processes: bool = True) -> TrainingState:
        """Reads a script's flags."""
        return cls(
            run.state_dir,
            run.checkpointing_steps,
            run.checkpoints_total_limit,
            run.resume_from_checkpoint,
            all_processes,
        )

    def beside(self, name: str) -> TrainingState:
        """Returns the same settings for another stage of a script, in a folder of its own."""
        return dataclasses.replace(self, folder=self.folder / name)


def step_generator(seed: int, step: int, stream: int = 0) -> torch.Generator:
    """Returns a CPU generator that depends on `seed`, `step` and `stream` alone, whatever happened before.

    A loop that draws its batches and noise from it resumes bit for bit.
    """
    entropy = np.random.SeedSequence([seed, step, stream]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(entropy))


def make_optimizer(
    parameters: Iterable[nn.Parameter], optimization: OptimizationSettings
) -> tuple[torch.optim.AdamW, torch.optim.lr_scheduler.LambdaLR]:
    """Returns AdamW and its learning-rate schedule, which is stepped once per training step."""
    optimizer = torch.optim.AdamW(
        parameters, lr=optimization.learning_rate, weight_decay=optimization.adam_weight_decay
    )
    lr_scheduler = get_scheduler(
        optimization.lr_scheduler,
        optimizer,
        num_warmup_steps=optimization.lr_warmup_steps,
        num_training_steps=optimization.max_train_steps,
    )
    return optimizer, lr_scheduler


def training_steps(
    accelerator: Accelerator, max_train_steps: int, state: TrainingState | None, description: str
) -> Iterator[int]:
    """Yields the numbers of the steps that remain to be done, and saves the state of training between them.

    Everything that changes must be known to the accelerator: prepared, or registered for checkpointing. A state is
    written under a temporary name and renamed, so that a killed process leaves no half of one.

    Raises:
        FileNotFoundError: If `resume_from_checkpoint` names a folder that is not there.
    """
    first = 0 if state is None else _resume(accelerator, state)
    remaining = range(min(first, max_train_steps), max_train_steps)
    bar = tqdm(remaining, description, initial=first, total=max_train_steps, disable=not accelerator.is_main_process)
    for step in bar:
        yield step
        done = step + 1
        if state is not None and (done % state.checkpointing_steps == 0 or done == max_train_steps):
            _save(accelerator, state, done)


def _resume(accelerator: Accelerator, state: TrainingState) -> int:
    if state.resume_from_checkpoint is None:
        return 0
    if state.resume_from_checkpoint == "latest":
        saved = _saved_states(state.folder)
        if not saved:
            return 0
        folder = saved[-1]
    else:
        folder = Path(state.resume_from_checkpoint)
        if not folder.is_dir() or _step_of(folder) is None:
            raise FileNotFoundError(
                f"There is no saved state at {str(folder)!r}; pass 'latest', or one of "
                f"{[str(path) for path in _saved_states(state.folder)]}."
            )
    accelerator.load_state(str(folder))
    return _step_of(folder) or 0


def _save(accelerator: Accelerator, state: TrainingState, step: int) -> None:
    # Every process writes into one folder, whose name they must agree on; it gets its final name when all are done.
    unfinished, finished = state.folder / f"unfinished-{step}", state.folder / f"checkpoint-{step}"
    unfinished.mkdir(parents=True, exist_ok=True)
    accelerator.save_state(str(unfinished))
    if state.all_processes:
        accelerator.wait_for_everyone()
    if not accelerator.is_main_process:
        return
    shutil.rmtree(finished, ignore_errors=True)
    unfinished.rename(finished)
    for old in _saved_states(state.folder)[: -state.checkpoints_total_limit]:
        shutil.rmtree(old)


def _saved_states(folder: Path) -> list[Path]:
    found = [path for path in folder.glob("checkpoint-*") if _step_of(path) is not None]
    return sorted(found, key=lambda path: _step_of(path) or 0)


def _step_of(folder: Path) -> int | None:
    match = re.fullmatch(r"checkpoint-(\d+)", folder.name)
    return int(match[1]) if match else None


class Registered:
    """Lets `Accelerator.register_for_checkpointing` save an attribute that changes, such as a best value so far."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def state_dict(self) -> dict[str, Any]:
        """Returns the value."""
        return {"value": self.value}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes the value back."""
        self.value = state_dict["value"]
