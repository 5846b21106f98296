"""Conditions: the vectors of numbers that describe tasks, what they mean, and how far they are from each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch

Kind = Literal["bits", "simplex", "numbers"]
SUM_TOLERANCE = 1e-4  # by which the numbers of a simplex may miss 1
NAMED = 8  # names in a sentence at most


class ConditionError(ValueError):
    """A condition is not of the kind or length that is expected, or has no meaning here."""


@dataclass(frozen=True)
class Conditions:
    """What the c numbers of a condition mean.

    Args:
        kind: `bits` are 0 or 1, each for a name that is in or out; `simplex` are shares that sum to 1; `numbers` are
            any finite ones.
        names: One for each of the c numbers.
        complement: Of bits: whether the complement of a condition is the same task with its two outputs exchanged.

    Raises:
        ConditionError: If there is no such kind, names are missing or doubled, or `complement` is not of bits.
    """

    kind: Kind
    names: tuple[str, ...]
    complement: bool = False

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ConditionError(f"Conditions are of kind {', '.join(get_args(Kind))}, but {self.kind!r} was given.")
        are_text = all(isinstance(name, str) for name in self.names)
        if not self.names or not are_text or len(set(self.names)) < len(self.names):
            raise ConditionError(
                f"The numbers of a condition need different names, at least one, not {_some_names(self.names)}."
            )
        if not isinstance(self.complement, bool) or (self.complement and self.kind != "bits"):
            raise ConditionError(
                f"`complement` is true or false, and true of bits alone, but is {self.complement!r} of {self.kind}."
            )

    @property
    def dim(self) -> int:
        """c, how many numbers a condition has."""
        return len(self.names)

    def vectors(self, given: Any, count: int) -> torch.Tensor:
        """Returns the conditions of `count` networks, `(count, c)` float32.

        Args:
            given: One condition for all networks or one for each: c numbers, or `(count, c)` of them, as lists, arrays
                or tensors. Of bits also the names that are in: `["3", "7"]`, or a list of such lists.

        Raises:
            ConditionError: See `check`; or if a name is unknown, or there are neither one nor `count` conditions.
        """
        values = self.check(self._numbers(given))
        if len(values) not in (1, count):
            raise ConditionError(
                f"{len(values)} conditions were given for {count} networks; pass one for all, or one for each."
            )
        return values.expand(count, -1).clone()

    def check(self, values: Any) -> torch.Tensor:
        """Returns conditions `(n, c)` as float32.

        Raises:
            ConditionError: If they are of another shape, not finite, or not of this kind: of bits anything but 0 and
                1, of a simplex negative numbers or a sum other than 1.
        """
        try:
            values = torch.as_tensor(np.asarray(values, dtype=np.float64))
        except (TypeError, ValueError) as error:  # lists of different lengths, or not of numbers
            raise ConditionError(f"A condition is {self._expected()}, but {_shortened(values)} was given.") from error
        if values.ndim != 2 or values.shape[1] != self.dim:
            found = f"{values.shape[1]} numbers were" if values.ndim == 2 else f"shape {tuple(values.shape)} was"
            raise ConditionError(f"A condition is {self._expected()}, but {found} given.")
        wrong = ~values.isfinite().all(1)
        if self.kind == "bits":
            wrong |= ((values != 0) & (values != 1)).any(1)
        elif self.kind == "simplex":
            wrong |= (values < 0).any(1) | ((values.sum(1) - 1).abs() > SUM_TOLERANCE)
        if wrong.any():
            first = int(wrong.nonzero()[0])
            raise ConditionError(
                f"A condition is {self._expected()}, but {_shortened(values[first].tolist())} was given"
                f"{f' in row {first}' if len(values) > 1 else ''}."
            )
        return values.float()

    def distances(self, values: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
        """Returns how far each condition `(n, c)` is from the nearest of `known` `(m, c)`, `(n,)` float32.

        Of bits the number that differ, or differ from the complement if that is the same task; of a simplex the total
        variation; of numbers the largest absolute difference, in standard deviations of `known`.
        """
        return self.pairwise_distances(values, known).amin(1)

    def pairwise_distances(self, values: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
        """Returns the distance of each condition `(n, c)` to each of `known` `(m, c)`, `(n, m)` float32."""
        values, known = values.float(), known.float()
        if self.kind == "numbers":
            spread = known.std(0, correction=0)
            spread = torch.where(spread > 0, spread, 1.0)
            return torch.cdist(values / spread, known / spread, p=float("inf"))
        distances = torch.cdist(values, known, p=1)
        if self.kind == "simplex":
            return distances / 2
        return torch.minimum(distances, self.dim - distances) if self.complement else distances

    def describe(self, condition: Sequence[float] | torch.Tensor) -> str:
        """Returns one condition `(c,)` in words: the names of the bits that are 1, or the numbers by name."""
        values = torch.as_tensor(condition).tolist()
        if self.kind == "bits":
            return "{" + ", ".join(name for name, bit in zip(self.names, values, strict=True) if bit) + "}"
        return ", ".join(f"{name} {value:.4g}" for name, value in zip(self.names, values, strict=True))

    def to_dict(self) -> dict[str, Any]:
        """Returns JSON types."""
        return {"kind": self.kind, "names": list(self.names), "complement": self.complement}

    @classmethod
    def from_dict(cls, content: Any) -> Conditions:
        """Reads what `to_dict` returned, whatever else stands beside it; `ConditionError` if it is damaged."""
        if not isinstance(content, Mapping) or not isinstance(content.get("names"), list) or "kind" not in content:
            raise ConditionError(
                f"What conditions mean is stated by `kind` and a list `names`, but by {_shortened(content)} here."
            )
        return cls(content["kind"], tuple(content["names"]), content.get("complement", False))

    def _numbers(self, given: Any) -> Any:
        """Returns a block of conditions, names as bits; what is neither is left to `check`."""
        if isinstance(given, torch.Tensor):
            given = given.detach().cpu().double()
        if isinstance(given, str):
            raise ConditionError(f"A condition is {self._expected()}, but the text {given!r} was given.")
        if self.kind == "bits" and isinstance(given, Sequence) and given:
            if all(isinstance(name, str) for name in given):
                return [self._bits(given)]
            given = [self._bits(one) if _are_names(one) else one for one in given]
        return [given] if _is_one(given) else given

    def _bits(self, chosen: Sequence[str]) -> list[float]:
        unknown = [name for name in chosen if name not in self.names]
        if unknown:
            raise ConditionError(
                f"There is no {unknown[0]!r} among the names of a condition: {_some_names(self.names)}."
            )
        return [float(name in chosen) for name in self.names]

    def _expected(self) -> str:
        meaning = {
            "bits": "each 0 or 1, or a list of the names that are 1",
            "simplex": "each at least 0, with sum 1",
            "numbers": "finite",
        }
        return f"a list of {self.dim} numbers ({meaning[self.kind]}) for {_some_names(self.names)}"


def _are_names(value: Any) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(name, str) for name in value)


def _is_one(value: Any) -> bool:
    if isinstance(value, torch.Tensor | np.ndarray):
        return value.ndim == 1
    return isinstance(value, Sequence) and not any(
        isinstance(part, Sequence | torch.Tensor | np.ndarray) for part in value
    )


def _some_names(names: Sequence[Any]) -> str:
    return ", ".join(map(repr, names[:NAMED])) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")


def _shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"
