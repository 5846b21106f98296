"""Multi-run zoos: it does not matter who computes a run, whole runs are held out, and a report can be made of them."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from conftest import build
from scripts import files_of, run, run_alone
from transformers import PreTrainedModel

from pdiff_hf import (
    Checkpoints,
    ImageData,
    MultiRunSettings,
    NonFiniteParametersError,
    collect_runs,
    load_checkpoints,
    load_images,
    make_processor,
    merge_checkpoints,
    network_logits,
)
from pdiff_hf.data.images import ImageSplit
from pdiff_hf.loops import IdentityError
from pdiff_hf.settings import RunSettings
from pdiff_hf.targets.building import build_network
from pdiff_hf.targets.networks import ConvNetConfig, ConvNetForImageClassification
from pdiff_hf.zoo import run_groups
from pdiff_hf.zoo import runs as collecting_runs
from pdiff_hf.zoo.run_groups import batch_rows, initial_parameters, run_seed, train_group
from pdiff_hf.zoo.settings import load_target, target_optimization

SETTINGS = MultiRunSettings(
    image_size=8,
    model_type="pdiff_mlp",
    model_config='{"hidden_sizes": [8]}',
    subset=["full"],
    target_train_steps=100,
    target_learning_rate=0.02,
    train_batch_size=32,
    num_runs=8,
    num_validation_runs=3,
    num_test_runs=3,
    runs_per_group=4,
)
FLAGS = [
    *("--dataset_name", "digits", "--image_size", "8", "--subset", "full"),
    *("--model_type", "pdiff_mlp", "--model_config", '{"hidden_sizes": [8]}'),
    *("--target_train_steps", "100", "--target_learning_rate", "0.02", "--train_batch_size", "32"),
    *("--num_runs", "8", "--num_validation_runs", "3", "--num_test_runs", "3", "--runs_per_group", "4"),
    *("--checkpoints_per_run", "2", "--checkpoint_interval", "5", "--canonicalize"),
]
SEEDS = [run_seed(0, number) for number in range(4)]


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return load_images("digits", image_size=8)


def collected(images: ImageData, model: PreTrainedModel | None = None, **changes: Any) -> Checkpoints:
    """A multi-run zoo with some of the settings above changed."""
    settings = dataclasses.replace(SETTINGS, **changes)
    return collect_runs(images, load_target(settings, images) if model is None else model, settings)


def everything(checkpoints: Checkpoints) -> torch.Tensor:
    return torch.cat([zoo.parameters for zoo in checkpoints.splits.values()])


def written(folder: Path) -> dict[str, object]:
    """The bytes of all files of a checkpoints dataset, but for the seconds it took and the card that states them."""
    content: dict[str, object] = {
        name: (folder / name).read_bytes() for name in files_of(folder) if name != "README.md"
    }
    collection = json.loads(content.pop("collection.json"))
    assert collection.pop("costs").keys() == {"preparation_seconds", "runs_seconds", "validation_seconds"}
    return content | {"collection": collection}


# A run depends on its own seed


def test_initial_weights_and_batches_are_the_same_alone_and_beside_others(mlp: PreTrainedModel):
    processor = make_processor(mlp, "full")
    together, batches = initial_parameters(mlp, processor, SEEDS), batch_rows(SEEDS, [20] * 4, 8)
    beside = [next(batches) for _ in range(9)]

    torch.manual_seed(12345)
    for place, seed in enumerate(SEEDS):
        assert torch.equal(initial_parameters(mlp, processor, [seed])[0], together[place])
        alone = batch_rows([seed], [20], 8)
        assert all(torch.equal(next(alone)[0], batch[place]) for batch in beside)
    assert len(together.unique(dim=0)) == len(beside[0].unique(dim=0)) == 4


def test_a_run_goes_through_all_images_before_it_sees_one_again():
    batches = batch_rows(SEEDS, [20] * 4, 8)

    orders = torch.cat([next(batches) for _ in range(5)], dim=1)  # two epochs; the third batch belongs to both

    for order in orders:
        assert order[:20].sort().values.tolist() == order[20:].sort().values.tolist() == list(range(20))
        assert not torch.equal(order[:20], order[20:])
    assert next(batch_rows(SEEDS, [5] * 4, 12)).shape == (4, 12)  # a batch may be larger than the data set


def test_zoos_of_neighboring_seeds_share_no_run(digits: ImageData):
    first, second = collected(digits, target_train_steps=2), collected(digits, target_train_steps=2, seed=1)

    assert not set(first.zoo.seed) & set(second.zoo.seed)
    assert len(torch.cat([everything(first), everything(second)]).unique(dim=0)) == 28


@pytest.mark.parametrize("positions", [0, run_groups.STACKED_POSITIONS], ids=["one after the other", "stacked"])
@pytest.mark.parametrize("family", ["mlp", "convnet"])
def test_a_run_is_what_plain_training_makes_of_it(
    family: str, positions: int, digits: ImageData, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(run_groups, "STACKED_POSITIONS", positions)
    config = ConvNetConfig(num_channels=1, hidden_sizes=[4, 6], num_labels=10, normalization="layer")
    model = build("mlp") if family == "mlp" else ConvNetForImageClassification(config).eval()
    settings = dataclasses.replace(SETTINGS, adam_weight_decay=0.1)
    optimization = target_optimization(settings, 12)
    processor, pixel_values = make_processor(model, "full"), digits.preprocessing(digits.train.pixels)
    start = initial_parameters(model, processor, SEEDS)
    examples = [(pixel_values, digits.train.labels)] * 4
    grouped = train_group(model, processor, start, SEEDS, examples, optimization, recorded=[5, 11])

    processor.load_into(model, start[2])
    optimizer = torch.optim.AdamW(model.parameters(), lr=optimization.learning_rate, weight_decay=0.1)
    warm_up = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: step if step < 1 else 0.5 * (1 + torch.tensor(torch.pi * (step - 1) / 11).cos().item())
    )
    batches = batch_rows([SEEDS[2]], [len(digits.train)], optimization.train_batch_size)
    for step in range(12):
        rows = next(batches)[0]
        model(pixel_values[rows], labels=digits.train.labels[rows]).loss.backward()
        optimizer.step()
        warm_up.step()
        optimizer.zero_grad()
        if step in (5, 11):
            plain = processor.flatten(model.state_dict())
            torch.testing.assert_close(grouped[2, (5, 11).index(step)], plain, atol=1e-5, rtol=1e-4)


def test_augmentation_is_drawn_by_each_run_alone(mlp: PreTrainedModel, digits: ImageData):
    processor, pixel_values = make_processor(mlp, "full"), digits.preprocessing(digits.train.pixels)
    seen: list[torch.Tensor] = []

    def noisy(batch: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        seen.append(torch.randn(batch.shape, generator=generator))
        return batch + seen[-1]

    for seeds in (SEEDS[:2], SEEDS[1:2]):
        start = initial_parameters(mlp, processor, seeds)
        optimization = target_optimization(SETTINGS, 2)
        examples = [(pixel_values, digits.train.labels)] * len(seeds)
        train_group(mlp, processor, start, seeds, examples, optimization, [1], noisy)

    assert torch.equal(seen[1], seen[4])  # the second run's first step, beside another and alone
    assert torch.equal(seen[3], seen[5])
    assert not torch.equal(seen[0], seen[1])


# What a multi-run zoo holds


def test_whole_runs_are_held_out(digits: ImageData):
    zoo = collected(digits, checkpoints_per_run=3, checkpoint_interval=4)

    runs = {split: list(dict.fromkeys(rows.run)) for split, rows in zoo.splits.items()}
    assert runs["train"] == [f"run-{number:06d}" for number in range(8)]
    assert runs["validation"] == [f"run-{number:06d}" for number in range(8, 11)]
    assert runs["test"] == [f"run-{number:06d}" for number in range(11, 14)]
    assert zoo.splits["test"].step == [91, 95, 99] * 3
    assert len(everything(zoo).unique(dim=0)) == 3 * 14
    assert min(zoo.zoo.validation_score) > 0.5  # ten classes


def test_shared_initialization_is_shared_and_the_order_is_not(digits: ImageData):
    target = load_target(SETTINGS, digits)
    given = make_processor(target, "full").flatten(target.state_dict())

    few = {"target_train_steps": 2}
    still = collected(digits, target, shared_initialization=True, target_learning_rate=0.0, **few)
    moved = collected(digits, shared_initialization=True, **few)

    assert torch.equal(everything(still), given.expand(14, -1))
    assert len(everything(moved).unique(dim=0)) == 14
    assert len(everything(collected(digits, target_learning_rate=0.0, **few)).unique(dim=0)) == 14


def test_runs_branch_from_one_trained_trunk(digits: ImageData):
    zoo = collected(digits, trunk_steps=300, target_train_steps=1)

    trunk = zoo.processor.flatten(zoo.target_model.state_dict())
    assert (everything(zoo) - trunk).abs().max() < 0.021  # one step of AdamW moves no number by more than its rate
    assert len(everything(zoo).unique(dim=0)) == 14
    assert min(zoo.zoo.validation_score) > 0.5


def test_canonical_runs_compute_what_they_computed(digits: ImageData):
    plain, canonical = collected(digits), collected(digits, canonicalize=True)

    pixels = digits.preprocessing(digits.validation.pixels)
    ours, theirs = (
        network_logits(zoo.target_model, zoo.processor, everything(zoo), pixels).log_softmax(-1)
        for zoo in (plain, canonical)
    )
    torch.testing.assert_close(theirs, ours, atol=1e-3, rtol=1e-3)
    spread = {name: everything(zoo).var(0).sum() for name, zoo in (("plain", plain), ("canonical", canonical))}
    assert spread["canonical"] < 0.8 * spread["plain"]  # units are aligned to each other
    assert canonical.collection["runs"]["canonicalize"]
    assert not plain.collection["runs"]["canonicalize"]


def test_whole_convnets_without_running_statistics_are_independent_runs(digits: ImageData):
    config = ConvNetConfig(num_channels=1, hidden_sizes=[8, 16], num_labels=10, normalization="layer")
    zoo = collected(digits, ConvNetForImageClassification(config), num_runs=3, num_test_runs=1)

    assert len(everything(zoo).unique(dim=0)) == 7
    assert sum(zoo.zoo.validation_score) / len(zoo.zoo) > 0.3
    network = build_network(zoo.target_model, zoo.processor, zoo.zoo.parameters[2])
    predicted = network(digits.inputs(digits.validation)).logits.argmax(-1)
    accuracy = (predicted == digits.validation.labels).float().mean()
    assert accuracy == pytest.approx(zoo.zoo.validation_score[2])


def test_networks_with_batchnorm_branch_from_a_trunk_whose_statistics_they_share(
    convnet: PreTrainedModel, digits: ImageData
):
    train, validation = (
        ImageSplit(part.pixels.expand(-1, 3, -1, -1), part.labels % 4) for part in (digits.train, digits.validation)
    )
    images = dataclasses.replace(digits, train=train, validation=validation)
    with pytest.raises(ValueError, match=r"BatchNorms .*norms\.0, norms\.1.*--trunk_steps") as raised:
        collected(images, convnet)

    zoo = collected(images, convnet, trunk_steps=60, num_runs=3, num_test_runs=1)

    assert str(raised.value).endswith(".")
    assert convnet.norms[0].num_batches_tracked == 60  # the trunk's, and no run's
    assert min(zoo.zoo.validation_score) > 0.5
    assert len(everything(zoo).unique(dim=0)) == 7


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_runs": 0}, "at least one of each of .*'num_runs': 0"),
        ({"runs_per_group": 0}, "'runs_per_group': 0"),
        ({"num_test_runs": -1}, "num_test_runs=-1"),
        ({"checkpoints_per_run": 12}, r"--checkpoints_per_run 12 .* more than the 100 steps"),
        ({"run_shard": "3/3"}, r"asks for 3 parts, but .* only 2 groups of --runs_per_group 4"),
        ({"run_shard": "3/2"}, "for example 2/4"),
    ],
)
def test_counts_that_make_no_zoo_are_refused_before_anything_is_trained(
    digits: ImageData, changes: dict[str, object], message: str
):
    with pytest.raises(ValueError, match=message) as raised:
        collected(digits, trunk_steps=10**9, **changes)

    assert str(raised.value).endswith(".")


def test_runs_that_diverge_are_named(digits: ImageData):
    with pytest.raises(NonFiniteParametersError, match=r"4 of the runs 0 to 3 diverged.*--target_learning_rate"):
        collected(digits, target_learning_rate=1e30)


def test_mixed_precision_and_processes_that_do_not_know_of_each_other_are_refused(
    digits: ImageData, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    with pytest.raises(RuntimeError, match=r"2 processes were started.*ACCELERATE_USE_CPU"):
        collected(digits)
    monkeypatch.undo()
    AcceleratorState._reset_state(True)
    Accelerator(mixed_precision="bf16")

    with pytest.raises(ValueError, match=r"float32, but mixed precision 'bf16'.*--mixed_precision"):
        collected(digits)


# Whoever computes them


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """The scripts that are started run on one thread; another number may add sums in another order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A multi-run zoo made at once in one process; tests read it only."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    run("collect_runs", *FLAGS, "--output_dir", folder)
    return folder


