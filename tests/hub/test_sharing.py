"""Pipelines, zoos and drawn networks pushed to the Hub: what arrives, what stays, what is refused, who can use it."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import logging
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import HfApi, ModelCard
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from pdiff_hf import (
    BrokenFileError,
    Checkpoints,
    CheckpointSplit,
    HubAccessError,
    HubConflictError,
    HubNotFoundError,
    HubUnreachableError,
    PDiffPipeline,
    Recipe,
    UnsafeFileError,
    fit,
    load_checkpoints,
    make_processor,
    share,
)
from pdiff_hf.data.images import Preprocessing
from pdiff_hf.hub.cards import PICTURES
from pdiff_hf.zoo import parquet as checkpoint_shards

from .processes import run_python
from .server import Hub
from .waiting import skip_waits

TOKEN = "hf_alice"
TRAINING = Path(__file__).parents[2] / "training"


@pytest.fixture
def api() -> HfApi:
    """The client of alice."""
    return HfApi(token=TOKEN)


@pytest.fixture
def folder(tiny_pipeline: PDiffPipeline, tmp_path: Path) -> Path:
    """A saved pipeline."""
    folder = tmp_path / "pipeline"
    tiny_pipeline.save_pretrained(folder)
    return folder


@pytest.fixture
def resnet_pipeline(tiny_resnet: PreTrainedModel, random_vectors: Callable, tiny_recipe: Recipe) -> PDiffPipeline:
    """A pipeline for the last BatchNorms of a network on images of three channels, with named labels."""
    names = ["bee", "cat", "dog", "emu"]
    tiny_resnet.config.id2label = dict(enumerate(names))
    tiny_resnet.config.label2id = {name: i for i, name in enumerate(names)}
    processor = make_processor(tiny_resnet, "last_norms")
    parameters = random_vectors(tiny_resnet, processor, 12)
    zoo = CheckpointSplit(parameters, run=["run-0"] * 12, step=list(range(12)), seed=[0] * 12)
    preprocessing = Preprocessing(image_size=16, mean=(0.5,) * 3, std=(0.25,) * 3).to_dict()
    return fit(Checkpoints({"train": zoo}, processor, tiny_resnet, preprocessing), tiny_recipe)


def names_on(hub: Hub, repo_id: str, repo_type: str = "model") -> set[str]:
    """The files of a repository's main branch."""
    return set(hub.repos[repo_type, repo_id].at().tree)


def texts_on(hub: Hub, repo_id: str, repo_type: str = "model") -> dict[str, bytes]:
    """The files of a repository's main branch that the Hub keeps as text."""
    tree = hub.repos[repo_type, repo_id].at().tree
    return {name: blob.data for name, blob in tree.items() if blob.sha256 is None}


def titles(hub: Hub, repo_id: str, repo_type: str = "model") -> list[str]:
    """The commits of a repository's main branch, the newest first."""
    return [commit.title for commit in hub.repos[repo_type, repo_id].history()]


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def assert_sentence(error: BaseException) -> None:
    text = str(error)
    assert text.endswith(".")
    assert "\n" not in text
    assert len(text.split()) > 6


# A pipeline and what belongs to it


@pytest.mark.parametrize("source", ["folder", "hub"])
def test_a_loaded_pipeline_keeps_card_metrics_and_pictures(
    hub: Hub, repo_id: str, folder: Path, empty_cache: Path, tmp_path: Path, source: str
):
    for name in (*PICTURES, "LICENSE"):
        (folder / name).write_bytes(f"the {name}".encode())
    attached = {*PICTURES, "LICENSE", "metrics.json"}
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "path/or/id" in card
    if source == "hub":
        share(folder, f"{repo_id}-first", token=TOKEN)
        pipe = PDiffPipeline.from_pretrained(f"{repo_id}-first", cache_dir=empty_cache)
        address = f"{repo_id}-first"
    else:
        pipe = PDiffPipeline.from_pretrained(folder)
        address = "path/or/id"

    pipe.save_pretrained(tmp_path / "again")
    pipe.push_to_hub(repo_id, token=TOKEN)

    saved, original = files_in(tmp_path / "again"), files_in(folder)
    assert saved.keys() == original.keys()
    for name in attached:
        assert saved[name] == original[name], name
    assert saved["README.md"].decode() == card.replace("path/or/id", address)
    assert names_on(hub, repo_id) == {".gitattributes", *original}
    assert texts_on(hub, repo_id)["README.md"].decode() == card.replace("path/or/id", repo_id)
    assert json.loads(texts_on(hub, repo_id)["metrics.json"]) == json.loads(original["metrics.json"])


def test_pushing_the_same_again_makes_no_commit(
    hub: Hub, repo_id: str, tiny_pipeline: PDiffPipeline, folder: Path, empty_cache: Path
):
    first = tiny_pipeline.push_to_hub(repo_id, token=TOKEN)
    again = [
        tiny_pipeline.push_to_hub(repo_id, token=TOKEN),
        share(folder, repo_id, token=TOKEN),
        PDiffPipeline.from_pretrained(folder).push_to_hub(repo_id, token=TOKEN),
        PDiffPipeline.from_pretrained(repo_id, cache_dir=empty_cache).push_to_hub(repo_id, token=TOKEN),
    ]

    assert titles(hub, repo_id) == ["Upload pipeline", "initial commit"]
    assert set(again) == {first}
    assert first.startswith(f"{hub.url}/{repo_id}/commit/")


