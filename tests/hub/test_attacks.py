"""Hostile repositories: no code is run, nothing else is fetched or written."""

from __future__ import annotations

import contextlib
import json
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest

from pdiff_hf import BrokenFileError, PDiffPipeline, UnknownTargetError, UnsafeFileError

from .cases import assert_sentence
from .server import Hub
from .server.model import Blob
from .shared import Shared

EVIL = b"""
import pathlib, diffusers, transformers, torch
pathlib.Path(%r).touch()
class Evil(torch.nn.Module):
    config_class = transformers.PretrainedConfig
    @classmethod
    def from_pretrained(cls, *args, **kwargs): return cls()
    from_config = from_pretrained
class EvilConfig(transformers.PretrainedConfig):
    model_type = "evil"
"""


@pytest.fixture
def trap(tmp_path: Path) -> Path:
    """A file that comes into being when code of the repository is run."""
    return tmp_path / "code-was-run"


@pytest.mark.parametrize(
    "name",
    [
        "../evil.safetensors",
        "/etc/evil-of-pdiff-hf.json",
        "autoencoder/../../evil.json",
        "data/../../../../evil.parquet",
        "data/..\\..\\evil.parquet",
        "target_model/../../evil.json",
        "../../../evil.png",
        "LICENSE/../../../evil",
    ],
)
def test_a_name_that_leads_out_of_its_repository_is_never_written(shared: Shared, tmp_path: Path, name: str):
    shared.repo.at().tree[name] = Blob.regular(b'{"evil": true}')
    cache = tmp_path / "outer/inner/cache"
    before = set(tmp_path.rglob("*"))

    with contextlib.suppress(UnsafeFileError):  # refused, or not read at all
        loaded = shared.pull(cache)
        if isinstance(loaded, PDiffPipeline):
            loaded.save_pretrained(tmp_path / "outer/inner/saved")

    written = {path for path in set(tmp_path.rglob("*")) - before if path.is_file()}
    assert written
    assert not [path for path in written if not path.is_relative_to(tmp_path / "outer/inner")]
    assert not [path for path in written if "evil" in path.name and cache / "blobs" not in path.parents]
    assert not list(Path("/etc").glob("evil*"))
    assert not [link for link in cache.rglob("*") if link.is_symlink() and not link.resolve().is_relative_to(cache)]


@pytest.mark.parametrize(
    ("component", "entry"),
    [
        ("scheduler", ["os", "system"]),
        ("scheduler", ["diffusers", "DiffusionPipeline"]),
        ("scheduler", ["diffusers", "SchedulerMixin"]),
        ("target_model", ["torch.nn", "Linear"]),
        ("target_model", ["antigravity", "fly"]),
        ("target_model", ["transformers", "pipeline"]),
        ("target_model", ["transformers", "AutoModel"]),
        ("target_model", ["transformers.models.bert.modeling_bert", "BertModel.from_pretrained"]),
        ("target_model", ["evil", "Evil"]),
        ("autoencoder", ["pdiff_hf", "share"]),
        ("denoiser", ["diffusers", "UNet2DModel"]),
        ("processor", ["evil", "Evil"]),
        ("_class_name", ["evil", "Evil"]),
        ("_class_name", "DiffusionPipeline"),
    ],
    ids=lambda value: value if isinstance(value, str) else ".".join(value),
)
def test_a_class_that_the_package_does_not_read_is_refused_and_its_code_not_run(
    pipeline: Shared, empty_cache: Path, trap: Path, component: str, entry: Any
):
    pipeline.rewrite("model_index.json", lambda index: index | {component: entry})
    for name in ("evil.py", "autoencoder/evil.py", "target_model/evil.py", "processor/evil.py", "pipeline.py"):
        pipeline.put(name, EVIL % str(trap))

    for trust in ({}, {"trust_remote_code": True}):
        with pytest.raises((UnsafeFileError, BrokenFileError)) as raised:
            pipeline.pull(empty_cache, **trust)
        assert_sentence(raised.value)

    assert not trap.exists()
    assert not list(empty_cache.rglob("*.py"))
    assert "antigravity" not in sys.modules


