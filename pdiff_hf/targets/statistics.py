"""Running statistics of BatchNorms that are each network's own: estimated on training examples, never generated."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ..data.inputs import Inputs, LabeledData, call_with, count_inputs, move_inputs, take_inputs
from .inference import ACTIVATION_BUDGET, generated_activations, plan_evaluation, prepare_networks
from .processing_parameters import ParameterProcessor, StatisticsError

BATCH_SIZE = 256
MOST_EXAMPLES = 2048  # of a train split, from all over it, that statistics are estimated on

# The buffers `norm.running_mean` and `norm.running_var` of n networks by name, each `(n, channels)` float32.
Statistics = dict[str, torch.Tensor]


def with_own_statistics(model: nn.Module, processor: ParameterProcessor, inputs: Inputs) -> ParameterProcessor:
    """Returns the layout of networks that are trained with batch statistics, each from weights of its own.

    It names the BatchNorms that generated tensors feed, found by trying: they read other values if the generated
    tensors are others.

    Args:
        model: The target network, which is not changed.
        processor: The layout of the generated tensors.
        inputs: A few examples.
    """
    model = copy.deepcopy(model).eval()
    norms = {name: norm for name, norm in model.named_modules() if isinstance(norm, _BatchNorm)}
    norms = {name: norm for name, norm in norms.items() if norm.running_mean is not None}
    if not norms:
        return processor
    inputs = move_inputs(inputs, next(model.parameters()))
    own = processor.flatten(model.state_dict())
    noise = torch.randn(own.shape, generator=torch.Generator().manual_seed(0)).to(own)
    read: dict[str, list[torch.Tensor]] = {name: [] for name in norms}
    for vector in (own, own + noise):
        with torch.no_grad(), watched(norms, lambda name, x: read[name].append(x)):
            functional_call(model, processor.unflatten(vector), *call_with(inputs))
    halves = {name: (xs[: len(xs) // 2], xs[len(xs) // 2 :]) for name, xs in read.items()}  # one or more calls each
    fed = [name for name, (before, after) in halves.items() if not all(map(torch.equal, before, after))]
    return ParameterProcessor.from_config(processor.config, statistics=fed)


@torch.no_grad()
def estimate_statistics(
    target_model: PreTrainedModel,
    processor: ParameterProcessor,
    parameters: torch.Tensor,
    inputs: Inputs,
    batch_size: int = BATCH_SIZE,
    progress: bool = False,
) -> Statistics:
    """Returns the statistics of n networks, those that `torch.optim.swa_utils.update_bn` would give each of them.

    Each BatchNorm that the layout names normalizes by the batch at hand; its statistics are the mean over batches of
    the mean and the unbiased variance of what it reads. Batches are of one size, up to one example, and of two
    examples at least. Networks are evaluated together as in `network_logits`, as many as `ACTIVATION_BUDGET` allows.

    Args:
        target_model: The network that has the trunk, in eval mode; it is not changed.
        processor: The layout; one that names no statistics gives an empty result.
        parameters: `(n, D)` float32.
        inputs: Training examples, without augmentation.
        batch_size: Examples of a batch; as in training, or more.
        progress: Show a progress bar.

    Returns:
        `running_mean` and `running_var` of each BatchNorm by name, `(n, channels)` float32.

    Raises:
        LayoutError, NonFiniteParametersError: If `parameters` do not fit the layout.
        StatisticsError: If there are fewer than two examples, or a batch is to have one.
        ValueError: If the model is in training mode.
    """
    if not processor.statistics:
        return {}
    count = count_inputs(inputs)
    if count < 2 or batch_size < 2:
        raise StatisticsError(
            "BatchNorm statistics are taken over the examples of a batch, of which at least two are needed, but there "
            f"are {count} examples in batches of {batch_size}; pass training examples, some hundreds if possible."
        )
    processor.check_model(target_model)
    model, tensors = prepare_networks(target_model, processor, parameters)
    inputs = move_inputs(inputs, next(model.parameters()))
    norms: dict[str, Any] = {name: model.get_submodule(name) for name in processor.statistics}
    seen: dict[str, list[torch.Tensor]] = {}

    def read(model: nn.Module, output: Any) -> torch.Tensor:
        """Returns mean and variance of each BatchNorm, one after the other; of several calls their mean."""
        own = [torch.stack(seen.pop(name)).mean(0) for name in norms]  # each (2, channels)
        return torch.cat(own, dim=1)

    def keep(name: str, x: torch.Tensor) -> None:
        over = [axis for axis in range(x.ndim) if axis != 1]
        seen.setdefault(name, []).append(torch.stack([x.float().mean(over), x.float().var(over)]))

    batches = torch.arange(count).tensor_split(min(-(-count // batch_size), count // 2))
    few = take_inputs(inputs, slice(2))
    with batch_statistics(model, processor.statistics):
        # 1. As many networks at once as the budget allows, each on a whole batch.
        size = 4 * batch_size * generated_activations(model, processor, few)
        places = torch.arange(len(parameters)).split(max(1, ACTIVATION_BUDGET // size))
        with watched(norms, keep):
            evaluate, _ = plan_evaluation(model, processor, tensors, few, read=read)
            seen.clear()  # of a trial run that has failed
            estimated = []
            for rows in tqdm(places, desc="estimating the statistics of BatchNorms", disable=not progress):
                # 2. The mean over batches.
                some = {name: tensor[rows] for name, tensor in tensors.items()}
                of_batches = [evaluate(some, take_inputs(inputs, batch)) for batch in batches]
                estimated.append(torch.stack(of_batches).mean(0))  # (networks, 2, channels of all)
    # 3. By BatchNorm.
    pieces = torch.cat(estimated).to(parameters.device).split([norm.num_features for norm in norms.values()], dim=2)
    statistics: Statistics = {}
    for name, own in zip(norms, pieces, strict=True):
        statistics |= {f"{name}.running_mean": own[:, 0], f"{name}.running_var": own[:, 1]}
    return statistics


class OwnStatistics:
    """Estimates the statistics of networks on a data set's training images, and counts how long that takes.

    Args:
        model, processor: The target, and the layout of the networks.
        images: Whose train split is used, without its labels: up to `MOST_EXAMPLES` of it.
    """

    def __init__(self, model: PreTrainedModel, processor: ParameterProcessor, images: LabeledData) -> None:
        self.model, self.processor, self.images = model, processor, images
        self.seconds = 0.0

    def __call__(self, parameters: torch.Tensor, progress: bool = False) -> Statistics:
        """Returns the statistics of vectors `(n, D)`; empty if the networks have none of their own."""
        if not self.processor.statistics:
            return {}
        started = time.perf_counter()
        inputs = some_examples(self.images.inputs(self.images.train))
        found = estimate_statistics(self.model, self.processor, parameters, inputs, progress=progress)
        self.seconds += time.perf_counter() - started
        return found

    @property
    def costs(self) -> dict[str, float]:
        """The seconds by their key in `metrics.json`; empty if the networks have no statistics of their own."""
        return {"statistics_seconds": self.seconds} if self.processor.statistics else {}


def some_examples(inputs: Inputs) -> Inputs:
    """Returns up to `MOST_EXAMPLES` of the examples, from all over them."""
    count = count_inputs(inputs)
    return take_inputs(inputs, torch.linspace(0, count - 1, min(count, MOST_EXAMPLES)).long())


@contextmanager
def batch_statistics(model: nn.Module, names: Sequence[str]) -> Iterator[None]:
    """Lets BatchNorms in evaluation mode normalize by the batch at hand, and leaves running statistics as they are."""
    norms: list[Any] = [model.get_submodule(name) for name in names]
    kept = [(norm.running_mean, norm.running_var) for norm in norms]
    try:
        for norm in norms:
            norm.running_mean = norm.running_var = None
        yield
    finally:
        for norm, (mean, variance) in zip(norms, kept, strict=True):
            norm.running_mean, norm.running_var = mean, variance


@contextmanager
def watched(modules: dict[str, Any], see: Callable[[str, torch.Tensor], None]) -> Iterator[None]:
    """Calls `see` with the name and the first argument of each module that runs."""
    handles = [
        module.register_forward_pre_hook(lambda _, args, name=name: see(name, args[0]))
        for name, module in modules.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
