"""The script that imports networks of others, and the commands of its page."""

from __future__ import annotations

import itertools
import json
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import run_snippets
from huggingface_hub import RepoCard
from published_files import save_all, small, write_tar
from safetensors.torch import save, save_file
from scripts import load_script, run
from transformers import PreTrainedModel

from pdiff_hf import (
    CheckpointsError,
    MLPConfig,
    MLPForImageClassification,
    PDiffPipeline,
    build_network,
    fit,
    load_checkpoints,
)
from pdiff_hf.settings import run_script
from pdiff_hf.targets.state_dicts import match_state_dict
from pdiff_hf.zoo import importing
from pdiff_hf.zoo.settings import load_images_of_zoo

PAGE = Path(__file__).parents[2] / "docs/your_zoo.md"
NETWORK = ["--model_type", "pdiff_mlp", "--model_config", '{"hidden_sizes": [8]}']
IMAGES = ["--dataset_name", "digits", "--image_size", "8"]
WITHOUT_IMAGES = [
    *("--model_type", "pdiff_mlp"),
    *("--model_config", '{"hidden_sizes": [8], "image_size": 4, "num_channels": 1, "num_labels": 4}'),
]


def test_trained_networks_are_imported_with_the_accuracy_that_they_were_collected_with(tmp_path, capsys):
    counts = ["--num_runs", "20", "--num_validation_runs", "3", "--num_test_runs", "2", "--target_train_steps", "60"]
    run("collect_runs", *NETWORK, *IMAGES, "--subset", "full", *counts, "--output_dir", tmp_path / "collected")
    collected = load_checkpoints(tmp_path / "collected")
    of_runs = {}
    for rows in collected.splits.values():
        for i, name in enumerate(rows.run):
            network = build_network(collected.target_model, collected.processor, rows.parameters[i])
            of_runs[name] = (network, rows.validation_score[i])
    members = [(f"nets/{name}.safetensors", save(network.state_dict())) for name, (network, _) in of_runs.items()]
    archive = write_tar(tmp_path / "zoo.tar.gz", members, "w:gz")
    capsys.readouterr()

    run("import_checkpoints", "--files", archive, *NETWORK, *IMAGES, "--output_dir", tmp_path / "imported")

    imported, printed = load_checkpoints(tmp_path / "imported"), capsys.readouterr().out
    for rows in imported.splits.values():
        assert [of_runs[name][1] for name in rows.run] == pytest.approx(rows.validation_score, abs=1e-6)
    assert imported.preprocessing == collected.preprocessing
    assert load_images_of_zoo(imported).train.fingerprint() == load_images_of_zoo(collected).train.fingerprint()
    assert "Imported 25 of 25 networks: train 21 of 21 runs, validation 2 of 2 runs, test 2 of 2 runs" in printed
    assert "Layout: 4 tensors of MLPForImageClassification, from layers.0.weight to classifier.bias" in printed
    assert f"{imported.processor.parameter_dim} parameters to fit; mean accuracy" in printed
    assert f"training/train_autoencoder.py --checkpoints {tmp_path / 'imported'}" in printed
    assert "chance" not in printed
    assert "Imported from 25 checkpoint files" in (tmp_path / "imported/README.md").read_text()


def test_networks_at_chance_level_are_reported(tmp_path, capsys):
    for i in range(10):
        network = MLPForImageClassification(MLPConfig(image_size=8, num_channels=1, hidden_sizes=[8], num_labels=10))
        torch.nn.init.zeros_(network.classifier.weight)
        save_file(network.state_dict(), tmp_path / f"{i}.safetensors")

    run("import_checkpoints", "--files", tmp_path, *NETWORK, *IMAGES, "--output_dir", tmp_path / "zoo")

    assert "Warning: half of the networks or more do no better than chance" in capsys.readouterr().out
    assert load_checkpoints(tmp_path / "zoo").collection["imported"]["at_chance"]


def test_broken_files_stop_the_script_with_a_sentence_and_change_nothing(tmp_path, monkeypatch):
    paths = save_all([small(i) for i in range(12)], tmp_path / "zoo")
    flags = ["--files", str(tmp_path / "zoo"), *WITHOUT_IMAGES, "--output_dir", str(tmp_path / "out")]
    run("import_checkpoints", *flags)
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    paths[-1].write_bytes(b"broken")
    monkeypatch.setattr(sys, "argv", ["import_checkpoints.py", *flags])

    with pytest.raises(SystemExit, match=r"import_checkpoints.py: 1 of 12 .*\n  net_11.safetensors: .*not a valid"):
        run_script(load_script("import_checkpoints").main)

    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()} == before


def test_left_out_files_are_printed(tmp_path, capsys):
    save_all([small(i) for i in range(12)], tmp_path / "zoo")[3].write_bytes(b"broken")

    run("import_checkpoints", "--files", tmp_path / "zoo", *WITHOUT_IMAGES, "--skip_broken", "--output_dir", tmp_path)

    printed = capsys.readouterr().out
    assert "Imported 11 of 12 networks" in printed
    assert "Left out: net_03.safetensors: " in printed


