"""The revision that carries its code: the same networks where this package is not installed, and no code on main."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi, ModelCard
from safetensors.torch import load_file, save_file

from pdiff_hf import (
    BrokenFileError,
    Checkpoints,
    CheckpointSplit,
    HubAccessError,
    HubNotFoundError,
    PDiffPipeline,
    Recipe,
    UnsafeFileError,
    fit,
    make_processor,
    share,
)
from pdiff_hf._registration import COMPONENTS, component_classes
from pdiff_hf.data.preprocessing import Preprocessing
from pdiff_hf.pipelines.remote_code import export_remote_code, push_remote_code, self_contained

from .processes import run_python
from .server import Hub

TOKEN = "hf_alice"
# Each pair of autoencoder, denoiser and target occurs.
COMBINATIONS = [
    ("linear", "mlp", "mlp"),
    ("conv", "conv", "mlp"),
    ("linear", "conv", "resnet"),
    ("conv", "mlp", "resnet"),
]


@pytest.fixture
def pushed(hub: Hub, repo_id: str, tiny_pipeline: PDiffPipeline) -> str:
    """The id of a pipeline on the Hub."""
    tiny_pipeline.push_to_hub(repo_id, token=TOKEN)
    hub.reset()
    return repo_id


def titles(hub: Hub, repo_id: str, revision: str) -> list[str]:
    return [commit.title for commit in hub.repos["model", repo_id].history(revision)]


def files_on(hub: Hub, repo_id: str, revision: str) -> dict[str, bytes]:
    """The files of a revision that the Hub keeps as text, and of the others their checksums."""
    tree = hub.repos["model", repo_id].at(revision).tree
    return {name: blob.data if blob.sha256 is None else blob.sha256.encode() for name, blob in tree.items()}


def code_on(hub: Hub, repo_id: str, revision: str = "remote-code") -> dict[str, str]:
    return {name: text.decode() for name, text in files_on(hub, repo_id, revision).items() if name.endswith(".py")}


# Without the package

DRAW = """
import json, sys
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageClassification

for i, repo_id in enumerate({repo_ids!r}):
    try:
        DiffusionPipeline.from_pretrained(repo_id, revision="remote-code")
    except ValueError as error:
        assert "trust_remote_code=True" in str(error), error
    else:
        raise AssertionError("Code was run that nobody trusts.")
    pipe = DiffusionPipeline.from_pretrained(repo_id, revision="remote-code", trust_remote_code=True)
    pipe.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
    out = pipe(2, generator=generators)
    images = load_file({folder!r} + f"/{{i}}-images")["images"]
    with torch.no_grad():
        logits = {{"joint": out.logits(images), "each": torch.stack([m(images).logits for m in out.models])}}
    save_file({{"parameters": out.parameters, **logits}}, {folder!r} + f"/{{i}}-drawn")
    for refused in (pipe.save_pretrained, pipe.push_to_hub, out.push_to_hub):
        try:
            refused({folder!r} + "/saved")
        except NotImplementedError as error:
            print(error)
        else:
            raise AssertionError("Something was saved that cannot be loaded.")
    out.save_pretrained({folder!r} + f"/{{i}}-networks")
    if type(out.models[0]).__module__.startswith("transformers."):
        loaded = AutoModelForImageClassification.from_pretrained({folder!r} + f"/{{i}}-networks/00001")
        assert torch.equal(loaded(images).logits, logits["each"][1])
