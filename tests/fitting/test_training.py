"""The four scripts: from nothing to a report, interrupted and resumed, in two processes, wrong inputs named."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from scripts import environment, files_of, run, start
from transformers import PreTrainedModel

from pdiff_hf import (
    HubNotFoundError,
    PDiffPipeline,
    TrajectorySettings,
    collect,
    fit,
    load_checkpoints,
    load_images,
    load_recipe,
)
from pdiff_hf.data.images import ImageSplit
from pdiff_hf.folders import UnwritableFolderError
from pdiff_hf.targets.processing_parameters import LayoutError, NonFiniteParametersError
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
    run("train_autoencoder", "--checkpoints", checkpoints, "--output_dir", folder, "--config", '{"latent_dim": 4}')
    return folder


@pytest.fixture(scope="module")
def pipeline(checkpoints: Path, autoencoder: Path) -> Path:
    """A pipeline that was hardly trained; tests read it only."""
    folder = checkpoints.parent / "pipeline"
    stages = ["--checkpoints", checkpoints, "--autoencoder", autoencoder]
    run("train_denoiser", *stages, *FEW_STEPS, "--output_dir", folder, "--checkpointing_steps", "1")
    return folder


def weights_of(folder: Path) -> dict[str, bytes]:
    """The bytes of everything that holds weights or checkpoints."""
    found = {name: (folder / name).read_bytes() for name in files_of(folder) if name.endswith(("tensors", "parquet"))}
    assert found
    return found


# From nothing to a report


@pytest.mark.parametrize(
    ("recipe", "latent_dim", "second", "classes"),
    [
        ("fast", 4, ["--config", '{"width": 16}'], ("Linear", "MLP", "DPMSolverMultistepScheduler", 20)),
        ("paper", 8, ["--num_inference_steps", "3"], ("", "", "DDPMScheduler", 3)),
    ],
)
def test_a_recipe_leads_from_checkpoints_to_a_report(
    checkpoints: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    recipe: str,
    latent_dim: int,
    second: list[str],
    classes: tuple[str, str, str, int],
):
    first = ["--config", json.dumps({"latent_dim": latent_dim})]
    common = ["--checkpoints", checkpoints, "--recipe", recipe, *FEW_STEPS]
    run("train_autoencoder", *common, *first, "--output_dir", tmp_path / "autoencoder")
    autoencoder = ["--autoencoder", tmp_path / "autoencoder"]
    run("train_denoiser", *common, *second, *autoencoder, "--output_dir", tmp_path / "pipeline")
    report = ["--pipeline", tmp_path / "pipeline", "--checkpoints", checkpoints, "--output_dir", tmp_path / "report"]
    run("evaluate_pipeline", *report, "--num_models", "3", "--num_baseline_models", "3")

    pipe = PDiffPipeline.from_pretrained(tmp_path / "pipeline")
    linear, mlp, scheduler, num_inference_steps = classes
    assert type(pipe.autoencoder).__name__ == f"{linear}ParameterAutoencoder"
    assert type(pipe.denoiser).__name__ == f"{mlp}ParameterDenoiser"
    assert type(pipe.scheduler).__name__ == scheduler
    assert pipe.config.default_num_inference_steps == num_inference_steps
    assert not pipe.scheduler.config.clip_sample
    assert pipe.scheduler.config.timestep_spacing == "trailing"
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


def test_what_is_written_can_be_shared(checkpoints: Path, autoencoder: Path, pipeline: Path):
    for folder in (checkpoints, autoencoder, pipeline):
        assert {Path(name).suffix for name in files_of(folder)} <= SHARED_SUFFIXES  # no pickles
        for name in files_of(folder):
            if Path(name).suffix in (".json", ".md"):  # no path of this machine
                assert str(checkpoints.parent) not in (folder / name).read_text(encoding="utf-8"), name
    assert files_of(pipeline) == {
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
    assert files_of(pipeline.parent / "pipeline-state") == set()  # the result is safe: nothing to resume
    notes = json.loads((autoencoder / "training.json").read_text(encoding="utf-8"))
    assert notes["settings"]["config"] == {"explained_variance": 0.99, "latent_dim": 4}


def test_the_zoo_is_what_was_asked_for(checkpoints: Path):
    zoo = load_checkpoints(checkpoints)

    assert {split: len(rows) for split, rows in zoo.splits.items()} == {"train": 16, "validation": 4, "test": 8}
    assert zoo.splits["test"].run == ["trajectory"] * 4 + ["branch-1"] * 4
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


def test_the_scripts_fit_what_the_function_fits(checkpoints: Path, pipeline: Path):
    recipe = load_recipe("fast")
    recipe.autoencoder.config["latent_dim"] = 4
    recipe.denoiser.max_train_steps, recipe.denoiser.train_batch_size = 3, 4
    torch.manual_seed(1)

    fitted = fit(load_checkpoints(checkpoints), recipe)

    scripted = PDiffPipeline.from_pretrained(pipeline)
    for component in ("autoencoder", "denoiser", "target_model"):
        expected = getattr(fitted, component).state_dict()
        for name, tensor in getattr(scripted, component).state_dict().items():
            assert torch.equal(tensor, expected[name]), name


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


@pytest.fixture
def inputs(checkpoints: Path, autoencoder: Path, pipeline: Path) -> dict[str, list]:
    """Valid flags of each script, but for its output."""
    zoo = ["--checkpoints", checkpoints]
    return {
        "collect_trajectory": COLLECT,
        "train_autoencoder": [*zoo, *FEW_STEPS, "--type", "conv", "--config", '{"latent_dim": 2}'],
        "train_denoiser": [*zoo, *FEW_STEPS, "--autoencoder", autoencoder],
        "evaluate_pipeline": [*zoo, "--pipeline", pipeline, "--num_models", "2"],
    }


def assert_sentence(error: BaseException) -> None:
    text = str(error)
    assert text.endswith(".")
    assert "\n" not in text
    assert len(text.split()) > 6


@pytest.mark.parametrize(
    ("script", "flags", "error", "sentence"),
    [
        ("train_autoencoder", "--checkpoints nowhere", HubNotFoundError, "nowhere"),
        ("train_denoiser", "--checkpoints empty", CheckpointsError, "empty"),
        ("train_denoiser", "--autoencoder empty", FileNotFoundError, r"no autoencoder at 'empty'; .*\.py makes one"),
        ("collect_trajectory", "--subset encoder.*", LayoutError, r"'encoder\.\*' matches none of the 4 parameters"),
        ("collect_trajectory", "--num_checkpoints 15", ValueError, r"'train': 15.*divided into 2 equal blocks"),
        (
            "collect_trajectory",
            '--model_config {"num_channels":3}',
            ValueError,
            "takes images of 3 channels, but those",
        ),
        ("evaluate_pipeline", "--num_inference_steps 9999", ValueError, "must be from 1 to 1000, but is 9999"),
        ("train_denoiser", "--learning_rate 1e30 --lr_warmup_steps 0", NonFiniteParametersError, "diverged"),
    ],
)
def test_wrong_input_is_named_and_nothing_is_written(
    inputs: dict[str, list],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    script: str,
    flags: str,
    error: type[Exception],
    sentence: str,
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()

    with pytest.raises(error, match=sentence) as raised:
        run(script, *inputs[script], *flags.split(), "--output_dir", "out")

    assert_sentence(raised.value)
    written = {path.name for path in tmp_path.iterdir()} - {"empty"}
    assert written == ({"out-state"} if sentence == "diverged" else set())


@pytest.mark.parametrize("script", ["collect_trajectory", "train_autoencoder", "train_denoiser", "evaluate_pipeline"])
def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_done(
    inputs: dict[str, list], tmp_path: Path, script: str
):
    (tmp_path / "file").write_text("in the way", encoding="utf-8")

    with pytest.raises(UnwritableFolderError) as raised:
        run(script, *inputs[script], "--output_dir", tmp_path / "file")

    assert_sentence(raised.value)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]  # no state of a training either
    assert (tmp_path / "file").read_text(encoding="utf-8") == "in the way"


def test_diverged_training_does_not_block_the_corrected_one(inputs: dict[str, list], tmp_path: Path):
    arguments = [*inputs["train_denoiser"], "--output_dir", tmp_path / "out"]
    with pytest.raises(NonFiniteParametersError):
        run("train_denoiser", *arguments, "--learning_rate", "1e30", "--lr_warmup_steps", "0")

    run("train_denoiser", *arguments)

    assert (tmp_path / "out" / "model_index.json").is_file()


def test_diverged_collection_does_not_block_the_corrected_one(tmp_path: Path):
    with pytest.raises(NonFiniteParametersError):
        run("collect_trajectory", *COLLECT, "--output_dir", tmp_path / "out", "--learning_rate", "1e30")

    run("collect_trajectory", *COLLECT, "--output_dir", tmp_path / "out")


def test_autoencoder_of_another_zoo_is_refused(inputs: dict[str, list], checkpoints: Path, tmp_path: Path):
    other = load_checkpoints(checkpoints)
    other.zoo.parameters += 1
    other.save(tmp_path / "other")

    with pytest.raises(ValueError, match="fitted to another zoo, of 90 parameters a checkpoint; this one has 16"):
        run("train_denoiser", *inputs["train_denoiser"], "--checkpoints", tmp_path / "other", "--output_dir", "out")


def test_mistake_ends_a_script_with_a_sentence(inputs: dict[str, list], tmp_path: Path):
    process = start("train_denoiser", *inputs["train_denoiser"], "--seed", "-1", "--output_dir", tmp_path / "out")

    output, _ = process.communicate()

    assert process.returncode == 1
    assert output.endswith("train_denoiser.py: --seed must be from 0 to 9223372036854775807, but is -1.\n")
    assert "Traceback" not in output


def test_scripts_end_with_what_they_made_and_the_next_command(
    inputs: dict[str, list], checkpoints: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    run("train_denoiser", *inputs["train_denoiser"], "--output_dir", tmp_path / "out")

    printed = capsys.readouterr().out
    assert "The dispersion R of 16 drawn networks is 0." in printed
    assert f"Written: {tmp_path / 'out'}" in printed
    assert f"pdiff-hf audit {tmp_path / 'out'} --checkpoints {checkpoints}" in printed


def test_mixed_precision_of_the_launcher_is_honored(
    inputs: dict[str, list], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")

    run("train_denoiser", *inputs["train_denoiser"], "--output_dir", tmp_path / "out")

    assert AcceleratorState().mixed_precision == "bf16"


# Interrupted and resumed


def kill_after_a_checkpoint(name: str, *arguments: str | Path, stage: Path) -> None:
    """Starts a script and kills it once `stage` holds a saved state."""
    process = start(name, *arguments)
    while process.poll() is None and not any(stage.glob("checkpoint-*")):
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    output, _ = process.communicate()
    assert process.returncode == -signal.SIGKILL, output


RESUME = ["--resume_from_checkpoint", "latest"]
OFTEN = ["--checkpointing_steps", "3"]
KILLED_COLLECT = [*COLLECT, "--target_train_steps", "60", "--burn_in_steps", "40", "--num_branches", "0"]


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As many threads here as in the processes that are killed: sums depend on their number in the last bits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(
    ("script", "settings"),
    [
        ("train_denoiser", ["--max_train_steps", "200", "--train_batch_size", "8", "--ema_decay", "0.9"]),
        ("train_autoencoder", ["--max_train_steps", "60", "--train_batch_size", "4"]),
    ],
)
def test_a_killed_training_resumes_bit_for_bit(
    inputs: dict[str, list], tmp_path: Path, script: str, settings: list[str]
):
    arguments = [*inputs[script], *settings]
    whole, killed = tmp_path / "whole", tmp_path / "killed"

    kill_after_a_checkpoint(script, *arguments, *OFTEN, "--output_dir", killed, stage=tmp_path / "killed-state")
    assert not killed.exists()
    run(script, *arguments, *OFTEN, *RESUME, "--output_dir", killed)
    run(script, *arguments, "--output_dir", whole)

    assert weights_of(killed) == weights_of(whole)
    assert files_of(tmp_path / "killed-state") == set()


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("stage", ["target", "trajectory"])
def test_a_killed_collection_resumes_bit_for_bit(tmp_path: Path, stage: str):
    killed, state, whole = tmp_path / "killed", tmp_path / "killed-state", tmp_path / "whole"
    arguments = [*KILLED_COLLECT, *OFTEN, "--output_dir", killed]

    kill_after_a_checkpoint("collect_trajectory", *arguments, stage=state / stage)
    assert not killed.exists()
    shutil.copytree(state, tmp_path / "named-state")
    run("collect_trajectory", *arguments, *RESUME)
    run("collect_trajectory", *KILLED_COLLECT, "--output_dir", whole)

    assert weights_of(killed) == weights_of(whole)
    assert files_of(state) == set()

    # A state that is named by its path belongs to one stage; the stages before it are done.
    latest = max((tmp_path / "named-state" / stage).glob("checkpoint-*"), key=lambda path: int(path.name[11:]))
    named = ["--output_dir", tmp_path / "named", "--resume_from_checkpoint", latest]
    run("collect_trajectory", *KILLED_COLLECT, *OFTEN, *named)
    assert weights_of(tmp_path / "named") == weights_of(whole)


# Two processes

BOTH = """
import json, sys
from accelerate import Accelerator
from scripts import run
assert Accelerator().num_processes == 2  # no single process twice
for script, arguments in json.loads(sys.argv[1]):
    run(script, *arguments)
