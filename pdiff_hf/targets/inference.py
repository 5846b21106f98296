"""Logits of many parameter vectors at once, with whatever does not depend on them (the trunk) computed once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
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
from .task import task_of

logger = logging.get_logger(__name__)

# Bytes that the generated layers' activations of one batch may take. Small enough for a processor's cache to help;
# a larger budget was not faster.
ACTIVATION_BUDGET = 32 * 2**20
# The same of a single image, before the networks are evaluated in several chunks.
ONE_IMAGE_BUDGET = 512 * 2**20
MAX_BATCH_SIZE = 256


@torch.no_grad()
def network_logits(
    target_model: PreTrainedModel,
    processor: ParameterProcessor,
    parameters: torch.Tensor,
    inputs: Inputs,
    progress: bool = False,
) -> torch.Tensor:
    """Returns the logits of n networks on the same examples, `(n, images, classes)` float32.

    The networks are evaluated together by `torch.vmap`, which computes once what no generated tensor reaches; batches
    are chosen so that the rest fits `ACTIVATION_BUDGET`. Generated convolution weights would turn every convolution
    into a grouped one, which is slower than one network after the other: there, and for models that `vmap` cannot
    trace, plain forward passes are made (the latter case says so).

    Args:
        target_model: The network with the trunk, in eval mode; it is not changed.
        processor: The layout of `parameters`.
        parameters: `(n, D)` float32.
        inputs: Images `(images, channels, height, width)`, or a mapping of tensors that are passed by name, such as
            what a tokenizer returns; each with one row per example.
        progress: Show a progress bar over the images.

    Raises:
        LayoutError, NonFiniteParametersError: If `parameters` do not fit the layout.
        BatchError: If the inputs are no tensors, or tensors of different lengths.
        ValueError: If the model is in training mode.
    """
    batches = iter_logits(target_model, processor, parameters, inputs, progress)
    return torch.cat([logits.float() for logits in batches], dim=1)


@torch.no_grad()
def network_predictions(
    target_model: PreTrainedModel,
    processor: ParameterProcessor,
    parameters: torch.Tensor,
    inputs: Inputs,
    labels: torch.Tensor,
    progress: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the predictions `(n, images)`, classes int64 or values float, and the mean loss of each network `(n,)`.

    Takes the arguments of `network_logits` and the images' labels `(images,)`, and never holds all logits.
    """
    task = task_of(target_model.config)
    predicted, loss = [], torch.zeros(len(parameters))
    start = 0
    for logits in iter_logits(target_model, processor, parameters, inputs, progress):
        logits = logits.float()
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
) -> Iterator[torch.Tensor]:
    """Yields logits `(n, batch, classes)` of consecutive batches; see `network_logits`."""
    processor.check(parameters)
    if parameters.ndim != 2:
        raise ValueError(f"Expected vectors (n, D), but the ones given have shape {tuple(parameters.shape)}.")
    if target_model.training:
        raise ValueError(f"{type(target_model).__name__} is in training mode; call .eval() on it first.")
    reference = next(target_model.parameters())
    tensors = processor.unflatten(parameters.to(reference.device, reference.dtype))
    count, inputs = count_inputs(inputs), move_inputs(inputs, reference)
    one = take_inputs(inputs, slice(1))

    def logits_of(generated: dict[str, torch.Tensor], batch: Inputs) -> torch.Tensor:
        with PlainArithmetic():
            return functional_call(target_model, generated, *call_with(batch)).logits

    def one_after_the_other(generated: dict[str, torch.Tensor], batch: Inputs) -> torch.Tensor:
        each = range(len(parameters))
        return torch.stack([logits_of({name: t[i] for name, t in generated.items()}, batch) for i in each])

    evaluate = one_after_the_other
    batch_size, chunk_size = MAX_BATCH_SIZE, None
    if not any(len(shape) > 2 for shape in processor.shapes):
        together = torch.vmap(logits_of, in_dims=(0, None), randomness="error")
        try:
            first_two = {name: tensor[:2] for name, tensor in tensors.items()}
            together(first_two, one)
        except RuntimeError as error:
            logger.warning(
                f"{type(target_model).__name__} cannot be evaluated by vmap ({error}); each of the "
                f"{len(parameters)} networks makes a forward pass of its own."
            )
        else:
            one_pair = 4 * _generated_activations(target_model, processor, one)  # bytes
            pairs = ACTIVATION_BUDGET // one_pair
            if pairs < len(parameters):  # several chunks of networks would each compute the trunk anew
                pairs = min(len(parameters), ONE_IMAGE_BUDGET // one_pair)
            chunk_size = max(1, min(len(parameters), pairs))
            batch_size = max(1, min(MAX_BATCH_SIZE, pairs // chunk_size))
            evaluate = torch.vmap(logits_of, in_dims=(0, None), chunk_size=chunk_size)

    starts = range(0, max(count, 1), batch_size)
    for start in tqdm(starts, desc=f"evaluating {len(parameters)} networks", disable=not progress):
        yield evaluate(tensors, take_inputs(inputs, slice(start, start + batch_size)))


class PlainArithmetic(TorchFunctionMode):
    """Computes two layers as the plain arithmetic they are in evaluation mode, which is faster for many networks.

    A convolution of a 1x1 map, as the last stages of networks for small images have them, is a matrix product: all of
    the kernel but its middle meets padding. A BatchNorm is one multiplication and one addition per channel.
    """

    def __torch_function__(
        self, func: Callable, types: Sequence[type], args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.conv2d and not kwargs and len(args) == 7:
            images, weight, bias, _, padding, dilation, groups = args
            middle = tuple(size // 2 for size in weight.shape[2:])
            if images.shape[2:] == (1, 1) and padding == middle and dilation == (1, 1) and groups == 1:
                return functional.linear(images[..., 0, 0], weight[:, :, middle[0], middle[1]], bias)[..., None, None]
        if func is functional.batch_norm and kwargs and not kwargs["training"]:
            maps, mean, variance = args
            scale = (variance + kwargs["eps"]).rsqrt()
            if kwargs["weight"] is not None:
                scale = scale * kwargs["weight"]
            shift = -mean * scale if kwargs["bias"] is None else kwargs["bias"] - mean * scale
            shape = (-1,) + (1,) * (maps.ndim - 2)
            return torch.addcmul(shift.view(shape), maps, scale.view(shape))
        return func(*args, **(kwargs or {}))


def _generated_activations(model: nn.Module, processor: ParameterProcessor, one: Inputs) -> int:
    """Returns the most numbers any module puts out for one example, from the first generated tensor on."""
    owners = {name.rpartition(".")[0] for name in processor.names}
    largest, reached = 1, False

    def watch(name: str) -> object:
        def hook(module: nn.Module, inputs: object, output: object) -> None:
            nonlocal largest, reached
            reached = reached or name in owners
            if reached and isinstance(output, torch.Tensor):
                largest = max(largest, math.prod(output.shape))

        return hook

    handles = [module.register_forward_hook(watch(name)) for name, module in model.named_modules()]
    try:
        forward(model, one)
    finally:
        for handle in handles:
            handle.remove()
    return largest
