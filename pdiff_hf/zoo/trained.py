"""A trained image classifier as the target: its classes, its preprocessing and its head go with it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils import cached_file

from ..data.class_names import are_numbers, match_names, missing_names
from ..data.images import ImageData, ImageDataError, shorten
from ..data.preprocessing import Preprocessing
from ..loops import seeded


def class_names(config: PreTrainedConfig) -> list[str]:
    """Returns the names of the classes in the order of a network's outputs."""
    return [str(config.id2label[output]) for output in sorted(config.id2label)]


def preprocessing_of(name_or_path: str, image_size: int | None = None) -> tuple[Preprocessing | None, int | None]:
    """Returns the preprocessing of a trained network, if it has one, and the size of its images, if that is known.

    Args:
        name_or_path: A folder or Hub id.
        image_size: Height and width instead of the network's own.

    Raises:
        ValueError: If its `preprocessor_config.json` cannot be read.
    """
    own = getattr(AutoConfig.from_pretrained(name_or_path), "image_size", None)
    size = image_size or (own if isinstance(own, int) else None)
    missing = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    if cached_file(name_or_path, "preprocessor_config.json", **missing) is None:
        return None, size
    try:
        stored = AutoImageProcessor.from_pretrained(name_or_path).to_dict()
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"The preprocessor_config.json of {name_or_path!r} is not one of an image processor ({reason:.200}); "
            "correct it, or remove it to have mean and standard deviation measured on the images."
        ) from error
    sized = image_size or (None if "size" in stored and stored.get("do_resize", True) else size)
    preprocessing = Preprocessing.from_dict(stored, sized)
    return preprocessing, preprocessing.image_size


def in_order_of(images: ImageData, names: Sequence[str]) -> ImageData:
    """Returns the images with their classes numbered as they are in `names`, if all are there."""
    if images.train.labels.is_floating_point() or (places := match_names(images.label_names, names)) is None:
        return images
    return images.relabeled(places, names)


def require_classes(images: ImageData, names: Sequence[str], advice: str) -> None:
    """Raises an ImageDataError if the classes have names that are not among those that a network was trained for.

    Where images or network have numbers for names, these are the numbers of the outputs.
    """
    ours, theirs = images.label_names, names
    is_named = not are_numbers(ours) and not are_numbers(theirs) and not images.train.labels.is_floating_point()
    if is_named and match_names(ours, theirs) is None:
        raise ImageDataError(
            f"The images have the classes {shorten(missing_names(ours, theirs) or ours)}, which are not among those "
            f"that the network was trained for ({shorten(theirs)}); {advice}."
        )


def load_trained(name_or_path: str, images: ImageData, new_head: bool, seed: int) -> PreTrainedModel:
    """Loads a trained classifier. Its head stays as it is, unless it has another number of classes than the images.

    Args:
        images: Their classes are numbered as the network's outputs are; see `in_order_of`.
        new_head: Initialize the head anew in any case.
        seed: Of the initial weights of a new head.

    Raises:
        ValueError: If the trained head is for other classes, has them in another order, or predicts no value where
            the labels are values.
    """
    config = AutoConfig.from_pretrained(name_or_path)
    ours, own = images.label_names, class_names(config)
    is_regression = images.train.labels.is_floating_point()
    places = None if new_head or is_regression else match_names(ours, own)
    if places is not None and places != list(range(len(places))):
        raise ValueError(
            f"The classes of the images are in another order ({shorten(ours)}) than the outputs of {name_or_path!r} "
            f"({shorten(own)}); load the images with load_images_of(settings), which numbers them as the outputs."
        )
    keeps_names = places is not None or (not new_head and len(own) == len(ours) and not are_numbers(own))
    names = dict(enumerate(own if keeps_names else ours))
    outputs: dict[str, Any] = {"id2label": names, "label2id": {name: i for i, name in names.items()}}
    if is_regression:
        outputs |= {"num_labels": 1, "problem_type": "regression"}
    elif config.problem_type == "regression":
        outputs["problem_type"] = "single_label_classification"
    with seeded(seed):
        model, loading = AutoModelForImageClassification.from_pretrained(
            name_or_path, ignore_mismatched_sizes=True, output_loading_info=True, **outputs
        )
    if new_head:
        _replace_head(model, seed)
    elif is_regression and loading["mismatched_keys"]:
        raise ValueError(
            f"The labels are floating-point numbers, but {name_or_path!r} classifies {len(own)} classes; take labels "
            "that are whole numbers, or --new_head to predict values with a new head."
        )
    elif not loading["mismatched_keys"] and not loading["missing_keys"]:
        require_classes(images, own, "rename them in the data set, or train a new head with --new_head")
    return model


def _replace_head(model: PreTrainedModel, seed: int) -> None:
    """Initializes the tensors anew whose shapes depend on the number of classes."""
    more = copy.deepcopy(model.config)
    more.num_labels = model.config.num_labels + 1
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in type(model)(more).named_parameters()}
    with seeded(seed):
        fresh = type(model)(model.config)
    for name, tensor in fresh.named_parameters():
        if tensor.shape != shapes[name]:
            model.get_parameter(name).data.copy_(tensor.data)
