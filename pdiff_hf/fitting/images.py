"""The images of a fit that uses some: those that the zoo was collected on."""

from __future__ import annotations

import os
from pathlib import Path

from ..data.images import ImageData
from ..settings import say
from ..zoo.checkpoints import Checkpoints
from ..zoo.settings import collection_of, load_images_of

MISSING = (
    "No training images are at hand, so functions are not matched, and units are coded by plain variance: {reason}; "
    "name the images with --dataset_name."
)


def images_of(
    checkpoints: Checkpoints, source: str | os.PathLike, dataset_name: str | None = None
) -> ImageData | None:
    """Loads the images that a zoo was collected on, split as it records, or states in a line why not.

    Args:
        checkpoints: The zoo.
        source: The folder or Hub id that it was loaded from. What a zoo from the Hub names is not read unasked.
        dataset_name: Where the images are, if not where the zoo was collected.

    Raises:
        ImageDataError: If there are none where they should be.
    """
    if dataset_name is None and not checkpoints.collection.get("settings"):
        say(MISSING.format(reason="the zoo does not state where they are"))
        return None
    if dataset_name is None and not Path(source).is_dir():
        say(MISSING.format(reason="the zoo is from the Hub, and what it names is not read unasked"))
        return None
    return load_images_of(collection_of(checkpoints, dataset_name))
