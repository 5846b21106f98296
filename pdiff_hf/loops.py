"""A training loop that can be interrupted: numbered steps, randomness that depends on them alone, saved states."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from diffusers.optimization import get_scheduler
from tqdm.auto import tqdm
from transformers import get_cosine_with_min_lr_schedule_with_warmup

from .folders import remove_folder, write_json
from .settings import OptimizationSettings, RunSettings

# Independent streams of the randomness of a seed and a step, by what is drawn; those of one training differ. Another
# number would change what every seed draws.
STREAMS = {"batches": 0, "noise": 1, "trajectory": 1, "order": 0, "augmentation": 1, "runs": 2, "references": 3}
STREAMS |= {"functions": 2, "conditions": 4}

IDENTITY = "identity.json"  # of a saved state: the settings and data that it belongs to


class IdentityError(ValueError):
    """A saved state belongs to a training with other settings or data."""


def make_accelerator(run: RunSettings | None, settings: OptimizationSettings) -> Accelerator:
    """Returns an accelerator for one stage, with its trackers started and the settings logged to them."""
    if run is None:
        return Accelerator()
    trackers = None if run.report_to == "none" else run.report_to
    accelerator = Accelerator(mixed_precision=run.mixed_precision, log_with=trackers, project_dir=str(run.folder))
    if trackers is not None:
        config = {k: v if isinstance(v, int | float) else str(v) for k, v in dataclasses.asdict(settings).items()}
        accelerator.init_trackers(run.folder.name, config=config)
    return accelerator


def trains_in_bf16(accelerator: Accelerator, run: RunSettings | None) -> bool:
    """Returns whether bfloat16 is fast on the accelerator's device, and no other precision is set."""
    if accelerator.mixed_precision != "no" or (run is not None and run.mixed_precision is not None):
        return False
    if accelerator.device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return accelerator.device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()


def step_generator(seed: int, step: int, stream: str = "batches", process: int = 0) -> torch.Generator:
    """Returns a CPU generator that depends on its arguments alone, so that a loop resumes bit for bit.

    Args:
        seed, step: Of the training.
        stream: What is drawn, a key of `STREAMS`.
        process: Index of the process, where each draws for itself; only in the last stream of a training.
    """
    entropy = np.random.SeedSequence([seed, step, STREAMS[stream] + process]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(entropy))


def fingerprint(tensors: Iterable[torch.Tensor]) -> str:
    """Returns 16 hexadecimal digits that differ if any bit of the tensors does."""
    digest = hashlib.blake2b(digest_size=8)
    for tensor in tensors:
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


