"""The real networks that samples are compared with: zoo and held-out checkpoints, and how far apart they lie."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from scipy.sparse.csgraph import connected_components

from ..targets.symmetries import Symmetries
from .evaluated import EvaluatedSet
from .intervals import FEWEST_UNITS, resampling_units
from .metrics import iou
from .novelty import correlation_length, leave_one_out, neighbors_in_time, pairwise_distances

Space = Literal["weights", "functions"]
SPACES: tuple[Space, Space] = ("weights", "functions")
FEW = 10  # members whose distance modulo symmetries is computed: the nearest as aligned, and as many in function
FEW_DEEP = 3  # the same for several hidden layers, whose permutations take a search
SAME = 0.03  # of the median distance of two functions: nearer are one network twice
MANY = 200  # zoo members that stand for all of them


@dataclass(frozen=True)
class Networks:
    """Evaluated networks, aligned to the zoo's mean."""

    evaluated: EvaluatedSet
    aligned: torch.Tensor  # (n, D)

    def __len__(self) -> int:
        return len(self.aligned)

    @property
    def units(self) -> torch.Tensor:
        return self.evaluated.units

    def take(self, rows: torch.Tensor) -> Networks:
        """Returns the networks at `rows` `(k,)` int64, in the units that they were in."""
        units = self.units[rows].unique(return_inverse=True)[1]
        return Networks(replace(self.evaluated.take(rows), units=units), self.aligned[rows])


