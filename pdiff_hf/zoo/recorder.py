"""Recording checkpoints from any training loop, and how the steps of a trajectory become splits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..targets.adapters import as_target
from ..targets.conditions import Conditions
from ..targets.subsets import make_processor
from .checkpoints import SPLITS, Checkpoints, CheckpointSplit
from .parquet import CheckpointsError

# By the bytes of a number, the integers that its bits are summed as.
INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class CheckpointRecorder:
    """Records a model's parameter subset from any training loop, in three lines:

    ```python
    recorder = CheckpointRecorder(model, "last_norms")
    recorder.freeze_trunk()
    for step, batch in enumerate(batches):
        ...
        recorder.record(step)
    recorder.checkpoints().save("checkpoints")
    ```

    Args:
        model: The network in training, or what PEFT made of it; recording reads it and never changes it.
        subset: A preset (`last_norms`, `head`, `adapter`, `full`) or fnmatch patterns on `state_dict()` names.
        allow_moving_trunk: Whether tensors outside the subset may change between two records, or fnmatch patterns of
            those that may. All rows are saved with the trunk as it is at the end, so that rows recorded with another
            one become networks that never existed.
        conditions: What the conditions mean that runs are made for, if they are: each record then has one.
    """

    def __init__(
        self,
        model: nn.Module,
        subset: str | Sequence[str],
        allow_moving_trunk: bool | Sequence[str] = False,
        conditions: Conditions | None = None,
    ) -> None:
        self.model = as_target(model)
        self.is_distributed = any(isinstance(module, DistributedDataParallel) for module in model.modules())
        self.processor, self.conditions = make_processor(self.model, subset), conditions
        self.rows: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
        patterns = {True: ["*"], False: []}
        self.may_move = patterns[allow_moving_trunk] if isinstance(allow_moving_trunk, bool) else allow_moving_trunk
        self.trunk: dict[str, int] | None = None  # checksums of its tensors at the first record

    def freeze_trunk(self) -> list[nn.Parameter]:
        """Lets the subset alone be trained from now on, and returns the parameters that it has frozen.

        Raises:
            CheckpointsError: If `DistributedDataParallel` already awaits gradients of what is to be frozen.
        """
        generated = set(self.processor.names)
        frozen = [p for name, p in self.model.named_parameters() if name not in generated and p.requires_grad]
        if frozen and self.is_distributed:
            raise CheckpointsError(
                "The trunk must be frozen before DistributedDataParallel wraps the network, which would wait for its "
                "gradients: call CheckpointRecorder(model, subset).freeze_trunk() on the plain network first."
            )
        for parameter in frozen:
            parameter.requires_grad_(False)
        return frozen

    def record(
        self, step: int, split: str = "train", run: str = "run-0", seed: int = 0, condition: Any = None
    ) -> None:
        """Keeps a copy of the subset as it stands, as `step` of the independent training `run`.

        Args:
            condition: What the run was made for, if runs have conditions: numbers, or the names of bits that are 1.

        Raises:
            CheckpointsError: If there is no such split, the trunk has changed since the first record, or a condition
                is missing or given to a recorder that does not know what it means.
            ConditionError: If it is none of those; see `Conditions.vectors`.
            NonFiniteParametersError: If the training has diverged.
        """
        if split not in SPLITS:
            raise CheckpointsError(f"There is no split {split!r}; a checkpoint belongs to one of {list(SPLITS)}.")
        if (condition is None) != (self.conditions is None):
            raise CheckpointsError(
                "The recorder was made with conditions: pass that of the run, record(step, condition=…)."
                if condition is None
                else "A condition was given, but not what it means: CheckpointRecorder(…, conditions=Conditions(…))."
            )
        own = {} if self.conditions is None else {"condition": self.conditions.vectors(condition, 1)[0].tolist()}
        state_dict = self.model.state_dict()
        vector = self.processor.flatten(state_dict).cpu()
        self._check_trunk(state_dict)
        self.rows[split].append({"parameters": vector, "run": run, "step": step, "seed": seed, **own})

    def follow(self, model: nn.Module) -> None:
        """Records another network from now on, such as that of a further run; `LayoutError` if it does not fit."""
        self.processor.check_model(as_target(model))
        self.model = as_target(model)

    def state_dict(self) -> dict[str, Any]:
        """Returns the rows and what the trunk was, for `Accelerator.register_for_checkpointing`."""
        return {"rows": self.rows, "trunk": self.trunk}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Takes them back."""
        self.rows, self.trunk = state_dict["rows"], state_dict.get("trunk")

    def checkpoints(
        self, preprocessing: dict[str, Any] | None = None, collection: dict[str, Any] | None = None
    ) -> Checkpoints:
        """Returns what was recorded, without a copy of the vectors; see `Checkpoints` for the arguments."""
        splits, names = {}, ["run", "step", "seed"]
        collection = dict(collection or {})
        if self.conditions is not None:
            names.append("condition")
            collection["conditions"] = self.conditions.to_dict()
        for split, rows in self.rows.items():
            parameters = torch.empty(len(rows), self.processor.parameter_dim)
            for i in reversed(range(len(rows))):  # the last first: only the end of the heap returns to the system
                rows[i]["parameters"] = parameters[i].copy_(rows[i]["parameters"])
            columns = {name: [row[name] for row in rows] for name in names}
            splits[split] = CheckpointSplit(parameters, **columns)
        return Checkpoints(splits, self.processor, self.model, preprocessing or {}, collection)

    def _check_trunk(self, state_dict: Mapping[str, Any]) -> None:
        generated = {state_dict[name].data_ptr() for name in self.processor.names}  # under all names, if tied
        trunk = {
            name: _checksum(tensor)
            for name, tensor in state_dict.items()
            if isinstance(tensor, torch.Tensor)
            and tensor.data_ptr() not in generated
            and not any(fnmatchcase(name, pattern) for pattern in self.may_move)
        }
        self.trunk = self.trunk or trunk
        moved = [name for name, checksum in trunk.items() if checksum != self.trunk.get(name)]
        if moved:
            raise CheckpointsError(
                f"{len(moved)} tensors outside the subset have changed since the first record, such as {moved[0]!r}, "
                "but all rows are saved with one trunk: freeze it before the first record (recorder.freeze_trunk(), "
                "and model.eval() for the statistics of BatchNorm), record a larger subset, or pass "
                "allow_moving_trunk=True."
            )


def _checksum(tensor: torch.Tensor) -> int:
    """Returns the sum of the numbers' bits as integers, by which a step of an optimizer is noticed, however small."""
    return int(tensor.detach().reshape(-1).view(INTEGERS.get(tensor.element_size(), torch.uint8)).sum())


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
