"""Cards: no gap, no figure that the run did not measure, a snippet that runs, and a repository called by its name."""

from __future__ import annotations

import copy
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import scripts
import torch
import yaml
from huggingface_hub import DatasetCard, ModelCard
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedModel

from hub.server import Hub
from pdiff_hf import Checkpoints, CheckpointSplit, PDiffPipeline, make_processor, share
from pdiff_hf.hub.cards import PICTURES, published_value, readdress

from .conftest import Audited

TOKEN = "hf_alice"
GAPS = re.compile(r"\bNone\b|\bnan\b|\bNaN\b|\binf\b|\{\{|\{%|Undefined|\bTrue\b|\bFalse\b|<[a-z_.]+ object at")
BLOCK = re.compile(r"\A---\n(.*?)\n---\n", re.DOTALL)
SNIPPET = re.compile(r"```python\n(.*?)```", re.DOTALL)


def text_of(folder: Path) -> str:
    return (folder / "README.md").read_text(encoding="utf-8")


def metadata_of(text: str) -> dict[str, Any]:
    """What stands in the card's header, read by nothing but a YAML parser."""
    return yaml.safe_load(BLOCK.match(text)[1])


def first_paragraph(text: str) -> str:
    return text[SNIPPET.search(text).end() :].strip().split("\n\n")[0]


def size(text: str) -> float:
    """The bytes that a card's words for them mean."""
    number, unit = text.split()
    return float(number.replace(",", "")) * {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9}[unit]


def save_pipeline(audited: Audited, folder: Path, metrics: dict[str, Any] | None) -> str:
    """Saves the pipeline as if that was known of it, and returns its card."""
    pipe = PDiffPipeline(**audited.pipe.components)
    pipe.metrics = metrics
    pipe.save_pretrained(folder)
    return text_of(folder)


def evaluated_elsewhere(audited: Audited, folder: Path) -> str:
    metrics = copy.deepcopy(audited.metrics)
    metrics["data"] |= {"checkpoints": "org/zoo", "dataset_name": "org/images"}
    return save_pipeline(audited, folder, metrics)


def bare_checkpoints(audited: Audited, folder: Path) -> str:
    zoo = audited.checkpoints.zoo
    rows = CheckpointSplit(zoo.parameters, run=zoo.run, step=zoo.step, seed=zoo.seed)
    return saved(Checkpoints({"train": rows}, audited.checkpoints.processor, audited.checkpoints.target_model), folder)


def saved(made: Any, folder: Path) -> str:
    (made.save if isinstance(made, Checkpoints) else made.save_pretrained)(folder)
    return text_of(folder)


def one_network(audited: Audited, folder: Path) -> str:
    networks = audited.pipe(2, generator=torch.Generator().manual_seed(3)).models
    networks.provenance[1] |= {"generator": "org/generator", "revision": "0" * 40}
    networks.save_network(1, folder)
    return text_of(folder)


MEASURED = "## What was measured"
CARDS: dict[str, tuple[Callable[[Audited, Path], str], list[str]]] = {
    "pipeline that nothing is known of": (lambda a, to: save_pipeline(a, to, None), ["has not been evaluated"]),
    "pipeline": (lambda a, to: text_of(a.unevaluated), ["`pdiff-hf audit path/or/id`", "'latent_dim': 4", "digits"]),
    "evaluated pipeline": (lambda a, to: text_of(a.evaluated), [MEASURED, "model-index:\n- name: path/or/id"]),
    "evaluated pipeline, zoo and images on the Hub": (
        evaluated_elsewhere,
        ["datasets:\n- org/zoo", "Zoo: [org/zoo](https://huggingface.co/datasets/org/zoo).", "name: org/images"],
    ),
    "checkpoints that nothing is known of": (bare_checkpoints, ["| not measured |", "`classifier.weight`, `"]),
    "checkpoints": (
        lambda a, to: saved(a.checkpoints, to),
        ["size_categories: n<1K", "Data set `digits` at 8 pixels.", "| train | 24 | 2 | 61.50, 50.00, 73.00 |"],
    ),
    "networks without a seed": (lambda a, to: saved(a.pipe(2), to), ["library_name: transformers", "00000"]),
    "network": (one_network, ["base_model: org/generator", "0" * 40, "image-classification"]),
}


@pytest.mark.parametrize("name", CARDS)
def test_a_card_has_no_gap(audited: Audited, tmp_path: Path, name: str):
    write, expected = CARDS[name]
    text = write(audited, tmp_path / "made")

    (tmp_path / "card.md").write_text(text, encoding="utf-8")
    card = (DatasetCard if name.startswith("checkpoints") else ModelCard).load(tmp_path / "card.md")
    assert card.data.to_dict() == metadata_of(text)
    assert metadata_of(text)["license"] == "apache-2.0"
    assert {"p-diff", "neural-network-diffusion"} <= set(metadata_of(text)["tags"])
    assert re.search(r"License:\sapache-2\.0", card.text)
    assert GAPS.findall(re.sub(SNIPPET, "", text).replace("trust_remote_code=True", "")) == []
    assert "path/or/id" in text
    assert [part for part in expected if part not in text] == []
    assert text.endswith("\n")
    if "has not been evaluated" in text:
        assert "has not been evaluated" in first_paragraph(text)
        assert metadata_of(text).keys().isdisjoint({"model-index", "metrics"})
        assert MEASURED not in text
        assert "![" not in text
    first = SNIPPET.search(text)
    compile(first[1], name, "exec")
    assert text[: first.start()].count("\n\n") <= 2  # the title alone stands before it