class Reference:
    """Zoo and held-out checkpoints, what of them is related, and distances to the zoo in two spaces.

    In the space of weights, distances are taken modulo the symmetries; in that of functions, between the answers to
    validation examples. Two zoo members are related if they are of one run, or, in a single trajectory, within its
    correlation length, or if they compute the same function. Related members are never each other's neighbors.

    Args:
        align: Maps vectors `(n, D)` to their canonical forms, aligned to the zoo's mean.
        runs, steps: Of zoo members; `None` if they are not known.
        heldout_runs, heldout_steps: Of held-out checkpoints. Unknown runs are found by distance: a checkpoint that is
            as near to another as two of one run are in the zoo is of the same run.
    """

    def __init__(
        self,
        zoo: EvaluatedSet,
        heldout: EvaluatedSet | None,
        symmetries: Symmetries,
        aligned_zoo: torch.Tensor,
        align: Callable[[torch.Tensor], torch.Tensor],
        runs: Sequence[Any] | None,
        steps: Sequence[int] | None,
        heldout_runs: Sequence[Any] | None,
        heldout_steps: Sequence[int] | None,
    ) -> None:
        self.symmetries, self.align = symmetries, align
        names = {name: i for i, name in enumerate(dict.fromkeys([*(runs or []), *(heldout_runs or [])]))}
        run, step = place_in_time(runs, steps, len(zoo), names)
        # 1. Related members of the zoo: of one run (in a trajectory: near in time), or the same network twice.
        self.is_trajectory = len(run.unique()) == 1
        self.length: int | None = None
        if self.is_trajectory and steps is not None:
            wrong = zoo.wrong["validation"]
            self.length = correlation_length(iou(wrong, wrong), step)
        apart = pairwise_distances(zoo.answers, zoo.answers)
        self._same = SAME * apart.median()
        same = apart <= self._same
        self.known = runs is not None and (not self.is_trajectory or steps is not None)
        unknown = torch.eye(len(zoo), dtype=torch.bool)
        self.related = same | (neighbors_in_time(run, step, self.length) if self.known else unknown)
        # 2. Units that intervals resample: runs (joined where they hold the same network), or blocks of steps.
        if self.is_trajectory:
            units = resampling_units(run, step, self.length) if self.known else torch.arange(len(zoo))
        else:
            units = torch.from_numpy(connected_components(self.related.numpy())[1]).long()
        self.blocks = None if self.length is None else len(units.unique())  # of the zoo or, if fewer, held out
        if len(units.unique()) < FEWEST_UNITS:  # too few: no criterion of a trajectory passes, but some may still fail
            units = torch.arange(len(zoo))
        self.zoo = Networks(replace(zoo, units=units), aligned_zoo)
        # 3. Held-out checkpoints: those that the zoo holds too are none.
        self._nearest: dict[Space, dict[int, tuple[torch.Tensor, torch.Tensor]]] = {space: {} for space in SPACES}
        self._heldout_ratios: dict[Space, torch.Tensor] = {}
        self.heldout: Networks | None = None
        self._excluded: torch.Tensor | None = None  # (H, N), zoo members of the same runs
        if heldout is not None:
            foreign = pairwise_distances(heldout.answers, zoo.answers).min(1).values > self._same
            heldout = heldout.take(foreign.nonzero()[:, 0])
        if heldout is not None and len(heldout):
            networks = Networks(heldout, align(heldout.parameters))
            own, when = (
                None if given is None else [value for value, kept in zip(given, foreign, strict=True) if kept]
                for given in (heldout_runs, heldout_steps)
            )
            if own is None and runs is not None and not self.is_trajectory:
                own = self._derived_runs(networks.aligned, run)
            theirs, then = place_in_time(own, when, len(heldout), names)
            units = resampling_units(theirs, then, self.length if self.is_trajectory else None)
            self.heldout = Networks(replace(heldout, units=units), networks.aligned)
            if self.blocks is not None:
                self.blocks = min(self.blocks, len(units.unique()))
            if not self.is_trajectory and own is not None:
                self._excluded = theirs[:, None] == run[None, :]

    @property
    def real(self) -> Networks:
        """Real networks that samples are compared with: two held-out checkpoints or more, else the zoo's members."""
        return self.heldout if self.heldout is not None and len(self.heldout) > 1 else self.representatives

    @property
    def representatives(self) -> Networks:
        """Up to `MANY` zoo members, from all over the zoo."""
        return self.zoo.take(self.represented)

    @property
    def represented(self) -> torch.Tensor:
        """Their rows `(k,)` int64."""
        return torch.linspace(0, len(self.zoo) - 1, min(len(self.zoo), MANY)).round().long()

    def joined(self, samples: Networks) -> Networks:
        """Returns samples in units: those that compute nearly the same function are one, unless nearly all do.

        Repeated samples are counted as such, but do not make the others look alike.
        """
        answers = samples.evaluated.answers
        units = connected_components((pairwise_distances(answers, answers) <= self._same).numpy())[1]
        if len(set(units.tolist())) < FEWEST_UNITS:
            return samples
        return Networks(replace(samples.evaluated, units=torch.from_numpy(units).long()), samples.aligned)

    def ratios(self, networks: Networks, space: Space) -> torch.Tensor:
        """Returns r of each network `(n,)`: distance to the nearest zoo member over its own leave-one-out distance."""
        distances, members = self.neighbors(networks, space, self._excluded if networks is self.heldout else None)
        return distances[:, 0] / self.natural(space, members[:, 0])

    def heldout_ratios(self, space: Space) -> torch.Tensor | None:
        """Returns r of each held-out checkpoint `(n,)`, if there are two or more; computed once."""
        if self.heldout is None or len(self.heldout) < 2:
            return None
        if space not in self._heldout_ratios:
            self._heldout_ratios[space] = self.ratios(self.heldout, space)
        return self._heldout_ratios[space]

    def leave_one_out(self, space: Space) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns representatives that have an unrelated member `(k,)`, and r of each as if held out `(k,)`."""
        rows, ratios = [], []
        for row in self.represented.tolist():
            distances, members = self._natural_neighbors(space, [row])[0]
            nearest = int(members[0])
            others, names = self._natural_neighbors(space, [nearest])[0]
            free = ~self.related[row, names] & others.isfinite()
            if distances[0].isfinite() and free.any():
                rows.append(row)
                ratios.append((distances[0] / others[free][0].clamp(min=1e-12)).item())
        return torch.tensor(rows, dtype=torch.long), torch.tensor(ratios, dtype=torch.float64)

    def natural(self, space: Space, members: torch.Tensor) -> torch.Tensor:
        """Returns distances of zoo members `(k,)` to the nearest unrelated ones; the median where there is none."""
        found = torch.stack([distances[0] for distances, _ in self._natural_neighbors(space, members.tolist())])
        return torch.where(found.isfinite(), found, self.natural_distance(space)).clamp(min=1e-12)

    def natural_distance(self, space: Space) -> torch.Tensor:
        """Returns the median of these distances, a scalar; infinite if no member has an unrelated one."""
        found = [distances[0] for distances, _ in self._natural_neighbors(space, self.represented.tolist())]
        finite = torch.stack(found)
        return finite[finite.isfinite()].median() if finite.isfinite().any() else torch.tensor(torch.inf)

    def neighbors(
        self, networks: Networks, space: Space, excluded: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the nearest zoo members of each network, nearest first: distances `(n, k)` and rows `(n, k)`.

        `excluded` `(n, N)` bool are pairs that do not count. Modulo the symmetries of more than one layer a distance
        is an upper bound.
        """
        masked = torch.zeros(len(networks), len(self.zoo), dtype=torch.bool) if excluded is None else excluded
        count = min(FEW, len(self.zoo))
        functions = pairwise_distances(networks.evaluated.answers, self.zoo.evaluated.answers)
        functions = functions.masked_fill(masked, torch.inf)
        if space == "functions":
            return _first(functions, count)
        weights = pairwise_distances(networks.aligned, self.zoo.aligned).masked_fill(masked, torch.inf)
        if self.symmetries.layers:
            exact = self._modulo_symmetries(networks.aligned, self.zoo.aligned, weights, functions)
            weights = torch.minimum(weights, exact).masked_fill(masked, torch.inf)
        return _first(weights, count)

    def distances_within(self, networks: Networks, space: Space) -> torch.Tensor:
        """Returns the distances of networks to the others of their set `(n, n)`, infinite to themselves."""
        own = torch.eye(len(networks), dtype=torch.bool)
        functions = pairwise_distances(*2 * (networks.evaluated.answers,)).masked_fill(own, torch.inf)
        if space == "functions":
            return functions
        weights = pairwise_distances(networks.aligned, networks.aligned).masked_fill(own, torch.inf)
        if self.symmetries.layers:
            exact = self._modulo_symmetries(networks.aligned, networks.aligned, weights, functions)
            weights = torch.minimum(weights, exact).masked_fill(own, torch.inf)
        return weights

    def _modulo_symmetries(
        self, ours: torch.Tensor, theirs: torch.Tensor, weights: torch.Tensor, functions: torch.Tensor
    ) -> torch.Tensor:
        """Returns distances modulo the symmetries `(n, k)` of the likely neighbors, in weights or in function."""
        count = min(FEW if len(self.symmetries.layers) == 1 else FEW_DEEP, len(theirs))
        candidates = torch.cat([_first(distances, count)[1] for distances in (weights, functions)], 1)  # (n, 2 count)
        return self.symmetries.distances(ours, theirs, candidates).double()

    def _natural_neighbors(self, space: Space, members: list[int]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Returns distances and rows of the unrelated neighbors of zoo members, each computed once."""
        known = self._nearest[space]
        missing = sorted(set(members) - known.keys())
        if missing:
            rows = torch.tensor(missing)
            distances, neighbors = self.neighbors(self.zoo.take(rows), space, self.related[rows])
            known |= {row: (distances[i], neighbors[i]) for i, row in enumerate(missing)}
        return [known[member] for member in members]

    def _derived_runs(self, aligned: torch.Tensor, run: torch.Tensor) -> list[int]:
        """Returns a run for each held-out checkpoint: those nearer than most of the zoo's of one run are of one."""
        same_run, itself = run[:, None] == run[None, :], torch.eye(len(run), dtype=torch.bool)
        distances = pairwise_distances(self.zoo.aligned, self.zoo.aligned)
        within = leave_one_out(distances, ~same_run | itself)
        if not len(within):
            return list(range(len(aligned)))
        limit = (within.quantile(0.95) * leave_one_out(distances, same_run).quantile(0.05)).sqrt()
        return connected_components((pairwise_distances(aligned, aligned) < limit).numpy())[1].tolist()


def _first(distances: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the `count` least of each row, and where they are, `(n, count)`."""
    values, places = distances.topk(count, largest=False)
    return values, places


def place_in_time(
    runs: Sequence[Any] | None, steps: Sequence[int] | None, count: int, names: dict[Any, int] | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns run number and step of each of `count` rows, `(count,)` int64; unknown, they are 0 and the row.

    `names` numbers the runs; by default in the order in which they occur.
    """
    numbers = dict(names or {})
    for name in runs or []:
        numbers.setdefault(name, len(numbers))
    run = torch.zeros(count, dtype=torch.long) if runs is None else torch.tensor([numbers[name] for name in runs])
    return run, torch.arange(count) if steps is None else torch.as_tensor(steps)
