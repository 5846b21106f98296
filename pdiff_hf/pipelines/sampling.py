"""Networks drawn into a folder, one after another, so that their number is limited by the disk alone."""

from __future__ import annotations

import os
from typing import Any, cast

import torch
from tqdm.auto import tqdm

from ..folders import replace_folder
from .checks import as_count
from .pipeline_output import NUMBERED, DrawnNetworks
from .pipeline_pdiff import PDiffPipeline

BATCH_SIZE = 1  # in a batch the last bits of a network would depend on how many others there are


def sample_to_folder(
    pipe: PDiffPipeline,
    output_dir: str | os.PathLike,
    num_models: int,
    seed: int = 0,
    temperature: float = 1.0,
    num_inference_steps: int | None = None,
) -> None:
    """Draws networks and writes them as `DrawnNetworks.save_pretrained` does; the folder is written atomically.

    Network i is drawn with the seed `seed + i`, so that it can be drawn again alone; `temperature` is a factor on the
    final latents, and `num_inference_steps` by default that of the pipeline.

    Raises:
        ValueError: If an argument does not fit.
        UnwritableFolderError: If the folder cannot be written.
    """
    num_models = as_count("num_models", num_models)
    pipe.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(int(seed) + i) for i in range(num_models)]
    settings: dict[str, Any] = {"temperature": temperature, "num_inference_steps": num_inference_steps}
    provenance: list[dict[str, Any]] = []
    with replace_folder(output_dir, stale=NUMBERED) as folder:
        outputs = pipe.iter(num_models, BATCH_SIZE, generators, **settings)
        for i, output in enumerate(tqdm(outputs, desc="drawing networks", total=num_models)):
            networks = cast(DrawnNetworks, output.models)
            networks.write_network(0, folder / f"{i:05d}")
            provenance += networks.provenance
        networks.write_card(folder, provenance)