def test_two_processes_collect_the_runs_of_one_bit_for_bit(tmp_path: Path, two_processes: tuple[str, ...]):
    branching = [*FLAGS, "--trunk_steps", "20"]
    run("collect_runs", *branching, "--output_dir", tmp_path / "one")
    run_alone("collect_runs", *branching, "--output_dir", tmp_path / "two", launcher=two_processes)

    assert written(tmp_path / "two") == written(tmp_path / "one")
    assert files_of(tmp_path / "two-state") == set()


def test_shards_made_apart_and_merged_are_the_zoo_made_at_once(whole: Path, tmp_path: Path):
    for shard in ("1", "2"):
        run("collect_runs", *FLAGS, "--run_shard", f"{shard}/2", "--output_dir", tmp_path / shard)
    run("merge_checkpoints", "--checkpoints", tmp_path / "2", tmp_path / "1", "--output_dir", tmp_path / "merged")

    first, second = load_checkpoints(tmp_path / "1"), load_checkpoints(tmp_path / "2")
    assert [len(everything(part)) for part in (first, second)] == [2 * 8, 2 * 6]  # whole groups of four runs
    assert first.collection["runs"]["run_shard"] == "1/2"
    assert "part 1/2 of the whole" in (tmp_path / "1" / "README.md").read_text(encoding="utf-8")
    assert written(tmp_path / "merged") == written(whole)
    merged = merge_checkpoints([first, second]).collection["costs"]
    assert merged == {n: first.collection["costs"][n] + second.collection["costs"][n] for n in merged}


