"""Recording checkpoints from any training loop, and how the steps of a trajectory become splits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ..targets.adapters import as_target
from ..targets.subsets import make_processor
from .checkpoints import SPLITS, Checkpoints, CheckpointSplit
from .parquet import CheckpointsError


class CheckpointRecorder:
    """Records a model's parameter subset from any training loop, in two lines:

    ```python
    recorder = CheckpointRecorder(model, "last_norms")
    for step, batch in enumerate(batches):
        ...
        recorder.record(step)
    recorder.checkpoints().save("checkpoints")
    ```

    Args:
        model: The network in training, or what PEFT made of it; it is read, never changed.
        subset: A preset (`last_norms`, `head`, `adapter`, `full`) or fnmatch patterns on `state_dict()` names.
    """

    def __init__(self, model: nn.Module, subset: str | Sequence[str]) -> None:
        self.model = as_target(model)
        self.processor = make_processor(self.model, subset)
        self.rows: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}

    def record(self, step: int, split: str = "train", run: str = "run-0", seed: int = 0) -> None:
        """Keeps a copy of the subset as it stands, as `step` of the independent training `run`.

        Raises:
            CheckpointsError: If the split is not `train`, `validation` or `test`.
            NonFiniteParametersError: If the training has diverged.
        """
        if split not in SPLITS:
            raise CheckpointsError(f"There is no split {split!r}; a checkpoint belongs to one of {list(SPLITS)}.")
        vector = self.processor.flatten(self.model.state_dict()).cpu()
        self.rows[split].append({"parameters": vector, "run": run, "step": step, "seed": seed})

    def follow(self, model: nn.Module) -> None:
        """Records another network from now on, such as that of a further run; `LayoutError` if it does not fit."""
        self.processor.check_model(as_target(model))
        self.model = as_target(model)

    def state_dict(self) -> dict[str, Any]:
        """Returns the rows, for `Accelerator.register_for_checkpointing`."""
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Takes the rows back."""
        self.rows = state_dict["rows"]

    def checkpoints(
        self, preprocessing: dict[str, Any] | None = None, collection: dict[str, Any] | None = None
    ) -> Checkpoints:
        """Returns what was recorded; see `Checkpoints` for the arguments."""
        splits = {}
        for split, rows in self.rows.items():
            vectors = [row["parameters"] for row in rows] or [torch.zeros(0, self.processor.parameter_dim)]
            columns = {name: [row[name] for row in rows] for name in ("run", "step", "seed")}
            splits[split] = CheckpointSplit(torch.stack(vectors)[: len(rows)], **columns)
        return Checkpoints(splits, self.processor, self.model, preprocessing or {}, collection or {})


def interleaved_splits(
    num_train: int, num_validation: int, num_test: int, num_blocks: int, gap: int
) -> list[str | None]:
    """Assigns the steps of a trajectory to splits in alternating blocks, so that no split is merely later.

    `gap` unrecorded steps (`None`) after each block keep near-copies of one split's checkpoints out of the others.
    """
    if num_train < 1 or num_blocks < 1:
        raise ValueError(f"A zoo needs checkpoints to learn from, in blocks, not {num_train} in {num_blocks} blocks.")
    counts = {"train": num_train, "validation": num_validation, "test": num_test}
    uneven = {split: count for split, count in counts.items() if count % num_blocks}
    if uneven:
        raise ValueError(f"{uneven} cannot be divided into {num_blocks} equal blocks; choose multiples of it.")
    one_round: list[str | None] = []
    for split, count in counts.items():
        if count:
            one_round += [split] * (count // num_blocks) + [None] * gap
    steps = one_round * num_blocks
    return steps[: len(steps) - gap]
