"""Whatever a killed process was saving is there as before or complete afterward, and nothing of it stays for ever."""

from __future__ import annotations

import json
import re
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from killed import moments, run_forked
from scripts import files_of, run
from transformers import PreTrainedModel

from pdiff_hf import Checkpoints, PDiffPipeline, load_checkpoints
from pdiff_hf.evaluation.report import add_report
from pdiff_hf.folders import finish_replacing
from pdiff_hf.hub.cards import PICTURES
from pdiff_hf.settings import RunSettings
from pdiff_hf.zoo.run_groups import RunGroup, SavedGroups

KILLS = [5, pytest.param(50, marks=pytest.mark.exhaustive)]


class Saves:
    """Saves content that is marked by a number all over, and reads back the numbers that are found."""

    def __init__(self, folder: Path, pipe: PDiffPipeline, checkpoints: Checkpoints) -> None:
        self.folder, self.pipe, self.checkpoints = folder, pipe, checkpoints

    def save(self, number: int) -> None:
        raise NotImplementedError

    def read(self) -> set[float]:
        raise NotImplementedError


class PipelineSaves(Saves):
    def save(self, number: int) -> None:
        mark(self.pipe, number)
        self.pipe.save_pretrained(self.folder)

    def read(self) -> set[float]:
        pipe = PDiffPipeline.from_pretrained(self.folder)
        tensors = [*pipe.denoiser.parameters(), *pipe.target_model.parameters()]
        return {number for t in tensors for number in t.detach().unique().tolist()} | numbers_of_report(self, pipe)


class ReportSaves(Saves):
    """The report of an evaluation goes into the folder of a pipeline."""

    def save(self, number: int) -> None:
        if not (self.folder / "model_index.json").exists():
            self.pipe.save_pretrained(self.folder)
        report = self.folder.with_name(f"report-{number}")
        report.mkdir(exist_ok=True)
        for picture in PICTURES:
            (report / picture).write_text(str(number))
        add_report(self.folder, self.pipe, report, mark(self.pipe, number))

    def read(self) -> set[float]:
        pipe = PDiffPipeline.from_pretrained(self.folder)
        return numbers_of_report(self, pipe) | {float((self.folder / name).read_text()) for name in PICTURES}


class ZooSaves(Saves):
    def save(self, number: int) -> None:
        for split in self.checkpoints.splits.values():
            split.parameters.fill_(number)
        self.checkpoints.collection["number"] = number
        self.checkpoints.save(self.folder)

    def read(self) -> set[float]:
        loaded = load_checkpoints(self.folder)
        head = loaded.processor.flatten(loaded.target_model.state_dict())
        vectors = torch.cat([head[None], *(split.parameters for split in loaded.splits.values())])
        return {*vectors.unique().tolist(), loaded.collection["number"]}


class NetworkSaves(Saves):
    def save(self, number: int) -> None:
        networks = self.pipe(3, num_inference_steps=1).models
        networks.parameters.fill_(number)
        networks.provenance = [drawn | {"seed": number} for drawn in networks.provenance]
        networks.save_pretrained(self.folder)

    def read(self) -> set[float]:
        finish_replacing(self.folder)
        found: set[float] = set()
        for i in range(3):
            network: PreTrainedModel = type(self.pipe.target_model).from_pretrained(self.folder / f"{i:05d}")
            found |= {json.loads((self.folder / f"{i:05d}" / "provenance.json").read_text())["seed"]}
            found |= set(self.pipe.processor.flatten(network.state_dict()).unique().tolist())
        return found


class GroupSaves(Saves):
    """A group of runs of an unfinished collection."""

    @property
    def groups(self) -> SavedGroups:
        state = RunSettings(str(self.folder), resume_from_checkpoint="latest")
        return SavedGroups(state.beside("runs"), {"seed": 0})

    def save(self, number: int) -> None:
        vectors, score, loss = (torch.full(shape, float(number)) for shape in ((2, 1, 100), (2, 1), (2, 1)))
        self.groups.save(RunGroup([0, 1], vectors, score, loss, {"runs": number}))

    def read(self) -> set[float]:
        group = self.groups.load([0, 1])
        tensors = (group.parameters, group.validation_score, group.validation_loss)
        return {group.seconds["runs"], *torch.cat([tensor.flatten() for tensor in tensors]).unique().tolist()}


