"""The four scripts: from nothing to a report, interrupted and resumed, in two processes, refusing in a sentence."""

from __future__ import annotations

import dataclasses
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from scripts import environment, files_of, run, run_alone, start
from transformers import PreTrainedModel

from pdiff_hf import (
    HubNotFoundError,
    PDiffPipeline,
    Recipe,
    TrajectorySettings,
    collect,
    fit,
    load_checkpoints,
    load_images,
    load_recipe,
)
from pdiff_hf.data.images import ImageSplit
from pdiff_hf.folders import UnwritableFolderError
from pdiff_hf.settings import RecipeError
from pdiff_hf.targets.processing_parameters import LayoutError
from pdiff_hf.zoo.checkpoints import CheckpointsError

SHARED_SUFFIXES = {".safetensors", ".json", ".parquet", ".md", ".png"}

COLLECT = [
    *("--dataset_name", "digits", "--image_size", "8"),
    *("--model_type", "pdiff_mlp", "--model_config", '{"hidden_sizes": [8]}', "--subset", "head"),
    *("--target_train_steps", "40", "--train_batch_size", "32", "--burn_in_steps", "5", "--num_blocks", "2"),
    *("--num_checkpoints", "16", "--num_validation_checkpoints", "4", "--num_test_checkpoints", "4", "--gap", "3"),
]
FEW_STEPS = ["--max_train_steps", "3", "--train_batch_size", "4"]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoints dataset of a tiny collection; tests read it only."""
    folder = tmp_path_factory.mktemp("collected") / "checkpoints"
    run("collect_trajectory", *COLLECT, "--output_dir", folder)
    return folder


@pytest.fixture(scope="module")
def autoencoder(checkpoints: Path) -> Path:
    """A linear autoencoder of four codes for it; tests read it only."""
    folder = checkpoints.parent / "autoencoder"
    run("train_autoencoder", "--checkpoints", checkpoints, "--output_dir", folder, "--latent_dim", "4")
    return folder


@pytest.fixture(scope="module")
def pipeline(checkpoints: Path, autoencoder: Path) -> Path:
    """A pipeline that was hardly trained; tests read it only."""
    folder = checkpoints.parent / "pipeline"
    stages = ["--checkpoints", checkpoints, "--autoencoder", autoencoder]
    run("train_denoiser", *stages, *FEW_STEPS, "--output_dir", folder)
    return folder


def weights_of(folder: Path) -> dict[str, bytes]:
    """The bytes of everything that holds weights or checkpoints."""
    found = {name: (folder / name).read_bytes() for name in files_of(folder) if name.endswith(("tensors", "parquet"))}
    assert found
    return found


# From nothing to a report


@pytest.mark.parametrize(
    ("recipe", "first", "second", "classes"),
    [
        ("fast", ["--latent_dim", "4"], ["--width", "16"], ("Linear", "MLP", "DPMSolverMultistepScheduler", 20)),
        ("paper", ["--latent_dim", "8"], ["--num_inference_steps", "3"], ("", "", "DDPMScheduler", 3)),
    ],
)
def test_a_recipe_goes_from_checkpoints_to_a_report(
    checkpoints: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    recipe: str,
    first: list[str],
    second: list[str],
    classes: tuple[str, str, str, int],
):
    common = ["--checkpoints", checkpoints, "--recipe", recipe, *FEW_STEPS]
    run("train_autoencoder", *common, *first, "--output_dir", tmp_path / "autoencoder")
    autoencoder = ["--autoencoder", tmp_path / "autoencoder"]
    run("train_denoiser", *common, *second, *autoencoder, "--output_dir", tmp_path / "pipeline")
    report = ["--pipeline", tmp_path / "pipeline", "--checkpoints", checkpoints, "--output_dir", tmp_path / "report"]
    run("evaluate_pipeline", *report, "--num_models", "3")

    pipe = PDiffPipeline.from_pretrained(tmp_path / "pipeline")
    linear, mlp, scheduler, num_inference_steps = classes
    assert type(pipe.autoencoder).__name__ == f"{linear}ParameterAutoencoder"
    assert type(pipe.denoiser).__name__ == f"{mlp}ParameterDenoiser"
    assert type(pipe.scheduler).__name__ == scheduler
    assert pipe.config.default_num_inference_steps == num_inference_steps
    assert not pipe.scheduler.config.clip_sample
    assert pipe(2).logits(torch.zeros(5, 1, 8, 8)).shape == (2, 5, 10)

    metrics = json.loads((tmp_path / "report" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["sets"]["generated"]["test"]["n"] == 3
    assert {"heldout", "heldout_branch"} <= set(metrics["sets"])
    assert metrics["generator"]["denoiser"]["max_train_steps"] == 3
    assert metrics == json.loads((tmp_path / "pipeline" / "metrics.json").read_text(encoding="utf-8"))
    card = (tmp_path / "pipeline" / "README.md").read_text(encoding="utf-8")
    printed = capsys.readouterr().out
    assert "| **generated** | 3 |" in printed
    assert "| **generated** | 3 |" in card
    assert {"accuracy_similarity.png", "parameter_distribution.png"} <= files_of(tmp_path / "pipeline")


def test_what_is_written_can_be_shared(checkpoints: Path, autoencoder: Path, tmp_path: Path):
    output = tmp_path / "pipeline"
    stages = ["--checkpoints", checkpoints, "--autoencoder", autoencoder]
    run("train_denoiser", *stages, *FEW_STEPS, "--output_dir", output, "--checkpointing_steps", "1")

    for folder in (checkpoints, autoencoder, output):
        assert {Path(name).suffix for name in files_of(folder)} <= SHARED_SUFFIXES  # no pickles
    assert files_of(output) == {
        "README.md",
        "metrics.json",
        "model_index.json",
        "preprocessor_config.json",
        "autoencoder/config.json",
        "autoencoder/diffusion_pytorch_model.safetensors",
        "denoiser/config.json",
        "denoiser/diffusion_pytorch_model.safetensors",
        "processor/processor_config.json",
        "scheduler/scheduler_config.json",
        "target_model/config.json",
        "target_model/model.safetensors",
    }
    assert {path.name for path in tmp_path.iterdir()} == {"pipeline", "pipeline-state"}
    assert files_of(tmp_path / "pipeline-state") == set()  # the result is safe: nothing to resume


def test_what_is_written_names_no_place_of_this_machine(checkpoints: Path, autoencoder: Path, pipeline: Path):
    for folder in (checkpoints, autoencoder, pipeline):
        for name in files_of(folder):
            if Path(name).suffix in (".json", ".md"):
                assert str(checkpoints.parent) not in (folder / name).read_text(encoding="utf-8"), name


def test_the_zoo_is_what_was_asked_for(checkpoints: Path):
    zoo = load_checkpoints(checkpoints)

    assert {split: len(rows) for split, rows in zoo.splits.items()} == {"train": 16, "validation": 4, "test": 8}
    assert zoo.splits["test"].run == ["trajectory"] * 4 + ["branch-1"] * 4
    steps = {
        split: [step for step, name in zip(rows.step, rows.run, strict=True) if name == "trajectory"]
        for split, rows in zoo.splits.items()
    }
    assert min(steps["train"]) == 5  # after the burn-in
    for split, other in (("train", "validation"), ("train", "test"), ("validation", "test")):
        assert min(abs(a - b) for a in steps[split] for b in steps[other]) > 3  # the gap
    assert min(steps["test"]) < max(steps["train"])  # no split is merely later
    average = zoo.processor.flatten(zoo.target_model.state_dict())
    torch.testing.assert_close(average, zoo.zoo.parameters.mean(0))
    assert all(0.2 < value <= 1 for value in zoo.zoo.validation_score)  # ten classes
    assert len(zoo.zoo.parameters.unique(dim=0)) == 16


def test_a_trained_classifier_is_taken_as_it_is(checkpoints: Path, tmp_path: Path):
    trained = checkpoints / "target_model"
    arguments = [*COLLECT, "--model_name_or_path", trained, "--target_train_steps", "0"]

    run("collect_trajectory", *arguments, "--output_dir", tmp_path / "out")

    before, after = load_file(trained / "model.safetensors"), load_checkpoints(tmp_path / "out").target_model
    for name, tensor in after.state_dict().items():
        assert torch.equal(tensor, before[name]) != name.startswith("classifier"), name


def test_the_trajectory_moves_the_subset_alone(convnet: PreTrainedModel):
    # Running statistics of a BatchNorm belong to the trunk, too.
    settings = TrajectorySettings(
        image_size=8,
        target_train_steps=0,
        burn_in_steps=0,
        num_checkpoints=5,
        num_validation_checkpoints=0,
        num_test_checkpoints=0,
        num_branches=0,
        learning_rate=0.1,
    )
    digits = load_images("digits", image_size=8)
    pixels = ImageSplit(digits.train.pixels.expand(-1, 3, -1, -1), digits.train.labels % 4)
    validation = ImageSplit(digits.validation.pixels.expand(-1, 3, -1, -1), digits.validation.labels % 4)
    images = dataclasses.replace(digits, train=pixels, validation=validation)
    before = {name: tensor.clone() for name, tensor in convnet.state_dict().items()}

    zoo = collect(images, convnet, settings)

    moved = {name for name, tensor in convnet.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == set(zoo.processor.names)
    assert moved == {f"norms.{i}.{tensor}" for i in (0, 1) for tensor in ("weight", "bias")}
    assert zoo.zoo.step == [0, 21, 42, 63, 84]  # one in each of five blocks, gaps of twenty steps between them


def test_a_seed_decides_the_zoo_whatever_the_global_generator_holds(checkpoints: Path, tmp_path: Path):
    torch.manual_seed(12345)
    run("collect_trajectory", *COLLECT, "--output_dir", tmp_path / "again")
    run("collect_trajectory", *COLLECT, "--output_dir", tmp_path / "other", "--seed", "1")

    first = load_checkpoints(checkpoints)
    again, other = load_checkpoints(tmp_path / "again"), load_checkpoints(tmp_path / "other")
    assert torch.equal(again.zoo.parameters, first.zoo.parameters)
    assert not torch.allclose(other.zoo.parameters, first.zoo.parameters)


def test_the_scripts_fit_what_the_function_fits(checkpoints: Path, tmp_path: Path):
    recipe = load_recipe("fast")
    recipe.autoencoder.latent_dim, recipe.denoiser.max_train_steps, recipe.denoiser.train_batch_size = 4, 3, 4
    torch.manual_seed(1)
    fitted = fit(load_checkpoints(checkpoints), Recipe(recipe.autoencoder, recipe.denoiser))

    torch.manual_seed(2)
    stages = ["--checkpoints", checkpoints, "--autoencoder", tmp_path / "autoencoder"]
    run("train_autoencoder", *stages[:2], "--latent_dim", "4", "--output_dir", tmp_path / "autoencoder")
    run("train_denoiser", *stages, *FEW_STEPS, "--output_dir", tmp_path / "pipeline")

    scripted = PDiffPipeline.from_pretrained(tmp_path / "pipeline")
    for component in ("autoencoder", "denoiser", "target_model"):
        expected = getattr(fitted, component).state_dict()
        for name, tensor in getattr(scripted, component).state_dict().items():
            assert torch.equal(tensor, expected[name]), name


def test_a_recipe_file_supplies_defaults_and_flags_override_them(checkpoints: Path, tmp_path: Path):
    recipe = {"autoencoder": {"latent_dim": 3, "explained_variance": 0.5}, "denoiser": {"width": 8}}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")

    chosen = ["--checkpoints", checkpoints, "--recipe", tmp_path / "mine.yaml"]
    run("train_autoencoder", *chosen, "--latent_dim", "2", "--output_dir", tmp_path / "autoencoder")

    notes = json.loads((tmp_path / "autoencoder" / "training.json").read_text(encoding="utf-8"))
    assert notes["settings"]["latent_dim"] == 2
    assert notes["settings"]["explained_variance"] == 0.5
    assert notes["seconds"] >= 0


def test_trackers_write_beside_the_result(checkpoints: Path, autoencoder: Path, tmp_path: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    stages = ["--checkpoints", checkpoints, "--autoencoder", autoencoder]
    log = ["--report_to", "tensorboard", "--logging_steps", "1"]
    run("train_denoiser", *stages, *FEW_STEPS, *log, "--output_dir", tmp_path / "pipeline")

    assert not any("tfevents" in name for name in files_of(tmp_path / "pipeline"))
    losses = []
    for events in (tmp_path / "pipeline-state").rglob("*tfevents*"):
        accumulator = EventAccumulator(str(events)).Reload()
        if "loss" in accumulator.Tags()["scalars"]:
            losses.append(accumulator.Scalars("loss"))
    assert len(losses) == 1
    assert [event.step for event in losses[0]] == [0, 1, 2]
    assert all(event.value > 0 for event in losses[0])


# Wrong inputs, each refused in a sentence


def assert_sentence(error: BaseException) -> None:
    text = str(error)
    assert text.endswith(".")
    assert "\n" not in text
    assert len(text.split()) > 6


def test_an_unknown_key_of_a_recipe_is_refused(checkpoints: Path, tmp_path: Path):
    recipe = {"autoencoder": {"latent_dims": 3}, "denoiser": {}}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")

    with pytest.raises(RecipeError, match=r"latent_dims.*known ones are") as raised:
        run(
            "train_autoencoder",
            *("--checkpoints", checkpoints, "--recipe", tmp_path / "mine.yaml", "--output_dir", tmp_path / "out"),
        )

    assert_sentence(raised.value)
    assert not (tmp_path / "out").exists()


def test_a_recipe_that_is_none_is_refused(checkpoints: Path, tmp_path: Path):
    with pytest.raises(RecipeError, match=r"no recipe 'quick'.*'fast', 'paper'") as raised:
        run("train_autoencoder", "--checkpoints", checkpoints, "--recipe", "quick", "--output_dir", tmp_path / "out")

    assert_sentence(raised.value)


@pytest.mark.parametrize("given", ["nowhere", "runs/nowhere", "empty"])
def test_a_folder_that_holds_no_checkpoints_is_refused(
    autoencoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()

    for script, more in (("train_autoencoder", []), ("train_denoiser", ["--autoencoder", autoencoder])):
        with pytest.raises((CheckpointsError, HubNotFoundError), match=given) as raised:
            run(script, "--checkpoints", given, *more, "--output_dir", "out")
        assert_sentence(raised.value)

    assert {path.name for path in tmp_path.iterdir()} == {"empty"}


def test_a_folder_that_holds_no_autoencoder_is_refused(checkpoints: Path, tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"no autoencoder at .*train_autoencoder\.py makes one") as raised:
        run(
            "train_denoiser",
            *("--checkpoints", checkpoints, "--autoencoder", tmp_path / "none", "--output_dir", tmp_path / "out"),
        )

    assert_sentence(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_a_subset_that_matches_nothing_is_refused_before_anything_is_trained(tmp_path: Path):
    with pytest.raises(LayoutError, match=r"'encoder\.\*' matches none of the 4 parameters") as raised:
        run("collect_trajectory", *COLLECT, "--subset", "encoder.*", "--output_dir", tmp_path / "out")

    assert_sentence(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_counts_that_fill_no_whole_blocks_are_refused_before_anything_is_trained(tmp_path: Path):
    with pytest.raises(ValueError, match=r"'train': 15.*cannot be divided into 2 equal blocks") as raised:
        run("collect_trajectory", *COLLECT, "--num_checkpoints", "15", "--output_dir", tmp_path / "out")

    assert_sentence(raised.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", ["file/below/out", "file"])
@pytest.mark.parametrize("script", ["collect_trajectory", "train_autoencoder", "train_denoiser", "evaluate_pipeline"])
def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_done(
    checkpoints: Path, autoencoder: Path, pipeline: Path, tmp_path: Path, script: str, place: str
):
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    stages = ["--checkpoints", checkpoints, "--autoencoder", autoencoder, *FEW_STEPS]
    conv = ["--autoencoder_type", "conv", "--latent_dim", "2"]
    arguments: dict[str, list] = {
        "collect_trajectory": COLLECT,
        "train_autoencoder": ["--checkpoints", checkpoints, *FEW_STEPS, *conv],
        "train_denoiser": stages,
        "evaluate_pipeline": ["--checkpoints", checkpoints, "--pipeline", pipeline, "--num_models", "2"],
    }

    with pytest.raises(UnwritableFolderError) as raised:
        run(script, *arguments[script], "--output_dir", tmp_path / place)

    assert_sentence(raised.value)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]  # no state of a training either
    assert (tmp_path / "file").read_text(encoding="utf-8") == "in the way"


def test_an_unknown_scheduler_is_refused_before_anything_is_trained(
    checkpoints: Path, autoencoder: Path, tmp_path: Path
):
    stages = ["--checkpoints", checkpoints, "--autoencoder", autoencoder, *FEW_STEPS]

    with pytest.raises(ValueError, match="FancyScheduler") as raised:
        run("train_denoiser", *stages, "--scheduler", "FancyScheduler", "--output_dir", tmp_path / "out")

    assert_sentence(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_a_training_that_diverges_writes_no_pipeline(checkpoints: Path, autoencoder: Path, tmp_path: Path):
    stages = ["--checkpoints", checkpoints, "--autoencoder", autoencoder, *FEW_STEPS]
    diverging = ["--learning_rate", "1e30", "--lr_warmup_steps", "0"]

    with pytest.raises(ValueError, match=r"NaN|finite|diverged"):
        run("train_denoiser", *stages, *diverging, "--output_dir", tmp_path / "out")

    assert not (tmp_path / "out").exists()


# Interrupted and resumed


def kill_after_a_checkpoint(name: str, *arguments: str | Path, stage: Path) -> None:
    """Starts a script and kills it once `stage` holds a saved state."""
    process = start(name, *arguments)
    while process.poll() is None and not any(stage.glob("checkpoint-*")):
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    output, _ = process.communicate()
    assert process.returncode == -signal.SIGKILL, output


RESUME = ["--resume_from_checkpoint", "latest"]
OFTEN = ["--checkpointing_steps", "3"]
LONG_COLLECT = [*COLLECT, "--target_train_steps", "300", "--gap", "40", "--burn_in_steps", "60"]


@pytest.mark.parametrize(
    ("script", "settings"),
    [
        ("train_denoiser", ["--max_train_steps", "300", "--train_batch_size", "8", "--ema_decay", "0.9"]),
        (
            "train_autoencoder",
            [
                *("--autoencoder_type", "conv", "--latent_dim", "2"),
                *("--max_train_steps", "60", "--train_batch_size", "4"),
            ],
        ),
    ],
)
def test_a_killed_training_resumes_bit_for_bit(
    checkpoints: Path, autoencoder: Path, tmp_path: Path, script: str, settings: list[str]
):
    arguments = ["--checkpoints", checkpoints, *settings]
    if script == "train_denoiser":
        arguments += ["--autoencoder", autoencoder]
    whole, killed = tmp_path / "whole", tmp_path / "killed"

    run_alone(script, *arguments, "--output_dir", whole)
    kill_after_a_checkpoint(script, *arguments, *OFTEN, "--output_dir", killed, stage=tmp_path / "killed-state")
    assert not killed.exists()
    run_alone(script, *arguments, *OFTEN, *RESUME, "--output_dir", killed)

    assert weights_of(killed) == weights_of(whole)
    assert files_of(tmp_path / "killed-state") == set()


@pytest.fixture(scope="module")
def long_checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a longer collection gives that nobody interrupts."""
    folder = tmp_path_factory.mktemp("whole") / "checkpoints"
    run_alone("collect_trajectory", *LONG_COLLECT, "--output_dir", folder)
    return folder


