"""The search for units: which tensors must be permuted or rescaled together, found by trying on example inputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.func import functional_call

from ..data.inputs import Inputs, call_with
from .processing_parameters import ParameterProcessor
from .task import logits_of
from .units import HiddenUnits, Rescaling, permute_units, scale_units

TOLERANCE = 1e-3  # relative change of logits, or of what a module reads, that still counts as none
NEAREST = 4  # modules that are tried as partners of a residual connection, those that run last before it
READERS = nn.Linear | nn.Conv1d | nn.Conv2d


@dataclass(frozen=True)
class Attempt:
    """A change of units: modules whose rows it moves, modules whose columns make up for it, and how it ended."""

    order: torch.Tensor  # (count,) int64
    factor: torch.Tensor  # (count,)
    rows: tuple[str, ...]
    columns: tuple[str, ...] = ()
    stopped: float = float("inf")  # index of the first module that reads neither what it read before nor that moved
    mismatch: float = 0.0  # of what it reads, relative to that moved

    @property
    def reached(self) -> tuple[float, float]:
        """What grows with every summand of a residual connection that is moved rightly."""
        return self.stopped, -self.mismatch


class UnitSearch:
    """Follows a permutation of the rows of one module through the network.

    Every module that then reads its input permuted gets its columns permuted (a linear layer or convolution) or its
    rows (a normalization, a depthwise convolution). Where a module reads a mixture, a residual connection has added
    something that was not permuted: the rows of the modules before are tried as well. What is found must hold for
    all weights: it is searched on random ones, whose units are neither dead nor negligible, and checked on given ones.
    """

    def __init__(
        self,
        model: nn.Module,
        processor: ParameterProcessor,
        parameters: torch.Tensor,
        inputs: Inputs,
        batch_statistics: bool = False,
    ) -> None:
        self.model, self.processor, self.inputs, self.batch_statistics = model, processor, inputs, batch_statistics
        generated = dict(zip(processor.names, processor.shapes, strict=True))
        # Of each module that may count units: its own tensors, or none of them if not all are generated.
        self.tensors: dict[str, tuple[str, ...]] = {}
        for name, module in model.named_modules():
            own = {f"{name}.{own}": p for own, p in module.named_parameters(recurse=False)}
            if own and (isinstance(module, READERS) or _is_pointwise(module)):
                complete = all(generated.get(n) == tuple(p.shape) for n, p in own.items())
                self.tensors[name] = tuple(own) if complete else ()
        self.given, self.random = parameters, random_weights(processor)
        self.expected = self.run(parameters)[1]
        self.calls, self.logits = self.run(self.random)

    def units(self) -> Iterator[HiddenUnits]:
        """Yields all groups of units that were found, in the order in which the modules run."""
        known: set[str] = set()
        for name in dict.fromkeys(name for name, _ in self.calls):
            if name in known or not self._is_producer(name):
                continue
            count = len(self._weight(name))
            cycle = torch.randperm(count, generator=torch.Generator().manual_seed(0))
            order = torch.empty_like(cycle).scatter(0, cycle, cycle.roll(1))  # it leaves no unit where it is
            factor = torch.ones(count) if count > 1 else torch.full((1,), 0.5)  # a single unit can only be rescaled
            partners = [n for n in self.tensors if self._is_producer(n) and len(self._weight(n)) == count]
            found = self._grow(Attempt(order, factor, (name,)), partners)
            if found is not None and found.columns:
                known.update(found.rows)
                rescalings = tuple(self._rescalings(found))
                yield HiddenUnits(self._rows(found), self._columns(found), count, rescalings)

    def _rescalings(self, group: Attempt) -> Iterator[Rescaling]:
        """Yields independent rescalings of a group: of a norm's rows and its readers, of rows before a norm, …"""
        known: set[str] = set()
        count = len(group.order)
        factors = 0.5 + torch.rand(count, generator=torch.Generator().manual_seed(0))
        same_order = torch.arange(count)
        for name in group.rows:
            if name in known:
                continue
            found = self._grow(Attempt(same_order, factors, (name,)), group.rows)
            if found is None and self._is_producer(name):  # one factor for all, which a norm over all units removes
                found = self._grow(Attempt(same_order, factors[:1].expand(count), (name,)), group.rows)
                found = None if found is None or found.columns else found
            if found is not None:
                known.update(found.rows)
                together = bool((found.factor == found.factor[0]).all())
                yield Rescaling(self._rows(found), self._columns(found), together)

    def _grow(self, attempt: Attempt, partners: Sequence[str]) -> Attempt | None:
        """Returns an attempt with all modules that must take part in it, or None if it changes the function."""
        attempt = self._follow(attempt)
        first = {name: index for index, (name, _) in reversed(list(enumerate(self.calls)))}
        while attempt.stopped < len(self.calls):
            left = [n for n in partners if n not in attempt.rows and first.get(n, attempt.stopped) < attempt.stopped]
            before = sorted(left, key=lambda name: first[name])
            tries = (self._follow(replace(attempt, rows=(*attempt.rows, name))) for name in before[-NEAREST:])
            best = max(tries, key=lambda tried: tried.reached, default=attempt)
            if best.reached <= attempt.reached:
                return None
            attempt = best
        for parameters, logits in ((self.random, self.logits), (self.given, self.expected)):
            if not same(self.run(self._apply(attempt, parameters))[1], logits):
                return None
        return attempt

    def _follow(self, attempt: Attempt) -> Attempt:
        """Adds every module whose input an attempt moves, up to the first that reads a mixture."""
        grown = True
        while grown:
            grown = False
            calls, _ = self.run(self._apply(attempt, self.random))
            if [name for name, _ in calls] != [name for name, _ in self.calls]:
                return replace(attempt, stopped=0)  # what runs depends on the weights
            for index, ((name, read), (_, before)) in enumerate(zip(calls, self.calls, strict=True)):
                joined = self._join(attempt, name, read, before)
                if joined is None and not grown:
                    moved = self._moved(name, before, attempt)
                    mismatch = min((_difference(read, candidate) for candidate in moved), default=float("inf"))
                    return replace(attempt, stopped=index, mismatch=mismatch)
                if joined is None:
                    break  # what was added since may have changed this
                attempt, grown = joined, grown or joined is not attempt
        return replace(attempt, stopped=float("inf"), mismatch=0.0)

    def _join(self, attempt: Attempt, name: str, read: torch.Tensor, before: torch.Tensor) -> Attempt | None:
        """Returns an attempt with a module if that reads a moved input, or None if it reads a mixture."""
        if same(read, before) and name not in attempt.columns:
            return attempt
        if not any(same(read, moved) for moved in self._moved(name, before, attempt)):
            return None
        if self._is_reader(name):
            if name in attempt.columns:
                return attempt
            generated = f"{name}.weight" in self.processor.names
            return replace(attempt, columns=(*attempt.columns, name)) if generated else None
        if name in attempt.rows or (attempt.factor != 1).any():  # a norm may undo factors
            return attempt
        return replace(attempt, rows=(*attempt.rows, name)) if self.tensors[name] else None

    def _moved(self, name: str, read: torch.Tensor, attempt: Attempt) -> list[torch.Tensor]:
        """Returns what a module would read if its input was moved, for each axis that may count the units."""
        module = self.model.get_submodule(name)
        if isinstance(module, nn.Linear):
            axes = {read.ndim - 1}
        elif isinstance(module, READERS | nn.modules.batchnorm._BatchNorm | nn.GroupNorm):
            axes = {1}
        else:
            axes = {1, read.ndim - module.weight.ndim if isinstance(module, nn.LayerNorm) else read.ndim - 1}
        count = len(attempt.order)
        fitting = [a for a in axes if 0 < a < read.ndim and read.shape[a] and read.shape[a] % count == 0]
        return [scale_units(permute_units(read, a, attempt.order), a, attempt.factor) for a in fitting]

    def _apply(self, attempt: Attempt, parameters: torch.Tensor) -> torch.Tensor:
        tensors = self.processor.unflatten(parameters)
        for name in self._rows(attempt):
            tensors[name] = scale_units(permute_units(tensors[name], 0, attempt.order), 0, attempt.factor)
        for name in self._columns(attempt):
            tensors[name] = scale_units(permute_units(tensors[name], 1, attempt.order), 1, 1 / attempt.factor)
        return torch.cat([tensors[name].flatten() for name in self.processor.names])

    def _rows(self, attempt: Attempt) -> tuple[str, ...]:
        moved = {tensor for name in attempt.rows for tensor in self.tensors[name]}
        return tuple(name for name in self.processor.names if name in moved)

    def _columns(self, attempt: Attempt) -> tuple[str, ...]:
        moved = {f"{name}.weight" for name in attempt.columns}
        return tuple(name for name in self.processor.names if name in moved)

    def _weight(self, name: str) -> torch.Tensor:
        weight = self.model.get_submodule(name).weight
        assert isinstance(weight, torch.Tensor)
        return weight

    def _is_reader(self, name: str) -> bool:
        module = self.model.get_submodule(name)
        return isinstance(module, READERS) and not _is_pointwise(module)

    def _is_producer(self, name: str) -> bool:
        return self._is_reader(name) and bool(self.tensors[name])

    @torch.no_grad()
    def run(self, parameters: torch.Tensor) -> tuple[list[tuple[str, torch.Tensor]], torch.Tensor]:
        """Returns what each module reads, in the order in which they run, and the logits of a vector `(D,)`."""
        calls: list[tuple[str, torch.Tensor]] = []

        def record(name: str, args: tuple, kwargs: dict) -> None:
            read = next((value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)), None)
            calls.append((name, torch.empty(0) if read is None else read.detach()))

        with ExitStack() as stack:
            if self.batch_statistics:
                stack.enter_context(_batch_statistics(self.model))
            for name in self.tensors:
                module = self.model.get_submodule(name)
                hook = module.register_forward_pre_hook(
                    lambda _, args, kwargs, name=name: record(name, args, kwargs), with_kwargs=True
                )
                stack.callback(hook.remove)
            args, kwargs = call_with(self.inputs)
            output = functional_call(self.model, self.processor.unflatten(parameters), args, kwargs)
        return calls, logits_of(self.model, output).float()


