"""Which averaged weights of a training are shipped, which one becomes the guide, and when a training stops."""

from __future__ import annotations

import pytest
import torch

from pdiff_hf import load_recipe
from pdiff_hf.fitting.settings import DenoiserSettings
from pdiff_hf.fitting.snapshots import Snapshots


@pytest.fixture
def settings() -> DenoiserSettings:
    """Twelve steps, a guide after two of them, an evaluation after each."""
    return DenoiserSettings(max_train_steps=12, guide_at=1 / 6, select_snapshot=True)


def train(snapshots: Snapshots, losses: list[tuple[float, float]]) -> int:
    """Returns the number of steps made; the weight is the step, `losses` are those on validation rows and the zoo."""
    for step, (validation, train) in enumerate(losses, start=1):
        found = {"validation_loss": validation, "validation": validation, "train": train}
        if not snapshots.update(step, [torch.tensor(float(step))], lambda found=found: found):
            return step
    return len(losses)


def test_guide_is_the_state_after_its_share_of_the_training(settings):
    snapshots = Snapshots(settings, has_validation=False)

    made = train(snapshots, [(1.0, 1.0)] * 12)

    assert (made, snapshots.guide, snapshots.best) == (12, [torch.tensor(2.0)], None)
    assert snapshots.describe() == {}


def test_lowest_loss_on_validation_checkpoints_is_chosen(settings):
    snapshots = Snapshots(settings, has_validation=True)

    made = train(snapshots, [(1.0, 1.0), (0.8, 0.8), (0.5, 0.5), (0.6, 0.5), (0.4, 0.4), (0.45, 0.4)])

    assert (made, snapshots.best) == (6, [torch.tensor(5.0)])
    assert snapshots.describe()["snapshot"] == {"steps": 5, "validation_to_train_loss": 1.0}
    assert [found["steps"] for found in snapshots.describe()["losses"]] == [1, 2, 3, 4, 5, 6]


def test_training_stops_when_the_loss_on_validation_checkpoints_rises(settings):
    snapshots = Snapshots(settings, has_validation=True)

    made = train(snapshots, [(1.0, 1.0), (0.8, 0.8), (0.81, 0.8), (0.82, 0.8), (0.83, 0.8), (0.1, 0.1)])

    assert (made, snapshots.best) == (5, [torch.tensor(2.0)])


def test_training_stops_when_the_zoo_is_copied(settings):
    snapshots = Snapshots(settings, has_validation=True)

    made = train(snapshots, [(1.0, 1.0), (0.8, 0.75), (0.7, 0.5), (0.6, 0.1)])

    assert (made, snapshots.best) == (3, [torch.tensor(2.0)])


def test_state_is_complete(settings):
    snapshots, resumed = Snapshots(settings, has_validation=True), Snapshots(settings, has_validation=True)
    train(snapshots, [(1.0, 1.0), (0.8, 0.8), (0.9, 0.8)])

    resumed.load_state_dict(snapshots.state_dict())

    assert resumed.state_dict() == snapshots.state_dict()
    assert resumed.describe() == snapshots.describe()


def test_recipes_of_single_trajectories_keep_nothing():
    assert Snapshots(load_recipe("fast").denoiser, has_validation=True).update(100, [], dict)