def test_the_verdict_stands_in_the_first_paragraph(audited: Audited, tmp_path: Path):
    metrics = copy.deepcopy(audited.metrics)
    metrics["verdict"] |= {"word": "averager", "meaning": "they are alike"}
    metrics["sets"]["generated"]["dispersion"]["F"] = 0.1234

    paragraph = first_paragraph(save_pipeline(audited, tmp_path, metrics))

    assert "calls it **averager**: they are alike." in paragraph
    assert "F = 0.12 times" in paragraph
    for name in ("generated", "zoo", "average"):
        assert f"{100 * metrics['sets'][name]['test']['accuracy']['mean']:.2f} %" in paragraph


def test_the_figures_of_a_card_are_those_of_the_metrics(audited: Audited):
    text, generated = text_of(audited.evaluated), audited.metrics["sets"]["generated"]

    (model,) = metadata_of(text)["model-index"]
    assert {metric["name"]: metric["value"] for result in model["results"] for metric in result["metrics"]} == {
        "accuracy, mean of 3 drawn networks": generated["test"]["accuracy"]["mean"],
        "accuracy, worst of them": generated["test"]["accuracy"]["min"],
        "accuracy, best of them": generated["test"]["accuracy"]["max"],
        "dispersion of parameters R": generated["dispersion"]["R"],
        "functional dispersion F": generated["dispersion"]["F"],
    }
    assert {(r["dataset"]["name"], r["dataset"]["split"]) for r in model["results"]} == {("digits", "test")}
    assert ModelCard(text).data.eval_results  # the Hub's own client reads them too
    for name, seconds in audited.metrics["costs"].items():
        assert f"| {name.removesuffix('_seconds')} | {seconds:.2f} |" in text
    shown = set(re.findall(r"!\[[^]]+\]\(([^)]+)\)", text))
    assert shown == {path.name for path in audited.evaluated.glob("*.png")}
    assert len(shown) == len(PICTURES)


