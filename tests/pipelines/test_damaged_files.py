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
import torch
from diffusers import DDIMScheduler
from transformers import (
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
)

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
from pdiff_hf.targets.loading import load_network

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


SMALL_GPT2 = GPT2Config(vocab_size=64, n_positions=16, n_embd=8, n_layer=1, n_head=2, num_labels=3, pad_token_id=0)
SMALL_LLAMA = LlamaConfig(
    vocab_size=64,
    hidden_size=8,
    intermediate_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    max_position_embeddings=131_072,
    rope_parameters={"rope_type": "default", "rope_theta": 5e5},
    num_labels=3,
    pad_token_id=0,
)
SMALL = [(GPT2ForSequenceClassification, SMALL_GPT2), (LlamaForSequenceClassification, SMALL_LLAMA)]


@pytest.mark.parametrize(("network_class", "config"), SMALL)
def test_a_small_network_with_large_numbers_that_are_no_sizes_is_loaded(
    tmp_path: Path, network_class: type[PreTrainedModel], config: PreTrainedConfig
):
    network = network_class(config).eval()
    network.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert 50256 in saved.values() or "500000.0" in json.dumps(saved)

    loaded = load_network(tmp_path)

    assert type(loaded) is network_class
    tokens = torch.tensor([[3, 4, 5]])
    assert torch.equal(loaded(tokens).logits, network(tokens).logits)


@pytest.mark.parametrize(
    ("network_class", "config", "key"),
    [(*SMALL[0], key) for key in ("vocab_size", "n_embd", "n_layer", "num_labels", "n_positions")]
    + [(*SMALL[1], key) for key in ("vocab_size", "hidden_size", "num_hidden_layers")],
)
def test_a_network_that_asks_for_more_memory_than_its_weights_fill_is_refused(
    tmp_path: Path, network_class: type[PreTrainedModel], config: PreTrainedConfig, key: str
):
    network_class(config).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(saved | {key: 10**12}))

    with pytest.raises(BrokenFileError, match=re.escape(str(tmp_path))):
        load_network(tmp_path)


@pytest.mark.parametrize("key", ["num_blocks", "width", "latent_dim"])
def test_a_denoiser_that_asks_for_more_memory_than_its_weights_fill_is_refused(
    tiny_pipeline: PDiffPipeline, tmp_path: Path, key: str
):
    tiny_pipeline.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "denoiser/config.json").read_text())
    (tmp_path / "denoiser/config.json").write_text(json.dumps(config | {key: 10**12}))

    with pytest.raises(BrokenFileError, match="denoiser"):
        PDiffPipeline.from_pretrained(tmp_path)
