"""Damaged folders of hundreds of kinds: each loads correctly or raises one of the package's own errors."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
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

FINE = {"loaded", *(error.__name__ for error in damage.OWN_ERRORS)}


@pytest.fixture
def pipeline(tiny_pipeline: PDiffPipeline, tmp_path: Path) -> Path:
    tiny_pipeline.save_pretrained(tmp_path / "pipeline")
    return tmp_path / "pipeline"


@pytest.fixture
def folders(pipeline: Path, tiny_checkpoints: Checkpoints, tiny_resnet: PreTrainedModel, tmp_path: Path) -> list[Path]:
    """A pipeline, a checkpoints dataset, and a pipeline of other components for a target of transformers."""
    processor = make_processor(tiny_resnet, "last_norms")
    PDiffPipeline(
        ParameterAutoencoder(processor.parameter_dim, latent_dim=4, channels=(4, 8), kernel_size=3).eval(),
        ParameterDenoiser(latent_dim=4, channels=(4, 8, 4), kernel_size=3).eval(),
        DDIMScheduler(clip_sample=False),
        processor,
        tiny_resnet,
    ).save_pretrained(tmp_path / "convolutional")
    (tmp_path / "convolutional/target_model/model.safetensors").unlink()
    tiny_resnet.save_pretrained(tmp_path / "convolutional/target_model", max_shard_size="10KB")
    assert (tmp_path / "convolutional/target_model/model.safetensors.index.json").exists()
    tiny_checkpoints.save(tmp_path / "checkpoints")
    return [pipeline, tmp_path / "checkpoints", tmp_path / "convolutional"]


def assert_loaded_or_refused(folders: list[Path], seeds: Iterable[int], work: Path) -> None:
    assert [damage.load(folder) for folder in folders] == ["loaded"] * 3

    outcomes = damage.outcomes(folders, seeds, work)

    assert {seed: outcome for seed, outcome in outcomes.items() if outcome not in FINE} == {}
    assert outcomes.keys() == set(seeds)
    counts = Counter(outcomes.values())
    assert counts["loaded"] > len(outcomes) / 20  # the damage is not always fatal,
    assert counts["BrokenFileError"] > len(outcomes) / 3  # and mostly found


def test_hundreds_of_damaged_folders_load_right_or_fail_with_an_own_error(folders: list[Path], tmp_path: Path):
    assert_loaded_or_refused(folders, range(240), tmp_path)


@pytest.mark.exhaustive
def test_a_thousand_more_damaged_folders_load_right_or_fail_with_an_own_error(folders: list[Path], tmp_path: Path):
    assert_loaded_or_refused(folders, range(10_000, 11_000), tmp_path)


def test_a_crash_is_an_outcome(folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(damage, "load", lambda folder: damage.signal.raise_signal(damage.signal.SIGALRM))

    assert re.search(r": the process ended with -\d+$", damage.outcomes(folders, [0], tmp_path)[0])


@pytest.mark.parametrize("name", ["model_index.json", "scheduler/scheduler_config.json", "autoencoder/config.json"])
def test_a_json_file_of_another_kind_is_named(pipeline: Path, name: str):
    for content in (b"", b"null", b"[]", b"1", b'"a"', b"\xff\xfe", b"[" * 100_000):
        (pipeline / name).write_bytes(content)

        with pytest.raises(BrokenFileError) as raised:
            PDiffPipeline.from_pretrained(pipeline)

        assert Path(name).parts[0].removesuffix(".json") in str(raised.value), content
        assert len(str(raised.value)) < 1000, content


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
def test_a_file_of_a_pipeline_that_is_missing_is_named(pipeline: Path, name: str):
    (pipeline / name).unlink()

    with pytest.raises(BrokenFileError) as raised:
        PDiffPipeline.from_pretrained(pipeline)

    assert Path(name).parts[0].removesuffix(".json") in str(raised.value)


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("processor_config.json", "processor_config"),
        ("data/train-00000-of-00001.parquet", "train"),
        ("target_model/config.json", "target_model"),
        ("target_model/model.safetensors", "target_model"),
    ],
)
def test_a_file_of_a_zoo_that_is_missing_is_named(
    tiny_checkpoints: Checkpoints, tmp_path: Path, name: str, named: str
):
    tiny_checkpoints.save(tmp_path / "zoo")
    (tmp_path / "zoo" / name).unlink()

    with pytest.raises((BrokenFileError, CheckpointsError), match=named):
        load_checkpoints(tmp_path / "zoo")


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("default_num_inference_steps", (0, -1, 2.5, "20", None, True, [20], 10**12)),
        ("image_processor_config", (5, "a", [1])),
    ],
)
def test_an_invalid_setting_of_a_pipeline_is_named(pipeline: Path, name: str, values: tuple):
    index = json.loads((pipeline / "model_index.json").read_text())
    for value in values:
        (pipeline / "model_index.json").write_text(json.dumps(index | {name: value}))

        with pytest.raises(BrokenFileError, match=r"model_index\.json"):
            PDiffPipeline.from_pretrained(pipeline)


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
