"""The figure at the top of the README is drawn from what `make demo` leaves."""

from __future__ import annotations

import sys
from pathlib import Path

import noise_to_networks
import pytest
import torch

from pdiff_hf import PDiffPipeline, load_checkpoints
from pdiff_hf.zoo.settings import load_images_of_zoo


def test_the_figure_shows_the_networks_that_the_pipeline_draws_from_the_same_noise(
    small_demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    made = ["--pipeline", small_demo / "pipeline", "--checkpoints", small_demo / "checkpoints"]
    flags = [*made, "--num_models", 3, "--seed", 5, "--output_dir", tmp_path / "out"]
    monkeypatch.setattr(sys, "argv", ["noise_to_networks.py", *map(str, flags)])

    noise_to_networks.main()

    checkpoints = load_checkpoints(small_demo / "checkpoints")
    images = load_images_of_zoo(checkpoints)
    out = PDiffPipeline.from_pretrained(small_demo / "pipeline")(3, generator=torch.Generator().manual_seed(5))
    accuracy = 100 * (out.logits(images.inputs(images.test)).argmax(-1) == images.test.labels).double().mean(-1)
    printed = capsys.readouterr().out
    assert f"drawn: 3 networks, test accuracy {accuracy.mean():.2f} ± {accuracy.std():.2f} %" in printed
    assert "held-out: 4 networks" in printed
    assert (tmp_path / "out/noise_to_networks.png").is_file()


def test_rows_of_a_confusion_are_what_images_of_one_digit_are_read_as():
    labels = torch.arange(10).repeat(4)
    read = labels.clone()
    read[5] = 3

    shares = noise_to_networks.confusion(read, labels)

    assert shares[5].tolist() == [0, 0, 0, 0.25, 0, 0.75, 0, 0, 0, 0]
    assert torch.equal(shares.sum(1), torch.ones(10, dtype=torch.double))
