"""An interrupted training loses nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pdiff_hf.loops import make_optimizer, seeded, step_generator, training_steps, trains_in_bf16
from pdiff_hf.settings import OptimizationSettings, RunSettings

keys = st.tuples(st.integers(0, 2**31), st.integers(0, 10_000), st.sampled_from(["batches", "noise", "runs"]))


class Interruption(Exception):
    """Stands for a killed process."""


@pytest.fixture
def state(tmp_path: Path) -> RunSettings:
    return RunSettings(str(tmp_path / "output"), checkpointing_steps=2, checkpoints_total_limit=10)


@pytest.fixture
def train() -> Callable[..., tuple[list[int], torch.Tensor]]:
    """A function that trains a line for six steps and returns the steps it made and the final weights."""

    def run(
        state: RunSettings | None, max_train_steps: int = 6, interrupt_in_step: int = -1, zoo: str = "mine"
    ) -> tuple[list[int], torch.Tensor]:
        settings = OptimizationSettings(max_train_steps=max_train_steps, learning_rate=0.1, lr_warmup_steps=2)
        accelerator = Accelerator()
        with seeded(settings.seed):
            model = nn.Linear(3, 1)
        optimizer, lr_scheduler = make_optimizer(model.parameters(), settings)
        model, optimizer = accelerator.prepare(model, optimizer)
        accelerator.register_for_checkpointing(lr_scheduler)
        made = []
        identity = dataclasses.asdict(settings) | {"zoo": zoo}
        for step in training_steps(accelerator, settings.max_train_steps, state, "training a line", identity):
            if step == interrupt_in_step:
                raise Interruption
            inputs = torch.randn(8, 3, generator=step_generator(settings.seed, step))
            optimizer.zero_grad()
            accelerator.backward((model(inputs) - inputs.sum(1, keepdim=True)).square().mean())
            optimizer.step()
            lr_scheduler.step()
            made.append(step)
        return made, nn.utils.parameters_to_vector(model.parameters()).detach()

    return run


def resuming(state: RunSettings, resume_from_checkpoint: str | Path = "latest") -> RunSettings:
    other = dataclasses.replace(state, resume_from_checkpoint=str(resume_from_checkpoint))
    other.folder = state.folder
    return other


def saved(state: RunSettings) -> list[str]:
    return sorted(path.name for path in state.folder.iterdir())


@given(key=keys, other=keys)
def test_step_generator_depends_on_seed_step_and_stream_alone(key, other):
    first = torch.randn(4, generator=step_generator(*key))
    torch.randn(3)  # moves the global generator

    assert torch.equal(first, torch.randn(4, generator=step_generator(*key)))
    assert torch.equal(first, torch.randn(4, generator=step_generator(*other))) == (key == other)


def test_seeded_block_leaves_the_global_generator_as_it_was():
    with seeded(3):
        first = torch.rand(2)
    torch.manual_seed(5)
    expected = torch.rand(2)

    torch.manual_seed(5)
    with seeded(3):
        again = torch.rand(2)

    assert torch.equal(first, again)
    assert torch.equal(torch.rand(2), expected)


def test_state_is_saved_every_n_steps_and_after_the_last(train, state):
    made, _ = train(state, max_train_steps=5)

    assert made == [0, 1, 2, 3, 4]
    assert saved(state) == ["checkpoint-2", "checkpoint-4", "checkpoint-5"]


def test_only_the_newest_states_are_kept(train, tmp_path):
    state = RunSettings(str(tmp_path / "output"), checkpointing_steps=1, checkpoints_total_limit=2)

    train(state, max_train_steps=11)

    assert saved(state) == ["checkpoint-10", "checkpoint-11"]


@pytest.mark.parametrize("interrupt_in_step", [2, 3, 5])
def test_resumed_training_equals_an_uninterrupted_one(train, state, interrupt_in_step):
    _, expected = train(None)
    with pytest.raises(Interruption):
        train(state, interrupt_in_step=interrupt_in_step)

    made, weights = train(resuming(state))

    assert made == list(range(interrupt_in_step // 2 * 2, 6))
    assert torch.equal(weights, expected)


def test_unfinished_training_is_not_started_over_by_accident(train, state):
    with pytest.raises(Interruption):
        train(state, interrupt_in_step=3)

    with pytest.raises(FileExistsError, match="not finished; pass --resume_from_checkpoint latest"):
        train(state)


@pytest.mark.parametrize("name", ["checkpoint-9", "unfinished-4", ""])
def test_flag_of_a_missing_state_is_answered_with_those_that_are_there(train, state, name):
    target = state.beside("target")
    train(target)
    (target.folder / "unfinished-4").mkdir()

    with pytest.raises(FileNotFoundError, match=r"There is no saved state at .*\['.*target/checkpoint-2', .*6'\]"):
        resuming(state, target.folder / name)


def test_named_state_of_one_stage_leaves_the_others_their_latest(train, state):
    target, trajectory = state.beside("target"), state.beside("trajectory")
    _, expected = train(target)
    with pytest.raises(Interruption):
        train(trajectory, interrupt_in_step=5)
    named = target.folder / "checkpoint-2"

    made_target, weights = train(resuming(target, named))
    made_trajectory, _ = train(resuming(trajectory, named))
    made_third, _ = train(resuming(state.beside("third"), named))
    made_again, _ = train(resuming(target))

    assert made_target == [2, 3, 4, 5]
    assert torch.equal(weights, expected)
    assert made_trajectory == [4, 5]
    assert made_third == [0, 1, 2, 3, 4, 5]
    assert made_again == []  # nothing is left to do


def test_half_written_state_is_ignored(train, state):
    _, expected = train(None)
    with pytest.raises(Interruption):
        train(state, interrupt_in_step=3)
    (state.folder / "unfinished-4").mkdir()
    (state.folder / "unfinished-4" / "model.safetensors").write_bytes(b"half")

    made, weights = train(resuming(state))
    made_afterward, _ = train(resuming(state, state.folder / "checkpoint-4"))

    assert made == [2, 3, 4, 5]
    assert torch.equal(weights, expected)
    assert made_afterward == [4, 5]
    assert saved(state) == ["checkpoint-2", "checkpoint-4", "checkpoint-6"]


def test_states_of_all_stages_are_cleared_and_logs_stay(train, state):
    train(state)
    train(state.beside("second"))
    (state.folder / "logs").mkdir()

    state.clear()

    assert saved(state) == ["logs", "second"]
    assert saved(state.beside("second")) == []


def test_state_lies_beside_the_output():
    run = RunSettings("runs/pipeline/", checkpointing_steps=7, resume_from_checkpoint="latest")

    stage = run.beside("target", main_process_only=True)

    assert (run.folder, run.main_process_only) == (Path("runs/pipeline-state"), False)
    assert (stage.folder, stage.main_process_only) == (Path("runs/pipeline-state/target"), True)
    assert (stage.checkpointing_steps, stage.resume_from_checkpoint) == (7, "latest")


def test_state_of_another_training_is_refused_by_what_differs(train, state):
    with pytest.raises(Interruption):
        train(state, interrupt_in_step=5)

    with pytest.raises(
        ValueError, match=r"a training with {'zoo': 'mine'}, but {'zoo': 'other'} was asked for; resume"
    ):
        train(resuming(state), zoo="other")
    with pytest.raises(ValueError, match="checkpoint-4' has made more steps than the 3 that were asked for"):
        train(resuming(state), max_train_steps=3)
    assert train(resuming(state), max_train_steps=8)[0] == [4, 5, 6, 7]


@pytest.mark.parametrize("damaged", ["model.safetensors", "optimizer.bin", "identity.json"])
def test_damaged_state_is_named_with_an_older_one(train, state, damaged):
    with pytest.raises(Interruption):
        train(state, interrupt_in_step=5)
    (state.folder / "checkpoint-4" / damaged).write_bytes(b"half")

    older = state.folder / "checkpoint-2"
    with pytest.raises(ValueError, match=f"checkpoint-4' is damaged .*; pass --resume_from_checkpoint {older}"):
        train(resuming(state))
    assert train(resuming(state, older))[0] == [2, 3, 4, 5]


def test_state_of_the_working_folder_lies_beside_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    assert RunSettings(".").folder == Path(f"{tmp_path}-state")


def test_learning_rate_may_end_above_zero():
    settings = OptimizationSettings(
        max_train_steps=50, learning_rate=0.5, lr_scheduler="cosine_with_min_lr", lr_min_rate=0.02, lr_warmup_steps=5
    )
    optimizer, lr_scheduler = make_optimizer([torch.zeros(1, requires_grad=True)], settings)

    rates = []
    for _ in range(50):
        optimizer.step()
        lr_scheduler.step()
        rates.append(lr_scheduler.get_last_lr()[0])

    assert max(rates) == rates[4] == 0.5
    assert rates[-1] == pytest.approx(0.02 * 0.5)


@pytest.mark.parametrize("precision", ["no", "fp16", "bf16"])
def test_a_precision_that_was_asked_for_is_kept(tmp_path, precision):
    run = RunSettings(str(tmp_path / "output"), mixed_precision=precision)

    assert not trains_in_bf16(Accelerator(), run)
