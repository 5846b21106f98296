"""What a pipeline returns: parameter vectors, and networks that are built when they are asked for."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import diffusers
import numpy as np
import torch
from diffusers.utils import BaseOutput
from transformers import PreTrainedModel

from ..data.inputs import Inputs
from ..folders import replace_folder, write_json
from ..hub.cards import write_network_card
from ..hub.sharing import share
from ..targets.building import build_network
from ..targets.inference import network_logits
from ..targets.processing_parameters import ParameterProcessor
from ..targets.statistics import BATCH_SIZE, Statistics, estimate_statistics

NUMBERED = "[0-9][0-9][0-9][0-9][0-9]"  # names of the folders of drawn networks


class DrawnNetworks(Sequence[PreTrainedModel]):
    """Drawn networks, each built when it is asked for: a thousand of them cost a thousand vectors.

    `networks[i]` is a transformers model in eval mode that shares the frozen trunk's memory with the others and
    nothing else: moving, casting, training or stepping it never changes another one. `build(i, share_trunk=False)` is
    a fully independent, trainable copy.

    Networks whose BatchNorm statistics are their own (`processor.statistics` names these BatchNorms) do not work with
    those of another network: none is built, evaluated or saved before `update_bn` has estimated them.

    Args:
        target_model: The network with the trunk.
        processor: The layout of `parameters`.
        parameters: `(n, D)` float32.
        preprocessing: Content of a `preprocessor_config.json`, or empty.
        provenance: For each network, where it came from (JSON types).
        statistics: What `estimate_statistics` returned for them.
    """

    def __init__(
        self,
        target_model: PreTrainedModel,
        processor: ParameterProcessor,
        parameters: torch.Tensor,
        preprocessing: dict[str, Any],
        provenance: list[dict[str, Any]],
        statistics: Statistics | None = None,
    ) -> None:
        self.target_model = target_model
        self.processor = processor
        self.parameters = parameters
        self.preprocessing = preprocessing
        self.provenance = provenance
        self.statistics = statistics

    def __len__(self) -> int:
        return len(self.parameters)

    @overload
    def __getitem__(self, index: int) -> PreTrainedModel: ...

    @overload
    def __getitem__(self, index: slice) -> DrawnNetworks: ...

    def __getitem__(self, index: int | slice) -> PreTrainedModel | DrawnNetworks:
        if isinstance(index, slice):
            return DrawnNetworks(
                self.target_model,
                self.processor,
                self.parameters[index],
                self.preprocessing,
                self.provenance[index],
                {name: values[index] for name, values in (self.statistics or {}).items()},
            )
        return self.build(index)

    def build(self, index: int, share_trunk: bool = True) -> PreTrainedModel:
        """Builds one network, over the trunk's memory or fully independent of it.

        Raises:
            IndexError: If there is no such network.
            StatisticsError: If `update_bn` must be called first.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"There are {len(self)} drawn networks, but number {index} was asked for.")
        self.processor.check_statistics(self.statistics, len(self))
        own = {name: values[index] for name, values in (self.statistics or {}).items()}
        return build_network(self.target_model, self.processor, self.parameters[index], share_trunk, own)

    def update_bn(self, inputs: Inputs, batch_size: int = BATCH_SIZE) -> None:
        """Estimates the BatchNorm statistics of each network on training images, without labels or augmentation.

        Each gets what `torch.optim.swa_utils.update_bn` would give it. Networks that share the trunk's statistics stay
        as they are.

        Args:
            inputs: Some hundreds of images or more, preprocessed as for `logits`.
            batch_size: Images of a batch.

        Raises:
            StatisticsError: If there are fewer than two images.
        """
        self.statistics = estimate_statistics(
            self.target_model, self.processor, self.parameters, inputs, batch_size=batch_size
        )

    def logits(self, inputs: Inputs) -> torch.Tensor:
        """Returns the logits of all networks `(n, batch, classes)` float32, the trunk computed once.

        Args:
            inputs: `pixel_values`, or a mapping of named tensors, for example what a tokenizer returns.

        Raises:
            StatisticsError: If `update_bn` must be called first.
        """
        return network_logits(self.target_model, self.processor, self.parameters, inputs, statistics=self.statistics)

    def save_pretrained(self, save_directory: str | os.PathLike) -> None:
        """Writes one folder per network, `00000/`, `00001/`, …, that plain transformers loads, and a card.

        Each holds the whole network with its labels, the preprocessing of its images and `provenance.json`. Of a
        network with an adapter it is the adapter alone, which `PeftModel.from_pretrained(base, folder)` loads.

        Raises:
            UnwritableFolderError: If the folder cannot be written.
        """
        with replace_folder(save_directory, stale=NUMBERED) as folder:
            for i in range(len(self)):
                self.write_network(i, folder / f"{i:05d}")
            self.write_card(folder, self.provenance)

    def save_network(self, index: int, save_directory: str | os.PathLike) -> None:
        """Writes one network to the root of a folder, as a repository of its own has it, with a card.

        Raises:
            IndexError: If there is no such network.
            UnwritableFolderError: If the folder cannot be written.
        """
        with replace_folder(save_directory) as folder:
            self.write_network(index, folder)
            self.write_card(folder, [self.provenance[index]], subfolders=False)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        one_repository_each: bool = False,
        private: bool | None = None,
        token: str | bool | None = None,
        commit_message: str | None = None,
    ) -> list[str]:
        """Pushes the networks: into subfolders `00000/`, … of one repository, or each into one of its own.

        Args:
            repo_id: For example `"org/drawn"`.
            one_repository_each: Push to `org/drawn-00000`, `org/drawn-00001`, … instead, where
                `AutoModel….from_pretrained` and `transformers.pipeline` need no subfolder.
            private: See `pdiff_hf.share`.
            token: See `pdiff_hf.share`.
            commit_message: See `pdiff_hf.share`.

        Returns:
            The addresses of the commits.

        Raises:
            HubError: One of its subclasses.
        """
        pushing: dict[str, Any] = {"private": private, "token": token, "commit_message": commit_message}
        commits = []
        with tempfile.TemporaryDirectory() as temporary:
            if not one_repository_each:
                self.save_pretrained(f"{temporary}/drawn")
                return [share(f"{temporary}/drawn", repo_id, **pushing)]
            for i in range(len(self)):
                self.save_network(i, f"{temporary}/{i}")
                commits.append(share(f"{temporary}/{i}", f"{repo_id}-{i:05d}", **pushing))
                shutil.rmtree(f"{temporary}/{i}")
        return commits

    def write_card(self, folder: Path, provenance: list[dict[str, Any]], subfolders: bool = True) -> None:
        """Writes the card of networks in `00000/`, `00001/`, …, or of one at the root, into an existing folder."""
        write_network_card(folder, provenance, type(self.target_model).__name__, subfolders)

    def write_network(self, index: int, folder: Path) -> None:
        """Writes the files of one network, without a card."""
        network = self[index]
        save = getattr(network, "save_adapter", network.save_pretrained)
        save(folder)
        if self.preprocessing:
            write_json(folder / "preprocessor_config.json", self.preprocessing)
        write_json(folder / "provenance.json", self.provenance[index])


def number_draws(
    count: int,
    generator: torch.Generator | list[torch.Generator] | None,
    source: Any,
    scheduler: str,
    sampling: dict[str, Any],
    conditions: torch.Tensor | None = None,
) -> list[dict[str, Any]]:
    """Returns the provenance of each network: what describes all of them, and its seed and place in the call.

    `source` is the `Source` that the pipeline was loaded from, None if it was not; `scheduler` the name of its class,
    and `sampling` its settings; `conditions` are those that the networks were drawn for, `(count, c)`.
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

    num_timesteps, interrupt = 0, False

    def __reduce__(self) -> tuple:
        return CallState, ()  # a copied or pickled pipeline has made no call


@dataclass
class PDiffPipelineOutput(BaseOutput):
    """What `PDiffPipeline` returns.

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

    def logits(self, inputs: Inputs) -> torch.Tensor:
        """Returns the logits of all networks `(num_models, batch, classes)` float32; see `DrawnNetworks.logits`."""
        return self._networks().logits(inputs)

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
