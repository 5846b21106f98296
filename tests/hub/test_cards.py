"""Cards: no gap, no figure that the run did not measure, a snippet that runs, and a repository called by its name."""

from __future__ import annotations

import copy
import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import pytest
import torch
import yaml
from huggingface_hub import DatasetCard, ModelCard, ModelCardData
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedModel

from hub.server import Hub
from pdiff_hf import (
    Checkpoints,
    CheckpointSplit,
    PDiffPipeline,
    Recipe,
    TrajectorySettings,
    collect,
    fit,
    load_recipe,
    make_processor,
    share,
)
from pdiff_hf.evaluation.auditing import AuditSettings, audit_pipeline
from pdiff_hf.evaluation.report import add_report
from pdiff_hf.hub.cards import (
    describe_layout,
    has_own_card,
    published_name,
    published_value,
    readdress,
    render,
    write_network_card,
    write_remote_code_card,
)
from pdiff_hf.pipelines.card import write_pipeline_card
from pdiff_hf.zoo.settings import load_images_of, load_target

TOKEN = "hf_alice"
LICENCE = "apache-2.0"
GAPS = re.compile(r"\bNone\b|\bnan\b|\bNaN\b|\binf\b|\{\{|\{%|Undefined|\bTrue\b|\bFalse\b|<[a-z_.]+ object at")
BLOCK = re.compile(r"\A---\n(.*?)\n---\n", re.DOTALL)
SNIPPET = re.compile(r"```python\n(.*?)```", re.DOTALL)
ADDRESSES = re.compile(r"<!-- Repository: (\S+) -->")


@dataclass
class Made:
    """A generator from its images to its audit, in folders that tests only read."""

    checkpoints: Checkpoints
    unevaluated: Path
    evaluated: Path
    report: Path
    pipe: PDiffPipeline
    metrics: dict[str, Any]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("made")
    settings = TrajectorySettings(
        dataset_name="digits",
        image_size=8,
        model_type="pdiff_mlp",
        model_config='{"hidden_sizes": [8]}',
        subset=["head"],
        target_train_steps=20,
        train_batch_size=32,
        burn_in_steps=0,
        num_checkpoints=16,
        num_validation_checkpoints=4,
        num_test_checkpoints=4,
        num_blocks=2,
        gap=3,
    )
    images = load_images_of(settings)
    checkpoints = collect(images, load_target(settings, images), settings)
    recipe = load_recipe("fast")
    recipe.autoencoder.config["latent_dim"], recipe.denoiser.config["width"] = 4, 16
    recipe.denoiser.max_train_steps, recipe.denoiser.train_batch_size = 3, 4
    pipe = fit(checkpoints, Recipe(recipe.autoencoder, recipe.denoiser))
    checkpoints.save(folder / "checkpoints")
    for name in ("unevaluated", "evaluated"):
        pipe.save_pretrained(folder / name)
    metrics = audit_pipeline(
        AuditSettings(
            pipeline=str(folder / "evaluated"),
            checkpoints=str(folder / "checkpoints"),
            output_dir=str(folder / "report"),
            num_models=3,
            num_baseline_models=3,
        )
    )
    return Made(checkpoints, folder / "unevaluated", folder / "evaluated", folder / "report", pipe, metrics)


def text_of(folder: Path) -> str:
    return (folder / "README.md").read_text(encoding="utf-8")


def metadata_of(text: str) -> dict[str, Any]:
    """What stands in the card's header, read by nothing but a YAML parser."""
    return yaml.safe_load(BLOCK.match(text)[1])


def size(text: str) -> float:
    """The bytes that a card's words for them mean."""
    number, unit = text.split()
    return float(number.replace(",", "")) * {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9}[unit]


# Nothing is missing


def pipeline_card(evaluated: bool, zoo: str | None, dataset_name: str | None) -> Callable[[Made, Path], str]:
    def write(made: Made, folder: Path) -> str:
        metrics = (
            copy.deepcopy(made.metrics) if evaluated else json.loads((made.unevaluated / "metrics.json").read_text())
        )
        metrics["data"] |= {"checkpoints": zoo, "dataset_name": dataset_name}
        write_pipeline_card(folder, made.pipe, metrics)
        return text_of(folder)

    return write