def test_what_was_loaded_from_the_cache_alone_keeps_its_card_metrics_and_pictures_on_the_hub(
    hub: Hub, repo_id: str, folder: Path, empty_cache: Path
):
    (folder / "embedding.png").write_bytes(b"a picture")
    share(folder, repo_id, token=TOKEN)
    PDiffPipeline.from_pretrained(repo_id, cache_dir=empty_cache)
    pipe = PDiffPipeline.from_pretrained(repo_id, cache_dir=empty_cache, local_files_only=True)

    pipe.push_to_hub(repo_id, token=TOKEN)
    pipe.push_to_hub(f"{repo_id}-2", token=TOKEN)

    assert titles(hub, repo_id) == ["Upload pipeline", "initial commit"]
    assert names_on(hub, f"{repo_id}-2") == names_on(hub, repo_id)


def test_a_push_that_cannot_get_what_belongs_to_the_pipeline_deletes_nothing(
    hub: Hub, repo_id: str, folder: Path, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
):
    skip_waits(monkeypatch)
    share(folder, repo_id, token=TOKEN)
    pipe = PDiffPipeline.from_pretrained(repo_id, cache_dir=empty_cache)
    hub.fail("status", path="/resolve/.*/metrics.json", status=503, times=99)

    with pytest.raises(HubUnreachableError) as raised:
        pipe.push_to_hub(repo_id, token=TOKEN)

    assert_sentence(raised.value)
    assert titles(hub, repo_id) == ["Upload pipeline", "initial commit"]


def test_who_pushes_need_not_see_what_was_loaded(hub: Hub, repo_id: str, folder: Path, empty_cache: Path):
    (folder / "embedding.png").write_bytes(b"a picture")
    share(folder, repo_id, private=True, token=TOKEN)
    pipe = PDiffPipeline.from_pretrained(repo_id, token=TOKEN, cache_dir=empty_cache)
    theirs = repo_id.replace("alice", "bob")

    pipe.push_to_hub(theirs, token="hf_bob")

    assert names_on(hub, theirs) == names_on(hub, repo_id)
    assert texts_on(hub, theirs)["metrics.json"] == texts_on(hub, repo_id)["metrics.json"]


@pytest.mark.parametrize("zoo", ["{id}-zoo", "{id}.zoo", "{name}/zoo", "{id}"])
def test_a_card_that_moves_is_the_card_that_is_made_there(
    hub: Hub, repo_id: str, tiny_pipeline: PDiffPipeline, empty_cache: Path, zoo: str
):
    zoo, new = zoo.format(id=repo_id, name=repo_id.split("/")[1]), f"acme/{repo_id.split('/')[1]}"
    tiny_pipeline.metrics["data"]["checkpoints"] = zoo
    for name in (repo_id, new):
        tiny_pipeline.push_to_hub(name, token=TOKEN)

    PDiffPipeline.from_pretrained(repo_id, cache_dir=empty_cache).push_to_hub(new, token=TOKEN)

    assert titles(hub, new) == ["Upload pipeline", "initial commit"]
    card = texts_on(hub, new)["README.md"].decode()
    assert ModelCard(card).data.datasets == [zoo]
    assert f"Zoo: [{zoo}](https://huggingface.co/datasets/{zoo})." in card
    assert f'PDiffPipeline.from_pretrained("{new}")' in card
    assert f"pdiff-hf audit {new}" in card
    assert f"base_model:{new})" in card


def test_a_card_that_somebody_wrote_by_hand_stays_as_it_is(
    hub: Hub, repo_id: str, folder: Path, empty_cache: Path, tmp_path: Path
):
    own = "---\nlicense: mit\n---\n# Mine\n\nSee path/or/id.\n"
    (folder / "README.md").write_text(own, encoding="utf-8")

    share(folder, repo_id, token=TOKEN)
    pipe = PDiffPipeline.from_pretrained(repo_id, cache_dir=empty_cache)
    pipe.save_pretrained(tmp_path / "again")
    pipe.save_pretrained(folder)

    assert texts_on(hub, repo_id)["README.md"].decode() == own
    assert (tmp_path / "again" / "README.md").read_text(encoding="utf-8") == own
    assert (folder / "README.md").read_text(encoding="utf-8") == own


def test_a_pipeline_whose_folder_has_gone_is_saved_and_pushed_all_the_same(
    hub: Hub, repo_id: str, tiny_pipeline: PDiffPipeline, folder: Path
):
    pipe = PDiffPipeline.from_pretrained(folder)
    shutil.rmtree(folder)

    pipe.push_to_hub(repo_id, token=TOKEN)

    assert {"README.md", "autoencoder/config.json"} <= names_on(hub, repo_id)


