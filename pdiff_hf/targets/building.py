"""Networks built from parameter vectors, with one shared trunk."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import nn
from transformers import PreTrainedModel

from .processing_parameters import ParameterProcessor


def build_network(
    target_model: PreTrainedModel,
    processor: ParameterProcessor,
    vector: torch.Tensor,
    share_trunk: bool = True,
    statistics: Mapping[str, torch.Tensor] | None = None,
) -> PreTrainedModel:
    """Returns a network with the generated tensors of `vector`, `(D,)`, in the target's dtype and in eval mode.

    With `share_trunk` the trunk's `Parameter` objects are new, but use the storage of the target's, and do not require
    grad: moving, casting, training or stepping the network never changes another one. Without it, every tensor is
    copied and trainable. Buffers are always copied.

    `statistics`, each `(channels,)`, are those of the network if it has its own (`processor.statistics`, see
    `estimate_statistics`); without them it has the target's, with which it does not work, and
    `torch.optim.swa_utils.update_bn` may set them later.

    Raises:
        LayoutError: If the vector or the target does not fit the layout.
        NonFiniteParametersError: If a value is NaN or infinite.
    """
    processor.check(vector)
    processor.check_model(target_model)
    generated = processor.unflatten(vector)
    memo: dict[int, object] = {}
    for name, parameter in target_model.named_parameters():
        if name in generated:
            data = generated[name].to(parameter.device, parameter.dtype, copy=True)
        else:
            data = parameter.detach() if share_trunk else parameter.detach().clone()
        memo[id(parameter)] = nn.Parameter(data, requires_grad=name in generated or not share_trunk)
    network = copy.deepcopy(target_model, memo).eval()
    for name, values in (statistics or {}).items():
        network.get_buffer(name).copy_(values)
    return network