def plain_pipeline_card(made: Made, folder: Path) -> str:
    PDiffPipeline(**made.pipe.components).save_pretrained(folder)
    return text_of(folder)


def checkpoints_card(collection: bool, measured: bool) -> Callable[[Made, Path], str]:
    def write(made: Made, folder: Path) -> str:
        zoo = made.checkpoints.zoo
        score = zoo.validation_score if measured else None
        rows = CheckpointSplit(zoo.parameters, run=zoo.run, step=zoo.step, seed=zoo.seed, validation_score=score)
        processor, target = made.checkpoints.processor, made.checkpoints.target_model
        about = made.checkpoints.collection if collection else {}
        Checkpoints({"train": rows}, processor, target, {}, about).save(folder / "zoo")
        return text_of(folder / "zoo")

    return write


def network_card(seeded: bool, subfolders: bool, loaded: bool, target: str) -> Callable[[Made, Path], str]:
    def write(made: Made, folder: Path) -> str:
        generator = torch.Generator().manual_seed(3) if seeded else None
        provenance = made.pipe(2, generator=generator).models.provenance
        if loaded:
            provenance = [row | {"generator": "org/generator", "revision": "0" * 40} for row in provenance]
        write_network_card(folder, provenance if subfolders else provenance[1:], target, subfolders)
        return text_of(folder)

    return write


def remote_code_card(made: Made, folder: Path) -> str:
    write_remote_code_card(folder)
    return text_of(folder)


CARDS: dict[str, Callable[[Made, Path], str]] = {
    "pipeline that nothing is known of": plain_pipeline_card,
    "remote code": remote_code_card,
    **{
        f"pipeline evaluated={evaluated} zoo={zoo} images={name}": pipeline_card(evaluated, zoo, name)
        for evaluated in (False, True)
        for zoo in (None, "org/zoo")
        for name in (None, "digits", "org/images")
    },
    **{
        f"checkpoints collection={collection} measured={measured}": checkpoints_card(collection, measured)
        for collection in (False, True)
        for measured in (False, True)
    },
    **{
        f"networks seeded={seeded} subfolders={subfolders} loaded={loaded} {target}": network_card(
            seeded, subfolders, loaded, target
        )
        for seeded in (False, True)
        for subfolders in (False, True)
        for loaded in (False, True)
        for target in ("MLPForImageClassification", "ResNetForImageClassification")
    },
}


@pytest.mark.parametrize("name", CARDS)
def test_a_card_has_no_gap(made: Made, tmp_path: Path, name: str):
    text = CARDS[name](made, tmp_path)

    (tmp_path / "card.md").write_text(text, encoding="utf-8")
    card = (DatasetCard if name.startswith("checkpoints") else ModelCard).load(tmp_path / "card.md")
    assert card.data.to_dict() == metadata_of(text)
    assert metadata_of(text)["license"] == LICENCE
    assert {"p-diff", "neural-network-diffusion"} <= set(metadata_of(text)["tags"])
    assert name == "remote code" or re.search(rf"Licen[cs]e:\s{re.escape(LICENCE)}", card.text)
    assert GAPS.findall(re.sub(SNIPPET, "", text).replace("trust_remote_code=True", "")) == []
    assert ADDRESSES.findall(text) == ["path/or/id"]
    assert text.endswith("\n")
    first = SNIPPET.search(text)
    compile(first[1], name, "exec")
    assert text[: first.start()].count("\n\n") <= 2  # the title alone stands before it


def test_a_value_that_a_template_lacks_is_an_error():
    for template in ("pipeline.md", "checkpoints_dataset.md", "generated_network.md"):
        with pytest.raises(jinja2.UndefinedError):
            render(template, ModelCardData(license=LICENCE))


# What a pipeline's card says


def first_paragraph(text: str) -> str:
    return text[SNIPPET.search(text).end() :].strip().split("\n\n")[0]