assert sys.modules["pdiff_hf"] is None
"""


def test_the_same_networks_are_drawn_where_the_package_is_not_installed(
    hub: Hub,
    repo_id: str,
    request: pytest.FixtureRequest,
    tiny_recipe: Recipe,
    random_vectors: Callable,
    random_images: Callable,
    empty_cache: Path,
    tmp_path: Path,
):
    pipes, repo_ids = [], []
    for i, (autoencoder, denoiser, family) in enumerate(COMBINATIONS):
        target = request.getfixturevalue({"mlp": "mlp", "resnet": "tiny_resnet"}[family])
        processor = make_processor(target, {"mlp": "head", "resnet": "last_norms"}[family])
        parameters = random_vectors(target, processor, 12)
        zoo = CheckpointSplit(parameters, run=["run-0"] * 12, step=list(range(12)), seed=[0] * 12)
        channels = target.config.num_channels
        preprocessing = Preprocessing(image_size=16, mean=(0.5,) * channels, std=(0.25,) * channels).to_dict()
        recipe = Recipe(
            dataclasses.replace(
                tiny_recipe.autoencoder,
                type=autoencoder,
                config={"latent_dim": 8},
                max_train_steps=2,
                train_batch_size=4,
            ),
            dataclasses.replace(tiny_recipe.denoiser, type=denoiser, config={}, num_inference_steps=3),
        )
        pipes.append(fit(Checkpoints({"train": zoo}, processor, target, preprocessing), recipe))
        repo_ids.append(f"{repo_id}-{i}")
        pipes[i].push_to_hub(repo_ids[i], token=TOKEN)
        save_file({"images": random_images(target, 3)}, tmp_path / f"{i}-images")

    commits = [push_remote_code(name, TOKEN) for name in repo_ids]
    code = DRAW.format(repo_ids=repo_ids, folder=str(tmp_path))
    said = run_python(code, hub, cache=empty_cache, token=None, block_package=True)

    for i, pipe in enumerate(pipes):
        out = pipe(2, generator=[torch.Generator().manual_seed(seed) for seed in (3, 4)])
        images = load_file(tmp_path / f"{i}-images")["images"]
        drawn = load_file(tmp_path / f"{i}-drawn")
        assert torch.equal(drawn["parameters"], out.parameters), COMBINATIONS[i]
        assert torch.equal(drawn["joint"], out.logits(images)), COMBINATIONS[i]
        assert torch.equal(drawn["each"], torch.stack([network(images).logits for network in out.models]))
        assert hub.repos["model", repo_ids[i]].branches["remote-code"] == commits[i]
        assert not [name for name in files_on(hub, repo_ids[i], "main") if name.endswith(".py")]
        networks = {path.name for path in (tmp_path / f"{i}-networks").iterdir()}
        assert {"00000", "00001"} <= networks
    assert said.count("pip install pdiff-hf") == 3 * len(pipes)
    assert not (tmp_path / "saved").exists()


# The branch


def test_the_code_goes_to_a_branch_and_main_stays_as_it_is(hub: Hub, pushed: str, empty_cache: Path):
    before = files_on(hub, pushed, "main")

    commit = push_remote_code(pushed, TOKEN)

    assert files_on(hub, pushed, "main") == before
    assert titles(hub, pushed, "main") == ["Upload pipeline", "initial commit"]
    repo = hub.repos["model", pushed]
    assert repo.branches.keys() == {"main", "remote-code"}
    assert repo.branches["remote-code"] == commit
    code = code_on(hub, pushed)
    assert {name.partition("/")[0] for name in code if "/" in name} == {
        "autoencoder",
        "denoiser",
        "processor",
        "target_model",
    }
    assert len(code) == 5
    for name, text in code.items():
        imported = {
            (node.module or "") if isinstance(node, ast.ImportFrom) else node.names[0].name
            for node in ast.walk(ast.parse(text))
            if isinstance(node, ast.Import | ast.ImportFrom)
        }
        assert not [module for module in imported if module.startswith("pdiff_hf")], name
    weights = {name: content for name, content in before.items() if name.endswith(".safetensors")}
    assert weights.items() <= files_on(hub, pushed, "remote-code").items()
    with pytest.raises(BrokenFileError, match="holds no PDiffPipeline"):  # this package runs no code of others
        PDiffPipeline.from_pretrained(pushed, revision="remote-code", cache_dir=empty_cache)


def test_the_branchs_card_is_about_the_branch_and_leads_back(hub: Hub, pushed: str):
    push_remote_code(pushed, TOKEN)

    text = files_on(hub, pushed, "remote-code")["README.md"].decode()
    assert "path/or/id" not in text
    assert f'from_pretrained("{pushed}", revision="remote-code", trust_remote_code=True)' in text
    assert f"[main branch](https://huggingface.co/{pushed})" in text
    assert ModelCard(text).data.license == "apache-2.0"
    assert b"remote-code" not in files_on(hub, pushed, "main")["README.md"]


def test_pushing_the_same_code_again_makes_no_commit(hub: Hub, pushed: str):
    first = push_remote_code(pushed, TOKEN)
    history = titles(hub, pushed, "remote-code")

    assert push_remote_code(pushed, TOKEN) == first
    assert titles(hub, pushed, "remote-code") == history
    assert history == ["The pipeline with its code", "Upload pipeline", "initial commit"]


def test_a_new_pipeline_takes_the_place_of_the_old_one_and_its_code(
    hub: Hub, pushed: str, tiny_checkpoints: Checkpoints, tiny_recipe: Recipe
):
    push_remote_code(pushed, TOKEN)
    before = code_on(hub, pushed)
    conv = dataclasses.replace(
        tiny_recipe.autoencoder, type="conv", config={"latent_dim": 8}, max_train_steps=2, train_batch_size=4
    )
    fit(tiny_checkpoints, Recipe(conv, tiny_recipe.denoiser)).push_to_hub(pushed, token=TOKEN)

    push_remote_code(pushed, TOKEN)

    after = code_on(hub, pushed)
    changed = {name.partition("/")[0] for name in before.keys() ^ after.keys()}
    assert changed == {"autoencoder"}
    assert len(after) == len(before)
    index = json.loads(files_on(hub, pushed, "remote-code")["model_index.json"])
    assert index["autoencoder"][1] == "ParameterAutoencoder"
    assert f"autoencoder/{index['autoencoder'][0]}.py" in after
    assert f"{index['_class_name'][0]}.py" in after


def test_what_others_keep_beside_the_pipeline_is_not_in_the_way(hub: Hub, pushed: str):
    api = HfApi(token=TOKEN)
    for name in ("notes/more.txt", "demo.ipynb", "LICENSE", "old/pytorch_model.bin"):
        api.upload_file(path_or_fileobj=b"theirs", path_in_repo=name, repo_id=pushed)
    hub.store_large_file("model", pushed, "talk.mp4", 2**30)
    hub.reset()

    push_remote_code(pushed, TOKEN)

    assert len(code_on(hub, pushed)) == 5
    assert hub.bytes_sent < 2**20


def test_a_private_pipelines_code_is_private_and_needs_a_token(hub: Hub, repo_id: str, tiny_pipeline: PDiffPipeline):
    tiny_pipeline.push_to_hub(repo_id, private=True, token=TOKEN)

    with pytest.raises(HubNotFoundError, match="that this token can see"):
        push_remote_code(repo_id, "hf_bob")
    push_remote_code(repo_id, TOKEN)

    assert len(code_on(hub, repo_id)) == 5


def test_a_push_that_fails_leaves_no_branch(hub: Hub, pushed: str, tmp_path: Path, tiny_pipeline: PDiffPipeline):
    with pytest.raises(HubAccessError, match="does not allow this"):
        push_remote_code(pushed, "hf_bob")
    with pytest.raises(HubNotFoundError, match="that this token can see"):
        push_remote_code(f"{pushed}-nowhere", TOKEN)
    HfApi(token=TOKEN).upload_file(
        path_or_fileobj=b"{}", path_in_repo="denoiser/config.json", repo_id=pushed, commit_message="Break it"
    )
    with pytest.raises(BrokenFileError):
        push_remote_code(pushed, TOKEN)

    assert hub.repos["model", pushed].branches.keys() == {"main"}


def test_main_takes_no_code(hub: Hub, repo_id: str, tiny_pipeline: PDiffPipeline, tmp_path: Path):
    tiny_pipeline.save_pretrained(tmp_path / "pipeline")
    export_remote_code(tmp_path / "pipeline", tmp_path / "exported")

    with pytest.raises(UnsafeFileError, match=r"\.py' in .* is not shared"):
        share(tmp_path / "exported", repo_id, token=TOKEN)

    assert hub.log == []


# One file


@pytest.mark.parametrize("role", COMPONENTS)
def test_a_component_that_is_complete_in_itself_is_carried_as_it_is(role: str):
    for cls in component_classes(role).values():
        source = inspect.getsource(inspect.getmodule(cls))
        if "\nfrom ." not in source:
            assert self_contained(cls.__module__) == source


def test_the_modules_that_one_file_is_made_of_do_not_use_one_name_twice():
    modules = [PDiffPipeline.__module__, *(cls.__module__ for cls in component_classes("target_model").values())]
    for module in modules:
        defined = Counter(
            statement.name
            for statement in ast.parse(self_contained(module)).body
            if isinstance(statement, ast.ClassDef | ast.FunctionDef)
        )
        assert [name for name, times in defined.items() if times > 1] == [], module


def test_a_name_in_the_index_leads_nowhere_out_of_the_output_folder(tiny_pipeline: PDiffPipeline, tmp_path: Path):
    tiny_pipeline.save_pretrained(tmp_path / "pipeline")
    index = json.loads((tmp_path / "pipeline/model_index.json").read_text())
    index["../outside"] = index["denoiser"]
    (tmp_path / "pipeline/model_index.json").write_text(json.dumps(index))

    export_remote_code(tmp_path / "pipeline", tmp_path / "exported")

    assert sorted(path.name for path in tmp_path.iterdir()) == ["exported", "pipeline"]
