"""A training loop that can be interrupted: numbered steps, randomness that depends on them alone, saved states."""

from __future__ import annotations

import dataclasses
import re
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from diffusers.optimization import get_scheduler
from tqdm.auto import tqdm

from .settings import OptimizationSettings, RunSettings

# Independent streams of the randomness of a seed and a step, by what is drawn; those of one training differ. Another
# number would change what every seed draws.
STREAMS = {"batches": 0, "noise": 1, "trajectory": 1, "order": 0, "augmentation": 1, "runs": 2, "references": 3}


@dataclass(frozen=True)
class TrainingState:
    """Where and how often the state of a training is saved; it holds pickles and is never pushed.

    Args:
        folder: Holds `checkpoint-{step}` folders.
        checkpointing_steps: Save every so many steps, and after the last one.
        checkpoints_total_limit: Keep at most so many, the last one always.
        resume_from_checkpoint: `latest`, or the path of one `checkpoint-{step}`; the other stages of a script take
            their latest. A stage without any starts afresh.
        all_processes: Whether every process runs the loop, or the main process alone.
        report_to: Trackers that Accelerate knows, or `none`.
        logging_steps: Log every so many steps.
        mixed_precision: `no`, `fp16` or `bf16`.
    """

    folder: Path
    checkpointing_steps: int = 500
    checkpoints_total_limit: int = 2
    resume_from_checkpoint: str | None = None
    all_processes: bool = True
    report_to: str = "none"
    logging_steps: int = 10
    mixed_precision: str = "no"

    @classmethod
    def from_run(cls, run: RunSettings, all_processes: bool = True) -> TrainingState:
        """Reads a script's flags."""
        resume = run.resume_from_checkpoint
        if resume not in (None, "latest") and not (Path(resume).is_dir() and _step_of(Path(resume)) is not None):
            saved = [str(path) for path in sorted(run.state_dir.rglob("checkpoint-*"))]
            raise FileNotFoundError(f"There is no saved state at {resume!r}; pass 'latest', or one of {saved}.")
        return cls(
            run.state_dir,
            run.checkpointing_steps,
            run.checkpoints_total_limit,
            run.resume_from_checkpoint,
            all_processes,
            run.report_to,
            run.logging_steps,
            run.mixed_precision,
        )

    def beside(self, name: str) -> TrainingState:
        """Returns the same settings for another stage of a script, in a folder of its own."""
        return dataclasses.replace(self, folder=self.folder / name)

    def clear(self) -> None:
        """Removes the saved states, of all stages beside this one too, once the result is safe; logs stay."""
        for folder in self.folder.rglob("checkpoint-*"):
            shutil.rmtree(folder)
        for group in self.folder.rglob("group-*.safetensors"):
            group.unlink(missing_ok=True)  # another machine may be clearing the same folder

    def make_accelerator(self, settings: OptimizationSettings) -> Accelerator:
        """Returns an accelerator for one stage, with its trackers started and told the settings."""
        trackers = None if self.report_to == "none" else self.report_to
        accelerator = Accelerator(
            mixed_precision=self.mixed_precision, log_with=trackers, project_dir=str(self.folder)
        )
        if trackers is not None:
            config = {k: v for k, v in dataclasses.asdict(settings).items() if isinstance(v, int | float | str)}
            accelerator.init_trackers(self.folder.name, config=config)
        return accelerator


def step_generator(seed: int, step: int, stream: str = "batches", process: int = 0) -> torch.Generator:
    """Returns a CPU generator that depends on its arguments alone, whatever happened before.

    A loop that draws its batches and noise from it resumes bit for bit.

    Args:
        seed: Seed of the training.
        step: Number of the step.
        stream: What is drawn, a key of `STREAMS`.
        process: Index of the process, where each draws for itself; only in the last stream of a training.
    """
    entropy = np.random.SeedSequence([seed, step, STREAMS[stream] + process]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(entropy))


class Stopwatch:
    """Seconds that a stage has taken, those before an interruption among them, if an accelerator saves it."""

    def __init__(self) -> None:
        self.started = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Seconds until now."""
        return time.perf_counter() - self.started

    def state_dict(self) -> dict[str, float]:
        """Returns the seconds until now."""
        return {"seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        """Goes on from the seconds that were saved."""
        self.started = time.perf_counter() - state_dict["seconds"]


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seeds torch's global generator for the block, as initial weights need, and puts it back afterward."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def make_optimizer(
    parameters: Iterable[torch.Tensor], optimization: OptimizationSettings, fused: bool = False
) -> tuple[torch.optim.AdamW, torch.optim.lr_scheduler.LambdaLR]:
    """Returns AdamW (`fused`: one pass over memory) and its learning-rate schedule, stepped once per training step."""
    optimizer = torch.optim.AdamW(
        parameters, lr=optimization.learning_rate, weight_decay=optimization.adam_weight_decay, fused=fused or None
    )
    lr_scheduler = get_scheduler(
        optimization.lr_scheduler,
        optimizer,
        num_warmup_steps=optimization.lr_warmup_steps,
        num_training_steps=optimization.max_train_steps,
    )
    return optimizer, lr_scheduler


def log_loss(accelerator: Accelerator, state: TrainingState | None, step: int, loss: torch.Tensor) -> None:
    """Sends the loss of a step to the trackers, every `logging_steps`."""
    if state is not None and step % state.logging_steps == 0:
        accelerator.log({"loss": loss.item()}, step=step)


def finish_trackers(accelerator: Accelerator) -> None:
    """Closes the trackers of one stage; `Accelerator.end_training` would part the processes, too, for good."""
    for tracker in accelerator.trackers:
        tracker.finish()


def training_steps(
    accelerator: Accelerator, max_train_steps: int, state: TrainingState | None, description: str
) -> Iterator[int]:
    """Yields the numbers of the steps that remain to be done, and saves the state of training between them.

    Everything that changes must be known to the accelerator: prepared, or registered for checkpointing. A state is
    written under a temporary name and renamed, so that a killed process leaves no half of one.

    Raises:
        FileNotFoundError: If `resume_from_checkpoint` names a folder that is not there.
        FileExistsError: If there is a state of an unfinished training and nothing was said of resuming.
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
        if _saved_states(state.folder):
            raise FileExistsError(
                f"{str(state.folder)!r} holds the state of a training that was not finished; pass "
                "--resume_from_checkpoint latest to go on with it, or remove the folder to start afresh."
            )
        return 0
    folder = Path(state.resume_from_checkpoint)
    if folder.resolve().parent != state.folder.resolve():  # `latest`, or the state of another stage of the script
        saved = _saved_states(state.folder)
        if not saved:
            return 0
        folder = saved[-1]
    elif not folder.is_dir():
        raise FileNotFoundError(f"There is no saved state at {str(folder)!r}.")
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
    for old in _saved_states(state.folder)[: -max(1, state.checkpoints_total_limit)]:
        shutil.rmtree(old)


def _saved_states(folder: Path) -> list[Path]:
    found = [path for path in folder.glob("checkpoint-*") if _step_of(path) is not None]
    return sorted(found, key=lambda path: _step_of(path) or 0)


def _step_of(folder: Path) -> int | None:
    match = re.fullmatch(r"checkpoint-(\d+)", folder.name)
    return int(match[1]) if match else None
