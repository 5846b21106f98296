"""Pipelines from the Hub: the same networks everywhere, from the needed files alone, or one sentence that says why."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import torch
from diffusers import DDPMScheduler
from huggingface_hub import HfApi
from safetensors.torch import load_file
from transformers import PreTrainedModel

from pdiff_hf import HubAccessError, HubError, HubNotFoundError, HubUnreachableError, PDiffPipeline, share

from .processes import run_python, start_python
from .server import Hub, Record
from .waiting import wait_for

TOKEN = "hf_alice"
NEEDED = {
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


@pytest.fixture
def pushed(hub: Hub, repo_id: str, tiny_pipeline: PDiffPipeline) -> str:
    """The id of a pipeline on the Hub, beside files that drawing from it does not need."""
    tiny_pipeline.push_to_hub(repo_id, token=TOKEN)
    for name in ("accuracy_similarity.png", "LICENSE", "notes/more.json"):
        HfApi(token=TOKEN).upload_file(path_or_fileobj=b"{}", path_in_repo=name, repo_id=repo_id)
    hub.reset()
    return repo_id


@pytest.fixture
def load(empty_cache: Path) -> Callable[..., PDiffPipeline]:
    """`PDiffPipeline.from_pretrained` with a cache of this test alone."""

    def load(name: str, **kwargs: object) -> PDiffPipeline:
        return PDiffPipeline.from_pretrained(name, cache_dir=empty_cache, **kwargs)

    return load


def draw(pipe: PDiffPipeline) -> torch.Tensor:
    return pipe(num_models=10, generator=torch.Generator().manual_seed(0), output_type="pt").parameters


def resolved(records: list[Record]) -> set[str]:
    """The paths, inside their repositories, of the files that were asked for."""
    targets = [urlsplit(record.target).path for record in records]
    return {path.split("/resolve/")[1].partition("/")[2] for path in targets if "/resolve/" in path}


def transferred(records: list[Record]) -> list[str]:
    """The requests that brought the bytes of a file."""
    return [r.target for r in records if r.method == "GET" and re.match("/cdn/|/api/resolve-cache/", r.target)]


def assert_sentence(error: BaseException) -> None:
    text = str(error)
    assert text.endswith(".")
    assert "\n" not in text
    assert len(text.split()) > 6


# In other processes

DRAW = """
import os, time, urllib.error, urllib.request
import torch
from safetensors.torch import save_file
from pdiff_hf import HubUnreachableError, PDiffPipeline

repo_id, folder = {repo_id!r}, {folder!r}

def draw(name):
    pipe = PDiffPipeline.from_pretrained(repo_id)
    out = pipe(num_models=10, generator=torch.Generator().manual_seed(0))
    save_file({{"parameters": out.parameters}}, f"{{folder}}/{{name}}")

def refused(repo_id):
    try:
        PDiffPipeline.from_pretrained(repo_id)
    except HubUnreachableError as error:
        print(error)

def hub_answers(path):
    try:
        urllib.request.urlopen(os.environ["HF_ENDPOINT"] + path)
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
"""
WHILE_THE_HUB_GOES = """
draw("cold")
hub_answers("/api/between")
draw("warm")
while hub_answers("/api/leave"):
    time.sleep(0.05)