def test_files_that_the_new_pipeline_has_not_got_go_and_those_of_others_stay(
    hub: Hub, api: HfApi, repo_id: str, tiny_pipeline: PDiffPipeline, folder: Path, empty_cache: Path
):
    tiny_pipeline.save_pretrained(folder, variant="ema")
    (folder / "embedding.png").write_bytes(b"of the first")
    share(folder, repo_id, token=TOKEN)
    theirs = {"LICENSE": b"MIT", "logo.png": b"a logo", "notes/more.txt": b"more", "demo.ipynb": b"{}"}
    for name, content in theirs.items():
        api.upload_file(path_or_fileobj=content, path_in_repo=name, repo_id=repo_id)
    before = names_on(hub, repo_id)

    tiny_pipeline.push_to_hub(repo_id, token=TOKEN)

    gone = before - names_on(hub, repo_id)
    assert gone == {name for name in before if ".ema." in name} | {"embedding.png"}
    assert len(gone) == 4
    assert theirs.keys() <= names_on(hub, repo_id)
    assert titles(hub, repo_id)[0] == "Upload pipeline"  # in one commit
    assert len(titles(hub, repo_id)) == 2 + len(theirs) + 1
    PDiffPipeline.from_pretrained(repo_id, cache_dir=empty_cache)


def test_another_autoencoder_takes_the_place_of_the_first(
    hub: Hub, repo_id: str, tiny_checkpoints: Checkpoints, tiny_recipe: Recipe, empty_cache: Path
):
    fit(tiny_checkpoints, tiny_recipe).push_to_hub(repo_id, token=TOKEN)
    conv = dataclasses.replace(
        tiny_recipe.autoencoder, type="conv", config={"latent_dim": 8}, max_train_steps=2, train_batch_size=4
    )

    fit(tiny_checkpoints, Recipe(conv, tiny_recipe.denoiser)).push_to_hub(repo_id, token=TOKEN)

    pipe = PDiffPipeline.from_pretrained(repo_id, cache_dir=empty_cache)
    assert type(pipe.autoencoder).__name__ == "ParameterAutoencoder"
    assert titles(hub, repo_id) == ["Upload pipeline", "Upload pipeline", "initial commit"]


def test_save_pretrained_pushes_where_that_is_asked_for(
    hub: Hub, repo_id: str, tiny_pipeline: PDiffPipeline, tmp_path: Path
):
    named, unnamed = repo_id, f"alice/{tmp_path.parent.name}-{repo_id.split('/')[1]}"
    one, other = tmp_path / "one", tmp_path / unnamed.split("/")[1]

    tiny_pipeline.save_pretrained(one, push_to_hub=True, repo_id=named, token=TOKEN, commit_message="Hello")
    tiny_pipeline.save_pretrained(other, push_to_hub=True, private=True, token=TOKEN)

    assert titles(hub, named) == ["Hello", "initial commit"]
    assert titles(hub, unnamed) == ["Upload pipeline", "initial commit"]
    assert hub.repos["model", unnamed].private
    assert names_on(hub, named) == names_on(hub, unnamed) == {".gitattributes", *files_in(one)}
    assert "hf_" not in "".join(path.read_text() for path in one.rglob("*.json"))


# Whose repository


def test_a_private_push_makes_a_private_repository(hub: Hub, repo_id: str, tiny_pipeline: PDiffPipeline):
    tiny_pipeline.push_to_hub(repo_id, private=True, token=TOKEN)
    (creation,) = hub.requests("POST", "/api/repos/create")
    tiny_pipeline.push_to_hub(repo_id, token=TOKEN)
    tiny_pipeline.push_to_hub(repo_id, private=True, token=TOKEN)

    assert json.loads(creation.request_body)["visibility"] == "private"
    assert hub.repos["model", repo_id].private
    assert len(titles(hub, repo_id)) == 2
    with pytest.raises(HubNotFoundError):
        PDiffPipeline.from_pretrained(repo_id, token="hf_bob")


def test_a_public_repository_is_not_taken_for_a_private_one(
    hub: Hub, api: HfApi, repo_id: str, tiny_pipeline: PDiffPipeline
):
    api.create_repo(repo_id)

    with pytest.raises(HubAccessError, match="is public, but a private one was asked for") as raised:
        tiny_pipeline.push_to_hub(repo_id, private=True, token=TOKEN)

    assert_sentence(raised.value)
    assert titles(hub, repo_id) == ["initial commit"]
    assert not hub.requests("PUT")


def test_a_stranger_opens_a_pull_request_that_leaves_the_main_branch_as_it_is(
    hub: Hub, repo_id: str, tiny_pipeline: PDiffPipeline, empty_cache: Path
):
    tiny_pipeline.push_to_hub(repo_id, token=TOKEN)
    tiny_pipeline.register_to_config(default_num_inference_steps=3)

    with pytest.raises(HubAccessError, match="does not allow this") as raised:
        tiny_pipeline.push_to_hub(repo_id, token="hf_bob")
    address = tiny_pipeline.push_to_hub(repo_id, create_pr=True, token="hf_bob")

    assert_sentence(raised.value)
    assert titles(hub, repo_id) == ["Upload pipeline", "initial commit"]
    steps = [
        PDiffPipeline.from_pretrained(repo_id, revision=revision, cache_dir=empty_cache).config[
            "default_num_inference_steps"
        ]
        for revision in ("main", "refs/pr/1")
    ]
    assert steps == [20, 3]
    assert address.endswith(hub.repos["model", repo_id].pull_requests["refs/pr/1"])


# What is refused, before anything is sent