def test_the_verdict_stands_in_the_first_paragraph(made: Made, tmp_path: Path):
    metrics = copy.deepcopy(made.metrics)
    metrics["verdict"] |= {"word": "averager", "meaning": "they are alike"}
    metrics["sets"]["generated"]["dispersion"]["F"] = 0.1234

    write_pipeline_card(tmp_path, made.pipe, metrics)

    paragraph = first_paragraph(text_of(tmp_path))
    assert "calls it **averager**: they are alike." in paragraph
    assert "F = 0.12 times" in paragraph
    for name in ("generated", "zoo", "average"):
        assert f"{100 * metrics['sets'][name]['test']['accuracy']['mean']:.2f} %" in paragraph


def test_a_pipeline_that_was_not_evaluated_says_so_and_shows_no_figures(made: Made):
    text = text_of(made.unevaluated)

    assert "has not been evaluated" in first_paragraph(text)
    assert "`pdiff-hf audit path/or/id`" in first_paragraph(text)
    assert "model-index" not in metadata_of(text)
    assert "metrics" not in metadata_of(text)
    assert "## What was measured" not in text
    assert "![" not in text


def test_the_figures_of_a_card_are_those_of_the_metrics(made: Made):
    text = text_of(made.evaluated)

    (model,) = metadata_of(text)["model-index"]
    assert model["name"] == "path/or/id"
    figures = {metric["name"]: metric["value"] for result in model["results"] for metric in result["metrics"]}
    generated = made.metrics["sets"]["generated"]
    accuracy = generated["test"]["accuracy"]
    assert figures == {
        "accuracy, mean of 3 drawn networks": accuracy["mean"],
        "accuracy, worst of them": accuracy["min"],
        "accuracy, best of them": accuracy["max"],
        "dispersion of parameters R": generated["dispersion"]["R"],
        "functional dispersion F": generated["dispersion"]["F"],
    }
    assert {type(value) for value in figures.values()} == {float}
    assert {(r["dataset"]["name"], r["dataset"]["split"]) for r in model["results"]} == {("digits", "test")}
    assert ModelCard(text).data.eval_results  # the Hub's own client reads them too
    for name, seconds in made.metrics["costs"].items():
        assert f"| {name.removesuffix('_seconds')} | {seconds:.2f} |" in text
    assert "'latent_dim': 4" in text
    assert json.loads((made.evaluated / "metrics.json").read_text()) == made.metrics


def test_a_card_shows_the_pictures_that_are_there(made: Made):
    shown = set(re.findall(r"!\[[^]]+\]\(([^)]+)\)", text_of(made.evaluated)))

    assert shown == {path.name for path in made.evaluated.glob("*.png")}
    assert len(shown) == 5


@pytest.mark.parametrize("name", ["unevaluated", "evaluated"])
def test_a_card_tells_the_sizes_of_what_lies_beside_it(made: Made, name: str):
    folder: Path = getattr(made, name)
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
    assert size(zoo) == pytest.approx(16 * weights, rel=0.01)
    assert size(vectors) == pytest.approx(16 * 4 * 90, rel=0.01)


def test_a_card_of_checkpoints_counts_them(made: Made, tmp_path: Path):
    made.checkpoints.save(tmp_path)

    text = text_of(tmp_path)
    assert metadata_of(text)["size_categories"] == "n<1K"
    for split, zoo in made.checkpoints.splits.items():
        accuracy = 100 * torch.tensor(zoo.validation_score)
        figures = f"{accuracy.mean():.2f}, {accuracy.min():.2f}, {accuracy.max():.2f}"
        assert f"| {split} | {len(zoo)} | {len(set(zoo.run))} | {figures} |" in text
    rows = sum(len(zoo) for zoo in made.checkpoints.splits.values())
    assert size(re.search(r"Together they take (\S+ \S+)\.", text)[1]) == pytest.approx(rows * 4 * 90, rel=0.01)
    assert "Data set `digits` at 8 pixels." in text


# A card of one's own


