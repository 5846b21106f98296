"""Whether data and runs fit a network: channels, labels, and statistics that its runs would share."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from ..data.images import ImageData
from ..data.inputs import LabeledData, require_labels
from ..targets.processing_parameters import ParameterProcessor
from ..targets.task import Task, classification, require_logits, task_of


def require_channels(config: PreTrainedConfig, images: ImageData) -> None:
    """Raises a ValueError if a network of this configuration takes images of other channels."""
    expected = getattr(config, "num_channels", images.num_channels)
    if expected != images.num_channels:
        raise ValueError(
            f"The network takes images of {expected} channels, but those of the data set have {images.num_channels}; "
            "choose another network or data set."
        )


def task_on(model: PreTrainedModel, data: LabeledData) -> Task:
    """Returns a network's task.

    Raises:
        ValueError: If it has no logits, or classifies but the labels are values or of unknown classes.
    """
    require_logits(model)
    task = task_of(model.config)
    if task is classification and data.train.labels.is_floating_point():
        raise ValueError(
            f"The labels are floating-point numbers, but {type(model).__name__} classifies; set num_labels=1 and "
            "problem_type='regression' in its configuration, or take labels that are classes."
        )
    splits = {"train": data.train, "validation": data.validation, "test": data.test}
    require_labels({name: split.labels for name, split in splits.items()}, len(data.label_names))
    return task


def require_shared_statistics(model: PreTrainedModel, processor: ParameterProcessor) -> None:
    """Raises a ValueError if generated tensors feed BatchNorms: each run then needs running statistics of its own."""
    owners = {name.rpartition(".")[0] for name in processor.names}
    fed, reached = [], False
    for name, module in model.named_modules():  # in the order of the forward pass, as far as modules have one
        if reached and isinstance(module, nn.modules.batchnorm._BatchNorm):
            fed.append(name)
        reached = reached or name in owners
    if fed:
        raise ValueError(
            f"Generated tensors feed BatchNorms of {type(model).__name__} ({', '.join(fed)}): runs from initial "
            "weights of their own would need running statistics of their own, which are no part of a vector. Share "
            "those of one network (--trunk_steps 300, or --shared_initialization with --model_name_or_path), or take "
            'a network without BatchNorm (a pdiff_convnet with --model_config \'{"normalization": "layer"}\').'
        )