def test_the_license_of_the_networks_is_that_of_all_cards(tmp_path, tiny_recipe):
    save_all([small(i) for i in range(12)], tmp_path / "zoo")
    flags = ["--files", tmp_path / "zoo", *WITHOUT_IMAGES, "--license", "cc-by-4.0"]

    run("import_checkpoints", *flags, "--output_dir", tmp_path / "imported")
    fit(load_checkpoints(tmp_path / "imported"), tiny_recipe).save_pretrained(tmp_path / "pipeline")
    PDiffPipeline.from_pretrained(tmp_path / "pipeline")(2).save_pretrained(tmp_path / "drawn")

    assert json.loads((tmp_path / "imported/collection.json").read_text())["imported"]["license"] == "cc-by-4.0"
    for name in ("imported", "pipeline", "drawn"):
        card = RepoCard.load(tmp_path / name / "README.md", ignore_metadata_errors=False)
        assert card.data.license == "cc-by-4.0"
        assert "License: cc-by-4.0." in card.text


def test_networks_without_a_license_get_none(tmp_path, tiny_recipe):
    save_all([small(i) for i in range(12)], tmp_path / "zoo")

    run("import_checkpoints", "--files", tmp_path / "zoo", *WITHOUT_IMAGES, "--output_dir", tmp_path / "imported")
    pipe = fit(load_checkpoints(tmp_path / "imported"), tiny_recipe)
    pipe.save_pretrained(tmp_path / "pipeline")
    pipe(2).save_pretrained(tmp_path / "drawn")

    for name in ("imported", "pipeline", "drawn"):
        card = RepoCard.load(tmp_path / name / "README.md")
        assert "license" not in card.data.to_dict()
        assert "License: " not in card.text


def test_a_license_that_is_no_identifier_is_refused_before_anything_is_done(tmp_path):
    flags = ["--files", tmp_path, *WITHOUT_IMAGES, "--license", "MIT License", "--push_to_hub"]  # without a token

    with pytest.raises(ValueError, match="--license 'MIT License' is no identifier of a license on the Hub; pass one"):
        run("import_checkpoints", *flags, "--output_dir", tmp_path / "out")

    assert not (tmp_path / "out").exists()


def test_a_negative_seed_is_refused(tmp_path):
    with pytest.raises(ValueError, match="--split_seed must be at least 0"):
        run("import_checkpoints", "--files", tmp_path, *WITHOUT_IMAGES, "--split_seed", "-1", "--output_dir", tmp_path)


def test_interruption_leaves_nothing_half_written(tmp_path, monkeypatch, capsys):
    content = save(small().state_dict())
    archive = write_tar(tmp_path / "zoo.tar", [(f"net_{i}.safetensors", content) for i in range(100)])
    flags = ["--files", str(archive), *WITHOUT_IMAGES, "--output_dir", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["import_checkpoints.py", *flags])
    matched = itertools.count()

    def match_or_be_interrupted(*arguments: Any) -> Any:
        if next(matched) == 40:
            raise KeyboardInterrupt
        return match_state_dict(*arguments)

    monkeypatch.setattr(importing, "match_state_dict", match_or_be_interrupted)

    with pytest.raises(SystemExit) as exit:
        run_script(load_script("import_checkpoints").main, resumable=False)

    assert exit.value.code == 130
    assert "Interrupted; run it again." in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["zoo.tar"]


def test_image_options_are_those_of_collecting():
    fields = load_script("import_checkpoints").ScriptSettings.__dataclass_fields__
    collecting = load_script("collect_runs").MultiRunSettings.__dataclass_fields__

    own = {"files", "output_dir", "pattern", "skip_broken", "license"}
    assert own == fields.keys() - collecting.keys()


def prepare(folder: Path) -> None:
    """The files that the commands of the page import: MLPs of 16 units on digits."""

    def network() -> PreTrainedModel:
        config = MLPConfig(image_size=8, num_channels=1, hidden_sizes=[16], num_labels=10)
        return MLPForImageClassification(config)

    write_tar(folder / "zoo.tar.gz", [(f"{i}.safetensors", save(network().state_dict())) for i in range(10)], "w:gz")
    (folder / "models").mkdir()
    for i in range(6):
        torch.save(network().state_dict(), folder / f"models/{i}.pth")
        network().save_pretrained(folder / f"trainer_runs/seed_{i // 2}/checkpoint-{i % 2 + 1}")
        (folder / f"epochs/model_{i // 2}").mkdir(parents=True, exist_ok=True)
        torch.save(network().state_dict(), folder / f"epochs/model_{i // 2}/epoch_{i % 2}.pt")


def test_commands_of_the_page_run(tmp_path, monkeypatch):
    prepare(tmp_path)
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```bash\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    commands = [shlex.split(line) for block in blocks for line in block.replace("\\\n", " ").splitlines()]

    for python, script, *arguments in commands:
        assert (python, script) == ("python", "training/import_checkpoints.py")
        run("import_checkpoints", *arguments)

    sizes = {folder.parent.name: len(load_checkpoints(folder).zoo) for folder in Path("runs").glob("*/checkpoints")}
    assert sizes == {"imported": 8, "files": 2, "trainer": 2, "epochs": 6}


def test_python_of_the_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    namespace = run_snippets(PAGE)

    assert namespace["pipe"](num_models=2).parameters.shape == (2, 98)
    assert len(load_checkpoints("zoo").zoo) == 32


def test_runs_without_a_split_are_refused_before_anything_is_read(tmp_path):
    save_all([small(0)], tmp_path / "zoo")[0].write_bytes(b"broken")

    with pytest.raises(CheckpointsError, match="Of 1 runs 1 are to be validation"):
        run(
            "import_checkpoints",
            *("--files", tmp_path / "zoo", *WITHOUT_IMAGES, "--num_validation_runs", "1", "--output_dir", tmp_path),
        )