def mark(pipe: PDiffPipeline, number: int) -> dict:
    """Writes a number into all weights of a pipeline and into its metrics, which are returned."""
    with torch.no_grad():
        for network in (pipe.denoiser, pipe.target_model):
            for parameter in network.parameters():
                parameter.fill_(number)
    pipe.metrics["data"]["zoo_count"] = number
    return pipe.metrics


def numbers_of_report(saves: Saves, pipe: PDiffPipeline) -> set[float]:
    card = (saves.folder / "README.md").read_text()
    return {pipe.metrics["data"]["zoo_count"], float(re.search(r"has (\d+) checkpoints to learn from", card)[1])}


@pytest.mark.parametrize("kills", KILLS)
@pytest.mark.parametrize("kind", [PipelineSaves, ReportSaves, ZooSaves, NetworkSaves, GroupSaves])
def test_a_killed_save_leaves_the_old_or_the_new_content(
    tmp_path: Path, tiny_pipeline: PDiffPipeline, tiny_checkpoints: Checkpoints, kind: type[Saves], kills: int
):
    saves = kind(tmp_path / "out", tiny_pipeline, tiny_checkpoints)
    saves.save(1)
    assert saves.read() == {1}

    found = set()
    for old, moment in enumerate(moments(partial(saves.save, 1), kills), start=1):
        saves.save(old)
        assert not list(tmp_path.rglob(".*"))
        assert run_forked(partial(saves.save, old + 1), moment) is None
        read = saves.read()
        assert read in ({old}, {old + 1})
        found.add(read == {old})

    assert found == {True, False}  # some were killed before the new content was there, others afterward


COLLECTING = [
    *("--dataset_name", "digits", "--image_size", "8", "--max_train_images", "64", "--max_eval_images", "16"),
    *("--model_type", "pdiff_mlp", "--model_config", '{"hidden_sizes": [4]}', "--subset", "head"),
    *("--target_train_steps", "3", "--train_batch_size", "4"),
]
FLAGS = {
    "collect_trajectory": [
        *(*COLLECTING, "--burn_in_steps", "1", "--num_blocks", "1", "--gap", "0", "--num_branches", "0"),
        *("--num_checkpoints", "3", "--num_validation_checkpoints", "1", "--num_test_checkpoints", "1"),
    ],
    "collect_runs": [
        *(*COLLECTING, "--num_runs", "2", "--num_validation_runs", "1", "--num_test_runs", "1"),
        *("--runs_per_group", "1", "--trunk_steps", "2"),
    ],
    "train_autoencoder": [
        *("--type", "conv", "--config", '{"latent_dim": 2, "channels": [2, 2], "kernel_size": 3}'),
        *("--max_train_steps", "3", "--train_batch_size", "4"),
    ],
    "train_denoiser": [
        *("--config", '{"width": 8, "num_blocks": 1}', "--num_inference_steps", "2"),
        *("--max_train_steps", "3", "--train_batch_size", "4"),
    ],
}


@pytest.fixture
def flags(tmp_path: Path, tiny_checkpoints: Checkpoints) -> dict[str, list]:
    """Arguments with which each script does next to nothing."""
    tiny_checkpoints.save(tmp_path / "zoo")
    zoo = ["--checkpoints", tmp_path / "zoo"]
    linear = [*zoo, "--config", '{"latent_dim": 2}', "--output_dir", tmp_path / "autoencoder"]
    run_forked(partial(run, "train_autoencoder", *linear))
    trained = {"train_autoencoder": zoo, "train_denoiser": [*zoo, "--autoencoder", tmp_path / "autoencoder"]}
    return {name: [*own, *trained.get(name, []), "--checkpointing_steps", "1"] for name, own in FLAGS.items()}


def weights_of(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in files_of(folder) if name.endswith(("tensors", "parquet"))}


@pytest.mark.parametrize("kills", [3, pytest.param(50, marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize("script", FLAGS)
def test_a_killed_script_resumes_bit_for_bit(tmp_path: Path, flags: dict[str, list], script: str, kills: int):
    whole, killed, state = tmp_path / "whole", tmp_path / "killed", tmp_path / "killed-state"
    resuming = ["--resume_from_checkpoint", "latest", "--output_dir", killed]
    action = partial(run, script, *flags[script], *resuming)
    run_forked(partial(run, script, *flags[script], "--output_dir", whole))

    for moment in moments(action, kills):
        shutil.rmtree(killed)
        shutil.rmtree(state)
        assert run_forked(action, moment) is None
        assert run_forked(action) is not None

        assert weights_of(killed) == weights_of(whole)
        assert files_of(state) == set()
        assert not list(tmp_path.rglob(".*"))