draw("gone")
refused(repo_id + "-unknown")
"""
OFFLINE = """
draw("offline")
refused(repo_id + "-unknown")
"""


def test_other_processes_draw_the_same_networks_online_without_the_hub_and_offline(
    hub: Hub, pushed: str, tiny_pipeline: PDiffPipeline, empty_cache: Path, tmp_path: Path
):
    start = DRAW.format(repo_id=pushed, folder=str(tmp_path))
    going = Hub()
    going.repos, going.objects = hub.repos, hub.objects

    child = start_python(start + WHILE_THE_HUB_GOES, going, cache=empty_cache)
    wait_for(lambda: going.requests(path_regex="/api/leave") or child.poll() is not None, seconds=120)
    going.stop()
    gone, errors = child.communicate(timeout=60)
    assert child.returncode == 0, errors
    offline = run_python(start + OFFLINE, hub, cache=empty_cache, offline=True)

    expected = draw(tiny_pipeline)
    for name in ("cold", "warm", "gone", "offline"):
        assert torch.equal(load_file(tmp_path / name)["parameters"], expected), name
    between, leave = (
        next(i for i, record in enumerate(going.log) if record.target == f"/api/{name}")
        for name in ("between", "leave")
    )
    cold, warm = going.log[:between], going.log[between + 1 : leave]
    assert resolved(cold) == NEEDED  # no card, metrics, picture or notes
    assert len(transferred(cold)) == len(set(transferred(cold))) == len(NEEDED)
    assert [record.path for record in warm] == [f"/api/models/{pushed}/revision/main"]
    assert "could not be reached" in gone
    assert "HF_HUB_OFFLINE=1" in offline
    assert hub.log == []


# Which files


def test_a_revision_is_loaded_by_branch_tag_and_commit(hub: Hub, pushed: str, tiny_pipeline: PDiffPipeline, load):
    api = HfApi(token=TOKEN)
    first = api.model_info(pushed).sha
    api.create_tag(pushed, tag="v1.0")
    api.create_branch(pushed, branch="try/this")
    tiny_pipeline.register_to_config(default_num_inference_steps=3)
    tiny_pipeline.push_to_hub(pushed, token=TOKEN)

    latest = load(pushed)
    earlier = {revision: load(pushed, revision=revision) for revision in ("v1.0", "try/this", first)}

    assert latest.config.default_num_inference_steps == 3
    assert {pipe.config.default_num_inference_steps for pipe in earlier.values()} == {20}
    assert {pipe(1).models.provenance[0]["revision"] for pipe in earlier.values()} == {first}
    assert latest(1).models.provenance[0]["revision"] == api.model_info(pushed).sha
    with pytest.raises(HubNotFoundError, match=r"v2.*no such revision") as raised:
        load(pushed, revision="v2")
    assert_sentence(raised.value)


def test_a_variant_is_fetched_in_place_of_the_plain_weights(
    hub: Hub, repo_id: str, tiny_pipeline: PDiffPipeline, tmp_path: Path, load
):
    plain = draw(tiny_pipeline)
    tiny_pipeline.save_pretrained(tmp_path)
    torch.nn.init.ones_(tiny_pipeline.denoiser.output.bias)
    tiny_pipeline.save_pretrained(tmp_path, variant="ema")
    share(tmp_path, repo_id, token=TOKEN)
    hub.reset()

    averaged = load(repo_id, variant="ema")

    assert {name for name in resolved(hub.log) if "safetensors" in name} == {
        "autoencoder/diffusion_pytorch_model.ema.safetensors",
        "denoiser/diffusion_pytorch_model.ema.safetensors",
        "target_model/model.ema.safetensors",
    }
    assert torch.equal(draw(averaged), draw(tiny_pipeline))
    hub.reset()
    assert torch.equal(draw(load(repo_id)), plain)
    assert not [name for name in resolved(hub.log) if ".ema." in name]


@pytest.mark.parametrize("given", ["scheduler", "target_model", "denoiser"])
def test_files_of_a_component_that_is_given_are_not_fetched(
    hub: Hub, pushed: str, tiny_pipeline: PDiffPipeline, mlp: PreTrainedModel, load, given: str
):
    components = {
        "scheduler": DDPMScheduler.from_config(tiny_pipeline.scheduler.config),
        "target_model": mlp,
        "denoiser": tiny_pipeline.denoiser,
    }

    pipe = load(pushed, **{given: components[given]})

    assert getattr(pipe, given) is components[given]
    unread = () if given == "scheduler" else f"{given}/"  # the stored scheduler tells what the denoiser has learned
    assert resolved(hub.log) == {name for name in NEEDED if not name.startswith(unread)}
    assert torch.isfinite(draw(pipe)).all()


def test_a_pipeline_is_fetched_again_where_that_is_asked_for(hub: Hub, pushed: str, load):
    load(pushed)
    hub.reset()

    load(pushed, force_download=True)

    assert len(transferred(hub.log)) >= len(NEEDED)
    hub.reset()
    load(pushed)
    assert transferred(hub.log) == []


def test_a_precision_that_is_asked_for_reaches_all_but_the_decoder(pushed: str, load):
    pipe = load(pushed, dtype=torch.bfloat16)

    out = pipe(2)

    assert pipe.denoiser.dtype == pipe.target_model.dtype == torch.bfloat16
    assert pipe.autoencoder.dtype == out.parameters.dtype == torch.float32
    assert out.logits(torch.zeros(3, 1, 8, 8)).shape == (2, 3, 10)


def test_downloading_alone_brings_what_loading_needs(hub: Hub, pushed: str, empty_cache: Path):
    folder = Path(PDiffPipeline.download(pushed, cache_dir=empty_cache))

    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} == NEEDED
    assert torch.isfinite(draw(PDiffPipeline.from_pretrained(folder))).all()


# Who may load


def test_a_private_pipeline_is_loaded_with_a_token_alone(
    hub: Hub, repo_id: str, tiny_pipeline: PDiffPipeline, load, monkeypatch: pytest.MonkeyPatch
):
    tiny_pipeline.push_to_hub(repo_id, private=True, token=TOKEN)
    expected = draw(tiny_pipeline)

    for stranger in (None, False, "hf_bob"):
        with pytest.raises(HubNotFoundError, match=f"no model '{repo_id}' that this token can see") as raised:
            load(repo_id, token=stranger)
        assert_sentence(raised.value)
    with pytest.raises(HubAccessError, match="does not know the token") as raised:
        load(repo_id, token="hf_mistyped")
    assert_sentence(raised.value)
    assert "hf_mistyped" not in str(raised.value)
    pipe = load(repo_id, token=TOKEN)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    stored = load(repo_id, token=True)

    assert torch.equal(draw(pipe), expected)
    assert torch.equal(draw(stored), expected)
    assert TOKEN not in repr(pipe._source) + json.dumps(dict(pipe.config), default=str)
    assert not [r for r in hub.log if r.origin == "cdn" and "authorization" in map(str.lower, r.request_headers)]


def test_a_gated_pipeline_is_loaded_by_who_was_let_in(hub: Hub, pushed: str, load):
    HfApi(token=TOKEN).update_repo_settings(pushed, gated="manual")

    for stranger in (None, "hf_bob"):
        with pytest.raises(HubAccessError, match="is gated: ask for access") as raised:
            load(pushed, token=stranger)
        assert_sentence(raised.value)
    hub.repos["model", pushed].granted.add("bob")

    assert draw(load(pushed, token="hf_bob")).shape == (10, 90)


# Without asking


def test_what_is_cached_is_loaded_without_a_request_where_that_is_asked_for(
    hub: Hub, pushed: str, tiny_pipeline: PDiffPipeline, load
):
    with pytest.raises(HubUnreachableError, match=f"'{pushed}' is not cached") as raised:
        load(pushed, local_files_only=True)
    assert_sentence(raised.value)
    assert hub.log == []
    load(pushed)
    hub.reset()

    pipe = load(pushed, local_files_only=True)

    assert hub.log == []
    assert torch.equal(draw(pipe), draw(tiny_pipeline))


@pytest.mark.parametrize(
    "name", ["nowhere", "./no/where", "/no/where", "~/nowhere", "no/where", "a/b/c", "no where/x"]
)
def test_a_name_that_is_neither_folder_nor_repository_is_refused(
    hub: Hub, load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
):
    monkeypatch.chdir(tmp_path)

    with pytest.raises(HubError) as raised:
        load(name)

    assert name in str(raised.value)
    assert_sentence(raised.value)