@pytest.mark.parametrize("name", ["unevaluated", "evaluated"])
def test_a_card_names_the_sizes_of_what_lies_beside_it(audited: Audited, name: str):
    folder: Path = getattr(audited, name)
    text = text_of(folder)

    whole, ratio, network = re.search(
        r"The repository takes (.+?), (\S+) times one whole network \((.+?)\)", text
    ).groups()
    zoo, vectors = re.search(r"the zoo would take (.+?) as\s+whole networks and takes (.+?) as vectors", text).groups()
    files = {path: path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    weights = (folder / "target_model/model.safetensors").stat().st_size
    without_card = sum(files.values()) - files[folder / "README.md"]
    assert 0.99 * without_card < size(whole) < 1.01 * sum(files.values())  # three digits; the card is not yet written
    assert size(network) == pytest.approx(weights, rel=0.01)
    assert float(ratio) == pytest.approx(size(whole) / weights, rel=0.01)
    assert size(zoo) == pytest.approx(24 * weights, rel=0.01)
    assert size(vectors) == pytest.approx(24 * 4 * 90, rel=0.01)


def test_a_card_of_checkpoints_counts_them_anew(audited: Audited, convnet: PreTrainedModel, tmp_path: Path):
    audited.checkpoints.save(tmp_path)
    assert size(re.search(r"Together they take (\S+ \S+)\.", text_of(tmp_path))[1]) == pytest.approx(40 * 4 * 90, 0.01)

    layout = make_processor(convnet, "full")
    rows = CheckpointSplit(
        layout.flatten(convnet.state_dict())[None], run=["run"], step=[0], seed=[0], validation_score=[0.5]
    )
    Checkpoints({"train": rows}, layout, convnet).save(tmp_path)

    assert "| train | 1 | 1 | 50.00, 50.00, 50.00 |" in text_of(tmp_path)
    assert f"`{layout.names[3]}` and {len(layout.names) - 4} more" in text_of(tmp_path)


def test_a_card_that_somebody_wrote_by_hand_is_kept(audited: Audited, tmp_path: Path):
    own = "# Mine\n\nRepository: none.\n"
    for name in ("pipeline", "checkpoints"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "README.md").write_text(own, encoding="utf-8")

    audited.pipe.save_pretrained(tmp_path / "pipeline")
    audited.checkpoints.save(tmp_path / "checkpoints")
    given = ["--pipeline", tmp_path / "pipeline", "--checkpoints", tmp_path / "checkpoints"]
    few = ["--num_models", "2", "--num_baseline_models", "2"]
    scripts.run("evaluate_pipeline", *given, *few, "--output_dir", tmp_path / "report")

    assert text_of(tmp_path / "pipeline") == text_of(tmp_path / "checkpoints") == own
    assert "sets" in json.loads((tmp_path / "pipeline/metrics.json").read_text(encoding="utf-8"))


def test_the_snippets_run_as_they_stand(
    hub: Hub, repo_id: str, audited: Audited, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    pixel_values = torch.zeros(4, 1, 8, 8)
    share(audited.evaluated, repo_id, token=TOKEN)
    audited.checkpoints.push_to_hub(f"{repo_id}-zoo", token=TOKEN)
    out = PDiffPipeline.from_pretrained(repo_id)(2, generator=torch.Generator().manual_seed(0))
    out.push_to_hub(f"{repo_id}-drawn", token=TOKEN)
    out.push_to_hub(f"{repo_id}-drawn", one_repository_each=True, token=TOKEN)

    def run(name: str, repo_type: str = "model") -> dict[str, Any]:
        """Runs a card's first snippet, as its reader would."""
        text = hub.card(name, repo_type)
        assert "path/or/id" not in text
        namespace = {"pixel_values": pixel_values}
        exec(compile(SNIPPET.search(text)[1], "card", "exec"), namespace)
        return namespace

    assert run(repo_id)["out"].logits(pixel_values).shape == (10, 4, 10)
    assert sorted(p.name for p in Path("drawn").iterdir()) == [*(f"{i:05d}" for i in range(10)), "README.md"]
    checkpoints = run(f"{repo_id}-zoo", "dataset")["checkpoints"]
    assert torch.equal(checkpoints.zoo.parameters, audited.checkpoints.zoo.parameters)
    for name in (f"{repo_id}-drawn", f"{repo_id}-drawn-00000"):
        assert torch.equal(run(name)["model"](pixel_values).logits, out.models[0](pixel_values).logits)
    assert metadata_of(hub.card(repo_id))["model-index"][0]["name"] == repo_id


# Addresses

NAME = st.text("aZ0._-", min_size=1, max_size=6).map("a{}0".format)
REPO_ID = st.builds("{}/{}".format, NAME, NAME)
OTHERS = "Not path/or/id/x, path/or/id-x, x/path/or/id or path/or/id.x.\n"
CARD = (
    "---\ndatasets:\n- {other}\nbase_model: org/other\nmodel-index:\n- name: path/or/id\n---\n"
    "<!-- Repository: path/or/id -->\n\n"
    '```python\npipe = PDiffPipeline.from_pretrained("path/or/id")\n```\n\n'
    "`pdiff-hf audit path/or/id`, see https://huggingface.co/path/or/id, made from [{other}]"
    "(https://huggingface.co/datasets/{other}). (https://huggingface.co/models?other=base_model:path/or/id). "
    "It is path/or/id. " + OTHERS
)


@given(st.data(), REPO_ID)
def test_a_card_that_moves_takes_all_its_own_addresses_and_no_others(data: st.DataObject, first: str):
    near = st.sampled_from([f"{first}-zoo", f"{first}.v2", f"x{first}", f"x-{first}", f"{first}2", first.upper()])
    second, other = data.draw(REPO_ID | near), data.draw(REPO_ID | near)
    text = CARD.format(other=other)

    moved = readdress(text, first)

    assert readdress(moved, first) == moved
    assert readdress(moved, second) == readdress(text, second)
    assert readdress(moved, "path/or/id") == text
    metadata = metadata_of(moved)
    assert (metadata["datasets"], metadata["base_model"]) == ([other], "org/other")
    assert metadata["model-index"][0]["name"] == first
    assert f'from_pretrained("{first}")' in moved
    assert f"audit {first}`, see https://huggingface.co/{first}, " in moved
    assert f"[{other}](https://huggingface.co/datasets/{other})" in moved
    assert moved.endswith(f"base_model:{first}). It is {first}. {OTHERS}")
    own = text.replace("<!-- Repository: path/or/id -->", "")
    assert readdress(own, first) == own


# Paths of this machine

LEAF = st.none() | st.integers() | st.floats(allow_nan=False) | st.text()
JSON = st.recursive(LEAF, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8)


def strings(value: Any) -> list[str]:
    if isinstance(value, dict | list):
        return [text for inner in (value.values() if isinstance(value, dict) else value) for text in strings(inner)]
    return [value] if isinstance(value, str) else []


@given(JSON, st.lists(NAME, min_size=1, max_size=4))
def test_what_is_published_names_no_path_of_this_machine(value: Any, parts: list[str]):
    published = published_value({"a": [value, {"b": "/" + "/".join(parts)}], "d": 1})

    assert not [text for text in strings(published) if os.path.isabs(text)]
    assert published["a"][1]["b"] == parts[-1]
    assert published["d"] == 1
    assert published_value(published) == published
    if not any(map(os.path.isabs, strings(value))):
        assert published["a"][0] == value
