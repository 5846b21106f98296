"""Pipelines from the Hub: the same networks everywhere, from the needed files alone."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import torch
from diffusers import DDPMScheduler, DiffusionPipeline
from huggingface_hub import HfApi

from pdiff_hf import HubNotFoundError, PDiffPipeline, share

from .cases import assert_clear
from .server import Hub

TOKEN = "hf_alice"
NEEDED = {
    "model_index.json",
    "preprocessor_config.json",
    "metrics.json",
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
def load(empty_cache: Path) -> Any:
    """`PDiffPipeline.from_pretrained` with a cache of this test alone."""
    return lambda name, **how: PDiffPipeline.from_pretrained(name, cache_dir=empty_cache, **how)


def draw(pipe: PDiffPipeline) -> torch.Tensor:
    return pipe(num_models=10, generator=torch.Generator().manual_seed(0), output_type="pt").parameters


def resolved(hub: Hub) -> set[str]:
    """The paths, inside their repositories, of the files that were asked for."""
    paths = [urlsplit(record.target).path for record in hub.log]
    return {path.split("/resolve/")[1].partition("/")[2] for path in paths if "/resolve/" in path}


def transferred(hub: Hub) -> list[str]:
    """The requests that brought the bytes of a file."""
    return [r.target for r in hub.log if r.method == "GET" and re.match("/cdn/|/api/resolve-cache/", r.target)]


def test_what_is_needed_is_fetched_once_and_again_where_that_is_asked_for(
    hub: Hub, api: HfApi, pushed: str, tiny_pipeline: PDiffPipeline, empty_cache: Path, load: Any
):
    for name in ("accuracy_similarity.png", "LICENSE", "notes/more.json"):
        api.upload_file(path_or_fileobj=b"{}", path_in_repo=name, repo_id=pushed)
    hub.reset()

    folder = Path(PDiffPipeline.download(pushed, cache_dir=empty_cache))
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} == NEEDED
    assert resolved(hub) == NEEDED
    assert len(transferred(hub)) == len(set(transferred(hub))) == len(NEEDED)

    hub.reset()
    assert torch.equal(draw(load(pushed)), draw(tiny_pipeline))
    assert [record.path for record in hub.log] == [f"/api/models/{pushed}/revision/main"]

    hub.reset()
    load(pushed, force_download=True)
    assert len(transferred(hub)) >= len(NEEDED)


def test_a_revision_is_loaded_by_branch_tag_and_commit(
    api: HfApi, pushed: str, tiny_pipeline: PDiffPipeline, load: Any
):
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
    assert_clear(raised.value, pushed)


def test_a_variant_is_fetched_in_place_of_the_plain_weights(
    hub: Hub, repo_id: str, tiny_pipeline: PDiffPipeline, tmp_path: Path, load: Any
):
    plain = draw(tiny_pipeline)
    tiny_pipeline.save_pretrained(tmp_path)
    torch.nn.init.ones_(tiny_pipeline.denoiser.output.bias)
    tiny_pipeline.save_pretrained(tmp_path, variant="ema")
    share(tmp_path, repo_id, token=TOKEN)
    hub.reset()

    averaged = load(repo_id, variant="ema")

    assert {name for name in resolved(hub) if "safetensors" in name} == {
        "autoencoder/diffusion_pytorch_model.ema.safetensors",
        "denoiser/diffusion_pytorch_model.ema.safetensors",
        "target_model/model.ema.safetensors",
    }
    assert torch.equal(draw(averaged), draw(tiny_pipeline))
    hub.reset()
    assert torch.equal(draw(load(repo_id)), plain)
    assert not [name for name in resolved(hub) if ".ema." in name]


@pytest.mark.parametrize("given", ["scheduler", "target_model", "denoiser"])
def test_files_of_a_component_that_is_given_are_not_fetched(
    hub: Hub, pushed: str, tiny_pipeline: PDiffPipeline, load: Any, given: str
):
    component = getattr(tiny_pipeline, given)
    if given == "scheduler":
        component = DDPMScheduler.from_config(component.config)

    pipe = load(pushed, **{given: component})

    assert getattr(pipe, given) is component
    unread = () if given == "scheduler" else f"{given}/"  # the stored scheduler tells what the denoiser has learned
    assert resolved(hub) == {name for name in NEEDED if not name.startswith(unread)}
    assert torch.isfinite(draw(pipe)).all()


# By way of diffusers, and what comes along


def test_diffusers_loads_the_pipeline_where_this_package_is_imported(
    hub: Hub, pushed: str, saved_pipeline: Path, tiny_pipeline: PDiffPipeline, empty_cache: Path
):
    expected = tiny_pipeline(2, generator=torch.Generator().manual_seed(0)).parameters

    for name in (str(saved_pipeline), pushed):
        pipe = DiffusionPipeline.from_pretrained(name, cache_dir=empty_cache)
        assert type(pipe) is PDiffPipeline
        assert torch.equal(pipe(2, generator=torch.Generator().manual_seed(0)).parameters, expected)


def test_metrics_come_with_a_pipeline_from_the_hub(
    hub: Hub, pushed: str, tiny_pipeline: PDiffPipeline, empty_cache: Path
):
    pipe = PDiffPipeline.from_pretrained(pushed, cache_dir=empty_cache)

    assert pipe.metrics == tiny_pipeline.metrics
    assert pipe.metrics["data"]["dataset_name"] == "digits"


def test_a_pipeline_without_metrics_has_none(hub: Hub, pushed: str, empty_cache: Path):
    HfApi(token=TOKEN).delete_file("metrics.json", pushed)

    assert PDiffPipeline.from_pretrained(pushed, cache_dir=empty_cache).metrics is None
