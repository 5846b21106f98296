"""The benchmark of warm starts: when a run reaches the goal, and that an interrupted benchmark goes on."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import warm_start

from pdiff_hf import ImageData


def cell(*curves: list[float], rate: str = "0.1") -> dict:
    """Accuracies of runs at steps 0, 1 and 5, the same on both splits."""
    return {"steps": [0, 1, 5], "accuracy": {rate: {"validation": list(curves), "test": list(curves)}}}


def test_the_first_step_at_the_goal_counts_even_if_a_run_falls_below_it_later():
    steps = warm_start.first_steps(cell([0.9, 0.1, 0.9], [0.1, 0.5, 0.4], [0.1, 0.2, 0.3]), "0.1", "test", 0.5)

    assert steps.tolist() == [0, 1, 6]  # the last one never reaches it


def test_the_goal_is_a_share_of_the_final_accuracy_from_random_weights_at_their_best_rate():
    slow, fast = cell([0.1, 0.2, 0.6], rate="0.1"), cell([0.1, 0.8, 0.5], rate="0.2")
    random = {"steps": slow["steps"], "accuracy": slow["accuracy"] | fast["accuracy"]}

    assert warm_start.goals({"random": random})["test"] == pytest.approx(0.95 * 0.6)
    assert warm_start.best_rate(random) == "0.1"
    assert warm_start.best_rate(random, goal=0.55) == "0.2"  # it is there after one step


def test_tasks_change_images_labels_or_their_number(small_digits: ImageData):
    names = ("permuted", "rotated", "rotated_few")

    permuted, rotated, few = (warm_start.images_of(name, small_digits) for name in names)

    assert torch.equal(permuted.test.labels, (small_digits.test.labels + 1) % 10)
    assert torch.equal(permuted.test.pixels, small_digits.test.pixels)
    assert torch.equal(rotated.train.labels, small_digits.train.labels)
    assert not torch.equal(rotated.train.pixels, small_digits.train.pixels)
    assert len(few.train) == 100
    assert torch.equal(few.train.pixels, rotated.train.pixels[:100])


def test_cells_are_trained_once_and_trained_networks_start_at_the_goal(
    tmp_path: Path, small_demo: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    made = ["--pipeline", small_demo / "pipeline", "--checkpoints", small_demo / "checkpoints"]
    flags = [*made, "--output_dir", tmp_path / "out"]
    flags += ["--num_runs", 3, "--max_train_steps", 6, "--learning_rates", 0.02, "--tasks", "same"]

    def run(*starts: str) -> list[str]:
        monkeypatch.setattr(sys, "argv", ["warm_start.py", *map(str, flags), "--starts", *starts])
        warm_start.main()
        return capsys.readouterr().out.splitlines()[2:]

    run("random", "heldout")
    first = (tmp_path / "out" / "same" / "random.json").read_bytes()
    rows = run("random", "heldout", "drawn", "average", "best_of_zoo", "noise", "zoo")

    assert (tmp_path / "out" / "same" / "random.json").read_bytes() == first  # it holds the seconds that it took
    assert len(rows) == len(warm_start.STARTS)
    assert "| held-out checkpoints | 0.02 | 0 [0, 0] | 0 of 3 |" in rows[1]
    assert (tmp_path / "out" / "warm_start.png").is_file()
