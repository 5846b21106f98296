"""Logits of many parameter vectors at once; the trunk, which does not depend on them, is computed once."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from diffusers.utils import logging
from torch import nn
from torch.func import functional_call
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ..data.inputs import Inputs, call_with, count_inputs, forward, move_inputs, take_inputs
from .processing_parameters import ParameterProcessor
from .task import logits_of, task_of

logger = logging.get_logger(__name__)

# Bytes of the generated layers' activations in one batch: small enough for the CPU cache; more was not faster.
ACTIVATION_BUDGET = 32 * 2**20
# The same for a single image; above it the networks are evaluated in several chunks.
ONE_IMAGE_BUDGET = 512 * 2**20
MAX_BATCH_SIZE = 256

Evaluate = Callable[[dict[str, torch.Tensor], Inputs], torch.Tensor]


@torch.no_grad()
def network_logits(
    target_model: PreTrainedModel,
    processor: ParameterProcessor,
    parameters: torch.Tensor,
    inputs: Inputs,
    progress: bool = False,
    statistics: Mapping[str, torch.Tensor] | None = None,
) -> torch.Tensor:
    """Returns the logits of n networks on the same examples, `(n, images, classes)` float32.

    The networks are evaluated together by `torch.vmap`, which computes once everything before the first generated
    tensor; the batch size is chosen so that the rest fits `ACTIVATION_BUDGET`. If convolution weights are generated,
    `vmap` would use grouped convolutions, which are slower than one forward pass per network; these networks, and
    models that `vmap` cannot trace (with a warning), are evaluated one by one.

    Args:
        target_model: The network that has the trunk, in eval mode; it is not changed.
        processor: The layout.
        parameters: `(n, D)` float32.
        inputs: Images `(images, channels, height, width)`, or a mapping of tensors that are passed by name, such as a
            tokenizer's output; each with one row per example.
        progress: Show a progress bar.
        statistics: What `estimate_statistics` returned for these networks, if the layout says that they have BatchNorm
            statistics of their own.

    Raises:
        LayoutError, NonFiniteParametersError: If `parameters` do not fit the layout.
        StatisticsError: If they have statistics of their own, which were not given.
        BatchError: If the inputs are not tensors, or differ in length.
        ValueError: If the model is in training mode.
    """
    batches = iter_logits(target_model, processor, parameters, inputs, progress, statistics)
    return torch.cat([logits.float() for logits in batches], dim=1)


@torch.no_grad()
def network_predictions(
    target_model: PreTrainedModel,
    processor: ParameterProcessor,
    parameters: torch.Tensor,
    inputs: Inputs,
    labels: torch.Tensor,
    progress: bool = False,
    statistics: Mapping[str, torch.Tensor] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the predictions `(n, images)`, classes int64 or values float, and the mean loss of each network `(n,)`.

    Takes the arguments of `network_logits` and the images' labels `(images,)`, and never holds all logits.
    """
    task, start = task_of(target_model.config), 0
    predicted, loss = [], torch.zeros(len(parameters))
    for batch in iter_logits(target_model, processor, parameters, inputs, progress, statistics):
        logits = batch.float()
        target = labels[start : start + logits.shape[1]].to(logits.device)
        start += logits.shape[1]
        predicted.append(task.predict(logits).cpu())
        loss += task.loss(logits, target.expand(len(parameters), -1), reduction="none").sum(1).cpu()
    return torch.cat(predicted, dim=1), loss / len(labels)


def iter_logits(
    target_model: PreTrainedModel,
    processor: ParameterProcessor,
    parameters: torch.Tensor,
    inputs: Inputs,
    progress: bool = False,
    statistics: Mapping[str, torch.Tensor] | None = None,
) -> Iterator[torch.Tensor]:
    """Yields logits `(n, batch, classes)` of consecutive batches; see `network_logits`."""
    processor.check_statistics(statistics, len(parameters))
    target_model, tensors = prepare_networks(target_model, processor, parameters)
    reference = next(target_model.parameters())
    tensors |= {name: tensor.to(reference.device, reference.dtype) for name, tensor in (statistics or {}).items()}
    count, inputs = count_inputs(inputs), move_inputs(inputs, reference)
    evaluate, batch_size = plan_evaluation(target_model, processor, tensors, take_inputs(inputs, slice(1)))
    starts = range(0, max(count, 1), batch_size)
    for start in tqdm(starts, desc=f"evaluating {len(parameters)} networks", disable=not progress):
        yield evaluate(tensors, take_inputs(inputs, slice(start, start + batch_size)))


def prepare_networks(
    target_model: PreTrainedModel, processor: ParameterProcessor, parameters: torch.Tensor
) -> tuple[PreTrainedModel, dict[str, torch.Tensor]]:
    """Returns a copy of the target's modules over the same tensors, and the generated ones, each `(n, *shape)`.

    Other threads may use the target at the same time: the copy has its own places for generated tensors, which
    `functional_call` puts into a module for the time of a call.

    Raises:
        LayoutError, NonFiniteParametersError: If the vectors do not fit the layout.
        ValueError: If the model is in training mode, or there is one vector without a number in front.
    """
    processor.check(parameters)
    if parameters.ndim != 2:
        raise ValueError(f"Expected vectors (n, D), but the given ones have shape {tuple(parameters.shape)}.")
    if target_model.training:
        raise ValueError(f"{type(target_model).__name__} is in training mode; call .eval() on it first.")
    reference = next(target_model.parameters())
    shared = {id(tensor): tensor for tensor in (*target_model.parameters(), *target_model.buffers())}
    tensors = processor.unflatten(parameters.to(reference.device, reference.dtype))
    return copy.deepcopy(target_model, shared), tensors


