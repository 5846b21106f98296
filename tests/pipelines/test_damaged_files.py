"""Folders that are damaged in thousands of ways: each loads right, or fails with one of the package's own errors."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import damage
import pytest
from diffusers import DDIMScheduler
from transformers import PreTrainedModel

from pdiff_hf import (
    BrokenFileError,
    Checkpoints,
    CheckpointsError,
    ParameterAutoencoder,
    ParameterDenoiser,
    PDiffPipeline,
    load_checkpoints,
    make_processor,
)

OWN_ERRORS = {
    "BrokenFileError",
    "CheckpointsError",
    "CorruptFileError",
    "HubError",
    "LayoutError",
    "NonFiniteParametersError",
    "UnknownTargetError",
    "UnsafeFileError",
}


@pytest.fixture
def folders(
    tiny_pipeline: PDiffPipeline, tiny_checkpoints: Checkpoints, tiny_vit: PreTrainedModel, tmp_path: Path
) -> list[str]:
    """Two pipelines of different components and a checkpoints dataset, as `damage.py` takes them."""
    processor = make_processor(tiny_vit, "last_norms")
    convolutional = PDiffPipeline(
        ParameterAutoencoder(processor.parameter_dim, latent_dim=4, channels=(4, 8)).eval(),
        ParameterDenoiser(latent_dim=4, channels=(4, 8, 4)).eval(),
        DDIMScheduler(clip_sample=False),
        processor,
        tiny_vit,
    )
    tiny_pipeline.save_pretrained(tmp_path / "pipeline")
    convolutional.save_pretrained(tmp_path / "convolutional")
    tiny_checkpoints.save(tmp_path / "checkpoints")
    kinds = {"pipeline": "pipeline", "checkpoints": "checkpoints", "convolutional": "pipeline"}
    return [f"{kind}={tmp_path / name}" for name, kind in kinds.items()]


def outcomes(folders: list[str], first: int, last: int, home: Path) -> dict[int, str]:
    """Loads the mutants in a process of its own, which may crash; returns what came of each that went wrong."""
    command = [sys.executable, damage.__file__, str(first), str(last), *folders]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HOME": str(home)}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        output, errors = process.communicate()
    lines = [json.loads(line) for line in output.splitlines()]
    done = {line["seed"]: line["outcome"] for line in lines if "outcome" in line}
    said = {line["seed"]: line["what"] for line in lines if "what" in line}
    if process.returncode:
        last_seed = max(said, default=first)
        done[last_seed] = f"the process ended with {process.returncode}: {errors[-500:]}"
    print(dict(Counter(outcome.partition(":")[0] for outcome in done.values())))
    assert process.returncode or done.keys() == set(range(first, last))
    return {
        seed: f"{said.get(seed)}: {outcome}"
        for seed, outcome in done.items()
        if outcome != "loaded" and outcome not in OWN_ERRORS
    }


def test_three_hundred_damaged_folders_load_right_or_fail_with_an_own_error(folders: list[str], tmp_path: Path):
    assert outcomes(folders, 0, 300, tmp_path) == {}


@pytest.mark.exhaustive
@pytest.mark.parametrize("thousand", range(10))
def test_ten_thousand_damaged_folders_load_right_or_fail_with_an_own_error(
    folders: list[str], tmp_path: Path, thousand: int
):
    assert outcomes(folders, 1000 * thousand, 1000 * (thousand + 1), tmp_path) == {}


@pytest.mark.parametrize("name", ["model_index.json", "scheduler/scheduler_config.json", "autoencoder/config.json"])
@pytest.mark.parametrize("content", [b"", b"null", b"[]", b"1", b'"a"', b"\xff\xfe", b"[" * 100_000])
def test_a_json_file_of_another_kind_is_named(tiny_pipeline: PDiffPipeline, tmp_path: Path, name: str, content: bytes):
    tiny_pipeline.save_pretrained(tmp_path)
    (tmp_path / name).write_bytes(content)

    with pytest.raises(BrokenFileError) as raised:
        PDiffPipeline.from_pretrained(tmp_path)

    assert Path(name).parts[0].removesuffix(".json") in str(raised.value)
    assert len(str(raised.value)) < 1000


@pytest.mark.parametrize(
    "name",
    [
        "model_index.json",
        "autoencoder/config.json",
        "autoencoder/diffusion_pytorch_model.safetensors",
        "denoiser/config.json",
        "denoiser/diffusion_pytorch_model.safetensors",
        "processor/processor_config.json",
        "scheduler/scheduler_config.json",
        "target_model/config.json",
        "target_model/model.safetensors",
    ],
)
def test_a_file_of_a_pipeline_that_is_missing_is_named(tiny_pipeline: PDiffPipeline, tmp_path: Path, name: str):
    tiny_pipeline.save_pretrained(tmp_path)
    (tmp_path / name).unlink()

    with pytest.raises(BrokenFileError) as raised:
        PDiffPipeline.from_pretrained(tmp_path)

    assert Path(name).parts[0].removesuffix(".json") in str(raised.value)


@pytest.mark.parametrize(
    "name",
    [
        "processor_config.json",
        "data/train-00000-of-00001.parquet",
        "target_model/config.json",
        "target_model/model.safetensors",
    ],
)
def test_a_file_of_a_zoo_that_is_missing_is_named(tiny_checkpoints: Checkpoints, tmp_path: Path, name: str):
    tiny_checkpoints.save(tmp_path / "zoo")
    (tmp_path / "zoo" / name).unlink()

    with pytest.raises((BrokenFileError, CheckpointsError)) as raised:
        load_checkpoints(tmp_path / "zoo")

    assert re.split(r"[/-]", name)[0].replace("data", "train") in str(raised.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [("default_num_inference_steps", value) for value in (0, -1, 2.5, "20", None, True, [20], 10**12)]
    + [("image_processor_config", value) for value in (5, "a", [1])],
)
def test_a_setting_of_a_pipeline_that_is_none_is_named(
    tiny_pipeline: PDiffPipeline, tmp_path: Path, name: str, value: object
):
    tiny_pipeline.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    (tmp_path / "model_index.json").write_text(json.dumps(index | {name: value}))

    with pytest.raises(BrokenFileError, match=r"model_index\.json"):
        PDiffPipeline.from_pretrained(tmp_path)
