"""The command `pdiff-hf`: what it prints, writes and fetches, and one line and a code for whatever goes wrong."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi, ModelCard
from safetensors.torch import load_file
from transformers import AutoModelForImageClassification, PreTrainedModel
from transformers.utils import logging

from pdiff_hf import Checkpoints, CheckpointSplit, PDiffPipeline, __version__, make_processor, share
from pdiff_hf.hub.cards import PICTURES
from pdiff_hf_cli import main

from .environment import hub_environment
from .processes import run_python
from .server import Hub
from .shared import Shared

TOKEN = "hf_alice"
COMMANDS = ("info", "sample", "push")
WEIGHTS = "model.safetensors"


Said = namedtuple("Said", ["code", "out", "err"])
Run = Callable[..., Said]


@pytest.fixture
def pdiff_hf(capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs the command in this process, and puts back what it sets for the rest of one."""
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "error")

    def run(*arguments: object) -> Said:
        capfd.readouterr()
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as end:
            code = end.code
        finally:
            logging.enable_progress_bar()
        said = capfd.readouterr()
        return Said(code, said.out, said.err)

    return run


def folders_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir())


# Help

HELP = """
import sys
from pdiff_hf_cli import main
for arguments in ([], ["info"], ["sample"], ["push"]):
    try:
        main([*arguments, "--help"])
    except SystemExit as end:
        assert end.code == 0
print("IMPORTED", sorted({name.split(".")[0] for name in sys.modules}))
"""


def test_help_takes_no_library_and_no_request(hub: Hub, empty_cache: Path):
    said = run_python(HELP, hub, cache=empty_cache)

    imported = said.split("IMPORTED ")[1]
    for library in ("torch", "numpy", "huggingface_hub", "transformers", "diffusers", "datasets", "pdiff_hf"):
        assert f"'{library}'" not in imported
    assert hub.log == []


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_ends_with_examples_of_its_own_flags(pdiff_hf: Run, command: str):
    said = pdiff_hf(*command.split(), "--help")

    assert (said.code, said.err) == (0, "")
    help_text, _, examples = said.out.rpartition("\nexample")
    found = [shlex.split(example) for example in re.findall(r"^  pdiff-hf (.+)$", examples, re.MULTILINE)]
    assert {words[0] for words in found} == ({command} if command else {*COMMANDS, "audit"})
    if command:
        flags = {word for words in found for word in words if word.startswith("--")}
        assert all(f"  {flag}" in help_text for flag in flags)


@pytest.mark.parametrize(
    "arguments",
    [[], ["draw"], ["info"], ["sample", "x", "--num_models", "many"], ["audit", "x"], ["push", "x", "y", "--public"]],
    ids=" ".join,
)
def test_a_wrong_use_shows_the_right_one(pdiff_hf: Run, arguments: list[str]):
    said = pdiff_hf(*arguments)

    assert (said.code, said.out) == (2, "")
    assert said.err.startswith("usage: pdiff-hf")
    assert "Traceback" not in said.err


def test_info_fetches_no_weights_however_large_they_are(hub: Hub, pushed: str, pdiff_hf: Run):
    hub.store_large_file("model", pushed, "target_model/model-00002-of-00002.safetensors", 2**30)

    said = pdiff_hf("info", pushed)

    assert (said.code, said.err) == (0, "")
    assert hub.bytes_sent < 2**20
    assert not hub.requests(path_regex="safetensors|/cdn/")
    table = dict(line.split(None, 1) for line in said.out.splitlines())
    assert table["generator"] == f"{pushed} at {HfApi().model_info(pushed).sha[:8]}"
    assert table["generates"] == "90 parameters in 2 tensors of MLPForImageClassification"
    assert table["size"].endswith("bytes, most of it target_model/model-00002-of-00002.safetensors")
    assert int(table["size"].split()[0].replace(",", "")) > 2**30
    assert table["audit"].startswith("not evaluated")