def plan_evaluation(
    target_model: PreTrainedModel,
    processor: ParameterProcessor,
    tensors: dict[str, torch.Tensor],
    few: Inputs,
    stacks_convolutions: bool = False,
    read: Callable[[nn.Module, Any], torch.Tensor] = logits_of,
) -> tuple[Evaluate, int]:
    """Returns the fastest function from tensors and a batch to logits `(n, batch, classes)`, and its batch size.

    The function is differentiable. `tensors` are those of all networks, each `(n, *shape)`; `few` examples are for a
    trial run: one, or two if BatchNorms take the statistics of the batch. With `stacks_convolutions`, generated
    convolutions are grouped ones, which are faster where small networks are evaluated on few examples. `read` returns
    what is asked for in place of logits, from the network and its output.
    """
    first = processor.names[0]
    n = len(tensors[first])

    def logits_with(generated: dict[str, torch.Tensor], batch: Inputs) -> torch.Tensor:
        with PlainArithmetic():
            return read(target_model, functional_call(target_model, generated, *call_with(batch)))

    def one_by_one(generated: dict[str, torch.Tensor], batch: Inputs) -> torch.Tensor:
        return torch.stack(
            [logits_with({name: t[i] for name, t in generated.items()}, batch) for i in range(len(generated[first]))]
        )

    # 1. Networks with generated convolution weights (more than two dimensions) are evaluated one by one.
    if not stacks_convolutions and any(len(shape) > 2 for shape in processor.shapes):
        return one_by_one, MAX_BATCH_SIZE
    # 2. So must be a model that vmap cannot trace; a trial with two networks and few examples finds out.
    try:
        torch.vmap(logits_with, in_dims=(0, None), randomness="error")({k: t[:2] for k, t in tensors.items()}, few)
    except RuntimeError as error:
        logger.warning(
            f"{type(target_model).__name__} cannot be evaluated by vmap ({error}); each of the {n} networks is "
            "evaluated by its own forward pass."
        )
        return one_by_one, MAX_BATCH_SIZE
    # 3. As many (network, example) pairs at once as the budget allows. Chunks of networks each compute the trunk
    #    again, so all networks stay together on one example as long as ONE_IMAGE_BUDGET allows.
    pair_bytes = 4 * generated_activations(target_model, processor, few)
    pairs = max(ACTIVATION_BUDGET // pair_bytes, min(n, ONE_IMAGE_BUDGET // pair_bytes))
    chunk_size = max(1, min(n, pairs))
    evaluate = torch.vmap(logits_with, in_dims=(0, None), chunk_size=chunk_size)
    return evaluate, max(1, min(MAX_BATCH_SIZE, pairs // chunk_size))


class PlainArithmetic(TorchFunctionMode):
    """Replaces two layers by the arithmetic they amount to in eval mode, which is faster for many networks.

    A convolution of a 1x1 map (the last stages of networks for small images) is a matrix product with the kernel's
    center, because the rest of the kernel covers padding. A BatchNorm is one multiplication and one addition per
    channel.
    """

    def __torch_function__(
        self, func: Callable, types: Sequence[type], args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.conv2d and not kwargs and len(args) == 7:
            x, weight, bias, _, padding, dilation, groups = args  # x: (batch, channels, height, width)
            center = tuple(size // 2 for size in weight.shape[2:])
            if x.shape[2:] == (1, 1) and padding == center and dilation == (1, 1) and groups == 1:
                return functional.linear(x[..., 0, 0], weight[:, :, center[0], center[1]], bias)[..., None, None]
        if func is functional.batch_norm and kwargs and not kwargs["training"]:
            x, mean, variance = args  # x: (batch, channels, ...)
            scale = (variance + kwargs["eps"]).rsqrt()
            if kwargs["weight"] is not None:
                scale = scale * kwargs["weight"]
            shift = -mean * scale if kwargs["bias"] is None else kwargs["bias"] - mean * scale
            shape = (-1,) + (1,) * (x.ndim - 2)
            return torch.addcmul(shift.view(shape), x, scale.view(shape))
        return func(*args, **(kwargs or {}))


def generated_activations(model: nn.Module, processor: ParameterProcessor, few: Inputs) -> int:
    """Returns the size of the largest module output for one of some examples, from the first generated tensor on."""
    owners = {model.get_submodule(name.rpartition(".")[0]) for name in processor.names}
    largest, reached = 1, False

    def watch(module: nn.Module, inputs: object, output: object) -> None:
        nonlocal largest, reached
        reached = reached or module in owners
        if reached and isinstance(output, torch.Tensor):
            largest = max(largest, output.numel())

    handles = [module.register_forward_hook(watch) for module in model.modules()]
    try:
        forward(model, few)
    finally:
        for handle in handles:
            handle.remove()
    return -(-largest // count_inputs(few))
