"""What a pipeline returns: parameter vectors or latents, and networks with what is done with many at once."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers.utils import BaseOutput

from ..data.inputs import Inputs
from ..targets.statistics import BATCH_SIZE
from .drawn_networks import DrawnNetworks
from .ensembles import EVALUATION_BATCH_SIZE, DrawnEvaluation, EnsemblePrediction, Examples


def number_draws(
    count: int,
    generator: torch.Generator | list[torch.Generator] | None,
    source: Any,
    scheduler: str | None,
    sampling: dict[str, Any],
    conditions: torch.Tensor | None = None,
) -> list[dict[str, Any]]:
    """Returns the provenance of each network: what describes all of them, and its seed and place in the call.

    `source` is the `Source` that the pipeline was loaded from, None if it was not; `scheduler` the name of its class,
    None if the networks were decoded from latents that were given; `sampling` its settings; `conditions` are those
    that the networks were drawn for, `(count, c)`.
    """
    repository = source.repository if source else None
    drawing = {
        "generator": repository.repo_id if repository else None,
        "revision": source.folder.name if repository else None,
        "scheduler": scheduler,
        **sampling,
        "diffusers_version": diffusers.__version__,
    }
    own = [{} for _ in range(count)] if conditions is None else [{"condition": row} for row in conditions.tolist()]
    if isinstance(generator, list):
        return [
            {**drawing, **one, "seed": g.initial_seed(), "index": 0} for g, one in zip(generator, own, strict=True)
        ]
    seed = None if generator is None else generator.initial_seed()
    return [{**drawing, **one, "seed": seed, "index": i} for i, one in enumerate(own)]


class CallState(threading.local):
    """What the last call of each thread has reached."""

    num_timesteps, interrupt, is_batch = 0, False, False

    def __reduce__(self) -> tuple:
        return CallState, ()  # a copied or pickled pipeline has made no call


@dataclass(repr=False)
class PDiffPipelineOutput(BaseOutput):
    """What `PDiffPipeline` returns; its methods are those of `DrawnNetworks`.

    Args:
        parameters: `(num_models, D)` float32, a tensor (`output_type` `"model"`, `"pt"`) or an array (`"np"`).
        models: The networks, for `output_type="model"`.
        latents: `(num_models, latent_dim)`, for `output_type="latent"`, in place of the rest.
        condition_distance: `(num_models,)` float32, how far each network's condition is from the nearest one of the
            zoo (see `Conditions.distances`), if the networks are drawn for conditions.
    """

    parameters: torch.Tensor | np.ndarray | None = None
    models: DrawnNetworks | None = None
    latents: torch.Tensor | None = None
    condition_distance: torch.Tensor | None = None

    def __repr__(self) -> str:
        if self.models is not None:
            return repr(self.models)
        return ", ".join(f"{name} {tuple(values.shape)}" for name, values in self.items())

    def logits(self, inputs: Inputs) -> torch.Tensor:
        """Returns the logits of all networks `(num_models, batch, classes)` float32; see `DrawnNetworks.logits`."""
        return self._networks().logits(inputs)

    def ensemble(self, inputs: Inputs) -> EnsemblePrediction:
        """Returns the mean of the networks' probabilities, and its uncertainty; see `DrawnNetworks.ensemble`."""
        return self._networks().ensemble(inputs)

    def evaluate(self, data: Examples, batch_size: int = EVALUATION_BATCH_SIZE) -> DrawnEvaluation:
        """Returns accuracy, NLL, Brier score and ECE on labeled data; see `DrawnNetworks.evaluate`."""
        return self._networks().evaluate(data, batch_size)

    def best_on(self, data: Examples, k: int = 1, batch_size: int = EVALUATION_BATCH_SIZE) -> DrawnNetworks:
        """Returns the k networks with the highest accuracy on some data; see `DrawnNetworks.best_on`."""
        return self._networks().best_on(data, k, batch_size)

    def update_bn(self, inputs: Inputs, batch_size: int = BATCH_SIZE) -> None:
        """Estimates the BatchNorm statistics of each network on training images; see `DrawnNetworks.update_bn`."""
        self._networks().update_bn(inputs, batch_size)

    def save_pretrained(self, save_directory: str | os.PathLike) -> None:
        """Writes one transformers folder per network; see `DrawnNetworks.save_pretrained`."""
        self._networks().save_pretrained(save_directory)

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> list[str]:
        """Pushes the networks to the Hub; see `DrawnNetworks.push_to_hub`."""
        return self._networks().push_to_hub(repo_id, **kwargs)

    def _networks(self) -> DrawnNetworks:
        if self.models is None:
            raise ValueError("This output holds no networks; call the pipeline with output_type='model'.")
        return self.models
