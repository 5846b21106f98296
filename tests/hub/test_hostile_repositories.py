"""Repositories that were made to do harm: nothing of theirs is run, and nothing outside of them is read or shared."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import damage
import peft
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import build
from huggingface_hub import HfApi, snapshot_download
from safetensors.torch import save_file
from transformers import DPTConfig, DPTForSemanticSegmentation, UperNetConfig, UperNetForSemanticSegmentation

import pdiff_hf_cli
from pdiff_hf import (
    AdaptedModel,
    BrokenFileError,
    Checkpoints,
    CheckpointsError,
    PDiffPipeline,
    UnsafeFileError,
    load_checkpoints,
    share,
)
from pdiff_hf.hub.cards import write_network_card
from pdiff_hf.hub.safety import holds_token
from pdiff_hf.pipelines.describing import describe, description_table
from pdiff_hf.pipelines.remote_code import push_remote_code
from pdiff_hf.targets.loading import load_network

from .server import Hub

TOKEN = "hf_alice"
LIBRARIES = (sys.prefix, sys.base_prefix, os.path.realpath(sys.prefix), "/proc", "/sys", "/dev")
OPENED: list[list[str]] = []
sys.addaudithook(
    lambda event, args: [log.append(str(args[0])) for log in OPENED] if event in ("open", "socket.connect") else None
)


@contextmanager
def opened() -> Iterator[list[str]]:
    """Collects what is opened inside of the block, files and connections."""
    OPENED.append([])
    try:
        yield OPENED[-1]
    finally:
        OPENED.pop()


@pytest.fixture
def folder(tiny_pipeline: PDiffPipeline, tmp_path: Path) -> Path:
    """A saved pipeline."""
    tiny_pipeline.save_pretrained(tmp_path / "pipeline")
    return tmp_path / "pipeline"


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes), encoding="utf-8")


# Adapters


def adapted(folder: Path, **changes: object) -> Path:
    """Saves a target with an adapter, whose stored settings are changed."""
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"])
    AdaptedModel.wrap(peft.get_peft_model(build("vit"), config)).save_pretrained(folder)
    stored = json.loads((folder / "config.json").read_text())
    edit(folder / "config.json", adapter_config=stored["adapter_config"] | changes)
    return folder


@pytest.mark.parametrize(
    "changes",
    [
        {"peft_type": "XLORA", "adapters": {"1": "/etc"}},
        {"peft_type": "BOFT"},
        {"peft_type": ["LORA"]},
        {"megatron_config": {"a": 1}, "megatron_core": "evil_of_megatron"},
        {"layer_replication": [[0, 100_000]]},
        {"arrow_config": {"top_k": 1}},
        {"target_modules": "(x+x+)+y"},
        {"target_modules": ["(x+x+)+y"]},
        {"modules_to_save": ["(x+x+)+y"]},
        {"rank_pattern": {"(.*)*q_proj": 1}},
        {"alpha_pattern": {"(.*)*q_proj": 1}},
        {"layers_to_transform": [0], "layers_pattern": "(.*)*"},
    ],
    ids=lambda changes: str(next(reversed(changes))),
)
def test_adapters_import_nothing_and_have_no_patterns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict):
    (tmp_path / "evil_of_megatron.py").write_text("raise SystemExit('run')")
    monkeypatch.syspath_prepend(tmp_path)
    target, start = adapted(tmp_path / "target", **changes), time.monotonic()

    with pytest.raises(UnsafeFileError, match=r"^The adapter"):
        load_network(target, AdaptedModel)

    assert time.monotonic() - start < 5
    assert "evil_of_megatron" not in sys.modules


def test_a_users_pattern_is_saved_as_the_names_that_it_has_found(tmp_path: Path):
    model = peft.get_peft_model(build("vit"), peft.LoraConfig(r=2, target_modules=r".*\.(q|v)_proj"))

    AdaptedModel.wrap(model).save_pretrained(tmp_path)

    loaded = load_network(tmp_path, AdaptedModel)
    assert loaded.state_dict().keys() == {f"peft_model.{name}" for name in model.state_dict()}


# Links, pipes and files elsewhere


def license_link(folder: Path) -> None:
    (folder.parent / "token").write_text("private")
    (folder / "LICENSE").symlink_to("../token")


def logo_link(folder: Path) -> None:
    (folder / "logo.png").symlink_to("/etc/passwd")


def metrics_link(folder: Path) -> None:
    (folder.parent / "credentials").write_text('{"private": 1}')
    (folder / "metrics.json").unlink()
    (folder / "metrics.json").symlink_to("../credentials")


def component_link(folder: Path) -> None:
    (folder / "target_model").rename(folder.parent / "private")
    (folder / "target_model").symlink_to("../private")


def pipe(folder: Path) -> None:
    (folder / "denoiser" / "config.json").unlink()
    os.mkfifo(folder / "denoiser" / "config.json")


def device(folder: Path) -> None:
    (folder / "target_model" / "generation_config.json").symlink_to("/dev/zero")


@pytest.mark.parametrize("spoil", [license_link, logo_link, metrics_link, component_link, pipe, device])
def test_what_is_no_regular_file_of_the_folder_is_neither_read_nor_saved_nor_pushed(
    hub: Hub, folder: Path, repo_id: str, spoil: Callable[[Path], None]
):
    spoil(folder)

    with pytest.raises(UnsafeFileError, match=r"is (a link to|no regular file)"):
        share(folder, repo_id, token=TOKEN)
    with pytest.raises(UnsafeFileError, match=r"is (a link to|no regular file)"):
        PDiffPipeline.from_pretrained(folder).push_to_hub(repo_id, token=TOKEN)

    assert hub.requests("PUT") == hub.requests("POST") == []


def test_a_zoo_that_links_elsewhere_is_not_read(tiny_checkpoints: Checkpoints, tmp_path: Path):
    tiny_checkpoints.save(tmp_path / "zoo")
    (tmp_path / "zoo" / "collection.json").rename(tmp_path / "private.json")
    (tmp_path / "zoo" / "collection.json").symlink_to(tmp_path / "private.json")

    with pytest.raises(UnsafeFileError, match="is a link to"):
        load_checkpoints(tmp_path / "zoo")


def test_a_snapshot_in_the_cache_is_a_folder_like_others(hub: Hub, folder: Path, repo_id: str, empty_cache: Path):
    share(folder, repo_id, token=TOKEN)
    snapshot = Path(snapshot_download(repo_id, token=TOKEN, cache_dir=empty_cache))
    assert (snapshot / "denoiser" / "config.json").is_symlink()

    assert damage.load(snapshot) == "loaded"


@pytest.mark.parametrize(
    "text",
    [
        f"hf_{'aB' * 17}",
        f"TOKEN_hf_{'aB' * 17}x",
        f"api_org_{'aB' * 17}",
        f"hf_oauth_{'eyJhbGciOiJFZERTQSJ9'}.{'aB' * 20}",
        f"hf_jwt_{'eyJhbGciOiJFZERTQSJ9'}.{'aB' * 20}",
        json.dumps(f"hf_{'aB' * 17}").replace("h", r"\u0068").replace("_", r"\u005F"),
        f"hf\\_{'aB' * 17}",
        f"&#104;f&#x5f;{'aB' * 17}",
        f"%68f_{'aB' * 17}",
    ],
)
def test_every_kind_of_token_is_found(tmp_path: Path, text: str):
    for name in ("README.md", "LICENSE", "LICENSE.txt", "a.json", "a.png", "a.safetensors"):
        for encoding in ("utf-8", "utf-16", "utf-32-be"):
            (tmp_path / name).write_text(f"The token is {text}, isn't it?", encoding=encoding)

            assert holds_token(tmp_path / name), (name, encoding)


@pytest.mark.parametrize("text", ["hf_hub_download", "hf_internal_testing_tiny_random_model_name", "HF_" + "A" * 40])
def test_words_are_no_tokens(tmp_path: Path, text: str):
    (tmp_path / "README.md").write_text(text)

    assert not holds_token(tmp_path / "README.md")


@pytest.mark.parametrize("shard", ["../outside.safetensors", "{parent}/outside.safetensors", "weights.bin", 5])
def test_shards_are_files_of_the_folder(tmp_path: Path, shard: object):
    network, target = build("resnet"), tmp_path / "target"
    network.save_pretrained(target)
    (target / "model.safetensors").rename(target / "part.safetensors")
    (tmp_path / "outside.safetensors").write_bytes((target / "part.safetensors").read_bytes())
    torch.save(network.state_dict(), target / "weights.bin")
    shard = shard.format(parent=tmp_path) if isinstance(shard, str) else shard
    index = {"metadata": {}, "weight_map": dict.fromkeys(network.state_dict(), shard)}
    (target / "model.safetensors.index.json").write_text(json.dumps(index))

    with pytest.raises((UnsafeFileError, BrokenFileError)) as raised, opened() as log:
        load_network(target)

    assert re.search(r"not complete in itself|cannot be built", str(raised.value))

    assert not [name for name in log if "outside" in name or name.endswith(".bin")]


ELSEWHERE: dict[str, dict[str, object]] = {
    "backbone": {"backbone": "someone/resnet", "backbone_config": None, "use_timm_backbone": False},
    "timm backbone": {"backbone": "resnet18", "backbone_config": None, "use_timm_backbone": True},
    "nested": {"inner": [{"backbone": "someone/resnet"}]},
    "pretrained": {"use_pretrained_backbone": True},
    "timm": {"architecture": "hf-hub:someone/resnet"},
    "file": {"model_args": {"checkpoint_path": "/etc/passwd"}},
    "kernel": {"_experts_implementation": "someone/kernel"},
}


@pytest.mark.parametrize("changes", ELSEWHERE.values(), ids=ELSEWHERE)
def test_nothing_that_a_configuration_names_is_fetched(hub: Hub, tmp_path: Path, changes: dict):
    upernet().save_pretrained(tmp_path)
    edit(tmp_path / "config.json", **changes)

    with pytest.raises(UnsafeFileError, match="is not complete in itself"), opened() as log:
        load_network(tmp_path)

    assert hub.log == []
    assert outside(log, tmp_path) == []


def upernet() -> UperNetForSemanticSegmentation:
    backbone = build("convnext").config
    backbone.out_features = ["stage1", "stage2"]
    config = UperNetConfig(backbone_config=backbone, hidden_size=8, use_auxiliary_head=False, pool_scales=[1])
    return UperNetForSemanticSegmentation(config)


def dpt() -> DPTForSemanticSegmentation:
    sizes = {"hidden_size": 8, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 8}
    return DPTForSemanticSegmentation(
        DPTConfig(**sizes, image_size=16, patch_size=8, backbone_out_indices=[0, 1, 2, 3], neck_hidden_sizes=[8] * 4)
    )


def outside(log: list[str], folder: Path) -> list[str]:
    """What was opened but files of a folder and of the libraries."""
    return [name for name in log if not name.isdigit() and not name.startswith((str(folder), *LIBRARIES))]


@pytest.mark.parametrize("make", [upernet, dpt])
def test_a_network_with_a_backbone_of_its_own_is_read_and_nothing_else(hub: Hub, tmp_path: Path, make: Callable):
    make().save_pretrained(tmp_path)

    with opened() as log:
        load_network(tmp_path)

    assert hub.log == []
    assert outside(log, tmp_path) == []


# More memory or time than a repository of that size may take


@pytest.mark.parametrize(
    "changes",
    [
        {"num_hidden_layers": 9_999},
        {"num_hidden_layers": 10**4_000},
        {"num_hidden_layers": [9_999] * 9_999},
        {"intermediate_size": 10**9},
        {"image_size": 10**6},
        {"id2label": {str(i): "a" * 1000 for i in range(20_000)}},
    ],
    ids=["layers", "digits", "list", "missing", "buffer", "size"],
)
def test_a_network_takes_no_more_than_its_weights_fill(tmp_path: Path, changes: dict):
    build("vit").save_pretrained(tmp_path)
    sys.set_int_max_str_digits(0)
    edit(tmp_path / "config.json", **changes)
    sys.set_int_max_str_digits(4300)
    save_file({"a": torch.zeros(0)}, tmp_path / "model.safetensors")
    before, start = damage.peak(), time.monotonic()

    with pytest.raises(BrokenFileError):
        load_network(tmp_path)

    assert damage.peak() - before < 2**28
    assert time.monotonic() - start < 10


@pytest.mark.parametrize(
    "name", ["model_index.json", "denoiser/config.json", "target_model/model.safetensors.index.json"]
)
def test_a_configuration_of_a_hundred_megabytes_is_not_read(folder: Path, name: str):
    with (folder / name).open("a") as file:
        file.truncate(100 * 2**20)

    with pytest.raises(BrokenFileError, match="which no such file needs"):
        PDiffPipeline.from_pretrained(folder)


@pytest.mark.parametrize("name", ["model_index.json", "denoiser/config.json", "collection.json"])
def test_a_large_configuration_on_the_hub_is_not_even_fetched(
    hub: Hub, repo_id: str, folder: Path, tiny_checkpoints: Checkpoints, tmp_path: Path, empty_cache: Path, name: str
):
    load, repo_type = PDiffPipeline.from_pretrained, "model"
    if name == "collection.json":
        tiny_checkpoints.save(folder := tmp_path / "zoo")
        load, repo_type = load_checkpoints, "dataset"
    (folder / name).write_text(" " * 11 * 2**20)
    api = HfApi(token=TOKEN)
    api.create_repo(repo_id, repo_type=repo_type)
    api.upload_folder(repo_id=repo_id, repo_type=repo_type, folder_path=folder)
    hub.reset()

    with pytest.raises(
        BrokenFileError, match=rf"'{name}' of the .* has 11534336 bytes, but no .*; it was not fetched"
    ):
        load(repo_id, cache_dir=empty_cache, token=TOKEN)

    assert hub.bytes_sent < 2**20


def string_bomb(rows: int) -> pa.Array:
    return pa.array(["a" * (2**27 // rows)] * rows)


def dictionary_bomb(rows: int) -> pa.Array:
    return pa.array(["a" * 2**23] * rows)


@pytest.mark.parametrize("bomb", [string_bomb, dictionary_bomb])
def test_a_column_that_unpacks_to_far_more_than_the_file_is_refused(
    tiny_checkpoints: Checkpoints, tmp_path: Path, bomb: Callable[[int], pa.Array]
):
    tiny_checkpoints.save(tmp_path)
    (shard,) = (tmp_path / "data").glob("train-*")
    table = pq.read_table(shard)
    table = table.append_column("bomb", bomb(len(table)))
    pq.write_table(table, shard, compression="zstd", use_dictionary=["bomb"] if bomb is dictionary_bomb else False)
    del table
    assert shard.stat().st_size < 2**20
    before = pa.default_memory_pool().bytes_allocated()

    with pytest.raises(CheckpointsError, match="memory, as no trained networks do"):
        load_checkpoints(tmp_path)

    assert pa.default_memory_pool().bytes_allocated() - before < 2**28


def test_vectors_of_nothing_are_refused(tiny_checkpoints: Checkpoints, tmp_path: Path):
    tiny_checkpoints.save(tmp_path)
    (shard,) = (tmp_path / "data").glob("train-*")
    table = pq.read_table(shard)
    many = pa.concat_tables([table.slice(0, 1)] * 250_000).combine_chunks()
    pq.write_table(many, shard, compression="zstd", use_dictionary=False)

    with pytest.raises(CheckpointsError, match="250000 rows would take"):
        load_checkpoints(tmp_path)


# What is shown, written and pushed


def test_a_description_takes_no_string_for_a_size(folder: Path):
    processor = folder / "processor" / "processor_config.json"
    for shapes in (["ab", 10**9], ["a" * 10**6, 10**6]), [[10**39] * 300]:
        stored = json.loads(processor.read_text())
        edit(processor, shapes=shapes * len(stored["names"]))

        with pytest.raises(BrokenFileError, match="cannot be built"):
            describe(folder)


def test_a_description_asks_for_the_configurations_of_components_alone(hub: Hub, folder: Path, repo_id: str):
    share(folder, repo_id, token=TOKEN)
    api = HfApi(token=TOKEN)
    for i in range(20):
        api.upload_file(path_or_fileobj=b"{}", path_in_repo=f"sub{i}/config.json", repo_id=repo_id)
    hub.reset()

    describe(repo_id, token=TOKEN)

    assert not [request for request in hub.log if "/sub" in str(request)]


def test_labels_command_no_terminal(folder: Path, capsys: pytest.CaptureFixture):
    edit(folder / "target_model" / "config.json", id2label={"0": "\x1b]0;owned\x07\x1b[2J", "1": "a\nb\u202e"})

    table = description_table(describe(folder))
    edit(folder / "model_index.json", target_model=["x\x1b[2J", "y"])
    assert pdiff_hf_cli.main(["sample", str(folder), "--output_dir", str(folder.parent / "drawn")]) == 1

    shown = table + "".join(capsys.readouterr())
    assert all(character.isprintable() for character in shown.replace("\n", ""))
    assert "owned" in table


def test_cards_hold_no_html_of_others(tmp_path: Path):
    row = {"generator": "org/<img src=x onerror=alert(1)>", "seed": 0, "index": 0, "temperature": 1.0}
    row |= {"scheduler": "<script>\x1b[2J", "num_inference_steps": 3, "revision": None}

    write_network_card(tmp_path, [row], "MLPForImageClassification", subfolders=False)

    body = (tmp_path / "README.md").read_text().split("---\n", 2)[2]
    assert re.findall(r"<[a-zA-Z]\w*", body) == []
    assert "&lt;script>" in body
    assert "\x1b" not in body


def test_the_branch_with_the_code_holds_nothing_of_others(hub: Hub, folder: Path, repo_id: str):
    share(folder, repo_id, token=TOKEN)
    api = HfApi(token=TOKEN)
    api.create_branch(repo_id, branch="remote-code")
    for name in ("helper.so", "denoiser/weights.bin", "LICENSE"):
        api.upload_file(path_or_fileobj=b"theirs", path_in_repo=name, repo_id=repo_id, revision="remote-code")

    push_remote_code(repo_id, TOKEN)

    names = set(hub.repos["model", repo_id].at("remote-code").tree)
    assert {name for name in names if not name.endswith((".py", ".json", ".safetensors"))} == {
        ".gitattributes",
        "LICENSE",
        "README.md",
    }


def test_the_audit_of_a_zoo_from_the_hub_asks_where_the_images_are(
    hub: Hub, folder: Path, repo_id: str, tiny_checkpoints: Checkpoints, tmp_path: Path, capsys: pytest.CaptureFixture
):
    tiny_checkpoints.collection["settings"]["dataset_name"] = "../private"
    tiny_checkpoints.push_to_hub(f"{repo_id}-zoo", token=TOKEN)
    flags = ["--checkpoints", f"{repo_id}-zoo", "--output_dir", str(tmp_path / "report")]

    assert pdiff_hf_cli.main(["audit", str(folder), *flags]) == 1

    assert re.search(r"is from the Hub, .*--dataset_name \.\./private", capsys.readouterr().err)