def pickled_weights(folder: Path) -> None:
    (folder / "denoiser/diffusion_pytorch_model.bin").write_bytes(b"pickled")


def training_state(folder: Path) -> None:
    (folder / "checkpoint-3").mkdir()
    (folder / "checkpoint-3/random_states_0.pkl").write_bytes(b"pickled")


def link_to_a_file(folder: Path) -> None:
    (folder.parent / "secret.json").write_text("{}", encoding="utf-8")
    (folder / "more.json").symlink_to(folder.parent / "secret.json")


def link_to_a_folder(folder: Path) -> None:
    shutil.move(folder / "denoiser", folder.parent / "elsewhere")
    (folder / "denoiser").symlink_to(folder.parent / "elsewhere")


def link_to_nothing(folder: Path) -> None:
    (folder / "autoencoder/diffusion_pytorch_model.safetensors").unlink()
    (folder / "autoencoder/diffusion_pytorch_model.safetensors").symlink_to(folder.parent / "unmounted")


def token_in_the_card(folder: Path) -> None:
    with (folder / "README.md").open("a", encoding="utf-8") as card:
        card.write(f"\nexport HF_TOKEN=hf_{'a1B2' * 9}\n")


def token_in_the_metrics(folder: Path) -> None:
    (folder / "metrics.json").write_text(json.dumps({"data": {"token": f"hf_{'x' * 34}"}}), encoding="utf-8")


def no_pipeline(folder: Path) -> None:
    (folder / "model_index.json").unlink()


@pytest.mark.parametrize(
    "spoil",
    [
        pickled_weights,
        training_state,
        link_to_a_file,
        link_to_a_folder,
        link_to_nothing,
        token_in_the_card,
        token_in_the_metrics,
        no_pipeline,
    ],
)
def test_what_must_not_be_shared_is_refused_before_anything_is_sent(
    hub: Hub, repo_id: str, folder: Path, spoil: Callable[[Path], None]
):
    spoil(folder)

    with pytest.raises(UnsafeFileError) as raised:
        share(folder, repo_id, token=TOKEN)

    assert_sentence(raised.value)
    assert "hf_" not in str(raised.value)
    assert hub.log == []


@pytest.mark.parametrize("name", ["metrics.json", "model_index.json", "denoiser/config.json"])
def test_a_damaged_file_is_named(hub: Hub, repo_id: str, folder: Path, name: str):
    (folder / name).write_text('{"half": ', encoding="utf-8")

    with pytest.raises(BrokenFileError, match=f"{name}' is no JSON file"):
        share(folder, repo_id, token=TOKEN)

    assert not hub.requests("PUT")
    assert titles(hub, repo_id) == ["initial commit"]


def test_hidden_files_stay_here(hub: Hub, repo_id: str, folder: Path):
    for name in (".env", ".git/config", ".cache/huggingface/x.metadata", "denoiser/.DS_Store", ".checkpoints/a.bin"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"private")

    share(folder, repo_id, token=TOKEN)

    hidden = {name for name in names_on(hub, repo_id) if any(part.startswith(".") for part in name.split("/"))}
    assert hidden == {".gitattributes"}
    assert b"private" not in texts_on(hub, repo_id)[".gitattributes"]


@pytest.mark.parametrize("repo_type", ["model", "dataset"])
def test_no_place_of_this_machine_reaches_the_hub(
    hub: Hub, repo_id: str, tiny_checkpoints: Checkpoints, tiny_recipe: Recipe, tmp_path: Path, repo_type: str
):
    images, trained = tmp_path / "my-images", tmp_path / "my-target"
    images.mkdir()
    settings = tiny_checkpoints.collection["settings"]
    settings |= {"dataset_name": str(images), "model_name_or_path": str(trained)}
    tiny_checkpoints.save(tmp_path / "zoo")
    zoo = load_checkpoints(tmp_path / "zoo")
    fit(zoo, tiny_recipe).save_pretrained(tmp_path / "pipeline")
    pipe = PDiffPipeline.from_pretrained(tmp_path / "pipeline")
    pipe.save_pretrained(tmp_path / "again")

    if repo_type == "dataset":
        share(tmp_path / "zoo", repo_id, token=TOKEN)
        zoo.push_to_hub(f"{repo_id}-2", token=TOKEN)
    else:
        share(tmp_path / "again", repo_id, token=TOKEN)
        pipe(2).push_to_hub(f"{repo_id}-2", token=TOKEN)

    for name in (repo_id, f"{repo_id}-2"):
        for path, content in texts_on(hub, name, repo_type).items():
            assert str(tmp_path) not in content.decode(), path
    published = {name: content.decode() for name, content in texts_on(hub, repo_id, repo_type).items()}
    assert "`my-images`" in published["README.md"]
    told = json.loads(published["collection.json" if repo_type == "dataset" else "metrics.json"])
    told = told["settings"] if repo_type == "dataset" else told["data"]["collection"]
    assert (told["dataset_name"], told["model_name_or_path"]) == ("my-images", "my-target")
    here = json.loads((tmp_path / "zoo/collection.json").read_text(encoding="utf-8"))
    assert here["settings"]["dataset_name"] == str(images)  # where the images are found again


# Somebody else at the same time


