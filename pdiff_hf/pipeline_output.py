"""What a pipeline returns: parameter vectors, and networks that are built when they are asked for."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import torch
from diffusers.utils import BaseOutput
from transformers import PreTrainedModel

from .adapters import AdaptedModel
from .batches import Inputs
from .folders import replace_folder, write_json
from .inference import network_logits
from .processing_parameters import ParameterProcessor
from .targets import draw_network


class DrawnNetworks(Sequence[PreTrainedModel]):
    """Drawn networks, each built when it is asked for: a thousand of them cost a thousand vectors.

    `networks[i]` is a transformers model in eval mode that shares the frozen trunk's memory with the others and
    nothing else: moving, casting, training or stepping it never changes another one. `build(i, share_trunk=False)` is
    a fully independent, trainable copy.

    Args:
        target_model: The network with the trunk.
        processor: The layout of `parameters`.
        parameters: `(n, D)` float32.
        preprocessing: Content of a `preprocessor_config.json`, or empty.
        provenance: For each network, where it came from (JSON types).
    """

    def __init__(
        self,
        target_model: PreTrainedModel,
        processor: ParameterProcessor,
        parameters: torch.Tensor,
        preprocessing: dict[str, Any],
        provenance: list[dict[str, Any]],
    ) -> None:
        self.target_model = target_model
        self.processor = processor
        self.parameters = parameters
        self.preprocessing = preprocessing
        self.provenance = provenance

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
            )
        return self.build(index)

    def build(self, index: int, share_trunk: bool = True) -> PreTrainedModel:
        """Builds one network, over the trunk's memory or fully independent of it.

        Raises:
            IndexError: If there is no such network.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"There are {len(self)} drawn networks, but number {index} was asked for.")
        return draw_network(self.target_model, self.processor, self.parameters[index], share_trunk)

    def logits(self, inputs: Inputs) -> torch.Tensor:
        """Returns the logits of all networks `(n, batch, classes)` float32, the trunk computed once.

        Args:
            inputs: `pixel_values`, or a mapping of named tensors, for example what a tokenizer returns.
        """
        return network_logits(self.target_model, self.processor, self.parameters, inputs)

    def save_pretrained(self, save_directory: str | os.PathLike) -> None:
        """Writes one folder per network, `00000/`, `00001/`, …, that plain transformers loads.

        Each holds the whole network with its labels, the preprocessing of its images and `provenance.json`. Of a
        network with an adapter it is the adapter alone, which `PeftModel.from_pretrained(base, folder)` loads.

        Raises:
            UnwritableFolderError: If the folder cannot be written.
        """
        with replace_folder(save_directory) as folder:
            for i in range(len(self)):
                network = self[i]
                if isinstance(network, AdaptedModel):
                    network.save_adapter(folder / f"{i:05d}")
                else:
                    network.save_pretrained(folder / f"{i:05d}")
                if self.preprocessing:
                    write_json(folder / f"{i:05d}" / "preprocessor_config.json", self.preprocessing)
                write_json(folder / f"{i:05d}" / "provenance.json", self.provenance[i])


@dataclass
class PDiffPipelineOutput(BaseOutput):
    """What `PDiffPipeline` returns.

    Args:
        parameters: `(num_models, D)` float32, a tensor (`output_type` `"model"`, `"pt"`) or an array (`"np"`).
        models: The networks, for `output_type="model"`.
        latents: `(num_models, latent_dim)`, for `output_type="latent"`, in place of the rest.
    """

    parameters: torch.Tensor | np.ndarray | None = None
    models: DrawnNetworks | None = None
    latents: torch.Tensor | None = None

    def logits(self, inputs: Inputs) -> torch.Tensor:
        """Returns the logits of all networks `(num_models, batch, classes)` float32; see `DrawnNetworks.logits`."""
        return self._networks().logits(inputs)

    def save_pretrained(self, save_directory: str | os.PathLike) -> None:
        """Writes one transformers folder per network; see `DrawnNetworks.save_pretrained`."""
        self._networks().save_pretrained(save_directory)

    def _networks(self) -> DrawnNetworks:
        if self.models is None:
            raise ValueError("This output holds no networks; call the pipeline with output_type='model'.")
        return self.models
