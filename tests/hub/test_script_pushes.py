"""The training scripts with `--push_to_hub`: what they push, and that a token stays a secret."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from scripts import run

from pdiff_hf import Checkpoints, HubAccessError
from pdiff_hf.hub.cards import PICTURES

from .cases import assert_sentence, files_in
from .server import Hub

TOKEN = "hf_alice"
COLLECT = [
    *("--dataset_name", "digits", "--image_size", "8"),
    *("--model_type", "pdiff_mlp", "--model_config", '{"hidden_sizes": [8]}', "--subset", "head"),
    *("--target_train_steps", "20", "--train_batch_size", "32", "--burn_in_steps", "0", "--num_blocks", "2"),
    *("--num_checkpoints", "16", "--num_validation_checkpoints", "4", "--num_test_checkpoints", "4", "--gap", "3"),
]
FEW_STEPS = ["--max_train_steps", "3", "--train_batch_size", "4", "--checkpointing_steps", "1"]
CLIENTS = ("huggingface_hub", "httpx2", "httpcore2", "diffusers", "transformers", "datasets", "accelerate", "pdiff_hf")


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """All that the libraries which come to know the token log, down to the last detail."""
    handler, messages = logging.Handler(), []
    handler.emit = lambda record: messages.append(record.getMessage())
    for name in CLIENTS:
        monkeypatch.setattr(logging.getLogger(name), "handlers", [handler])
        monkeypatch.setattr(logging.getLogger(name), "propagate", False)
        caplog.set_level(logging.DEBUG, name)
    return messages


def test_the_scripts_push_what_they_make_and_never_the_token(
    hub: Hub, repo_id: str, tmp_path: Path, capfd: pytest.CaptureFixture, logged: list[str]
):
    zoo_id = f"{repo_id}-zoo"
    push = ["--push_to_hub", "--hub_token", TOKEN, "--hub_private_repo", "--hub_model_id"]
    zoo, pipeline = ["--checkpoints", tmp_path / "zoo"], ["--pipeline", tmp_path / "pipeline"]

    run("collect_trajectory", *COLLECT, "--output_dir", tmp_path / "zoo", *push, zoo_id)
    run("train_autoencoder", *zoo, "--output_dir", tmp_path / "autoencoder", "--config", '{"latent_dim": 4}')
    stages = [*zoo, "--autoencoder", tmp_path / "autoencoder", "--config", '{"width": 16}', *FEW_STEPS]
    run("train_denoiser", *stages, "--output_dir", tmp_path / "pipeline", *push, repo_id)
    few = ["--num_models", "3", "--num_baseline_models", "3", "--output_dir", tmp_path / "report"]
    run("evaluate_pipeline", *pipeline, *zoo, *few, *push, repo_id)

    assert hub.repos["model", repo_id].private
    assert hub.repos["dataset", zoo_id].private
    assert hub.titles(zoo_id, "dataset") == ["Upload checkpoints dataset", "initial commit"]
    assert hub.titles(repo_id) == ["Upload pipeline", "Upload pipeline", "initial commit"]
    assert hub.files(repo_id).keys() == {".gitattributes", *files_in(tmp_path / "pipeline")}
    assert hub.files(zoo_id, "dataset").keys() == {".gitattributes", *files_in(tmp_path / "zoo")}
    assert sum(name.endswith(".png") for name in hub.files(repo_id)) == len(PICTURES)
    assert not [name for name in hub.files(repo_id) if "checkpoint-" in name or "state" in name]
    assert ModelCard(hub.card(repo_id)).data.datasets == [zoo_id]
    assert ModelCard(hub.card(repo_id)).data.eval_results
    assert {path.name for path in tmp_path.iterdir()} >= {"pipeline-state", "zoo-state"}

    for name, content in (files_in(tmp_path) | hub.files(repo_id) | hub.files(zoo_id, "dataset")).items():
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


@pytest.mark.parametrize("script", ["collect_trajectory", "train_denoiser", "evaluate_pipeline"])
def test_a_wrong_token_is_found_before_anything_is_done(
    hub: Hub, repo_id: str, tiny_checkpoints: Checkpoints, saved_pipeline: Path, tmp_path: Path, script: str
):
    tiny_checkpoints.save(tmp_path / "zoo")
    zoo, before = ["--checkpoints", tmp_path / "zoo"], files_in(tmp_path)
    arguments = {
        "collect_trajectory": COLLECT,
        "train_denoiser": [*zoo, "--autoencoder", tmp_path / "none"],
        "evaluate_pipeline": [*zoo, "--pipeline", saved_pipeline],
    }
    push = ["--push_to_hub", "--hub_model_id", repo_id, "--output_dir", tmp_path / "out", "--hub_token"]

    for token, sentence in (("hf_mistyped", "does not know the token"), ("hf_bob", "does not allow this")):
        with pytest.raises(HubAccessError, match=sentence) as raised:
            run(script, *arguments[script], *push, token)
        assert_sentence(raised.value)

    assert files_in(tmp_path) == before
    assert not hub.requests("PUT")
    assert not [key for key in hub.repos if key[1] == repo_id]
