"""Networks that are built when they are asked for, and what is done with many at once."""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, overload

import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel
from transformers.utils import logging

from ..data.inputs import Inputs
from ..folders import replace_folder, write_json
from ..hub.cards import write_network_card
from ..hub.sharing import share
from ..targets.building import build_network
from ..targets.inference import iter_logits, network_logits
from ..targets.processing_parameters import ParameterProcessor
from ..targets.statistics import BATCH_SIZE, Statistics, estimate_statistics
from ..targets.task import task_of
from .checks import as_count
from .ensembles import (
    EVALUATION_BATCH_SIZE,
    DrawnEvaluation,
    EnsemblePrediction,
    Examples,
    iter_batches,
    labeled_examples,
    rank_networks,
    require_classes,
)

NUMBERED = "[0-9][0-9][0-9][0-9][0-9]"  # names of the folders of drawn networks


class DrawnNetworks(Sequence[PreTrainedModel]):
    """Drawn networks, each built when it is asked for: a thousand of them cost a thousand vectors.

    `networks[i]` is a transformers model in eval mode that shares the frozen trunk's memory with the others and
    nothing else: moving, casting, training or stepping it never changes another one. It is the same object as long as
    somebody holds it, and is built anew after that, so that a loop over thousands holds one at a time. `build(i)` is
    always a new one, and `build(i, share_trunk=False)` a fully independent, trainable copy. What is saved, pushed or
    evaluated here are the networks as drawn, whatever has been done to an object.

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
        self._built: weakref.WeakValueDictionary[int, PreTrainedModel] = weakref.WeakValueDictionary()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_built"}  # weak references stay here

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _built=weakref.WeakValueDictionary())

    def __repr__(self) -> str:
        generator = self.provenance[0].get("generator") if self.provenance else None
        shape, origin = tuple(self.parameters.shape), f", from {generator!r}" if generator else ""
        count = f"{len(self)} drawn network{'s' * (len(self) != 1)}"
        return f"{count}: {type(self.target_model).__name__}, parameters {shape}{origin}"

    def __len__(self) -> int:
        return len(self.parameters)

    @overload
    def __getitem__(self, index: int) -> PreTrainedModel: ...

    @overload
    def __getitem__(self, index: slice) -> DrawnNetworks: ...

    def __getitem__(self, index: int | slice) -> PreTrainedModel | DrawnNetworks:
        if isinstance(index, slice):
            return self.take(range(len(self))[index])
        place = index + len(self) if index < 0 else index
        network = self._built.get(place)
        return self._built.setdefault(place, self.build(index)) if network is None else network

    def take(self, indices: Sequence[int]) -> DrawnNetworks:
        """Returns the networks at some indices, in that order."""
        rows = torch.tensor(list(indices), dtype=torch.long, device=self.parameters.device)
        statistics = {name: values[rows.to(values.device)] for name, values in (self.statistics or {}).items()}
        provenance = [self.provenance[i] for i in indices]
        about = (self.preprocessing, provenance, statistics)
        return DrawnNetworks(self.target_model, self.processor, self.parameters[rows], *about)

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
        self._built.clear()

    def logits(self, inputs: Inputs) -> torch.Tensor:
        """Returns the logits of all networks `(n, batch, classes)` float32, the trunk computed once.

        Args:
            inputs: `pixel_values`, or a mapping of named tensors, for example what a tokenizer returns.

        Raises:
            StatisticsError: If `update_bn` must be called first.
        """
        return network_logits(self.target_model, self.processor, self.parameters, inputs, statistics=self.statistics)

    def ensemble(self, inputs: Inputs) -> EnsemblePrediction:
        """Returns the mean of the networks' probabilities, and how uncertain it is; see `EnsemblePrediction`.

        Takes what `logits` takes, and raises a `ValueError` if the networks predict values (regression).
        """
        require_classes(self.target_model.config, "ensemble")
        return EnsemblePrediction.of(self._iter_logits(inputs, EVALUATION_BATCH_SIZE))

    def evaluate(self, data: Examples, batch_size: int = EVALUATION_BATCH_SIZE) -> DrawnEvaluation:
        """Returns accuracy, NLL, Brier score and ECE of each network and of their ensemble; printed, it is a table.

        Args:
            data: What `load_images` returns or any `LabeledData`, whose test split is taken; one split of it; or a
                pair of inputs, as `logits` takes them, and labels `(examples,)` int64. Images of bytes, as splits have
                them, are preprocessed as the networks need it; classes in another order are matched by name.
            batch_size: Examples that are preprocessed at once.

        Raises:
            BatchError: If data or labels are not of that kind, or not of the networks' classes.
            ValueError: If the networks predict values (regression).
            StatisticsError: If `update_bn` must be called first.
        """
        require_classes(self.target_model.config, "evaluate")
        inputs, labels = labeled_examples(data, "test", self.target_model.config, self.preprocessing)
        return DrawnEvaluation.of(self._iter_logits(inputs, as_count("batch_size", batch_size)), labels)

    def best_on(self, data: Examples, k: int = 1, batch_size: int = EVALUATION_BATCH_SIZE) -> DrawnNetworks:
        """Returns the k networks with the highest accuracy (of regressions: R²) on some data, the best one first.

        Ties are broken by the loss; `best_on(images)[0]` is one network, ready to use. Selection makes the accuracy on
        these data optimistic, the more so the more networks there are: evaluate the chosen ones on other data.

        Args:
            data: As for `evaluate`, but of labeled data the validation split is taken.
            k: How many.
            batch_size: As for `evaluate`.

        Raises:
            BatchError, StatisticsError: As for `evaluate`.
            ValueError: If there are fewer than k networks.
        """
        k, batch_size = as_count("k", k, len(self)), as_count("batch_size", batch_size)
        inputs, labels = labeled_examples(data, "validation", self.target_model.config, self.preprocessing)
        order = rank_networks(self._iter_logits(inputs, batch_size), labels, task_of(self.target_model.config))
        return self.take(order[:k])

    def save_pretrained(self, save_directory: str | os.PathLike) -> None:
        """Writes one folder per network, `00000/`, `00001/`, …, that plain transformers loads, and a card.

        Each holds the whole network with its labels, the preprocessing of its images and `provenance.json`. Of a
        network with an adapter it is the adapter alone, which `PeftModel.from_pretrained(base, folder)` loads.

        Raises:
            UnwritableFolderError: If the folder cannot be written.
        """
        with replace_folder(save_directory, stale=NUMBERED) as folder:
            shown = logging.is_progress_bar_enabled()
            for i in tqdm(range(len(self)), desc="saving networks", disable=not shown):
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
        network = self.build(index)
        save = getattr(network, "save_adapter", network.save_pretrained)
        with without_bars():
            save(folder)
        if self.preprocessing:
            write_json(folder / "preprocessor_config.json", self.preprocessing)
        write_json(folder / "provenance.json", self.provenance[index])

    def _iter_logits(self, inputs: Inputs, batch_size: int) -> Iterator[torch.Tensor]:
        networks = (self.target_model, self.processor, self.parameters)
        for batch in iter_batches(inputs, batch_size, self.preprocessing):
            yield from iter_logits(*networks, batch, statistics=self.statistics)


@contextmanager
def without_bars() -> Iterator[None]:
    """Keeps transformers from showing a progress bar for each network that it writes."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
