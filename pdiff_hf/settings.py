"""Settings that several scripts share: how a network is trained, where a script writes, whether it pushes."""

from __future__ import annotations

import copy
import math
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError
from transformers.hf_argparser import HfArg

from .folders import remove_folder
from .hub.sharing import prepare_repository, share

LARGEST_SEED = 2**63 - 1


def setting(default: Any, help: str) -> Any:
    """A dataclass field that is also a command-line flag."""
    return HfArg(default=default, help=help)


def require_within(settings: Any, lowest: float, *names: str, highest: float = math.inf) -> None:
    """Raises a ValueError that names the flag unless each of these settings is finite, in bounds, or None."""
    for name in names:
        value = getattr(settings, name)
        if value is not None and not (lowest <= value <= highest and value < math.inf):
            expected = f"at least {lowest}" if highest == math.inf else f"from {lowest} to {highest}"
            raise ValueError(f"--{name} must be {expected}, but is {value}.")


def say(text: str) -> None:
    """Prints a line once, in the first of the processes that `accelerate launch` started."""
    if os.environ.get("RANK", "0") == "0":
        print(text)


def run_script(main: Callable[[], Any], resumable: bool = True) -> None:
    """Runs the `main` of a script; exits with status 1 and a sentence after an error that a user can fix.

    Anything else is a bug, and its traceback is shown. `resumable` is whether the script saves states to go on from.
    """
    try:
        main()
    except KeyboardInterrupt:
        state = "--resume_from_checkpoint latest goes on from a saved state" if resumable else "run it again"
        print(f"Interrupted; {state}.", file=sys.stderr)
        sys.exit(130)
    except (OSError, ValueError, SafetensorError) as error:  # safetensors reports a full disk as its own error
        sys.exit(f"{Path(sys.argv[0]).name}: {error}")


@dataclass
class OptimizationSettings:
    """How a network is trained, with diffusers' flag names."""

    max_train_steps: int = setting(600, "Optimizer steps.")
    train_batch_size: int = setting(256, "Examples of one step, over all processes together.")
    learning_rate: float = setting(1e-3, "Peak learning rate of AdamW.")
    lr_scheduler: str = setting(
        "cosine", "A schedule of diffusers.optimization.get_scheduler, or `cosine_with_min_lr` of transformers."
    )
    lr_min_rate: float = setting(0.02, "With cosine_with_min_lr, the last learning rate as a share of the peak.")
    lr_warmup_steps: int = setting(50, "Steps of linear warm-up.")
    adam_beta2: float = setting(0.999, "Decay of AdamW's average of squared gradients.")
    adam_weight_decay: float = setting(0.0, "Weight decay of AdamW.")
    max_grad_norm: float = setting(1.0, "Maximum norm of the gradient; 0 turns clipping off.")
    seed: int = setting(0, "Random seed for initial weights, batches and noise.")

    def __post_init__(self) -> None:
        require_within(self, 1, "train_batch_size")
        require_within(self, 0, "max_train_steps", "learning_rate", "lr_warmup_steps", "max_grad_norm")
        require_within(self, 0, "adam_weight_decay")
        require_within(self, 0, "adam_beta2", "lr_min_rate", highest=1)
        require_within(self, 0, "seed", highest=LARGEST_SEED)


@dataclass
class HubSettings:
    """Whether a script shares its result on the Hub."""

    push_to_hub: bool = setting(False, "Push the result to the Hub.")
    hub_model_id: str | None = setting(None, "The repository, `org/name`; by default the name of the output folder.")
    hub_token: str | None = HfArg(
        default=None, repr=False, help="A token with write access; by default the stored one.", aliases=["--token"]
    )
    hub_private_repo: bool = HfArg(default=False, help="Make the repository private.", aliases=["--private"])

    def prepare_push(self, folder: str, repo_type: str) -> None:
        """Makes the repository before the work is done, so that a wrong token is found before it costs a training."""
        if self.push_to_hub:
            repo_id, private = self.hub_model_id or Path(folder).absolute().name, self.hub_private_repo or None
            self.hub_model_id = prepare_repository(repo_id, repo_type, private, self.hub_token)

    def push(self, folder: str) -> None:
        """Pushes a folder, if asked to, and prints where it is; running the script again completes a failed push."""
        if self.push_to_hub:
            repo_id, private = self.hub_model_id or Path(folder).absolute().name, self.hub_private_repo or None
            print(f"Pushed: {share(folder, repo_id, private=private, token=self.hub_token)}")


@dataclass
class RunSettings:
    """Where a script writes, and how its training is saved, resumed and logged.

    A saved state holds pickles and is never pushed: it lies in `folder`, beside the result. Raises `FileNotFoundError`
    if `resume_from_checkpoint` is neither `latest` nor a saved state.
    """

    output_dir: str = field(metadata={"help": "Folder of the result; it is written atomically."})
    checkpointing_steps: int = setting(500, "Save the state of training every N steps, and after the last one.")
    checkpoints_total_limit: int = setting(2, "Keep at most N saved states.")
    resume_from_checkpoint: str | None = setting(
        None, "`latest`, or the path of one saved state; the other stages of a script then take their latest."
    )
    report_to: str = setting("none", "Trackers that Accelerate knows: `tensorboard`, `wandb`, …, `all` or `none`.")
    logging_steps: int = setting(10, "Log every N steps.")
    mixed_precision: Literal["no", "fp16", "bf16"] | None = setting(
        None, "Precision of training; by default that of `accelerate launch`."
    )
    # Holds the `checkpoint-{step}` folders and logs of a stage; at first `{output_dir}-state`.
    folder: Path = field(init=False, repr=False)
    # The main process runs the stage alone; otherwise all processes run it together.
    main_process_only: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        require_within(self, 1, "checkpointing_steps", "checkpoints_total_limit", "logging_steps")
        output = Path(self.output_dir)
        self.folder = Path(f"{output if output.name not in ('', '..') else output.resolve()}-state")
        resume = Path(self.resume_from_checkpoint or "latest")
        if str(resume) != "latest" and not (resume.is_dir() and resume.name.startswith("checkpoint-")):
            saved = [str(path) for path in sorted(self.folder.rglob("checkpoint-*"))]
            raise FileNotFoundError(f"There is no saved state at {str(resume)!r}; pass 'latest', or one of {saved}.")

    def beside(self, stage: str, main_process_only: bool = False) -> RunSettings:
        """Returns the same settings for one of several stages of a script, in a folder of its own."""
        other = copy.copy(self)
        other.folder, other.main_process_only = self.folder / stage, main_process_only
        return other

    def clear(self) -> None:
        """Removes the saved states, those of all stages too, once the result is safe; logs stay."""
        for folder in (*self.folder.rglob("checkpoint-*"), *self.folder.rglob("unfinished-*")):
            if not folder.parent.name.startswith("."):  # there another process is clearing the same states
                remove_folder(folder)
        for group in self.folder.rglob("group-*.safetensors"):
            group.unlink(missing_ok=True)