def test_info_in_json_describes_a_revision_or_a_folder(
    api: HfApi, pushed: str, saved_pipeline: Path, tiny_pipeline: PDiffPipeline, pdiff_hf: Run
):
    first = api.model_info(pushed).sha
    api.delete_file("metrics.json", pushed)

    remote, local, latest = (
        json.loads(pdiff_hf("info", *arguments, "--json").out)
        for arguments in ((pushed, "--revision", first), (saved_pipeline,), (pushed,))
    )

    assert (remote["name"], remote["commit"]) == (pushed, first)
    assert (local["name"], local["commit"]) == (str(saved_pipeline), None)
    for described in (remote, local):
        assert described["generated"] == {"names": ["classifier.weight", "classifier.bias"], "parameter_dim": 90}
        assert described["denoiser"] == "MLPParameterDenoiser"
        assert described["data"]["zoo_count"] == 24
        assert described["costs"]["target_seconds"] == 1.0
        assert described["num_inference_steps"] == tiny_pipeline.config.default_num_inference_steps
    assert local["size"] == sum(path.stat().st_size for path in saved_pipeline.rglob("*") if path.is_file())
    assert latest["data"]["zoo_count"] is None


def test_info_of_a_zoo_fetches_the_ends_of_its_files(
    hub: Hub, repo_id: str, tiny_vit: PreTrainedModel, random_vectors: Callable, pdiff_hf: Run
):
    processor, rows = make_processor(tiny_vit, "full"), 60
    parameters = random_vectors(tiny_vit, processor, rows)
    zoo = CheckpointSplit(parameters, run=["run-0"] * rows, step=list(range(rows)), seed=[0] * rows)
    Checkpoints({"train": zoo}, processor, tiny_vit).push_to_hub(repo_id, token=TOKEN)
    hub.reset()

    described = json.loads(pdiff_hf("info", repo_id, "--json").out)

    assert described["splits"] == {"train": {"count": rows, "score": []}}
    assert hub.bytes_sent < parameters.nbytes / 4


def test_info_of_a_zoo_counts_its_checkpoints(
    hub: Hub, repo_id: str, tiny_checkpoints: Checkpoints, tmp_path: Path, pdiff_hf: Run
):
    tiny_checkpoints.push_to_hub(repo_id, token=TOKEN)
    tiny_checkpoints.save(tmp_path / "zoo")

    remote, local = (json.loads(pdiff_hf("info", name, "--json").out) for name in (repo_id, tmp_path / "zoo"))

    assert remote["commit"] == hub.repos["dataset", repo_id].branches["main"]
    for described in (remote, local):
        assert described["kind"] == "zoo"
        assert {name: own["count"] for name, own in described["splits"].items()} == {
            "train": 24,
            "validation": 8,
            "test": 8,
        }
        assert described["splits"]["train"]["score"] == pytest.approx([0.5, 0.73])
    table = dict(line.split(None, 1) for line in pdiff_hf("info", tmp_path / "zoo").out.splitlines())
    assert table["zoo"] == str(tmp_path / "zoo")
    assert table["checkpoints"] == "24 train, 8 validation, 8 test"
    assert table["generates"] == "90 parameters in 2 tensors of MLPForImageClassification"
    assert table["accuracy"].startswith("on validation examples: train 50.00 % to 73.00 %")


def test_info_of_drawn_networks_names_their_number_class_and_origin(
    hub: Hub, repo_id: str, pushed: str, tmp_path: Path, pdiff_hf: Run
):
    pdiff_hf("sample", pushed, "--num_models", 3, "--seed", 5, "--output_dir", tmp_path / "drawn")
    share(tmp_path / "drawn", f"{repo_id}-drawn", token=TOKEN)
    hub.reset()

    remote = json.loads(pdiff_hf("info", f"{repo_id}-drawn", "--json").out)

    assert not hub.requests(path_regex="safetensors|/cdn/")
    assert (remote["kind"], remote["count"]) == ("networks", 3)
    said = pdiff_hf("info", tmp_path / "drawn")
    table = dict(line.split(None, 1) for line in said.out.splitlines())
    assert table["holds"] == "3 drawn networks MLPForImageClassification"
    assert table["from"].startswith(f"{pushed} at ")
    assert "seed 5 to 7" in said.out


def test_info_of_anything_else_is_refused_in_a_sentence(hub: Hub, repo_id: str, tmp_path: Path, pdiff_hf: Run):
    (tmp_path / "notes.txt").write_text("nothing")
    HfApi(token=TOKEN).create_repo(repo_id)

    for name in (tmp_path, repo_id):
        said = pdiff_hf("info", name)
        assert (said.code, said.out) == (1, "")
        assert "is neither a generator (it has no model_index.json), nor a checkpoints dataset" in said.err
        assert said.err.count("\n") == 1


def test_the_version_is_that_of_the_package(pdiff_hf: Run):
    assert pdiff_hf("--version") == Said(0, f"pdiff-hf {__version__}\n", "")


