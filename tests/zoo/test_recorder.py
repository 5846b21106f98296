"""Recording checkpoints from a training loop, and cutting a trajectory into splits."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from conftest import build
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pdiff_hf import (
    CheckpointRecorder,
    CheckpointsError,
    LayoutError,
    NonFiniteParametersError,
    load_checkpoints,
    make_processor,
    merge_checkpoints,
)
from pdiff_hf.zoo.recorder import interleaved_splits


@given(
    num_blocks=st.integers(1, 5),
    per_block=st.tuples(st.integers(1, 6), st.integers(0, 4), st.integers(0, 4)),
    gap=st.integers(0, 5),
)
def test_blocks_alternate_a_gap_apart_and_no_split_is_merely_later(num_blocks, per_block, gap):
    counts = dict(zip(("train", "validation", "test"), [num_blocks * count for count in per_block], strict=True))

    steps = interleaved_splits(*counts.values(), num_blocks=num_blocks, gap=gap)

    assert {split: steps.count(split) for split in counts} == counts
    recorded = [(i, split) for i, split in enumerate(steps) if split is not None]
    assert recorded[0][0] == 0
    assert recorded[-1][0] == len(steps) - 1
    for (i, split), (j, following) in itertools.pairwise(recorded):
        assert j - i == 1 or j - i == 1 + gap
        assert split == following or j - i == 1 + gap
    first = [steps.index(split) for split, count in counts.items() if count]
    last = [len(steps) - 1 - steps[::-1].index(split) for split, count in counts.items() if count]
    assert num_blocks == 1 or max(first) < min(last)


def test_recorder_composes_with_a_plain_training_loop(mlp, random_images, tmp_path):
    images, labels = random_images(mlp, 16), torch.arange(16) % 10
    optimizer = torch.optim.SGD(mlp.parameters(), lr=0.1)
    seen = []

    recorder = CheckpointRecorder(mlp, "head")
    assert set(recorder.freeze_trunk()) == set(mlp.layers.parameters())
    for step in range(4):
        nn.functional.cross_entropy(mlp(images).logits, labels).backward()
        optimizer.step()
        recorder.record(step, split="test" if step == 3 else "train", run="mine", seed=7)
        seen.append(torch.cat([mlp.classifier.weight.flatten(), mlp.classifier.bias]).detach().clone())
    recorder.checkpoints().save(tmp_path)
    loaded = load_checkpoints(tmp_path)

    assert torch.equal(loaded.zoo.parameters, torch.stack(seen[:3]))
    assert torch.equal(loaded.splits["test"].parameters, torch.stack(seen[3:]))
    assert loaded.splits["validation"].parameters.shape == (0, 90)
    assert loaded.zoo.validation_score is loaded.zoo.validation_loss is loaded.zoo.condition is None
    assert "| train | 3 | 1 | not measured |" in (tmp_path / "README.md").read_text()
    assert loaded.zoo.columns == {"run": ["mine"] * 3, "step": [0, 1, 2], "seed": [7] * 3}  # nothing was measured


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.AdamW, torch.optim.Adagrad])
def test_trunk_that_moves_between_records_is_refused_unless_allowed(mlp, random_images, make):
    optimizer = make(mlp.layers.parameters(), lr=1e-5)
    refusing, allowing = CheckpointRecorder(mlp, "head"), CheckpointRecorder(mlp, "head", allow_moving_trunk=True)

    for recorder in (refusing, allowing):
        recorder.record(0)
    mlp(random_images(mlp, 4)).logits.square().sum().backward()
    optimizer.step()
    allowing.record(1)

    with pytest.raises(CheckpointsError, match=r"2 tensors outside the subset have changed .*'layers\.0\.weight'"):
        refusing.record(1)
    resumed = CheckpointRecorder(mlp, "head")
    resumed.load_state_dict(refusing.state_dict())
    with pytest.raises(CheckpointsError, match="outside the subset"):
        resumed.record(1)
    assert [len(recorder.rows["train"]) for recorder in (refusing, allowing)] == [1, 2]


def test_statistics_of_batchnorm_are_part_of_the_trunk(random_images):
    convnet = build("convnet").train()
    recorder = CheckpointRecorder(convnet, "head")
    recorder.record(0)

    convnet(random_images(convnet, 4))

    with pytest.raises(CheckpointsError, match=r"'norms\.0\.running_mean'.*model\.eval\(\)"):
        recorder.record(1)


def test_runs_may_each_have_statistics_of_their_own(random_images):
    runs = [build("convnet").train() for _ in range(3)]
    images = random_images(runs[0], 8)
    recorders = [CheckpointRecorder(runs[0], "full", example_inputs=images[:2]) for _ in range(2)]
    assert runs[0].training
    assert runs[0].norms[0].num_batches_tracked == 0  # finding the statistics has not moved them

    for number, (model, recorder) in enumerate(zip(runs, (*recorders, recorders[1]), strict=True)):
        model(images + number)
        recorder.follow(model)
        recorder.record(1, run=f"run-{number}")

    zoos = [recorder.checkpoints() for recorder in recorders]
    assert zoos[0].processor.statistics == ["norms.0", "norms.1"]
    assert merge_checkpoints(zoos).zoo.run == ["run-0", "run-1", "run-2"]  # statistics are no part of the trunk
    zoos[1].processor = make_processor(runs[0], "full")
    with pytest.raises(LayoutError, match=r"norms\.0 None instead of 'own statistics'"):
        merge_checkpoints(zoos)


def test_recorder_refuses_a_diverged_training_and_an_unknown_split(mlp):
    recorder = CheckpointRecorder(mlp, "head")
    with torch.no_grad():
        mlp.classifier.bias[0] = math.inf

    with pytest.raises(NonFiniteParametersError, match=r"classifier\.bias"):
        recorder.record(0)
    with pytest.raises(ValueError, match=r"heldout.*train"):
        recorder.record(0, split="heldout")

    assert recorder.rows["train"] == []