def test_an_interrupted_collection_goes_on_with_the_missing_groups(
    digits: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    settings = dataclasses.replace(SETTINGS, target_train_steps=2)
    state = RunSettings(str(tmp_path / "zoo"))
    resumed = dataclasses.replace(state, resume_from_checkpoint="latest")
    trained: list[int] = []

    def interrupted_once(*arguments: Any, **settings: Any) -> torch.Tensor:
        trained.append(len(arguments[3]))
        if len(trained) == 3:
            raise RuntimeError("the machine is switched off")
        return train_group(*arguments, **settings)

    def collect(
        state: RunSettings | None, settings: MultiRunSettings = settings, images: ImageData = digits
    ) -> torch.Tensor:
        return everything(collect_runs(images, load_target(settings, images), settings, state))

    at_once = collect(None)
    monkeypatch.setattr(collecting_runs, "train_group", interrupted_once)
    with pytest.raises(RuntimeError, match="switched off"):
        collect(state)
    with pytest.raises(FileExistsError, match="--resume_from_checkpoint latest"):
        collect(state)
    with pytest.raises(
        IdentityError,
        match=r"group-000000.safetensors' belongs to a training with {'adam_weight_decay': 0.0005}, but .* 0.5} was",
    ):
        collect(resumed, dataclasses.replace(settings, adam_weight_decay=0.5))
    with pytest.raises(IdentityError, match=r"'train_images': '\w{64}'"):
        collect(resumed, images=dataclasses.replace(digits, train=digits.validation))
    shutil.copy(state.folder / "runs" / "group-000000.safetensors", tmp_path / "whole")
    (state.folder / "runs" / "group-000000.safetensors").write_bytes((tmp_path / "whole").read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"saved group .*group-000000.safetensors' is damaged .*remove it"):
        collect(resumed)
    shutil.copy(tmp_path / "whole", state.folder / "runs" / "group-000000.safetensors")

    assert torch.equal(collect(resumed), at_once)
    assert trained == [4, 4, 4, 4, 2]  # the third group, which was interrupted, again
    state.clear()
    assert files_of(state.folder) == set()


def test_the_card_says_how_many_runs_there_are_and_in_which_form(whole: Path, digits: ImageData, tmp_path: Path):
    card = " ".join((whole / "README.md").read_text(encoding="utf-8").split())
    for phrase in (
        "| train | 16 | 8 |",
        "14 independent runs of 100 steps",
        "initial weights of its own",
        "the last 2 checkpoints, 5 steps",
        "canonical form: rescaled",
    ):
        assert phrase in card
    for changes, phrase in (
        ({}, "not in canonical form"),
        ({"trunk_steps": 5}, "branching from one network that was trained for 5 steps"),
        ({"shared_initialization": True}, "starting from the same weights"),
    ):
        zoo = collected(digits, target_train_steps=2, **changes)
        zoo.save(tmp_path / phrase)
        assert phrase in (tmp_path / phrase / "README.md").read_text(encoding="utf-8")
