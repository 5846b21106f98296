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
    TensorData,
    TensorSplit,
    build_network,
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


def test_other_trunk_is_named_with_its_file_and_tensor(tmp_path, networks):
    save_all(networks, tmp_path / "zoo")

    with pytest.raises(
        CheckpointsError,
        match=r"net_01.safetensors' and .*net_00.safetensors' differ in 'layers.0.weight', .*--subset full",
    ):
        Checkpoints.from_files([tmp_path / "zoo"], small(), "head", skip_broken=True)


def test_networks_of_one_trunk_are_saved_with_it(tmp_path, networks):
    for network in networks:
        network.layers.load_state_dict(networks[0].layers.state_dict())
    save_all(networks, tmp_path / "zoo")
    model = small(77)
    before = copy.deepcopy(model.state_dict())

    imported = Checkpoints.from_files([tmp_path / "zoo"], model, ["classifier.*"])

    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    drawn = build_network(imported.target_model, imported.processor, imported.zoo.parameters[0])
    index = int(imported.zoo.run[0].removeprefix("net_"))
    x = torch.randn(5, 1, 4, 4)
    assert torch.equal(drawn(x).logits, networks[index](x).logits)


@pytest.fixture
def small_images() -> TensorData:
    splits = (TensorSplit(torch.randn(n, 3, 16, 16), torch.arange(n) % 4) for n in (24, 12, 4))
    return TensorData(*splits, label_names=list("abcd"))


def batchnorm_networks(tmp_path: Path, own_statistics: bool) -> tuple[PreTrainedModel, Path]:
    """Ten networks with a BatchNorm behind generated tensors, in a folder."""
    model = build("resnet")
    for i in range(10):
        network = copy.deepcopy(model)
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        for name, buffer in network.named_buffers():
            if own_statistics and name.endswith("running_mean"):
                torch.nn.init.normal_(buffer)
            if name.endswith("num_batches_tracked"):
                buffer.fill_(i)
        save_file(network.state_dict(), tmp_path / f"net_{i}.safetensors")
    return model, tmp_path


def test_statistics_that_differ_are_each_networks_own_if_there_are_images(tmp_path, small_images):
    model, folder = batchnorm_networks(tmp_path, own_statistics=True)

    imported = Checkpoints.from_files([folder], model, images=small_images)

    assert (
        imported.processor.statistics
        == CheckpointRecorder(
            model, "full", example_inputs=small_images.inputs(small_images.train)
        ).processor.statistics
    )
    assert all(len(rows.validation_score) == len(rows) for rows in imported.splits.values())


def test_statistics_that_differ_are_refused_without_images(tmp_path):
    model, folder = batchnorm_networks(tmp_path, own_statistics=True)

    with pytest.raises(CheckpointsError, match=r"running_mean'.*pass --dataset_name \(images=…\)"):
        Checkpoints.from_files([folder], model)


def test_equal_statistics_stay_those_of_the_trunk(tmp_path, small_images):
    model, folder = batchnorm_networks(tmp_path, own_statistics=False)

    imported = Checkpoints.from_files([folder], model, images=small_images)

    assert imported.processor.statistics == []


def test_canonical_form_undoes_permutations_of_units(tmp_path):
    network, images = (
        small(),
        TensorData(
            *(TensorSplit(torch.rand(n, 1, 4, 4), torch.arange(n) % 4) for n in (24, 12, 4)), label_names=list("abcd")
        ),
    )
    for i in range(10):
        order, copied = torch.randperm(8), copy.deepcopy(network)
        copied.layers[0].weight.data, copied.layers[0].bias.data = (p[order] for p in network.layers[0].parameters())
        copied.classifier.weight.data = network.classifier.weight[:, order]
        save_file({n: t.contiguous() for n, t in copied.state_dict().items()}, tmp_path / f"net_{i}.safetensors")

    plain = Checkpoints.from_files([tmp_path], small(), images=images)
    canonical = Checkpoints.from_files([tmp_path], small(), images=images, canonicalize=True)

    def spread(zoo: Checkpoints) -> float:
        everything = torch.cat([rows.parameters for rows in zoo.splits.values()])
        return (everything - everything[0]).abs().max().item()

    assert spread(plain) > 0.01
    assert spread(canonical) < 1e-5
    assert canonical.zoo.validation_score == plain.zoo.validation_score


def test_canonical_form_without_images_is_refused(tmp_path, networks):
    save_all(networks, tmp_path / "zoo")

    with pytest.raises(CheckpointsError, match=r"pass images=… \(--dataset_name\)"):
        Checkpoints.from_files([tmp_path / "zoo"], small(), canonicalize=True)
