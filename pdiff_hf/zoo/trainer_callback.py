"""Records a checkpoint zoo while `transformers.Trainer` trains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .checkpoints import Checkpoints
from .parquet import CheckpointsError
from .recorder import CheckpointRecorder, interleaved_splits

# Trainer keeps the network in training mode, in which these tensors move whatever is frozen.
STATISTICS = ("*.running_mean", "*.running_var", "*.num_batches_tracked")


class CheckpointCallback(TrainerCallback):
    """Records a model's parameter subset every few steps of a `Trainer`, in splits of alternating blocks:

    ```python
    callback = CheckpointCallback("head", burn_in_steps=500)
    Trainer(model, arguments, train_dataset=rows, callbacks=[callback]).train()
    callback.checkpoints().save("checkpoints")
    ```

    The `max_steps` of the training must be at least `callback.num_steps`. One callback that is handed to several
    trainings, one after the other, makes a zoo of several runs, each named by its seed; their networks may then differ
    in the subset only.

    Args:
        subset: A preset (`last_norms`, `head`, `adapter`, `full`) or fnmatch patterns on `state_dict()` names.
        num_checkpoints: Checkpoints of the train split.
        num_validation_checkpoints: Those of the validation split.
        num_test_checkpoints: Those of the test split.
        burn_in_steps: Optimizer steps before anything is recorded.
        every: Record every N optimizer steps.
        num_blocks: Blocks into which each split is cut.
        gap: Checkpoints left out between two blocks.
        freeze_trunk: After the burn-in train the subset alone, so that all checkpoints have the trunk in common. With
            several processes freeze it yourself, before the training starts.
        allow_moving_trunk: See `CheckpointRecorder`. The running statistics of BatchNorm may always move; what is
            saved are the last ones.
    """

    def __init__(
        self,
        subset: str | Sequence[str],
        num_checkpoints: int = 300,
        num_validation_checkpoints: int = 50,
        num_test_checkpoints: int = 100,
        burn_in_steps: int = 0,
        every: int = 1,
        num_blocks: int = 5,
        gap: int = 20,
        freeze_trunk: bool = True,
        allow_moving_trunk: bool = False,
    ) -> None:
        self.subset, self.freeze_trunk = subset, freeze_trunk
        self.burn_in_steps, self.every = burn_in_steps, every
        self.allow_moving_trunk = allow_moving_trunk
        self.schedule = interleaved_splits(
            num_checkpoints, num_validation_checkpoints, num_test_checkpoints, num_blocks, gap
        )
        self.recorder: CheckpointRecorder | None = None
        self._frozen: list[nn.Parameter] = []

    @property
    def num_steps(self) -> int:
        """Optimizer steps until the last checkpoint."""
        return self.burn_in_steps + self.every * len(self.schedule)

    def checkpoints(
        self, preprocessing: dict[str, Any] | None = None, collection: dict[str, Any] | None = None
    ) -> Checkpoints:
        """Returns what was recorded, with the network in evaluation mode; see `Checkpoints` for the arguments."""
        if self.recorder is None:
            raise CheckpointsError("Nothing was recorded: give the callback to a Trainer and train first.")
        self.recorder.model.eval()
        return self.recorder.checkpoints(preprocessing, collection)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **kwargs: Any
    ) -> None:
        """Finds the subset; an error if the training is too short or resumes within the zoo, or the layout differs."""
        if state.max_steps < self.num_steps:
            raise CheckpointsError(
                f"The zoo asks for {self.num_steps} steps ({self.burn_in_steps} of burn-in, then every "
                f"{self.every} until the last of {len(self.schedule)}), but the training has {state.max_steps}; "
                "set max_steps, or ask for fewer checkpoints."
            )
        if state.global_step > self.burn_in_steps:
            raise CheckpointsError(
                f"The training resumes at step {state.global_step}, but what was recorded from step "
                f"{self.burn_in_steps} on was not saved with it; resume from before that step."
            )
        if self.recorder is None:
            self.recorder = CheckpointRecorder(model, self.subset, self.allow_moving_trunk or STATISTICS)
        else:
            self.recorder.follow(model)
        if state.global_step == self.burn_in_steps:
            self._freeze()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Records, if it is time; raises what `CheckpointRecorder.record` raises."""
        if state.global_step == self.burn_in_steps:
            self._freeze()
        tick, rest = divmod(state.global_step - self.burn_in_steps, self.every)
        if rest or not 0 < tick <= len(self.schedule) or not state.is_world_process_zero or self.recorder is None:
            return
        split = self.schedule[tick - 1]
        if split is not None:
            self.recorder.record(state.global_step, split, run=f"seed-{args.seed}", seed=args.seed)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Lets the trunk be trained again."""
        for parameter in self._frozen:
            parameter.requires_grad_(True)
        self._frozen = []

    def _freeze(self) -> None:
        if self.freeze_trunk and self.recorder is not None:
            self._frozen += self.recorder.freeze_trunk()