@pytest.fixture
def before_the_next_commit(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], None]:
    """A function that has something done when the next commit has arrived at the Hub, and before it is looked at."""
    skip_waits(monkeypatch)

    def plan(act: Callable[[], object]) -> None:
        planned, take_fault = [act], hub.take_fault

        def act_once(method: str, target: str) -> object:
            if method == "POST" and "/commit/" in target and planned:
                planned.pop()()
            return take_fault(method, target)

        monkeypatch.setattr(hub, "take_fault", act_once)

    return plan


@pytest.mark.parametrize(
    "theirs", ["scheduler/scheduler_config.json", "autoencoder/config.json", "denoiser/new.json", "README.md"]
)
def test_a_change_that_someone_makes_meanwhile_to_a_file_of_ours_survives(
    hub: Hub, api: HfApi, repo_id: str, tiny_pipeline: PDiffPipeline, before_the_next_commit: Callable, theirs: str
):
    tiny_pipeline.push_to_hub(repo_id, token=TOKEN)
    tiny_pipeline.scheduler.register_to_config(solver_order=1)
    card = b"---\nlicense: mit\n---\nTheirs\n"
    before_the_next_commit(
        lambda: api.upload_file(path_or_fileobj=card, path_in_repo=theirs, repo_id=repo_id, commit_message="Theirs")
    )

    with pytest.raises(HubConflictError, match="Someone else has changed") as raised:
        tiny_pipeline.push_to_hub(repo_id, token=TOKEN)

    assert_sentence(raised.value)
    assert titles(hub, repo_id) == ["Theirs", "Upload pipeline", "initial commit"]
    assert texts_on(hub, repo_id)[theirs] == card


@pytest.mark.parametrize("theirs", ["scheduler/scheduler_config.json", "preprocessor_config.json"])
def test_what_someone_deletes_meanwhile_is_not_put_back(
    hub: Hub, api: HfApi, repo_id: str, tiny_pipeline: PDiffPipeline, before_the_next_commit: Callable, theirs: str
):
    tiny_pipeline.push_to_hub(repo_id, token=TOKEN)
    tiny_pipeline.scheduler.register_to_config(solver_order=1)
    before_the_next_commit(lambda: api.delete_file(theirs, repo_id, commit_message="Theirs"))

    with pytest.raises(HubConflictError, match="Someone else has changed"):
        tiny_pipeline.push_to_hub(repo_id, token=TOKEN)

    assert titles(hub, repo_id)[0] == "Theirs"
    assert theirs not in names_on(hub, repo_id)


def test_changes_to_other_files_meanwhile_and_ours_both_survive(
    hub: Hub, api: HfApi, repo_id: str, tiny_pipeline: PDiffPipeline, before_the_next_commit: Callable
):
    tiny_pipeline.push_to_hub(repo_id, token=TOKEN)
    tiny_pipeline.scheduler.register_to_config(solver_order=1)
    license = {"path_or_fileobj": b"MIT", "path_in_repo": "LICENSE"}
    before_the_next_commit(lambda: api.upload_file(**license, repo_id=repo_id, commit_message="Theirs"))

    tiny_pipeline.push_to_hub(repo_id, token=TOKEN)

    assert titles(hub, repo_id) == ["Upload pipeline", "Theirs", "Upload pipeline", "initial commit"]
    assert texts_on(hub, repo_id)["LICENSE"] == b"MIT"
    assert json.loads(texts_on(hub, repo_id)["scheduler/scheduler_config.json"])["solver_order"] == 1


def test_a_push_on_top_of_a_commit_fails_where_the_branch_has_moved(
    hub: Hub, api: HfApi, repo_id: str, tiny_pipeline: PDiffPipeline, folder: Path
):
    tiny_pipeline.push_to_hub(repo_id, token=TOKEN)
    seen = api.model_info(repo_id).sha
    api.upload_file(path_or_fileobj=b"MIT", path_in_repo="LICENSE", repo_id=repo_id)
    (folder / "embedding.png").write_bytes(b"a picture")

    with pytest.raises(HubConflictError):
        share(folder, repo_id, parent_commit=seen, token=TOKEN)
    share(folder, repo_id, parent_commit=api.model_info(repo_id).sha, token=TOKEN)

    assert {"LICENSE", "embedding.png"} <= names_on(hub, repo_id)


# Checkpoints datasets

READ_ROWS = """
import os, sys
import numpy as np
from datasets import load_dataset

repo_id, out = {repo_id!r}, {out!r}
loaded, streamed = load_dataset(repo_id), load_dataset(repo_id, streaming=True)
arrays = {{}}
for split in ("train", "validation", "test"):
    for way, rows in (("loaded", loaded[split]), ("streamed", streamed[split])):
        rows = list(rows)
        arrays[f"{{way}}-{{split}}"] = np.array([row["parameters"] for row in rows], dtype=np.float32)
        arrays[f"{{way}}-{{split}}-runs"] = np.array([row["run"] for row in rows])
        arrays[f"{{way}}-{{split}}-steps"] = np.array([row["step"] for row in rows])
np.savez(out, **arrays)
"""