class Stopwatch:
    """Seconds that a stage has taken, including those before an interruption if an accelerator saves it."""

    def __init__(self) -> None:
        self.started = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Seconds until now."""
        return time.perf_counter() - self.started

    def state_dict(self) -> dict[str, float]:
        return {"seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
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
        parameters,
        lr=optimization.learning_rate,
        betas=(0.9, optimization.adam_beta2),
        weight_decay=optimization.adam_weight_decay,
        fused=fused or None,
    )
    steps = {
        "num_warmup_steps": optimization.lr_warmup_steps,
        "num_training_steps": optimization.max_train_steps,
    }
    if optimization.lr_scheduler == "cosine_with_min_lr":  # which diffusers has not got
        min_lr = {"min_lr_rate": optimization.lr_min_rate}
        return optimizer, get_cosine_with_min_lr_schedule_with_warmup(optimizer, **steps, **min_lr)
    return optimizer, get_scheduler(optimization.lr_scheduler, optimizer, **steps)


def log_loss(accelerator: Accelerator, run: RunSettings | None, step: int, loss: torch.Tensor) -> None:
    """Sends the loss of a step to the trackers, every `logging_steps`."""
    if run is not None and step % run.logging_steps == 0:
        accelerator.log({"loss": loss.item()}, step=step)


def finish_trackers(accelerator: Accelerator) -> None:
    """Closes the trackers of one stage; `Accelerator.end_training` would end the process group too."""
    for tracker in accelerator.trackers:
        tracker.finish()


def training_steps(
    accelerator: Accelerator,
    max_train_steps: int,
    run: RunSettings | None,
    description: str,
    identity: dict[str, Any] | None = None,
) -> Iterator[int]:
    """Yields the numbers of the steps that remain to be done, and saves the state of training between them.

    Everything that changes must be known to the accelerator: prepared, or registered for checkpointing. A state is
    written under a temporary name and renamed, so that a killed process leaves no half-written one.

    Args:
        accelerator: What runs the steps.
        max_train_steps: Their number.
        run: Where states are saved, if anywhere.
        description: Title of the progress bar.
        identity: Settings, and fingerprints of data, that a resumed training must share; JSON types. Only
            `max_train_steps` may have grown.

    Raises:
        FileExistsError: If there is a state of an unfinished training, but resuming was not asked for.
        IdentityError: If the state to resume from is of another `identity`.
        ValueError: If it is damaged, or beyond `max_train_steps`.
    """
    identity = {k: v for k, v in (identity or {}).items() if k != "max_train_steps"}
    first = 0 if run is None else _resume(accelerator, run, max_train_steps, identity)
    remaining = range(first, max_train_steps)
    bar = tqdm(remaining, description, initial=first, total=max_train_steps, disable=not accelerator.is_main_process)
    for step in bar:
        yield step
        done = step + 1
        if run is not None and (done % run.checkpointing_steps == 0 or done == max_train_steps):
            _save(accelerator, run, done, identity)


def _resume(accelerator: Accelerator, run: RunSettings, max_train_steps: int, identity: dict[str, Any]) -> int:
    if run.resume_from_checkpoint is None:
        if _saved_states(run.folder):
            raise FileExistsError(
                f"{str(run.folder)!r} holds the state of a training that was not finished; pass "
                "--resume_from_checkpoint latest to go on with it, or remove the folder to start afresh."
            )
        return 0
    folder = Path(run.resume_from_checkpoint)
    if folder.resolve().parent != run.folder.resolve():  # `latest`, or the state of another stage of the script
        saved = _saved_states(run.folder)
        if not saved:
            return 0
        folder = saved[-1]
    step = _step_of(folder)
    if step > max_train_steps:
        raise ValueError(f"{str(folder)!r} has made more steps than the {max_train_steps} that were asked for.")
    try:
        stored = folder / IDENTITY
        require_identity(folder, json.loads(stored.read_text(encoding="utf-8")) if stored.is_file() else {}, identity)
        accelerator.load_state(str(folder))
    except IdentityError:
        raise
    except Exception as error:  # of whichever library reads the damaged file
        older = [path for path in _saved_states(run.folder) if _step_of(path) < step]
        instead = (
            f"pass --resume_from_checkpoint {older[-1]}" if older else f"remove {str(run.folder)!r} to start afresh"
        )
        raise ValueError(f"The saved state {str(folder)!r} is damaged ({type(error).__name__}); {instead}.") from error
    return step


def require_identity(state: Path, stored: dict[str, Any], given: dict[str, Any]) -> None:
    """Raises `IdentityError` if a saved state was stored with another identity; both have JSON types."""
    given = json.loads(json.dumps(given))
    changed = {name: value for name, value in stored.items() if given.get(name) != value}
    if changed:
        now = {name: given.get(name) for name in changed}
        raise IdentityError(
            f"{str(state)!r} belongs to a training with {changed}, but {now} was asked for; resume with the same, or "
            f"remove {str(state.parent)!r} to start afresh."
        )


def _save(accelerator: Accelerator, run: RunSettings, step: int, identity: dict[str, Any]) -> None:
    # Every process writes into one folder, whose name they must agree on; it gets its final name when all are done.
    unfinished, finished = run.folder / f"unfinished-{step}", run.folder / f"checkpoint-{step}"
    unfinished.mkdir(parents=True, exist_ok=True)
    accelerator.save_state(str(unfinished))
    if not run.main_process_only:
        accelerator.wait_for_everyone()
    if not accelerator.is_main_process:
        return
    write_json(unfinished / IDENTITY, identity)
    remove_folder(finished)
    unfinished.rename(finished)
    killed = [path for path in run.folder.glob("unfinished-*") if int(path.name.removeprefix("unfinished-")) <= step]
    for old in (*killed, *_saved_states(run.folder)[: -max(1, run.checkpoints_total_limit)]):
        remove_folder(old)


def _saved_states(folder: Path) -> list[Path]:
    found = folder.glob("checkpoint-*")
    return sorted((path for path in found if path.name.removeprefix("checkpoint-").isdigit()), key=_step_of)


def _step_of(state: Path) -> int:
    return int(state.name.removeprefix("checkpoint-"))
