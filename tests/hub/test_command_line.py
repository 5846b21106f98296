"""The command `pdiff-hf`: what it prints, writes and fetches, and one line and a code for whatever goes wrong."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi, ModelCard
from safetensors.torch import load_file
from transformers import AutoModelForImageClassification
from transformers.utils import logging

from pdiff_hf import Checkpoints, PDiffPipeline, load_checkpoints
from pdiff_hf.pipelines.describing import describe_pipeline
from pdiff_hf_cli import _parser, main

from .environment import hub_environment
from .processes import run_python
from .server import Hub

TOKEN = "hf_alice"
COMMANDS = ("info", "sample", "push")
WEIGHTS = "model.safetensors"


@dataclass
class Said:
    """What a command answered."""

    code: int
    out: str
    err: str


@pytest.fixture
def pdiff_hf(capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Said]:
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


@pytest.fixture
def pushed(hub: Hub, repo_id: str, tiny_pipeline: PDiffPipeline) -> str:
    """The id of a pipeline on the Hub."""
    tiny_pipeline.push_to_hub(repo_id, token=TOKEN)
    hub.reset()
    return repo_id


@pytest.fixture
def folder(tiny_pipeline: PDiffPipeline, tmp_path: Path) -> Path:
    """A saved pipeline."""
    tiny_pipeline.save_pretrained(tmp_path / "pipeline")
    return tmp_path / "pipeline"


def weights(folder: Path) -> bytes:
    return (folder / WEIGHTS).read_bytes()


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
def test_help_ends_with_examples_that_the_parser_takes(pdiff_hf: Callable[..., Said], command: str):
    said = pdiff_hf(*command.split(), "--help")

    assert (said.code, said.err) == (0, "")
    examples = re.findall(r"^  pdiff-hf (.+)$", said.out.partition("example")[2], re.MULTILINE)
    assert {shlex.split(example)[0] for example in examples} == ({command} if command else {*COMMANDS, "audit"})
    for example in examples:
        if not example.startswith("audit"):
            assert callable(_parser().parse_args(shlex.split(example)).run)


# info


def test_info_fetches_no_weights_however_large_they_are(hub: Hub, pushed: str, pdiff_hf: Callable[..., Said]):
    hub.store_large_file("model", pushed, "target_model/model-00002-of-00002.safetensors", 2**30)

    said = pdiff_hf("info", pushed)

    assert (said.code, said.err) == (0, "")
    assert hub.bytes_sent < 2**20
    assert not hub.requests(path_regex="safetensors|/cdn/")
    told = dict(line.split(None, 1) for line in said.out.splitlines())
    assert told["generator"] == f"{pushed} at {HfApi().model_info(pushed).sha[:8]}"
    assert told["generates"] == "90 parameters in 2 tensors of MLPForImageClassification"
    assert told["size"].endswith("bytes, most of it target_model/model-00002-of-00002.safetensors")
    assert int(told["size"].split()[0].replace(",", "")) > 2**30
    assert told["audit"].startswith("not evaluated")


def test_info_in_json_is_what_the_package_says(
    hub: Hub, pushed: str, folder: Path, tiny_pipeline: PDiffPipeline, pdiff_hf: Callable[..., Said]
):
    first = HfApi().model_info(pushed).sha
    HfApi(token=TOKEN).delete_file("metrics.json", pushed)

    on_hub = pdiff_hf("info", pushed, "--json", "--revision", first)
    in_folder = pdiff_hf("info", folder, "--json")
    latest = pdiff_hf("info", pushed, "--json")

    remote, local = json.loads(on_hub.out), json.loads(in_folder.out)
    assert remote == json.loads(json.dumps(describe_pipeline(pushed, revision=first)))
    assert (remote["name"], remote["commit"]) == (pushed, first)
    assert (local["name"], local["commit"]) == (str(folder), None)
    for told in (remote, local):
        assert told["generated"] == {"names": ["classifier.weight", "classifier.bias"], "parameter_dim": 90}
        assert told["denoiser"] == "MLPParameterDenoiser"
        assert told["data"]["zoo_count"] == 24
        assert told["costs"]["target_seconds"] == 1.0
        assert told["num_inference_steps"] == tiny_pipeline.config.default_num_inference_steps
    assert local["size"] == sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert json.loads(latest.out)["data"]["zoo_count"] is None


# sample


def test_a_network_is_drawn_alone_as_among_others(pushed: str, tmp_path: Path, pdiff_hf: Callable[..., Said]):
    together = tmp_path / "together"

    said = pdiff_hf("sample", pushed, "--num_models", "5", "--seed", "10", "--output_dir", together)

    assert (said.code, said.out) == (0, f"Written: {together}\n")
    assert folders_in(together) == [f"{i:05d}" for i in range(5)]
    assert len({weights(together / name) for name in folders_in(together)}) == 5
    for i in (0, 3, 4):
        alone = tmp_path / f"alone-{i}"
        assert pdiff_hf("sample", pushed, "--seed", 10 + i, "--output_dir", alone).code == 0
        assert weights(alone / "00000") == weights(together / f"{i:05d}"), i
        provenance = json.loads((together / f"{i:05d}/provenance.json").read_text(encoding="utf-8"))
        assert (provenance["seed"], provenance["index"], provenance["generator"]) == (10 + i, 0, pushed)
    network = AutoModelForImageClassification.from_pretrained(together / "00004")
    assert network(torch.zeros(1, 1, 8, 8)).logits.shape == (1, 10)


def test_the_settings_of_the_sampler_reach_it(
    pushed: str, tiny_pipeline: PDiffPipeline, tmp_path: Path, pdiff_hf: Callable[..., Said]
):
    settings = {"temperature": 0.5, "num_inference_steps": 3}
    flags = [text for name, value in settings.items() for text in (f"--{name}", value)]

    assert pdiff_hf("sample", pushed, *flags, "--seed", 4, "--output_dir", tmp_path / "drawn").code == 0

    drawn = load_file(tmp_path / "drawn/00000" / WEIGHTS)
    (expected,) = tiny_pipeline(1, generator=[torch.Generator().manual_seed(4)], **settings).parameters
    assert torch.equal(tiny_pipeline.processor.flatten(drawn), expected)
    provenance = json.loads((tmp_path / "drawn/00000/provenance.json").read_text(encoding="utf-8"))
    assert {name: provenance[name] for name in settings} == settings


def test_fewer_networks_leave_none_of_the_old_ones(folder: Path, tmp_path: Path, pdiff_hf: Callable[..., Said]):
    drawn = tmp_path / "drawn"
    pdiff_hf("sample", folder, "--num_models", "4", "--output_dir", drawn)
    (drawn / "notes.txt").write_text("mine", encoding="utf-8")
    before = weights(drawn / "00001")

    assert pdiff_hf("sample", folder, "--num_models", "2", "--seed", "7", "--output_dir", drawn).code == 0

    assert folders_in(drawn) == ["00000", "00001"]
    assert weights(drawn / "00001") != before
    assert (drawn / "notes.txt").read_text(encoding="utf-8") == "mine"
    assert "2 networks" in (drawn / "README.md").read_text(encoding="utf-8")


def test_networks_are_pushed_from_a_folder_or_from_none(
    hub: Hub, pushed: str, tmp_path: Path, pdiff_hf: Callable[..., Said]
):
    one, other = f"{pushed}-one", f"{pushed}-other"
    arguments = ["sample", pushed, "--num_models", "2", "--token", TOKEN, "--push_to"]

    first = pdiff_hf(*arguments, one, "--private")
    second = pdiff_hf(*arguments, other, "--output_dir", tmp_path / "drawn")

    assert first.code == second.code == 0
    assert first.out == f"Pushed: {hub.url}/{one}/commit/{hub.repos['model', one].branches['main']}\n"
    assert second.out.splitlines()[0] == f"Written: {tmp_path / 'drawn'}"
    assert [hub.repos["model", name].private for name in (one, other)] == [True, False]
    trees = [hub.repos["model", name].at().tree for name in (one, other)]
    assert trees[0].keys() == trees[1].keys()
    assert {name.split("/")[0] for name in trees[0]} == {".gitattributes", "README.md", "00000", "00001"}
    assert all(trees[0][name] == trees[1][name] for name in trees[0] if name.startswith("0"))


# push


def test_push_takes_each_kind_of_folder(
    hub: Hub,
    repo_id: str,
    folder: Path,
    tiny_pipeline: PDiffPipeline,
    tiny_checkpoints: Checkpoints,
    tmp_path: Path,
    pdiff_hf: Callable[..., Said],
):
    tiny_checkpoints.save(tmp_path / "zoo")
    tiny_pipeline(1).save_pretrained(tmp_path / "drawn")
    names = {"pipeline": ("model", repo_id), "zoo": ("dataset", f"{repo_id}-zoo"), "drawn": ("model", f"{repo_id}-d")}

    for name, (_, target) in names.items():
        said = pdiff_hf("push", tmp_path / name, target, "--private", "--message", f"The {name}", "--token", TOKEN)
        assert (said.code, said.err) == (0, "")
        assert f"{target}/commit/" in said.out

    for name, key in names.items():
        assert hub.repos[key].private
        assert [commit.title for commit in hub.repos[key].history()] == [f"The {name}", "initial commit"]
    loaded = load_checkpoints(f"{repo_id}-zoo", token=TOKEN)
    assert torch.equal(loaded.zoo.parameters, tiny_checkpoints.zoo.parameters)


@pytest.mark.parametrize("short", [False, True], ids=["org/name", "name"])
def test_push_makes_the_revision_that_carries_its_code(
    hub: Hub, repo_id: str, folder: Path, pdiff_hf: Callable[..., Said], short: bool
):
    name = repo_id.split("/")[1] if short else repo_id

    said = pdiff_hf("push", folder, name, "--remote_code", "--token", TOKEN)

    assert (said.code, said.err) == (0, "")
    repo = hub.repos["model", repo_id]
    assert said.out.splitlines()[1].endswith(f"remote-code: {repo.branches['remote-code']}")
    assert any(path.endswith(".py") for path in repo.at("remote-code").tree)
    assert not any(path.endswith(".py") for path in repo.at("main").tree)


# audit


def test_an_audit_reads_and_pushes_with_its_token(
    hub: Hub,
    repo_id: str,
    tiny_checkpoints: Checkpoints,
    tiny_pipeline: PDiffPipeline,
    tmp_path: Path,
    pdiff_hf: Callable[..., Said],
):
    tiny_pipeline.push_to_hub(repo_id, private=True, token=TOKEN)
    tiny_checkpoints.push_to_hub(f"{repo_id}-zoo", private=True, token=TOKEN)
    zoo = ["--checkpoints", f"{repo_id}-zoo", "--dataset_name", "digits"]
    arguments = ["audit", repo_id, *zoo, "--num_models", "2", "--push_to_hub"]

    said = pdiff_hf(*arguments, "--output_dir", tmp_path / "report", "--token", TOKEN)
    told = pdiff_hf("info", repo_id, "--json", "--token", TOKEN)

    assert said.code == 0, said.err
    assert "| **generated** | 2 |" in said.out
    metrics = json.loads((tmp_path / "report/metrics.json").read_text(encoding="utf-8"))
    described = json.loads(told.out)
    assert described["verdict"]["word"] == metrics["verdict"]["word"]
    assert described["accuracy"]["generated"] == metrics["sets"]["generated"]["test"]["accuracy"]
    assert described["dispersion"] == metrics["sets"]["generated"]["dispersion"]
    assert metrics["generator"]["denoiser"]["config"]["width"] == 16  # how it was fitted is still told
    tree = hub.repos["model", repo_id].at().tree
    assert sum(name.endswith(".png") for name in tree) == 5
    assert ModelCard(tree["README.md"].data.decode()).data.eval_results
    lines = pdiff_hf("info", repo_id, "--token", TOKEN).out.splitlines()
    (answer,) = (line.split(None, 1)[1] for line in lines if line.startswith("audit "))
    assert answer == f"{metrics['verdict']['word']} ({metrics['verdict']['reason']})"


# What goes wrong

FAILURES = [
    (["info", "alice/nowhere"], "no model 'alice/nowhere' that this token can see"),
    (["info", "nowhere"], "There is no folder 'nowhere'"),
    (["info", "no/such/folder"], "There is no folder 'no/such/folder'"),
    (["info", "."], "has no model_index.json"),
    (["info", "{repo}", "--token", "hf_mistyped"], "does not know the token"),
    (["info", "{repo}", "--revision", "v9"], "no such revision"),
    (["sample", "{repo}"], "--output_dir, --push_to, or both"),
    (["sample", "{repo}", "--output_dir", "file"], "there is a file of that name"),
    (["sample", "{repo}", "--output_dir", "out", "--num_models", "0"], "num_models must be at least 1"),
    (["sample", "{repo}", "--output_dir", "out", "--temperature", "-1"], "temperature must be at least 0"),
    (
        ["sample", "{repo}", "--output_dir", "out", "--num_inference_steps", "0"],
        "num_inference_steps must be at least 1",
    ),
    (["sample", "nowhere", "--output_dir", "out"], "There is no folder 'nowhere'"),
    (["sample", "{repo}", "--push_to", "bob/drawn", "--token", "hf_alice"], "does not allow this"),
    (["audit", "{repo}", "--checkpoints", "nowhere"], "There is no folder 'nowhere'"),
    (["audit", "nowhere", "--checkpoints", "alice/nowhere"], "that this token can see"),
    (["push", "nowhere", "alice/x", "--token", "hf_alice"], "no pipeline (model_index.json)"),
    (["push", ".", "alice/x", "--token", "hf_alice"], "no pipeline (model_index.json)"),
    (["push", "pipeline", "alice/x"], "that this token can see"),
    (["push", "pipeline", "alice/x", "--token", "hf_mistyped"], "does not know the token"),
    (["push", "pipeline", "alice/x", "--token", "hf_read"], "does not allow this"),
    (["push", "pipeline", "bob/x", "--token", "hf_alice"], "does not allow this"),
    (["push", "pipeline", "{repo}", "--private", "--token", "hf_alice"], "a private one was asked for"),
    (["push", "pipeline", "a/b/c", "--token", "hf_alice"], "has no valid name"),
]
WRONG_USES = [
    [],
    ["draw"],
    ["info"],
    ["sample", "x", "--num_models", "many"],
    ["sample", "x", "--seed", "0.5"],
    ["audit", "x"],
    ["push", "x"],
    ["push", "x", "alice/x", "--public"],
]


@pytest.mark.parametrize(("arguments", "sentence"), FAILURES, ids=lambda value: " ".join(value)[:60])
def test_what_goes_wrong_is_said_in_one_line(
    hub: Hub,
    pushed: str,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    pdiff_hf: Callable[..., Said],
    arguments: list[str],
    sentence: str,
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    head = dict(hub.repos["model", pushed].branches)
    hub.reset()

    said = pdiff_hf(*(argument.format(repo=pushed) for argument in arguments))

    assert (said.code, said.out) == (1, "")
    (line,) = said.err.splitlines()
    assert line.startswith("pdiff-hf: ")
    assert sentence in line
    assert line.endswith(".")
    assert not re.search(r"hf_(mistyped|alice|read)", line)
    assert not (tmp_path / "out").exists()
    assert hub.repos["model", pushed].branches == head
    assert not hub.requests("PUT")


@pytest.mark.parametrize("arguments", WRONG_USES, ids=" ".join)
def test_a_wrong_use_shows_the_right_one(hub: Hub, pdiff_hf: Callable[..., Said], arguments: list[str]):
    said = pdiff_hf(*arguments)

    assert (said.code, said.out) == (2, "")
    assert said.err.startswith("usage: pdiff-hf")
    assert "Traceback" not in said.err
    assert hub.log == []


# As a program of its own


def test_it_is_a_program(hub: Hub, pushed: str, empty_cache: Path, tmp_path: Path):
    environment = hub_environment(hub, empty_cache) | {"OMP_NUM_THREADS": "1"}

    def start(*arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "pdiff_hf_cli", *arguments]
        return subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path
        )

    started = [
        start("sample", "alice/nowhere", "--output_dir", "none"),
        start("sample", pushed, "--num_models", "2", "--output_dir", "drawn"),
    ]
    (nothing, sentence), (written, _) = (process.communicate(timeout=120) for process in started)

    assert [process.returncode for process in started] == [1, 0]
    assert nothing == ""
    assert re.fullmatch(r"pdiff-hf: There is no [^\n]*'alice/nowhere'[^\n]*\.\n", sentence)
    assert not (tmp_path / "none").exists()
    assert written == "Written: drawn\n"
    assert folders_in(tmp_path / "drawn") == ["00000", "00001"]
