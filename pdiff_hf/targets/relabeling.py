"""Exact relabelings: the network for the complement of a condition is the same network with its outputs exchanged."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from ..data.inputs import Inputs
from .conditions import ConditionError, Conditions
from .inference import network_logits
from .processing_parameters import ParameterProcessor
from .unit_search import random_weights, same


def exchanged_outputs(
    model: PreTrainedModel, processor: ParameterProcessor, parameters: torch.Tensor, inputs: Inputs
) -> torch.Tensor:
    """Returns the order of the numbers of a vector, `(D,)` int64, that exchanges the two outputs of its network.

    Found by trying: of each module whose own tensors are generated the two rows are exchanged, the last module first,
    until that exchanges the logits on example inputs, for given and for random parameters.

    Args:
        model: The target network in evaluation mode.
        processor: Its layout.
        parameters: One vector `(D,)` of a trained network.
        inputs: A few examples.

    Raises:
        ConditionError: If the network has other than two outputs, or no such exchange is found.
    """
    vectors = torch.stack([parameters, random_weights(processor).to(parameters)])
    logits = network_logits(model, processor, vectors, inputs)  # (2, examples, outputs)
    places = torch.arange(processor.parameter_dim)
    shapes = dict(zip(processor.names, processor.shapes, strict=True))
    modules = reversed([name for name, _ in model.named_modules()]) if logits.shape[-1] == 2 else ()
    for module in modules:
        own = {name for name in shapes if name.rpartition(".")[0] == module}
        if not own or any(shapes[name][:1] != (2,) for name in own):
            continue
        tensors = processor.unflatten(places)
        order = torch.cat([(t.flip(0) if name in own else t).flatten() for name, t in tensors.items()])
        exchanged = network_logits(model, processor, vectors[:, order], inputs)
        if all(same(new, old.flip(-1)) for new, old in zip(exchanged, logits, strict=True)):
            return order
    raise ConditionError(
        f"Conditions with complements need networks of two outputs that the generated parameters can exchange, but "
        f"{type(model).__name__} has {logits.shape[-1]}, and the layout {len(shapes)} tensors; generate the whole "
        "output layer, or state complement=False."
    )


def complements(
    parameters: torch.Tensor, condition: torch.Tensor, conditions: Conditions, order: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the same functions `(n, D)` as networks for the complements of their conditions `(n, c)`.

    Args:
        parameters: `(n, D)`.
        condition: `(n, c)`, 0 or 1.
        conditions: What they mean.
        order: What `exchanged_outputs` returned.

    Raises:
        ConditionError: If the complement of a condition is not the same task.
    """
    if not conditions.complement:
        raise ConditionError(f"The complements of conditions ({conditions.kind}) are other tasks here.")
    return parameters[:, order], 1 - condition
