"""Importing networks that were saved elsewhere: the zoo is the one that a recorder makes of them."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from conftest import build
from datasets import Dataset
from published_files import save_all, small, write_tar
from safetensors.torch import save, save_file
from transformers import (
    PreTrainedModel,
    SwinConfig,
    SwinForImageClassification,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from pdiff_hf import (
    CheckpointRecorder,
    Checkpoints,
    CheckpointsError,
    ModuleTarget,
    load_checkpoints,
)
from pdiff_hf.loops import seeded
from pdiff_hf.zoo.checkpoints import SPLITS


def recorded(imported: Checkpoints, networks: dict[tuple[str, int], PreTrainedModel], subset: str) -> Checkpoints:
    """What a recorder makes of networks by run and step, in the splits that the imported zoo has."""
    split_of = {run: split for split, rows in imported.splits.items() for run in rows.run}
    recorder = CheckpointRecorder(next(iter(networks.values())), subset)
    for (run, step), network in sorted(networks.items()):
        recorder.follow(network)
        recorder.record(step, split_of[run], run)
    return recorder.checkpoints()


def require_equal(imported: Checkpoints, expected: Checkpoints) -> None:
    for split in SPLITS:
        assert torch.equal(imported.splits[split].parameters, expected.splits[split].parameters)
        assert imported.splits[split].columns == expected.splits[split].columns
    for what in ("names", "shapes", "statistics"):
        assert getattr(imported.processor, what) == getattr(expected.processor, what)
    theirs, subset = expected.target_model.state_dict(), imported.processor.names
    for name, tensor in imported.target_model.state_dict().items():
        assert name in subset or torch.equal(tensor, theirs[name])


@pytest.fixture
def networks() -> list[PreTrainedModel]:
    return [small(seed) for seed in range(12)]


@pytest.mark.parametrize(("suffix", "mode"), [(".tar", "w"), (".tar.gz", "w:gz")])
def test_archive_of_500_networks_is_the_zoo_that_a_recorder_makes_of_them(tmp_path, suffix, mode):
    networks = {(f"model_{i:03d}/weights", 0): small(i) for i in range(500)}
    members = [(f"zoo/{run}.safetensors", save(network.state_dict())) for (run, _), network in networks.items()]
    archive = write_tar(tmp_path / f"zoo{suffix}", [("zoo/README.md", b"a zoo"), *members], mode)

    imported = Checkpoints.from_files([archive], small(), num_validation_runs=30, num_test_runs=20)

    assert {split: len(imported.splits[split]) for split in SPLITS} == {"train": 450, "validation": 30, "test": 20}
    require_equal(imported, recorded(imported, networks, "full"))
    imported.save(tmp_path / "saved")
    require_equal(load_checkpoints(tmp_path / "saved"), imported)


@pytest.mark.parametrize("key", [None, "state_dict", "model", "model_state_dict"])
def test_200_files_of_torch_save_are_the_zoo_that_a_recorder_makes_of_them(tmp_path, key):
    networks = {(f"net_{i:03d}", 0): small(i) for i in range(200 if key is None else 11)}
    for (name, _), network in networks.items():
        prefixed = {f"module.{name}": tensor for name, tensor in network.state_dict().items()}
        torch.save(prefixed if key is None else {key: prefixed, "epoch": 3}, tmp_path / f"{name}.pth")

    imported = Checkpoints.from_files([tmp_path / "*.pth"], small())

    assert len(imported.splits["validation"]) == len(imported.splits["test"]) == len(networks) // 10
    require_equal(imported, recorded(imported, networks, "full"))


def test_folders_of_trainer_give_runs_and_steps(tmp_path):
    class Keep(TrainerCallback):
        """Keeps copies of the network when it is saved."""

        def on_save(self, args, state, control, model, **kwargs):
            networks[Path(args.output_dir).name, state.global_step] = copy.deepcopy(model).eval()

    networks: dict[tuple[str, int], PreTrainedModel] = {}
    rows = Dataset.from_dict({"pixel_values": torch.randn(16, 1, 4, 4).tolist(), "labels": [i % 4 for i in range(16)]})
    for run in range(3):
        arguments = TrainingArguments(
            str(tmp_path / f"runs/seed_{run}"), max_steps=3, save_steps=1, report_to="none", seed=run, use_cpu=True
        )
        trainer = Trainer(small(run), arguments, train_dataset=rows.with_format("torch"), callbacks=[Keep()])
        trainer.train()
        trainer.save_model()  # beside the folders of the steps, whose last one has the same weights

    imported = Checkpoints.from_files([tmp_path / "runs"], small(), num_validation_runs=1, num_test_runs=1)

    assert {len(imported.splits[split]) for split in SPLITS} == {3}
    require_equal(imported, recorded(imported, networks, "full"))


def test_archived_runs_of_trainer_are_read_without_the_weights_beside_their_steps(tmp_path):
    networks = {(f"seed_{i // 2}", 100 * (i % 2)): small(i) for i in range(6)}
    members = [
        (f"{run}/checkpoint-{step}/{name}", content)
        for (run, step), network in networks.items()
        for name, content in [
            ("model.safetensors", save(network.state_dict())),
            ("optimizer.pt", b""),
            ("x.json", b""),
        ]
    ]
    last = ("seed_2/model.safetensors", save(small(5).state_dict()))

    imported = Checkpoints.from_files([write_tar(tmp_path / "runs.tar", [*members, last])], small())

    require_equal(imported, recorded(imported, networks, "full"))


def test_sharded_folders_and_pytorch_bin_are_read(tmp_path):
    networks = {(f"{i}", 0): build("vit") for i in range(3)}
    for (run, _), network in networks.items():
        torch.nn.init.normal_(network.classifier.weight)
        network.save_pretrained(tmp_path / run, max_shard_size="8KB")
    (tmp_path / "2").rename(tmp_path / "other")
    (tmp_path / "2").mkdir()
    torch.save(networks["2", 0].state_dict(), tmp_path / "2/pytorch_model.bin")

    imported = Checkpoints.from_files([tmp_path / f"{i}" for i in range(3)], build("vit"), "head")

    assert (tmp_path / "0/model.safetensors.index.json").is_file()
    require_equal(imported, recorded(imported, networks, "head"))


def test_names_that_transformers_changes_when_it_saves_are_converted(tmp_path):
    config = SwinConfig(image_size=16, patch_size=4, embed_dim=8, depths=[1], num_heads=[2], window_size=2)
    with seeded(0):
        network = SwinForImageClassification(config).eval()
        other = SwinForImageClassification(config)
    network.save_pretrained(tmp_path / "net")

    imported = Checkpoints.from_files([tmp_path / "net"], other)

    assert torch.equal(imported.zoo.parameters[0], imported.processor.flatten(network.state_dict()))


def test_plain_modules_files_fit_the_wrapped_module(tmp_path):
    module = torch.nn.Linear(6, 3)
    torch.save(module.state_dict(), tmp_path / "net.pt")

    imported = Checkpoints.from_files(
        [tmp_path / "net.pt"], ModuleTarget.wrap(torch.nn.Linear(6, 3), {"in_features": 6, "out_features": 3})
    )

    assert torch.equal(imported.zoo.parameters[0], torch.cat([module.weight.flatten(), module.bias]).detach())


def test_pattern_reads_run_and_step(tmp_path, networks):
    for i, network in enumerate(networks):
        folder = tmp_path / f"run_{i // 4}"
        folder.mkdir(exist_ok=True)
        save_file(network.state_dict(), folder / f"epoch_{10 * (i % 4)}.safetensors")

    imported = Checkpoints.from_files(
        [tmp_path], small(), pattern=r"run_(?P<run>\d+)/epoch_(?P<step>\d+)", num_test_runs=1
    )

    assert set(imported.zoo.run) | set(imported.splits["test"].run) == {"0", "1", "2"}
    assert imported.splits["test"].step == [0, 10, 20, 30]


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        (r"run_\d+", "does not state what the run is"),
        ("(?P<run>", "no regular expression"),
        (r"other_(?P<run>\d+)", "net_00.safetensors.*does not match"),
        (r"(?P<run>net)_(?P<step>\d+\.)", "the step '00.' is no number"),
        (r"(?P<run>net)_", "net_00.safetensors' and .*net_01.safetensors' are both step 0 of run 'net'"),
    ],
)
def test_pattern_that_does_not_name_checkpoints_is_refused(tmp_path, networks, pattern, reason):
    save_all(networks, tmp_path / "zoo")

    with pytest.raises(CheckpointsError, match=reason):
        Checkpoints.from_files([tmp_path / "zoo"], small(), pattern=pattern)


def test_splits_are_whole_runs_that_the_seed_alone_decides(tmp_path, networks):
    for i, network in enumerate(networks):
        (tmp_path / f"run_{i // 2}").mkdir(exist_ok=True)
        save_file(network.state_dict(), tmp_path / f"run_{i // 2}/checkpoint-{i % 2}.safetensors")

    def runs(seed: int) -> list[set[str]]:
        zoo = Checkpoints.from_files([tmp_path], small(), num_validation_runs=2, num_test_runs=1, seed=seed)
        return [set(zoo.splits[split].run) for split in SPLITS]

    assert [len(split) for split in runs(0)] == [3, 2, 1]
    assert set.union(*runs(0)) == {f"run_{i}" for i in range(6)}
    assert runs(0) == runs(0)
    assert any(runs(seed) != runs(0) for seed in range(1, 4))


def test_held_out_runs_that_leave_none_are_refused(tmp_path, networks):
    save_all(networks, tmp_path / "zoo")

    with pytest.raises(CheckpointsError, match="Of 12 runs 6 are to be validation and 6 held-out runs"):
        Checkpoints.from_files([tmp_path / "zoo"], small(), num_validation_runs=6, num_test_runs=6)


def test_file_given_twice_is_refused(tmp_path, networks):
    paths = save_all(networks, tmp_path / "zoo")

    with pytest.raises(CheckpointsError, match="give each file once"):
        Checkpoints.from_files([tmp_path / "zoo", paths[0]], small())