@pytest.mark.parametrize("stage", ["target", "trajectory"])
def test_a_killed_collection_resumes_bit_for_bit(long_checkpoints: Path, tmp_path: Path, stage: str):
    killed, state = tmp_path / "killed", tmp_path / "killed-state"
    arguments = [*LONG_COLLECT, *OFTEN, "--output_dir", killed]

    kill_after_a_checkpoint("collect_trajectory", *arguments, stage=state / stage)
    assert not killed.exists()
    named = tmp_path / "named"
    shutil.copytree(state, tmp_path / "named-state")
    run_alone("collect_trajectory", *arguments, *RESUME)

    assert weights_of(killed) == weights_of(long_checkpoints)
    assert files_of(state) == set()

    # A state that is named by its path belongs to one stage; the stages before it are done.
    latest = max((tmp_path / "named-state" / stage).glob("checkpoint-*"), key=lambda path: int(path.name[11:]))
    run_alone("collect_trajectory", *LONG_COLLECT, *OFTEN, "--output_dir", named, "--resume_from_checkpoint", latest)
    assert weights_of(named) == weights_of(long_checkpoints)


def test_a_state_of_an_unfinished_training_is_not_overwritten(checkpoints: Path, autoencoder: Path, tmp_path: Path):
    arguments = ["--checkpoints", checkpoints, "--autoencoder", autoencoder, *FEW_STEPS]
    (tmp_path / "pipeline-state" / "checkpoint-2").mkdir(parents=True)

    with pytest.raises(FileExistsError, match="--resume_from_checkpoint latest") as raised:
        run("train_denoiser", *arguments, "--output_dir", tmp_path / "pipeline")

    assert_sentence(raised.value)
    assert not (tmp_path / "pipeline").exists()


