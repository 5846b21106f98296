"""Zoos and drawn networks on the Hub, for those who have this package and those who have not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load, load_file, save_file
from transformers import PreTrainedModel

from pdiff_hf import (
    Checkpoints,
    CheckpointSplit,
    PDiffPipeline,
    Recipe,
    fit,
    load_checkpoints,
    make_processor,
    share,
)
from pdiff_hf.data.preprocessing import Preprocessing
from pdiff_hf.zoo import parquet

from .processes import run_python
from .server import Hub

TOKEN = "hf_alice"
WITHOUT_THE_PACKAGE = """
import json
import numpy as np
import torch
from datasets import load_dataset
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline

zoo, repo_id, folder = {zoo!r}, {repo_id!r}, {folder!r}
arrays = {{}}
for way, splits in (("loaded", load_dataset(zoo)), ("streamed", load_dataset(zoo, streaming=True))):
    for split in ("train", "validation", "test"):
        rows = list(splits[split])
        arrays[f"{{way}}-{{split}}-parameters"] = np.array([row["parameters"] for row in rows], dtype=np.float32)
        for column in ("run", "step"):
            arrays[f"{{way}}-{{split}}-{{column}}"] = np.array([row[column] for row in rows])
np.savez(f"{{folder}}/rows.npz", **arrays)

images, alone = load_file(f"{{folder}}/images.safetensors")["images"], repo_id + "-00001"
load = AutoModelForImageClassification.from_pretrained
networks = {{name: load(repo_id, subfolder=name) for name in ("00000", "00001")}} | {{"alone": load(alone)}}
photo = Image.effect_mandelbrot((40, 30), (-3, -2.5, 2, 2.5), 100).convert("RGB")
pixels = AutoImageProcessor.from_pretrained(alone)(photo, return_tensors="pt")["pixel_values"]
with torch.no_grad():
    save_file({{name: network(images).logits for name, network in networks.items()}}, f"{{folder}}/logits.safetensors")
    expected = networks["alone"](pixels).logits.softmax(-1)[0].tolist()
