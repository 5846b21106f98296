"""Networks drawn into a folder, one after another, so that their number is limited by the disk alone."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, cast

import torch

from ..folders import replace_folder
from ..targets.conditions import ConditionError
from .checks import as_count
from .drawn_networks import NUMBERED, DrawnNetworks
from .pipeline_pdiff import PDiffPipeline

BATCH_SIZE = 1  # in a batch the last bits of a network would depend on how many others there are


def sample_to_folder(
    pipe: PDiffPipeline,
    output_dir: str | os.PathLike,
    num_models: int,
    seed: int = 0,
    temperature: float = 1.0,
    num_inference_steps: int | None = None,
    condition: Any = None,
    guidance_scale: float | None = None,
    autoguidance_scale: float | None = None,
) -> None:
    """Draws networks and writes them as `DrawnNetworks.save_pretrained` does; the folder is written atomically.

    Network i is drawn with the seed `seed + i`, so that it can be drawn again alone; the further arguments are those
    of the pipeline's call.

    Raises:
        ValueError: If an argument does not fit.
        UnwritableFolderError: If the folder cannot be written.
    """
    num_models = as_count("num_models", num_models)
    generators = [torch.Generator().manual_seed(int(seed) + i) for i in range(num_models)]
    settings: dict[str, Any] = {
        "temperature": temperature,
        "num_inference_steps": num_inference_steps,
        "condition": condition,
        "guidance_scale": guidance_scale,
        "autoguidance_scale": autoguidance_scale,
    }
    provenance: list[dict[str, Any]] = []
    with replace_folder(output_dir, stale=NUMBERED) as folder:
        outputs = pipe.iter(num_models, BATCH_SIZE, generators, **settings)
        for i, output in enumerate(outputs):
            networks = cast(DrawnNetworks, output.models)
            networks.write_network(0, folder / f"{i:05d}")
            provenance += networks.provenance
        networks.write_card(folder, provenance)


def parse_condition(pipe: PDiffPipeline, words: Sequence[str] | None) -> Any:
    """Returns a condition for the call of a pipeline from words: names, where conditions are bits, else numbers.

    Raises:
        ConditionError: If a word is no number, but should be one.
    """
    if words is None or pipe.conditions is None or pipe.conditions.meaning.kind == "bits":
        return words
    try:
        return [float(word) for word in words]
    except ValueError as error:
        raise ConditionError(f"A condition of this pipeline is given as numbers, but {error}.") from error