def assert_equal(zoo: CheckpointSplit, expected: CheckpointSplit) -> None:
    assert torch.equal(zoo.parameters, expected.parameters)
    for name in ("run", "step", "seed"):
        assert getattr(zoo, name) == getattr(expected, name)
    for name in ("validation_score", "validation_loss"):
        assert np.array_equal(np.float32(getattr(zoo, name)), np.float32(getattr(expected, name)), equal_nan=True)


def test_a_pushed_zoo_is_read_bit_for_bit_with_and_without_this_package(
    hub: Hub,
    repo_id: str,
    tiny_checkpoints: Checkpoints,
    empty_cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(checkpoint_shards, "SHARD_BYTES", 2000)
    tiny_checkpoints.push_to_hub(repo_id, token=TOKEN)

    code = READ_ROWS.format(repo_id=repo_id, out=str(tmp_path / "rows.npz"))
    run_python(code, hub, cache=empty_cache, token=None, block_package=True)
    loaded = load_checkpoints(repo_id, cache_dir=tmp_path / "cache")

    rows = np.load(tmp_path / "rows.npz")
    for split, zoo in tiny_checkpoints.splits.items():
        for way in ("loaded", "streamed"):
            assert np.array_equal(rows[f"{way}-{split}"], zoo.parameters.numpy())
            assert rows[f"{way}-{split}-runs"].tolist() == zoo.run
            assert rows[f"{way}-{split}-steps"].tolist() == zoo.step
        assert_equal(loaded.splits[split], zoo)
    assert loaded.preprocessing == tiny_checkpoints.preprocessing
    average = loaded.processor.flatten(loaded.target_model.state_dict())
    torch.testing.assert_close(average, tiny_checkpoints.zoo.parameters.mean(0))
    shards = {name for name in names_on(hub, repo_id, "dataset") if name.startswith("data/train-")}
    assert shards == {f"data/train-{i:05d}-of-00005.parquet" for i in range(5)}


def test_shards_that_a_zoo_no_longer_has_go(
    hub: Hub, repo_id: str, tiny_checkpoints: Checkpoints, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(checkpoint_shards, "SHARD_BYTES", 2000)
    tiny_checkpoints.push_to_hub(repo_id, token=TOKEN)
    monkeypatch.undo()

    tiny_checkpoints.push_to_hub(repo_id, token=TOKEN, commit_message="In one piece")
    tiny_checkpoints.push_to_hub(repo_id, token=TOKEN)

    assert {name for name in names_on(hub, repo_id, "dataset") if name.startswith("data/")} == {
        f"data/{split}-00000-of-00001.parquet" for split in ("train", "validation", "test")
    }
    assert titles(hub, repo_id, "dataset") == ["In one piece", "Upload checkpoints dataset", "initial commit"]
    assert_equal(load_checkpoints(repo_id, cache_dir=empty_cache).zoo, tiny_checkpoints.zoo)


def test_a_private_zoo_is_read_with_a_token_alone(
    hub: Hub, repo_id: str, tiny_checkpoints: Checkpoints, empty_cache: Path
):
    tiny_checkpoints.push_to_hub(repo_id, private=True, token=TOKEN)

    with pytest.raises(HubNotFoundError, match="that this token can see") as raised:
        load_checkpoints(repo_id, cache_dir=empty_cache)

    assert_sentence(raised.value)
    loaded = load_checkpoints(repo_id, token=TOKEN, cache_dir=empty_cache)
    assert_equal(loaded.zoo, tiny_checkpoints.zoo)


def test_a_generator_links_to_the_zoo_that_it_was_fitted_to(
    hub: Hub, repo_id: str, tiny_checkpoints: Checkpoints, tiny_recipe: Recipe, empty_cache: Path, tmp_path: Path
):
    zoo_id = f"{repo_id}-zoo"
    tiny_checkpoints.save(tmp_path / "zoo")
    assert "repo_id" not in json.loads((tmp_path / "zoo/collection.json").read_text(encoding="utf-8"))

    share(tmp_path / "zoo", zoo_id, token=TOKEN)
    share(tmp_path / "zoo", zoo_id, token=TOKEN)
    fit(load_checkpoints(tmp_path / "zoo"), tiny_recipe).push_to_hub(repo_id, token=TOKEN)
    fit(load_checkpoints(zoo_id, cache_dir=empty_cache), tiny_recipe).push_to_hub(f"{repo_id}-2", token=TOKEN)

    assert json.loads((tmp_path / "zoo/collection.json").read_text(encoding="utf-8"))["repo_id"] == zoo_id
    assert len(titles(hub, zoo_id, "dataset")) == 2
    for name in (repo_id, f"{repo_id}-2"):
        card = ModelCard(texts_on(hub, name)["README.md"].decode())
        assert card.data.datasets == [zoo_id]
        assert f"[{zoo_id}](https://huggingface.co/datasets/{zoo_id})" in card.text
        assert json.loads(texts_on(hub, name)["metrics.json"])["data"]["checkpoints"] == zoo_id


# Drawn networks

CLASSIFY = """
import json
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline

repo_id = {repo_id!r}
images = load_file({images!r})["images"]
logits = {{}}
with torch.no_grad():
    for name, place in (("0", {{"subfolder": "00000"}}), ("1", {{"subfolder": "00001"}})):
        logits[name] = AutoModelForImageClassification.from_pretrained(repo_id, **place)(images).logits.tolist()
    alone = AutoModelForImageClassification.from_pretrained(repo_id + "-00001")
    logits["alone"] = alone(images).logits.tolist()
    photo = Image.effect_mandelbrot((40, 30), (-3, -2.5, 2, 2.5), 100).convert("RGB")
    pixels = AutoImageProcessor.from_pretrained(repo_id + "-00001")(photo, return_tensors="pt")["pixel_values"]
    expected = alone(pixels).logits.softmax(-1)[0]
found = pipeline("image-classification", repo_id + "-00001")(photo)
print(json.dumps({{
    "logits": logits,
    "size": list(pixels.shape),
    "expected": dict(zip(alone.config.id2label.values(), expected.tolist())),
    "found": {{answer["label"]: answer["score"] for answer in found}},
}}))
"""


def test_drawn_networks_are_ordinary_ones_to_plain_transformers(
    hub: Hub,
    repo_id: str,
    resnet_pipeline: PDiffPipeline,
    random_images: Callable,
    empty_cache: Path,
    tmp_path: Path,
):
    images = random_images(resnet_pipeline.target_model, 3)
    save_file({"images": images}, tmp_path / "images.safetensors")
    out = resnet_pipeline(2, generator=generators(5, 6))

    together = out.push_to_hub(repo_id, token=TOKEN)
    each = out.push_to_hub(repo_id, one_repository_each=True, token=TOKEN)
    code = CLASSIFY.format(repo_id=repo_id, images=str(tmp_path / "images.safetensors"))
    said = json.loads(run_python(code, hub, cache=empty_cache, token=None, block_package=True).splitlines()[-1])

    expected = [network(images).logits for network in out.models]
    assert torch.equal(torch.tensor(said["logits"]["0"]), expected[0])
    assert torch.equal(torch.tensor(said["logits"]["1"]), expected[1])
    assert torch.equal(torch.tensor(said["logits"]["alone"]), expected[1])
    assert said["size"] == [1, 3, 16, 16]
    assert said["found"].keys() == {"bee", "cat", "dog", "emu"}
    assert said["found"] == pytest.approx(said["expected"], abs=1e-6)
    assert len(together) == 1
    assert [address.split("/commit/")[0] for address in each] == [f"{hub.url}/{repo_id}-0000{i}" for i in (0, 1)]


def test_a_drawn_network_says_where_it_came_from_and_can_be_drawn_again(
    hub: Hub, repo_id: str, tiny_pipeline: PDiffPipeline, empty_cache: Path, tmp_path: Path
):
    tiny_pipeline.push_to_hub(repo_id, token=TOKEN)
    pipe = PDiffPipeline.from_pretrained(repo_id, cache_dir=empty_cache)
    drawn = f"{repo_id}-drawn"

    pipe(3, generator=torch.Generator().manual_seed(7), temperature=0.5, num_inference_steps=6).push_to_hub(
        drawn, token=TOKEN
    )

    said = json.loads(texts_on(hub, drawn)["00002/provenance.json"])
    assert said["generator"] == repo_id
    assert said["revision"] == hub.repos["model", repo_id].branches["main"]
    assert (said["seed"], said["index"], said["temperature"], said["num_inference_steps"]) == (7, 2, 0.5, 6)
    assert ModelCard(texts_on(hub, drawn)["README.md"].decode()).data.base_model == repo_id
    again = PDiffPipeline.from_pretrained(said["generator"], revision=said["revision"], cache_dir=empty_cache)(
        3,
        generator=torch.Generator().manual_seed(said["seed"]),
        temperature=said["temperature"],
        num_inference_steps=said["num_inference_steps"],
    )
    again.save_pretrained(tmp_path / "again")
    weights = load_file(tmp_path / "again/00002/model.safetensors")
    blob = hub.repos["model", drawn].at().tree["00002/model.safetensors"]
    pushed = load_file(hub.objects.path(blob.sha256))
    assert weights.keys() == pushed.keys()
    assert all(torch.equal(weights[name], pushed[name]) for name in weights)


def test_fewer_networks_take_the_place_of_more(hub: Hub, repo_id: str, tiny_pipeline: PDiffPipeline):
    tiny_pipeline(3, generator=generators(0, 1, 2)).push_to_hub(repo_id, token=TOKEN)
    fewer = tiny_pipeline(2, generator=generators(0, 1))

    fewer.push_to_hub(repo_id, token=TOKEN)
    fewer.push_to_hub(repo_id, token=TOKEN)

    assert {name.split("/")[0] for name in names_on(hub, repo_id)} == {".gitattributes", "README.md", "00000", "00001"}
    assert titles(hub, repo_id) == ["Upload drawn networks"] * 2 + ["initial commit"]


# The scripts

COLLECT = [
    *("--dataset_name", "digits", "--image_size", "8"),
    *("--model_type", "pdiff_mlp", "--model_config", '{"hidden_sizes": [8]}', "--subset", "head"),
    *("--target_train_steps", "20", "--train_batch_size", "32", "--burn_in_steps", "0", "--num_blocks", "2"),
    *("--num_checkpoints", "16", "--num_validation_checkpoints", "4", "--num_test_checkpoints", "4", "--gap", "3"),
]
FEW_STEPS = ["--max_train_steps", "3", "--train_batch_size", "4", "--checkpointing_steps", "1"]
CLIENTS = ("huggingface_hub", "httpx2", "httpcore2", "diffusers", "transformers", "datasets", "accelerate", "pdiff_hf")


def run_script(name: str, *arguments: str | Path) -> None:
    """Runs a script of `training/`, which is no package, in this process."""
    spec = importlib.util.spec_from_file_location(f"shared_script_{name}", TRAINING / f"{name}.py")
    script = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = script
    spec.loader.exec_module(script)
    script.main([str(argument) for argument in arguments])


class Remembering(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """All that the libraries which come to know the token have to say, down to the last detail."""
    remembering = Remembering()
    for name in CLIENTS:
        monkeypatch.setattr(logging.getLogger(name), "handlers", [remembering])
        monkeypatch.setattr(logging.getLogger(name), "propagate", False)
        caplog.set_level(logging.DEBUG, name)
    return remembering.messages


def test_the_scripts_push_what_they_make_and_never_the_token(
    hub: Hub, repo_id: str, tmp_path: Path, capfd: pytest.CaptureFixture, logged: list[str]
):
    zoo_id = f"{repo_id}-zoo"
    push = ["--push_to_hub", "--hub_token", TOKEN, "--hub_private_repo", "--hub_model_id"]
    zoo, pipeline = ["--checkpoints", tmp_path / "zoo"], ["--pipeline", tmp_path / "pipeline"]

    run_script("collect_trajectory", *COLLECT, "--output_dir", tmp_path / "zoo", *push, zoo_id)
    run_script("train_autoencoder", *zoo, "--output_dir", tmp_path / "autoencoder", "--config", '{"latent_dim": 4}')
    stages = [*zoo, "--autoencoder", tmp_path / "autoencoder", "--config", '{"width": 16}', *FEW_STEPS]
    run_script("train_denoiser", *stages, "--output_dir", tmp_path / "pipeline", *push, repo_id)
    few = ["--num_models", "3", "--num_baseline_models", "3", "--output_dir", tmp_path / "report"]
    run_script("evaluate_pipeline", *pipeline, *zoo, *few, *push, repo_id)

    assert hub.repos["model", repo_id].private
    assert hub.repos["dataset", zoo_id].private
    assert titles(hub, zoo_id, "dataset") == ["Upload checkpoints dataset", "initial commit"]
    assert titles(hub, repo_id) == ["Upload pipeline", "Upload pipeline", "initial commit"]
    assert names_on(hub, repo_id) == {".gitattributes", *files_in(tmp_path / "pipeline")}
    assert names_on(hub, zoo_id, "dataset") == {".gitattributes", *files_in(tmp_path / "zoo")}
    assert set(PICTURES) <= names_on(hub, repo_id)
    assert not [name for name in names_on(hub, repo_id) if "checkpoint-" in name or "state" in name]
    card = ModelCard(texts_on(hub, repo_id)["README.md"].decode())
    assert card.data.datasets == [zoo_id]
    assert card.data.eval_results

    assert {path.name for path in tmp_path.iterdir()} >= {"pipeline-state", "zoo-state"}
    for name, content in files_in(tmp_path).items():
        assert TOKEN.encode() not in content, name
    printed = capfd.readouterr()
    assert TOKEN not in printed.out + printed.err
    assert len(logged) > 100
    assert not [message for message in logged if TOKEN in message]
    for request in hub.log:
        header = {name.lower(): value for name, value in request.request_headers.items()}.pop("authorization", None)
        assert header == (None if request.origin == "cdn" else f"Bearer {TOKEN}"), request.target
        assert TOKEN not in request.target
        assert TOKEN.encode() not in request.request_body
    for blob in hub.repos["model", repo_id].at().tree.values():
        assert TOKEN.encode() not in (hub.objects.path(blob.sha256).read_bytes() if blob.sha256 else blob.data)


def test_a_wrong_token_is_found_before_anything_is_done(
    hub: Hub, repo_id: str, tiny_checkpoints: Checkpoints, tiny_pipeline: PDiffPipeline, tmp_path: Path
):
    tiny_checkpoints.save(tmp_path / "zoo")
    tiny_pipeline.save_pretrained(tmp_path / "pipeline")
    zoo, before = ["--checkpoints", tmp_path / "zoo"], files_in(tmp_path)
    push = ["--push_to_hub", "--hub_model_id", repo_id, "--output_dir", tmp_path / "out", "--hub_token"]
    scripts = {
        "collect_trajectory": COLLECT,
        "train_denoiser": [*zoo, "--autoencoder", tmp_path / "none"],
        "evaluate_pipeline": [*zoo, "--pipeline", tmp_path / "pipeline"],
    }

    for name, arguments in scripts.items():
        for token, sentence in (("hf_mistyped", "does not know the token"), ("hf_bob", "does not allow this")):
            with pytest.raises(HubAccessError, match=sentence) as raised:
                run_script(name, *arguments, *push, token)
            assert_sentence(raised.value)
            assert token not in str(raised.value)

    assert files_in(tmp_path) == before
    assert {path.name for path in tmp_path.iterdir()} == {"zoo", "pipeline"}
    assert not hub.requests("PUT")
    assert not [key for key in hub.repos if key[1] == repo_id]