print(json.dumps({{
    "size": list(pixels.shape),
    "expected": dict(zip(networks["alone"].config.id2label.values(), expected)),
    "found": {{answer["label"]: answer["score"] for answer in pipeline("image-classification", alone)(photo)}},
}}))
"""


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


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def assert_equal(zoo: CheckpointSplit, expected: CheckpointSplit) -> None:
    assert torch.equal(zoo.parameters, expected.parameters)
    for name in ("run", "step", "seed"):
        assert getattr(zoo, name) == getattr(expected, name)
    for name in ("validation_score", "validation_loss"):
        assert np.array_equal(np.float32(getattr(zoo, name)), np.float32(getattr(expected, name)), equal_nan=True)


def test_zoos_and_drawn_networks_are_ordinary_ones_where_this_package_is_not_installed(
    hub: Hub,
    repo_id: str,
    tiny_checkpoints: Checkpoints,
    resnet_pipeline: PDiffPipeline,
    random_images: Callable,
    empty_cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(parquet, "SHARD_BYTES", 2000)
    tiny_checkpoints.push_to_hub(f"{repo_id}-zoo", token=TOKEN)
    images = random_images(resnet_pipeline.target_model, 3)
    save_file({"images": images}, tmp_path / "images.safetensors")
    out = resnet_pipeline(2, generator=generators(5, 6))
    together = out.push_to_hub(repo_id, token=TOKEN)
    each = out.push_to_hub(repo_id, one_repository_each=True, token=TOKEN)

    code = WITHOUT_THE_PACKAGE.format(zoo=f"{repo_id}-zoo", repo_id=repo_id, folder=str(tmp_path))
    output = run_python(code, hub, cache=empty_cache, token=None, block_package=True)

    rows = np.load(tmp_path / "rows.npz")
    for split, zoo in tiny_checkpoints.splits.items():
        for way in ("loaded", "streamed"):
            assert np.array_equal(rows[f"{way}-{split}-parameters"], zoo.parameters.numpy())
            assert rows[f"{way}-{split}-run"].tolist() == zoo.run
            assert rows[f"{way}-{split}-step"].tolist() == zoo.step
    logits, (first, second) = load_file(tmp_path / "logits.safetensors"), out.models
    assert torch.equal(logits["00000"], first(images).logits)
    assert torch.equal(logits["00001"], second(images).logits)
    assert torch.equal(logits["alone"], second(images).logits)
    answer = json.loads(output.splitlines()[-1])
    assert answer["size"] == [1, 3, 16, 16]
    assert answer["found"].keys() == {"bee", "cat", "dog", "emu"}
    assert answer["found"] == pytest.approx(answer["expected"], abs=1e-6)
    assert len(together) == 1
    assert [address.split("/commit/")[0] for address in each] == [f"{hub.url}/{repo_id}-0000{i}" for i in (0, 1)]


def test_a_zoo_is_pushed_bit_for_bit_and_shards_that_it_no_longer_has_go(
    hub: Hub, repo_id: str, tiny_checkpoints: Checkpoints, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(parquet, "SHARD_BYTES", 2000)
    tiny_checkpoints.push_to_hub(repo_id, token=TOKEN)
    shards = {name for name in hub.files(repo_id, "dataset") if name.startswith("data/train-")}
    assert shards == {f"data/train-{i:05d}-of-00005.parquet" for i in range(5)}
    monkeypatch.undo()

    tiny_checkpoints.push_to_hub(repo_id, token=TOKEN, commit_message="In one piece")
    tiny_checkpoints.push_to_hub(repo_id, token=TOKEN)

    assert {name for name in hub.files(repo_id, "dataset") if name.startswith("data/")} == {
        f"data/{split}-00000-of-00001.parquet" for split in ("train", "validation", "test")
    }
    assert hub.titles(repo_id, "dataset") == ["In one piece", "Upload checkpoints dataset", "initial commit"]
    loaded = load_checkpoints(repo_id, cache_dir=empty_cache)
    for split, zoo in tiny_checkpoints.splits.items():
        assert_equal(loaded.splits[split], zoo)
    assert loaded.preprocessing == tiny_checkpoints.preprocessing
    average = loaded.processor.flatten(loaded.target_model.state_dict())
    torch.testing.assert_close(average, tiny_checkpoints.zoo.parameters.mean(0))


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
    assert len(hub.titles(zoo_id, "dataset")) == 2
    for name in (repo_id, f"{repo_id}-2"):
        assert ModelCard(hub.card(name)).data.datasets == [zoo_id]
        assert json.loads(hub.files(name)["metrics.json"])["data"]["checkpoints"] == zoo_id


def test_a_drawn_network_records_where_it_came_from_and_can_be_drawn_again(
    hub: Hub, pushed: str, empty_cache: Path, tmp_path: Path
):
    pipe = PDiffPipeline.from_pretrained(pushed, cache_dir=empty_cache)
    drawn, settings = f"{pushed}-drawn", {"temperature": 0.5, "num_inference_steps": 6}

    pipe(3, generator=torch.Generator().manual_seed(7), **settings).push_to_hub(drawn, token=TOKEN)

    provenance = json.loads(hub.files(drawn)["00002/provenance.json"])
    assert provenance["generator"] == pushed
    assert provenance["revision"] == hub.repos["model", pushed].branches["main"]
    assert (provenance["seed"], provenance["index"]) == (7, 2)
    assert {name: provenance[name] for name in settings} == settings
    assert ModelCard(hub.card(drawn)).data.base_model == pushed
    again = PDiffPipeline.from_pretrained(pushed, revision=provenance["revision"], cache_dir=empty_cache)
    again(3, generator=torch.Generator().manual_seed(7), **settings).save_pretrained(tmp_path / "again")
    weights = load_file(tmp_path / "again/00002/model.safetensors")
    published = load(hub.files(drawn)["00002/model.safetensors"])
    assert weights.keys() == published.keys()
    assert all(torch.equal(weights[name], published[name]) for name in weights)


def test_fewer_networks_take_the_place_of_more(hub: Hub, repo_id: str, tiny_pipeline: PDiffPipeline):
    tiny_pipeline(3, generator=generators(0, 1, 2)).push_to_hub(repo_id, token=TOKEN)
    fewer = tiny_pipeline(2, generator=generators(0, 1))

    fewer.push_to_hub(repo_id, token=TOKEN)
    fewer.push_to_hub(repo_id, token=TOKEN)

    assert {name.split("/")[0] for name in hub.files(repo_id)} == {".gitattributes", "README.md", "00000", "00001"}
    assert hub.titles(repo_id) == ["Upload drawn networks"] * 2 + ["initial commit"]