def test_a_network_is_drawn_alone_as_among_others_with_the_samplers_settings(
    pushed: str, tiny_pipeline: PDiffPipeline, tmp_path: Path, pdiff_hf: Run
):
    together = tmp_path / "together"
    settings = {"temperature": 0.5, "num_inference_steps": 3}
    flags = [text for name, value in settings.items() for text in (f"--{name}", value)]

    said = pdiff_hf("sample", pushed, *flags, "--num_models", "4", "--seed", "10", "--output_dir", together)
    pdiff_hf("sample", pushed, *flags, "--seed", 13, "--output_dir", tmp_path / "alone")

    assert (said.code, said.out) == (0, f"Written: {together}\n")
    assert folders_in(together) == [f"{i:05d}" for i in range(4)]
    weights = [(together / name / WEIGHTS).read_bytes() for name in folders_in(together)]
    assert len(set(weights)) == 4
    assert (tmp_path / "alone/00000" / WEIGHTS).read_bytes() == weights[3]
    (expected,) = tiny_pipeline(1, generator=[torch.Generator().manual_seed(13)], **settings).parameters
    assert torch.equal(tiny_pipeline.processor.flatten(load_file(together / "00003" / WEIGHTS)), expected)
    provenance = json.loads((together / "00003/provenance.json").read_text(encoding="utf-8"))
    assert (provenance["seed"], provenance["index"], provenance["generator"]) == (13, 0, pushed)
    assert {name: provenance[name] for name in settings} == settings
    network = AutoModelForImageClassification.from_pretrained(together / "00003")
    assert network(torch.zeros(1, 1, 8, 8)).logits.shape == (1, 10)


def test_networks_are_pushed_from_a_folder_or_from_none(hub: Hub, pushed: str, tmp_path: Path, pdiff_hf: Run):
    one, other = f"{pushed}-one", f"{pushed}-other"
    arguments = ["sample", pushed, "--num_models", "2", "--token", TOKEN, "--push_to"]

    first = pdiff_hf(*arguments, one, "--private")
    second = pdiff_hf(*arguments, other, "--output_dir", tmp_path / "drawn")

    assert first.code == second.code == 0
    assert first.out == f"Pushed: {hub.url}/{one}/commit/{hub.repos['model', one].branches['main']}\n"
    assert second.out.splitlines()[0] == f"Written: {tmp_path / 'drawn'}"
    assert [hub.repos["model", name].private for name in (one, other)] == [True, False]
    files = [{name: data for name, data in hub.files(repo).items() if name != "README.md"} for repo in (one, other)]
    assert files[0] == files[1]
    assert {name.split("/")[0] for name in files[0]} == {".gitattributes", "00000", "00001"}


def test_as_a_program_without_the_hub_it_draws_the_same_networks(
    hub: Hub, pushed: str, tiny_pipeline: PDiffPipeline, empty_cache: Path, tmp_path: Path
):
    PDiffPipeline.from_pretrained(pushed, cache_dir=empty_cache / "hub")
    hub.reset()

    process = subprocess.run(
        [sys.executable, "-m", "pdiff_hf_cli", "sample", pushed, "--num_models", "2", "--output_dir", "drawn"],
        env=hub_environment(hub, empty_cache, offline=True) | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=120,
    )

    assert (process.returncode, process.stdout) == (0, "Written: drawn\n"), process.stderr
    assert hub.log == []
    expected = tiny_pipeline(2, generator=[torch.Generator().manual_seed(i) for i in range(2)]).parameters
    for i in range(2):
        drawn = load_file(tmp_path / f"drawn/{i:05d}" / WEIGHTS)
        assert torch.equal(tiny_pipeline.processor.flatten(drawn), expected[i])


def test_push_takes_each_kind_of_folder(
    hub: Hub, repo_id: str, pipeline: Shared, checkpoints: Shared, tmp_path: Path, pdiff_hf: Run
):
    pipeline.load(pipeline.folder)(1).save_pretrained(tmp_path / "drawn")
    folders = {pipeline.folder: "model", checkpoints.folder: "dataset", tmp_path / "drawn": "model"}

    for folder, repo_type in folders.items():
        target = f"{repo_id}-{folder.name}"
        said = pdiff_hf("push", folder, target, "--private", "--message", "Mine", "--token", TOKEN)
        assert (said.code, said.err) == (0, "")
        assert f"{target}/commit/" in said.out
        assert hub.repos[repo_type, target].private
        assert hub.titles(target, repo_type) == ["Mine", "initial commit"]


