"""A zoo is recorded while Trainer trains."""

from __future__ import annotations

import itertools
from pathlib import Path

import datasets
import pytest
import torch
from conftest import build, run_snippets
from transformers import PreTrainedModel, Trainer, TrainingArguments

from pdiff_hf import (
    CheckpointCallback,
    ConvNetConfig,
    ConvNetForImageClassification,
    LayoutError,
    TensorData,
    build_network,
    make_processor,
)
from pdiff_hf.zoo.parquet import CheckpointsError
from pdiff_hf.zoo.trajectory import measure_checkpoints


@pytest.fixture
def rows() -> datasets.Dataset:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(64, 1, 8, 8, generator=generator)
    return datasets.Dataset.from_dict({"pixel_values": pixels.tolist(), "labels": [i % 10 for i in range(64)]})


@pytest.fixture
def train(rows, tmp_path):
    """A function of a network, a callback and a number of steps that trains."""

    def run(model: PreTrainedModel, callback: CheckpointCallback, max_steps: int, seed: int = 0) -> None:
        arguments = TrainingArguments(
            str(tmp_path / "trainer"),
            max_steps=max_steps,
            per_device_train_batch_size=8,
            learning_rate=1e-2,
            weight_decay=0.1,
            lr_scheduler_type="constant",
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            seed=seed,
        )
        Trainer(model, arguments, train_dataset=rows.with_format("torch"), callbacks=[callback]).train()

    return run


def callback_of(**changes) -> CheckpointCallback:
    return CheckpointCallback("head", 6, 2, 2, **{"burn_in_steps": 3, "every": 2, "num_blocks": 2, "gap": 1} | changes)


def test_checkpoints_are_recorded_in_alternating_blocks(mlp, train, random_images):
    callback = callback_of()
    with pytest.raises(CheckpointsError, match="Nothing was recorded"):
        callback.checkpoints()

    train(mlp, callback, callback.num_steps)

    checkpoints = callback.checkpoints()
    splits = checkpoints.splits
    assert callback.num_steps == 3 + 2 * 15
    assert splits["train"].step == [5, 7, 9, 21, 23, 25]
    assert splits["validation"].step == [13, 29]
    assert splits["test"].step == [17, 33]
    assert set(splits["train"].run) == {"seed-0"}
    assert len(splits["train"].parameters.unique(dim=0)) == 6
    network = build_network(checkpoints.target_model, checkpoints.processor, splits["test"].parameters[-1])
    assert torch.equal(network(random_images(mlp, 3)).logits, mlp(random_images(mlp, 3)).logits)


@pytest.mark.parametrize("freeze_trunk", [True, False])
@pytest.mark.parametrize("burn_in_steps", [0, 3])
def test_trunk_is_frozen_while_checkpoints_are_recorded(mlp, train, freeze_trunk, burn_in_steps):
    class Watching(CheckpointCallback):
        trunks: list[torch.Tensor] = []

        def on_step_end(self, args, state, control, model, **kwargs):
            super().on_step_end(args, state, control, **kwargs)
            self.trunks = [*self.trunks, model.layers[0].weight.detach().clone()]

    kwargs = {"burn_in_steps": burn_in_steps, "num_blocks": 1, "freeze_trunk": freeze_trunk}
    callback = Watching("head", 4, 0, 0, **kwargs, allow_moving_trunk=not freeze_trunk)
    before = mlp.layers[0].weight.detach().clone()

    train(mlp, callback, callback.num_steps)

    trunks = [before, *callback.trunks]
    assert len(trunks) == burn_in_steps + 5
    moved = [not torch.equal(a, b) for a, b in itertools.pairwise(trunks)]
    assert moved == [True] * burn_in_steps + [not freeze_trunk] * 4
    assert all(parameter.requires_grad for parameter in mlp.parameters())


def test_moving_trunk_is_refused_but_statistics_of_batchnorm_may_move(mlp, train):
    with pytest.raises(CheckpointsError, match=r"outside the subset.*'layers\.0\.weight'"):
        train(mlp, callback_of(freeze_trunk=False), 33)

    convnet = ConvNetForImageClassification(ConvNetConfig(num_channels=1, hidden_sizes=[4], num_labels=10))
    callback = callback_of()
    train(convnet, callback, callback.num_steps)

    assert len(callback.checkpoints().zoo) == 6


def test_several_trainings_make_several_runs(mlp, train):
    callback = callback_of(burn_in_steps=0)

    for seed in (3, 4):
        network = build_network(mlp, make_processor(mlp, "head"), torch.zeros(90), share_trunk=False)
        train(network, callback, callback.num_steps, seed=seed)

    zoo = callback.checkpoints().zoo
    assert zoo.run == ["seed-3"] * 6 + ["seed-4"] * 6
    assert zoo.seed == [3] * 6 + [4] * 6
    assert not torch.equal(zoo.parameters[:6], zoo.parameters[6:])
    with pytest.raises(LayoutError, match="ConvNetForImageClassification"):
        train(build("convnet"), callback, callback.num_steps)


def test_training_that_is_too_short_is_refused_before_it_begins(mlp, train):
    callback = callback_of()
    before = mlp.classifier.weight.detach().clone()

    with pytest.raises(CheckpointsError, match=r"asks for 33 steps .* but the training has 32"):
        train(mlp, callback, 32)

    assert torch.equal(mlp.classifier.weight, before)


def test_training_that_resumes_inside_the_zoo_is_refused(mlp, rows, tmp_path):
    arguments = TrainingArguments(str(tmp_path), max_steps=6, save_steps=5, report_to="none", use_cpu=True)
    Trainer(mlp, arguments, train_dataset=rows.with_format("torch")).train()
    arguments.max_steps = 20
    callback = callback_of(burn_in_steps=2, every=1)

    with pytest.raises(CheckpointsError, match="resumes at step 5, but what was recorded from step 2 on"):
        Trainer(mlp, arguments, train_dataset=rows.with_format("torch"), callbacks=[callback]).train(
            resume_from_checkpoint=str(tmp_path / "checkpoint-5")
        )


def test_recorded_checkpoints_are_measured(mlp, train, rows):
    callback = callback_of()
    train(mlp, callback, callback.num_steps)
    checkpoints = callback.checkpoints()
    data = TensorData.from_dataset(
        dict.fromkeys(("train", "validation", "test"), rows), columns=["pixel_values"], label_column="labels"
    )

    measure_checkpoints(checkpoints, data)

    last = checkpoints.splits["test"]
    with torch.no_grad():
        predicted = mlp(torch.tensor(rows["pixel_values"])).logits.argmax(-1)
    assert last.validation_score[-1] == pytest.approx((predicted == data.test.labels).float().mean().item())
    assert all(0 < loss < 100 for split in checkpoints.splits.values() for loss in split.validation_loss)


def test_text_guide_runs_as_it_stands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    namespace = run_snippets(Path(__file__).parents[2] / "docs" / "any_model.md")

    assert len(namespace["checkpoints"].zoo) == 60
    assert namespace["logits"].shape == (10, 600, 2)
    accuracy = namespace["accuracy"]
    assert accuracy.mean() > 0.8
    assert len(namespace["out"].parameters.unique(dim=0)) == 10
    assert (tmp_path / "generator" / "model_index.json").is_file()
    inputs = namespace["data"].inputs(namespace["data"].test)
    with torch.no_grad():
        expected = namespace["loaded"].eval()(**inputs).logits
    assert torch.allclose(namespace["adapters"].logits(inputs)[3], expected, atol=1e-5)