"""


def test_two_processes_make_what_one_makes(
    checkpoints: Path, autoencoder: Path, tmp_path: Path, two_processes: tuple[str, ...]
):
    train = ["--checkpoints", str(checkpoints), "--autoencoder", str(autoencoder), "--config", '{"width": 16}']
    train += ["--max_train_steps", "20", "--train_batch_size", "8", "--lr_warmup_steps", "2"]
    often = ["--checkpointing_steps", "10"]  # states are saved while both run
    run("train_denoiser", *train, "--output_dir", tmp_path / "one")
    (tmp_path / "both.py").write_text(BOTH, encoding="utf-8")
    made = [
        ("train_denoiser", [*train, *often, "--output_dir", str(tmp_path / "two")]),
        ("collect_trajectory", [*COLLECT, *often, "--output_dir", str(tmp_path / "zoo")]),
    ]

    launched = subprocess.run(
        [sys.executable, *two_processes, tmp_path / "both.py", json.dumps(made)],
        env=environment() | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
    )

    assert launched.returncode == 0, launched.stderr
    weights = "denoiser/diffusion_pytorch_model.safetensors"
    one, both = load_file(tmp_path / "one" / weights), load_file(tmp_path / "two" / weights)
    assert one.keys() == both.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(both[name], tensor, atol=1e-5, rtol=0)
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")
    zoos, others = load_checkpoints(checkpoints).splits, load_checkpoints(tmp_path / "zoo").splits
    for split, zoo in zoos.items():
        assert (others[split].run, others[split].step) == (zoo.run, zoo.step)
        torch.testing.assert_close(others[split].parameters, zoo.parameters, atol=1e-5, rtol=0)
    assert files_of(tmp_path / "zoo") == files_of(checkpoints)