def test_a_card_that_somebody_wrote_by_hand_is_kept(made: Made, tmp_path: Path):
    own = "# Mine\n\nThis card speaks of nothing.\n"
    for name in ("pipeline", "checkpoints", "evaluated"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "README.md").write_text(own, encoding="utf-8")
    assert not has_own_card(tmp_path)
    assert has_own_card(tmp_path / "pipeline")
    assert not has_own_card(made.unevaluated)

    made.pipe.save_pretrained(tmp_path / "pipeline")
    made.checkpoints.save(tmp_path / "checkpoints")
    add_report(tmp_path / "evaluated", made.pipe, made.report, made.metrics)

    for name in ("pipeline", "checkpoints", "evaluated"):
        assert text_of(tmp_path / name) == own, name
    assert (tmp_path / "evaluated/metrics.json").is_file()


def test_a_card_that_was_made_is_made_anew(made: Made, tmp_path: Path):
    half = made.checkpoints.zoo.take([i < 8 for i in range(16)])
    made.checkpoints.save(tmp_path)
    assert "| train | 16 |" in text_of(tmp_path)

    Checkpoints({"train": half}, made.checkpoints.processor, made.checkpoints.target_model).save(tmp_path)

    assert "| train | 8 |" in text_of(tmp_path)


# Snippets


def run_snippet(text: str, **names: Any) -> dict[str, Any]:
    """Runs a card's first snippet, as its reader would."""
    namespace = dict(names)
    exec(compile(SNIPPET.search(text)[1], "card", "exec"), namespace)
    return namespace


def test_the_snippets_run_as_they_stand(
    hub: Hub, repo_id: str, made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    pixel_values = torch.zeros(4, 1, 8, 8)
    share(made.evaluated, repo_id, token=TOKEN)
    made.checkpoints.push_to_hub(f"{repo_id}-zoo", token=TOKEN)
    out = PDiffPipeline.from_pretrained(repo_id)(2, generator=torch.Generator().manual_seed(0))
    out.push_to_hub(f"{repo_id}-drawn", token=TOKEN)
    out.push_to_hub(f"{repo_id}-drawn", one_repository_each=True, token=TOKEN)

    def card(name: str, repo_type: str = "model") -> str:
        return hub.repos[repo_type, name].at().tree["README.md"].data.decode()

    drawn = run_snippet(card(repo_id), pixel_values=pixel_values)
    zoo = run_snippet(card(f"{repo_id}-zoo", "dataset"))
    first = run_snippet(card(f"{repo_id}-drawn"))
    alone = run_snippet(card(f"{repo_id}-drawn-00000"))

    assert drawn["out"].logits(pixel_values).shape == (10, 4, 10)
    assert sorted(p.name for p in Path("drawn").iterdir()) == [*(f"{i:05d}" for i in range(10)), "README.md"]
    assert torch.equal(zoo["checkpoints"].zoo.parameters, made.checkpoints.zoo.parameters)
    expected = out.models[0](pixel_values).logits
    assert torch.equal(first["model"](pixel_values).logits, expected)
    assert torch.equal(alone["model"](pixel_values).logits, expected)
    assert metadata_of(card(repo_id))["model-index"][0]["name"] == repo_id
    for name, repo_type in ((repo_id, "model"), (f"{repo_id}-zoo", "dataset"), (f"{repo_id}-drawn", "model")):
        assert "path/or/id" not in card(name, repo_type)
        assert ADDRESSES.findall(card(name, repo_type)) == [name]


# Addresses

NAME = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,12}[A-Za-z0-9]", fullmatch=True)
REPO_ID = st.builds("{}/{}".format, NAME, NAME)