@contextmanager
def _batch_statistics(model: nn.Module) -> Iterator[None]:
    """Lets BatchNorms in evaluation mode normalize by the batch at hand, and leaves running statistics as they are."""
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    kept = [(norm.running_mean, norm.running_var) for norm in norms]
    try:
        for norm in norms:
            norm.running_mean = norm.running_var = None
        yield
    finally:
        for norm, (mean, variance) in zip(norms, kept, strict=True):
            norm.running_mean, norm.running_var = mean, variance


def _is_pointwise(module: nn.Module) -> bool:
    """Whether a module treats each channel alone, up to a normalization: a norm, or a depthwise convolution."""
    if isinstance(module, READERS):
        return getattr(module, "groups", 1) > 1
    own = dict(module.named_parameters(recurse=False))
    return "weight" in own and set(own) <= {"weight", "bias"} and all(p.ndim for p in own.values())


def random_weights(processor: ParameterProcessor) -> torch.Tensor:
    """Returns a vector `(D,)` of weights that keep the size of activations, positive norm weights and any biases."""
    generator, pieces = torch.Generator().manual_seed(0), []
    for name, shape, size in zip(processor.names, processor.shapes, processor.sizes, strict=True):
        noise = torch.randn(size, generator=generator)
        if len(shape) > 1:
            pieces.append(noise * (shape[0] / max(size, 1)) ** 0.5)
        else:
            pieces.append(1 + 0.3 * noise.clamp(-2, 2) if name.endswith("weight") else 0.5 * noise)
    return torch.cat(pieces)


def same(values: torch.Tensor, reference: torch.Tensor) -> bool:
    """Returns whether values differ from a reference by no more than `TOLERANCE` times its largest absolute value."""
    return values.shape == reference.shape and _difference(values, reference) <= TOLERANCE


def _difference(values: torch.Tensor, reference: torch.Tensor) -> float:
    """Returns the largest difference relative to the largest absolute value."""
    if not values.numel():
        return 0.0
    values, reference = values.double(), reference.double()
    difference = (values - reference).abs().max() / reference.abs().max().clamp(min=1e-6)
    return difference.nan_to_num(nan=float("inf")).item()
