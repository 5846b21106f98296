"""Pipelines pushed to the Hub: what arrives, what stays, what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from pdiff_hf import (
    BrokenFileError,
    Checkpoints,
    HubAccessError,
    HubUnreachableError,
    PDiffPipeline,
    Recipe,
    UnsafeFileError,
    fit,
    load_checkpoints,
    share,
)

from .cases import assert_clear, assert_sentence, files_in
from .server import Hub

TOKEN = "hf_alice"
PICTURES = ("accuracy_similarity.png", "embedding.png")


# A pipeline and what belongs to it


@pytest.mark.parametrize("source", ["folder", "hub", "cache", "hub, with a card of one's own"])
def test_a_loaded_pipeline_keeps_card_metrics_and_figures(
    hub: Hub, repo_id: str, saved_pipeline: Path, empty_cache: Path, tmp_path: Path, source: str
):
    for name in (*PICTURES, "LICENSE"):
        (saved_pipeline / name).write_bytes(f"the {name}".encode())
    if source.endswith("own"):
        (saved_pipeline / "README.md").write_text("---\nlicense: mit\n---\n# Mine\n\nSee another/one.\n")
    card, first = (saved_pipeline / "README.md").read_text(encoding="utf-8"), f"{repo_id}-first"
    address = "path/or/id" if source == "folder" else first
    if source == "folder":
        pipe = PDiffPipeline.from_pretrained(saved_pipeline)
    else:
        share(saved_pipeline, first, token=TOKEN)
        pipe = PDiffPipeline.from_pretrained(first, cache_dir=empty_cache)
    if source == "cache":  # from which a push fetches what else there is
        pipe = PDiffPipeline.from_pretrained(first, cache_dir=empty_cache, local_files_only=True)

    pipe.push_to_hub(repo_id, token=TOKEN)
    pipe.save_pretrained(tmp_path / "again")

    saved, original = files_in(tmp_path / "again"), files_in(saved_pipeline)
    assert saved.keys() == original.keys()
    for name in (*PICTURES, "LICENSE", "metrics.json"):
        assert saved[name] == original[name], name
    assert saved["README.md"].decode() == card.replace("path/or/id", address)
    assert hub.files(repo_id).keys() == {".gitattributes", *original}
    assert hub.card(repo_id) == card.replace("path/or/id", repo_id)
    assert json.loads(hub.files(repo_id)["metrics.json"]) == json.loads(original["metrics.json"])


def test_pushing_the_same_again_makes_no_commit(
    hub: Hub, repo_id: str, tiny_pipeline: PDiffPipeline, saved_pipeline: Path, empty_cache: Path
):
    first = tiny_pipeline.push_to_hub(repo_id, token=TOKEN)
    again = [
        tiny_pipeline.push_to_hub(repo_id, token=TOKEN),
        share(saved_pipeline, repo_id, token=TOKEN),
        PDiffPipeline.from_pretrained(saved_pipeline).push_to_hub(repo_id, token=TOKEN),
        PDiffPipeline.from_pretrained(repo_id, cache_dir=empty_cache).push_to_hub(repo_id, token=TOKEN),
    ]

    assert hub.titles(repo_id) == ["Upload pipeline", "initial commit"]
    assert set(again) == {first}
    assert first.startswith(f"{hub.url}/{repo_id}/commit/")


@pytest.mark.usefixtures("waits")
def test_a_push_that_cannot_get_what_belongs_to_the_pipeline_deletes_nothing(
    hub: Hub, repo_id: str, saved_pipeline: Path, empty_cache: Path
):
    share(saved_pipeline, repo_id, token=TOKEN)
    pipe = PDiffPipeline.from_pretrained(repo_id, cache_dir=empty_cache)
    hub.fail("status", path="/resolve/.*/README.md", status=503, times=99)

    with pytest.raises(HubUnreachableError) as raised:
        pipe.push_to_hub(repo_id, token=TOKEN)

    assert_clear(raised.value)
    assert hub.titles(repo_id) == ["Upload pipeline", "initial commit"]


def test_who_pushes_need_not_see_what_was_loaded(hub: Hub, repo_id: str, saved_pipeline: Path, empty_cache: Path):
    (saved_pipeline / "embedding.png").write_bytes(b"a figure")
    share(saved_pipeline, repo_id, private=True, token=TOKEN)
    pipe = PDiffPipeline.from_pretrained(repo_id, token=TOKEN, cache_dir=empty_cache)
    theirs = repo_id.replace("alice", "bob")

    pipe.push_to_hub(theirs, token="hf_bob")

    assert hub.files(theirs).keys() == hub.files(repo_id).keys()
    assert hub.files(theirs)["metrics.json"] == hub.files(repo_id)["metrics.json"]


def test_a_pipeline_whose_folder_has_gone_is_pushed_all_the_same(hub: Hub, repo_id: str, saved_pipeline: Path):
    pipe = PDiffPipeline.from_pretrained(saved_pipeline)
    shutil.rmtree(saved_pipeline)

    pipe.push_to_hub(repo_id, token=TOKEN)

    assert {"README.md", "autoencoder/config.json"} <= hub.files(repo_id).keys()


def test_files_that_the_new_pipeline_has_not_got_go_and_those_of_others_stay(
    hub: Hub, api: HfApi, repo_id: str, tiny_pipeline: PDiffPipeline, saved_pipeline: Path, empty_cache: Path
):
    tiny_pipeline.save_pretrained(saved_pipeline, variant="ema")
    (saved_pipeline / "embedding.png").write_bytes(b"of the first")
    share(saved_pipeline, repo_id, token=TOKEN)
    theirs = {"LICENSE": b"MIT", "logo.png": b"a logo", "notes/more.txt": b"more"}
    for name, content in theirs.items():
        api.upload_file(path_or_fileobj=content, path_in_repo=name, repo_id=repo_id)
    before = hub.files(repo_id).keys()

    tiny_pipeline.push_to_hub(repo_id, token=TOKEN)

    gone = before - hub.files(repo_id).keys()
    assert gone == {name for name in before if ".ema." in name} | {"embedding.png"}
    assert len(gone) == 4
    assert theirs.items() <= hub.files(repo_id).items()
    assert hub.titles(repo_id)[0] == "Upload pipeline"  # in one commit
    assert len(hub.titles(repo_id)) == 2 + len(theirs) + 1
    PDiffPipeline.from_pretrained(repo_id, cache_dir=empty_cache)


def test_save_pretrained_pushes_where_that_is_asked_for(
    hub: Hub, repo_id: str, tiny_pipeline: PDiffPipeline, tmp_path: Path
):
    one, other = tmp_path / "one", tmp_path / f"{repo_id.split('/')[1]}-unnamed"

    tiny_pipeline.save_pretrained(one, push_to_hub=True, repo_id=repo_id, token=TOKEN, commit_message="Hello")
    tiny_pipeline.save_pretrained(other, push_to_hub=True, private=True, token=TOKEN)

    assert hub.titles(repo_id) == ["Hello", "initial commit"]
    assert hub.titles(f"{repo_id}-unnamed") == ["Upload pipeline", "initial commit"]
    assert hub.repos["model", f"{repo_id}-unnamed"].private
    assert hub.files(repo_id).keys() == {".gitattributes", *files_in(one)}
    assert "hf_" not in "".join(path.read_text() for path in one.rglob("*.json"))


# Whose repository


def test_a_private_push_makes_a_private_repository_and_takes_no_public_one(
    hub: Hub, api: HfApi, repo_id: str, tiny_pipeline: PDiffPipeline
):
    for private in (True, None, True):
        tiny_pipeline.push_to_hub(repo_id, private=private, token=TOKEN)
    assert hub.repos["model", repo_id].private
    assert json.loads(hub.requests("POST", "/api/repos/create")[0].request_body)["visibility"] == "private"
    assert len(hub.titles(repo_id)) == 2

    hub.reset()
    api.create_repo(f"{repo_id}-public")
    with pytest.raises(HubAccessError, match="is public, but a private one was asked for") as raised:
        tiny_pipeline.push_to_hub(f"{repo_id}-public", private=True, token=TOKEN)

    assert_clear(raised.value, f"{repo_id}-public")
    assert hub.titles(f"{repo_id}-public") == ["initial commit"]
    assert not hub.requests("PUT")


def test_a_stranger_opens_a_pull_request_that_leaves_the_main_branch_as_it_is(
    hub: Hub, pushed: str, tiny_pipeline: PDiffPipeline, empty_cache: Path
):
    tiny_pipeline.register_to_config(default_num_inference_steps=3)

    address = tiny_pipeline.push_to_hub(pushed, create_pr=True, token="hf_bob")

    assert hub.titles(pushed) == ["Upload pipeline", "initial commit"]
    steps = [
        PDiffPipeline.from_pretrained(pushed, revision=revision, cache_dir=empty_cache).config[
            "default_num_inference_steps"
        ]
        for revision in ("main", "refs/pr/1")
    ]
    assert steps == [20, 3]
    assert address.endswith(hub.repos["model", pushed].pull_requests["refs/pr/1"])


def test_a_guide_is_pushed_and_fetched_and_removed_with_the_next_push(
    hub: Hub, repo_id: str, tiny_pipeline: PDiffPipeline, empty_cache: Path
):
    guided = PDiffPipeline(
        **tiny_pipeline.components | {"guide": tiny_pipeline.denoiser}, default_autoguidance_scale=1
    )

    guided.push_to_hub(repo_id, token=TOKEN)
    loaded = PDiffPipeline.from_pretrained(repo_id, cache_dir=empty_cache)
    tiny_pipeline.push_to_hub(repo_id, token=TOKEN)
    again = PDiffPipeline.from_pretrained(repo_id, cache_dir=empty_cache)

    assert (type(loaded.guide), loaded.config.default_autoguidance_scale) == (type(tiny_pipeline.denoiser), 1.0)
    assert (again.guide, again.config.default_autoguidance_scale) == (None, 0.0)
    assert not [name for name in HfApi().list_repo_files(repo_id) if name.startswith("guide/")]


# What is refused, before anything is sent


def link(folder: Path, name: str, target: str) -> None:
    """Puts a link to something outside in the place of a file or folder, which becomes its target."""
    if (folder / name).exists():
        shutil.move(folder / name, folder.parent / target)
    (folder / name).symlink_to(folder.parent / target)


SPOILED: dict[str, Callable[[Path], object]] = {
    "pickled weights": lambda folder: (folder / "denoiser/diffusion_pytorch_model.bin").write_bytes(b"pickled"),
    "training state": lambda folder: (folder / "denoiser/random_states_0.pkl").write_bytes(b"pickled"),
    "link to a file": lambda folder: link(folder, "denoiser/config.json", "secret.json"),
    "link to a folder": lambda folder: link(folder, "denoiser", "elsewhere"),
    "link to nothing": lambda folder: link(folder, "more.json", "unmounted"),
    "token in the card": lambda folder: (folder / "README.md").write_text(f"\nexport HF_TOKEN=hf_{'a1B2' * 9}\n"),
    "token in the metrics": lambda folder: (folder / "metrics.json").write_text(f'{{"a": "hf_{"x" * 34}"}}'),
    "no pipeline": lambda folder: (folder / "model_index.json").unlink(),
}


@pytest.mark.parametrize("what", SPOILED)
def test_what_must_not_be_shared_is_refused_before_anything_is_sent(
    hub: Hub, repo_id: str, saved_pipeline: Path, what: str
):
    SPOILED[what](saved_pipeline)

    with pytest.raises(UnsafeFileError) as raised:
        share(saved_pipeline, repo_id, token=TOKEN)

    assert_sentence(raised.value)
    assert hub.log == []


def test_a_damaged_file_is_named(hub: Hub, repo_id: str, saved_pipeline: Path):
    (saved_pipeline / "denoiser/config.json").write_text('{"half": ', encoding="utf-8")

    with pytest.raises(BrokenFileError, match=r"denoiser/config.json"):
        share(saved_pipeline, repo_id, token=TOKEN)

    assert not hub.requests("PUT")
    assert hub.titles(repo_id) == ["initial commit"]


def test_hidden_files_stay_here(hub: Hub, repo_id: str, saved_pipeline: Path):
    for name in (".env", ".git/config", ".cache/huggingface/x.metadata", "denoiser/.DS_Store", ".checkpoints/a.bin"):
        (saved_pipeline / name).parent.mkdir(parents=True, exist_ok=True)
        (saved_pipeline / name).write_bytes(b"private")

    share(saved_pipeline, repo_id, token=TOKEN)

    hidden = [name for name in hub.files(repo_id) if any(part.startswith(".") for part in name.split("/"))]
    assert hidden == [".gitattributes"]


@pytest.mark.parametrize("repo_type", ["model", "dataset"])
def test_no_path_of_this_machine_reaches_the_hub(
    hub: Hub, repo_id: str, tiny_checkpoints: Checkpoints, tiny_recipe: Recipe, tmp_path: Path, repo_type: str
):
    images = tmp_path / "my-images"
    images.mkdir()
    paths = {"dataset_name": str(images), "model_name_or_path": str(tmp_path / "my-target")}
    tiny_checkpoints.collection["settings"] |= paths
    tiny_checkpoints.save(tmp_path / "zoo")
    pipe = fit(load_checkpoints(tmp_path / "zoo"), tiny_recipe)
    pipe.save_pretrained(tmp_path / "pipeline")

    share(tmp_path / ("zoo" if repo_type == "dataset" else "pipeline"), repo_id, token=TOKEN)
    (tiny_checkpoints if repo_type == "dataset" else pipe(2)).push_to_hub(f"{repo_id}-2", token=TOKEN)

    for name in (repo_id, f"{repo_id}-2"):
        for path, content in hub.files(name, repo_type).items():
            assert str(tmp_path).encode() not in content, path
    assert "`my-images`" in hub.card(repo_id, repo_type)
    name = "collection.json" if repo_type == "dataset" else "metrics.json"
    published = json.loads(hub.files(repo_id, repo_type)[name])
    settings = published["settings"] if repo_type == "dataset" else published["data"]["collection"]
    assert (settings["dataset_name"], settings["model_name_or_path"]) == ("my-images", "my-target")
    here = json.loads((tmp_path / "zoo/collection.json").read_text(encoding="utf-8"))
    assert here["settings"]["dataset_name"] == str(images)  # where the images are found again