AUTO_MAP = {"auto_map": {"AutoConfig": "evil.EvilConfig", "AutoModelForImageClassification": "evil.Evil"}}
KERNEL = {"_attn_implementation": "alice/evil", "attn_implementation": "alice/evil"}


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(AUTO_MAP, id="code"),
        pytest.param(AUTO_MAP | {"model_type": "evil"}, id="code of an unknown type"),
        pytest.param(KERNEL, id="attention kernel"),
        pytest.param({"quantization_config": {"quant_method": "evil", "load_in_4bit": True}}, id="quantization"),
        pytest.param({"text_config": KERNEL}, id="inside"),
    ],
)
def test_a_targets_configuration_runs_no_code(
    hub: Hub, shared: Shared, empty_cache: Path, trap: Path, change: dict, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    shared.rewrite("target_model/config.json", lambda config: config | change)
    for name in ("evil.py", "target_model/evil.py"):
        shared.put(name, EVIL % str(trap))

    for place, how in shared.places(empty_cache):
        with pytest.raises(UnsafeFileError):
            shared.load(place, **how)

    assert not trap.exists()
    assert not hub.requests(None, "alice/evil")


@pytest.mark.parametrize("name", ["pipeline", "PreTrainedModel", "AutoModelForImageClassification", "Evil"])
def test_a_target_whose_class_is_no_network_is_refused(checkpoints: Shared, empty_cache: Path, name: str):
    checkpoints.rewrite("target_model/config.json", lambda config: config | {"architectures": [name]})

    for place, how in checkpoints.places(empty_cache):
        with pytest.raises((UnknownTargetError, BrokenFileError)):
            checkpoints.load(place, **how)


def test_an_adapter_beside_a_target_is_not_followed(hub: Hub, shared: Shared, empty_cache: Path):
    adapter = {"base_model_name_or_path": "alice/evil", "peft_type": "LORA", "revision": None}
    shared.put("target_model/adapter_config.json", json.dumps(adapter).encode())

    for place, how in shared.places(empty_cache):
        with pytest.raises(UnsafeFileError, match="adapter_config"):
            shared.load(place, **how)

    assert not hub.requests(None, "alice/evil")


BERT = {"model_type": "bert", "vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 1, "intermediate_size": 32}
LORA = {"peft_type": "LORA", "target_modules": ["query"]}
ADAPTERS = {
    "tokenizer": {
        "peft_type": "PROMPT_TUNING",
        "task_type": "SEQ_CLS",
        "num_virtual_tokens": 2,
        "token_dim": 32,
        "num_layers": 1,
        "num_attention_heads": 2,
        "num_transformer_submodules": 1,
        "prompt_tuning_init": "TEXT",
        "prompt_tuning_init_text": "evil",
        "tokenizer_name_or_path": "alice/evil",
        "tokenizer_kwargs": {"trust_remote_code": True},
    },
    "module": LORA | {"megatron_config": {"a": 1}, "megatron_core": "antigravity"},
    "base": LORA | {"base_model_name_or_path": "alice/evil"},
}


@pytest.mark.parametrize("adapter", ADAPTERS.values(), ids=list(ADAPTERS))
def test_an_adapter_inside_a_target_fetches_nothing(hub: Hub, shared: Shared, empty_cache: Path, adapter: dict):
    pytest.importorskip("peft")
    config = {"architectures": ["AdaptedModel"], "model_type": "pdiff_adapted", "adapter_config": adapter}
    config |= {"base_class": "BertForSequenceClassification", "base_config": BERT | {"num_attention_heads": 2}}
    shared.rewrite("target_model/config.json", lambda _: config)
    if shared.repo.type == "model":
        shared.rewrite("model_index.json", lambda index: index | {"target_model": ["pdiff_hf", "AdaptedModel"]})

    with pytest.raises((BrokenFileError, UnsafeFileError)):
        shared.pull(empty_cache)

    assert not hub.requests(None, "alice/evil")
    assert "antigravity" not in sys.modules


class Bomb:
    """An object that, unpickled, leaves a file behind."""

    def __init__(self, trap: Path) -> None:
        self.trap = trap

    def __reduce__(self) -> tuple:
        return Path.touch, (self.trap,)


@pytest.mark.parametrize("suffix", ["bin", "pt", "pkl"])
def test_pickled_weights_are_never_read(shared: Shared, empty_cache: Path, trap: Path, suffix: str):
    del shared.repo.at().tree["target_model/model.safetensors"]
    (shared.folder / "target_model/model.safetensors").unlink()
    shared.put(f"target_model/pytorch_model.{suffix}", pickle.dumps(Bomb(trap)))

    for place, how in shared.places(empty_cache):
        with pytest.raises((UnsafeFileError, BrokenFileError), match=r"pickle|safetensors") as raised:
            shared.load(place, **how)
        assert_sentence(raised.value)

    assert not trap.exists()
    assert not list(empty_cache.rglob(f"*.{suffix}"))