@st.composite
def card_and_ids(draw: st.DrawFn) -> tuple[str, str, str]:
    """A card of the kind that is made, and two ids: unrelated ones, or such as begin or end like one another."""
    first = draw(REPO_ID)
    near = st.sampled_from([f"{first}-zoo", f"{first}.v2", f"x{first}", f"x-{first}", f"{first}2", first.upper()])
    second, other = draw(REPO_ID | near), draw(REPO_ID | near)
    text = (
        f"---\ndatasets:\n- {other}\nbase_model: org/other\nmodel-index:\n- name: path/or/id\n---\n"
        "<!-- Repository: path/or/id -->\n\n"
        '```python\npipe = PDiffPipeline.from_pretrained("path/or/id")\n```\n\n'
        f"`pdiff-hf audit path/or/id`, see https://huggingface.co/path/or/id, made from [{other}]"
        f"(https://huggingface.co/datasets/{other}). (https://huggingface.co/models?other=base_model:path/or/id). "
        "It is path/or/id. Not path/or/id/x, path/or/id-x, x/path/or/id or path/or/id.x.\n"
    )
    return text, first, second


@given(card_and_ids())
def test_a_card_moves_as_often_as_one_likes(case: tuple[str, str, str]):
    text, first, second = case

    moved = readdress(text, first)

    assert readdress(moved, first) == moved
    assert readdress(moved, second) == readdress(text, second)
    assert readdress(moved, "path/or/id") == text
    assert ADDRESSES.findall(moved) == [first]
    earlier = text.replace("Repository:", "This card speaks of")
    assert readdress(earlier, first).replace("This card speaks of", "Repository:") == moved


@given(card_and_ids())
def test_a_card_that_moves_takes_all_its_own_addresses_and_no_others(case: tuple[str, str, str]):
    text, first, _ = case
    other = re.search(r"\n- (\S+)\nbase_model", text)[1]

    moved = readdress(text, first)

    metadata = metadata_of(moved)
    assert metadata["datasets"] == [other]
    assert metadata["base_model"] == "org/other"
    assert metadata["model-index"][0]["name"] == first
    assert f'from_pretrained("{first}")' in moved
    assert f"audit {first}`, see https://huggingface.co/{first}, " in moved
    assert f"[{other}](https://huggingface.co/datasets/{other})" in moved
    assert f"base_model:{first}). It is {first}. " in moved
    assert moved.endswith("Not path/or/id/x, path/or/id-x, x/path/or/id or path/or/id.x.\n")


@given(st.text().filter(lambda text: not ADDRESSES.search(text)), REPO_ID)
def test_a_card_without_an_address_stays_as_it_is(text: str, repo_id: str):
    assert readdress(text, repo_id) == text


# Places of this machine

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
PLACE = st.lists(st.from_regex(r"[\w .-]{1,8}", fullmatch=True), min_size=1, max_size=4).map(
    lambda parts: "/" + "/".join(parts)
)


def strings(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [text for inner in value.values() for text in strings(inner)]
    if isinstance(value, list):
        return [text for inner in value for text in strings(inner)]
    return [value] if isinstance(value, str) else []


@given(JSON, PLACE)
def test_what_is_published_names_no_place_of_this_machine(value: Any, place: str):
    published = published_value({"a": [value, {"b": place}], "c": place, "d": 1})

    assert not [text for text in strings(published) if os.path.isabs(text)]
    assert published["c"] == published["a"][1]["b"] == Path(place).name
    assert published["d"] == 1
    assert published_value(published) == published


@given(JSON.filter(lambda value: not any(map(os.path.isabs, strings(value)))))
def test_what_names_no_place_is_published_as_it_is(value: Any):
    assert published_value(value) == value


def test_of_a_local_data_set_the_last_part_of_its_path_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/images").mkdir(parents=True)

    assert published_name(str(tmp_path / "runs/images")) == "images"
    assert published_name("/gone/images") == "images"
    assert published_name("runs/images") == "images"
    assert published_name("org/images") == "org/images"
    assert published_name(None) is None


def test_a_layout_of_many_tensors_names_the_first(tiny_resnet: PreTrainedModel):
    few, many = make_processor(tiny_resnet, "head"), make_processor(tiny_resnet, "full")

    assert describe_layout(few.names) == ", ".join(f"`{name}`" for name in few.names)
    shown = ", ".join(f"`{name}`" for name in many.names[:4])
    assert describe_layout(many.names) == f"{shown} and {len(many.names) - 4} more"