def test_push_makes_the_revision_that_carries_its_code(hub: Hub, repo_id: str, saved_pipeline: Path, pdiff_hf: Run):
    said = pdiff_hf("push", saved_pipeline, repo_id.split("/")[1], "--remote_code", "--token", TOKEN)

    assert (said.code, said.err) == (0, "")
    repo = hub.repos["model", repo_id]
    assert said.out.splitlines()[1].endswith(f"remote-code: {repo.branches['remote-code']}")
    assert any(path.endswith(".py") for path in repo.at("remote-code").tree)
    assert not any(path.endswith(".py") for path in repo.at("main").tree)


def test_an_audit_reads_and_pushes_with_its_token(
    hub: Hub, repo_id: str, pipeline: Shared, checkpoints: Shared, tmp_path: Path, pdiff_hf: Run
):
    pipeline.repo.visibility = checkpoints.repo.visibility = "private"
    arguments = ["audit", repo_id, "--checkpoints", repo_id, "--dataset_name", "digits", "--num_models", "2"]

    said = pdiff_hf(*arguments, "--output_dir", tmp_path / "report", "--push_to_hub", "--token", TOKEN)
    described = json.loads(pdiff_hf("info", repo_id, "--json", "--token", TOKEN).out)

    assert said.code == 0, said.err
    assert "| **generated** | 2 |" in said.out
    metrics = json.loads((tmp_path / "report/metrics.json").read_text(encoding="utf-8"))
    assert described["accuracy"]["generated"] == metrics["sets"]["generated"]["test"]["accuracy"]
    assert described["dispersion"] == metrics["sets"]["generated"]["dispersion"]
    assert metrics["generator"]["denoiser"]["config"]["width"] == 16  # how it was fitted is kept
    assert sum(name.endswith(".png") for name in hub.files(repo_id)) == len(PICTURES)
    assert ModelCard(hub.card(repo_id)).data.eval_results
    verdict = f"{metrics['verdict']['word']} ({metrics['verdict']['reason']})"
    assert verdict in pdiff_hf("info", repo_id, "--token", TOKEN).out


# What goes wrong

FAILURES = [
    ("info alice/nowhere", "no model 'alice/nowhere' that this token can see"),
    ("info nowhere", "There is no folder 'nowhere'"),
    ("info .", "has no model_index.json"),
    ("info {repo} --token hf_mistyped", "does not know the token"),
    ("info {repo} --revision v9", "no such revision"),
    ("sample {repo}", "--output_dir, --push_to, or both"),
    ("sample {repo} --output_dir file", "there is a file of that name"),
    ("sample {repo} --output_dir out --num_models 0", "--num_models must be at least 1"),
    ("sample {repo} --output_dir out --temperature -1", "--temperature must be at least 0"),
    (
        "sample {repo} --output_dir out --num_inference_steps 0",
        "--num_inference_steps must be at least 1",
    ),
    ("sample {repo} --push_to bob/drawn --token hf_alice", "does not allow this"),
    ("audit {repo} --checkpoints nowhere", "There is no folder 'nowhere'"),
    ("push . alice/x --token hf_alice", "no pipeline (model_index.json)"),
    ("push pipeline alice/x", "that this token can see"),
    ("push pipeline {repo} --private --token hf_alice", "a private one was asked for"),
    ("push pipeline a/b/c --token hf_alice", "has no valid name"),
]


@pytest.mark.parametrize(("arguments", "sentence"), FAILURES, ids=[arguments for arguments, _ in FAILURES])
def test_what_goes_wrong_is_said_in_one_line(
    hub: Hub, pipeline: Shared, monkeypatch: pytest.MonkeyPatch, pdiff_hf: Run, arguments: str, sentence: str
):
    folder, head = pipeline.folder.parent, dict(pipeline.repo.branches)
    monkeypatch.chdir(folder)
    (folder / "file").write_text("in the way", encoding="utf-8")

    said = pdiff_hf(*arguments.format(repo=pipeline.repo.id).split())

    assert (said.code, said.out) == (1, "")
    (line,) = said.err.splitlines()
    assert line.startswith("pdiff-hf: ")
    assert sentence in line
    assert line.endswith(".")
    assert not re.search(r"hf_(mistyped|alice)", line)
    assert not (folder / "out").exists()
    assert pipeline.repo.branches == head
    assert not hub.requests("PUT")
