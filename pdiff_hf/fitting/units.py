"""What a fit needs to know of hidden units: where they are, what describes them, and which recipe suits a zoo."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import ModelMixin

from ..data.images import Preprocessing
from ..data.inputs import Inputs, LabeledData, take_inputs
from ..targets.symmetries import Symmetries
from ..targets.unit_layout import unit_layout, unit_metrics
from ..zoo.checkpoints import Checkpoints

MANY_RUNS = 50  # independent runs from which on a zoo of whole networks is fitted unit by unit
NUM_EXAMPLES = 32  # images on which units are found


def find_symmetries(checkpoints: Checkpoints, images: LabeledData | None = None) -> Symmetries:
    """Finds the hidden units of a zoo's network, on training images, or on noise of their shape.

    Raises:
        ValueError: If there are no images, and the zoo does not state their size.
    """
    inputs = example_inputs(checkpoints, images)
    return Symmetries(checkpoints.target_model, checkpoints.processor, checkpoints.zoo.parameters[0], inputs)


def example_inputs(checkpoints: Checkpoints, images: LabeledData | None = None) -> Inputs:
    """Returns a few training images, or noise of their shape; `ValueError` if the zoo does not state their size."""
    return _noise(checkpoints) if images is None else take_inputs(images.inputs(images.train), slice(NUM_EXAMPLES))


def canonical_splits(
    checkpoints: Checkpoints, names: Sequence[str], autoencoder: ModelMixin, images: LabeledData | None = None
) -> tuple[dict[str, torch.Tensor], Symmetries | None]:
    """Returns the vectors `(n, D)` of splits as an autoencoder takes them, and the symmetries that were undone.

    Those of a unit autoencoder are without rescalings of units and shifts of logits; others take a zoo as it is.
    Splits that are absent or empty are left out.
    """
    splits = {name: split.parameters for name, split in checkpoints.splits.items() if name in names and len(split)}
    if "token_groups" not in autoencoder.config:
        return splits, None
    symmetries = find_symmetries(checkpoints, images)
    return {name: symmetries.canonicalize(vectors) for name, vectors in splits.items()}, symmetries


def unit_arguments(checkpoints: Checkpoints, images: LabeledData | None) -> dict[str, Any]:
    """Returns what `UnitParameterAutoencoder.from_zoo` takes of a zoo: its vectors, their units, and metrics of them.

    The metrics, what changes do to the logits on training images, are left out without images.
    """
    symmetries = find_symmetries(checkpoints, images)
    parameters = symmetries.canonicalize(checkpoints.zoo.parameters)
    arguments = unit_layout(symmetries).arguments() | {"parameters": parameters}
    if images is not None:
        inputs = images.inputs(images.train)
        arguments["metrics"] = unit_metrics(checkpoints.target_model, symmetries, parameters, inputs)
    return arguments


def choose_recipe(checkpoints: Checkpoints) -> tuple[str, str]:
    """Returns the recipe that suits a zoo, `units`, `conditional` or `fast`, and the reason in words."""
    zoo, generated = checkpoints.zoo, set(checkpoints.processor.names)
    runs = len(set(zoo.run))
    if any(name not in generated for name, p in checkpoints.target_model.named_parameters() if p.is_floating_point()):
        return "fast", "a part of the network is generated"
    if runs < MANY_RUNS:
        return "fast", f"the zoo has {runs} independent runs, fewer than {MANY_RUNS}"
    try:
        layers = find_symmetries(checkpoints).layers
    except ValueError as error:
        return "fast", str(error)
    if not layers:
        return "fast", "no hidden units were found"
    units = sum(layer.count for layer in layers)
    reason = f"the zoo has {runs} independent runs of whole networks of {units} hidden units"
    if checkpoints.conditions is None:
        return "units", reason
    return "conditional", f"{reason}, for {len(set(map(tuple, zoo.condition)))} conditions"


def _noise(checkpoints: Checkpoints) -> Inputs:
    channels = getattr(checkpoints.target_model.config, "num_channels", None)
    if channels is None or not checkpoints.preprocessing:
        raise ValueError("networks are tried on images, but the zoo does not state their size")
    size = Preprocessing.from_dict(checkpoints.preprocessing).image_size
    return torch.randn(NUM_EXAMPLES, channels, size, size, generator=torch.Generator().manual_seed(0))