def test_a_state_that_is_not_there_cannot_be_resumed(checkpoints: Path, autoencoder: Path, tmp_path: Path):
    arguments = ["--checkpoints", checkpoints, "--autoencoder", autoencoder, *FEW_STEPS]

    with pytest.raises(FileNotFoundError, match=r"no saved state at .*checkpoint-7") as raised:
        run(
            "train_denoiser",
            *arguments,
            *("--output_dir", tmp_path / "pipeline", "--resume_from_checkpoint", tmp_path / "checkpoint-7"),
        )

    assert_sentence(raised.value)


# Two processes


def test_the_launcher_of_these_tests_starts_two_processes(tmp_path: Path, two_processes: tuple[str, ...]):
    script = tmp_path / "count.py"
    script.write_text(
        "from accelerate import Accelerator\nprint('processes:', Accelerator().num_processes, flush=True)"
    )

    counted = subprocess.run(
        [sys.executable, *two_processes, script], env=environment(), capture_output=True, text=True
    )

    assert counted.stdout.count("processes: 2") == 2, counted.stderr


def test_two_processes_train_the_denoiser_of_one(
    checkpoints: Path, autoencoder: Path, tmp_path: Path, two_processes: tuple[str, ...]
):
    arguments = ["--checkpoints", checkpoints, "--autoencoder", autoencoder, "--width", "16", "--num_blocks", "1"]
    arguments += ["--max_train_steps", "20", "--train_batch_size", "8", "--lr_warmup_steps", "2"]
    # States are saved while both run.
    run("train_denoiser", *arguments, "--output_dir", tmp_path / "one")
    two = ["--output_dir", tmp_path / "two", "--checkpointing_steps", "5"]
    run_alone("train_denoiser", *arguments, *two, launcher=two_processes)

    weights = "denoiser/diffusion_pytorch_model.safetensors"
    one, both = load_file(tmp_path / "one" / weights), load_file(tmp_path / "two" / weights)
    assert one.keys() == both.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(both[name], tensor, atol=1e-5, rtol=0)
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")


def test_two_processes_collect_what_one_collects(checkpoints: Path, tmp_path: Path, two_processes: tuple[str, ...]):
    run_alone(
        "collect_trajectory",
        *(*COLLECT, "--output_dir", tmp_path / "two", "--checkpointing_steps", "10"),
        launcher=two_processes,
    )

    one, two = load_checkpoints(checkpoints), load_checkpoints(tmp_path / "two")
    for split, zoo in one.splits.items():
        assert two.splits[split].run == zoo.run
        assert two.splits[split].step == zoo.step
        torch.testing.assert_close(two.splits[split].parameters, zoo.parameters, atol=1e-5, rtol=0)
    assert files_of(tmp_path / "two") == files_of(checkpoints)
