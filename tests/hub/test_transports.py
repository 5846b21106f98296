"""The same push and pull over the transports that huggingface.co has: large files through Xet, in parts, and https."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from huggingface_hub import close_session

from pdiff_hf import Checkpoints, HubAccessError, HubNotFoundError, HubUnreachableError, PDiffPipeline, share

from .cases import ALWAYS, Case, assert_clear, fault, move_to, status
from .processes import Nursery
from .server import Hub, xet_works

COMMIT = {"method": "POST", "path": "/commit/"}
WRITE_TOKEN = {"path": "/xet-write-token/"}
CASES = [
    Case("commit: server error", status(COMMIT, 500)),
    Case("commit: made, answer lost", fault("lose", COMMIT)),
    Case("commit: connection closed", fault("close", COMMIT)),
    Case("commit: always a server error", status(COMMIT, 500, ALWAYS), HubUnreachableError),
    Case("storage's token: server error", status(WRITE_TOKEN, 500)),
    Case("storage's token: answer lost", fault("lose", WRITE_TOKEN)),
    Case("storage's token: always a server error", status(WRITE_TOKEN, 500, ALWAYS), HubUnreachableError),
    *(Case(f"storage's token: {code}", status(WRITE_TOKEN, code, ALWAYS), HubAccessError) for code in (401, 403, 404)),
]
# Each script leaves what it found in a file.
PUSH = """
import json, pathlib, pytest
from hub.waiting import skip_waits
skip_waits(pytest.MonkeyPatch())
try:
    said = [None, share({folder!r}, {repo_id!r})]
except Exception as error:
    said = [type(error).__name__, str(error)]
pathlib.Path({out!r}).write_text(json.dumps(said))
"""
PULL = """
import hashlib, pathlib, torch
def pull():
    drawn = PDiffPipeline.from_pretrained({repo_id!r})(3, generator=torch.Generator().manual_seed(0)).parameters
    rows = load_checkpoints({repo_id!r}).zoo.parameters
    return " ".join(hashlib.sha256(values.numpy()).hexdigest() for values in (drawn, rows))
first = pull()
from huggingface_hub.constants import HF_HUB_CACHE
(weights,) = pathlib.Path(HF_HUB_CACHE).glob("models--*/snapshots/*/denoiser/*.safetensors")
damaged = bytearray(weights.read_bytes())
damaged[-1] ^= 1
weights.resolve().write_bytes(damaged)
assert pull() == first
pathlib.Path({out!r}).write_text(first)
"""


@pytest.fixture
def xet_hub(tmp_path: Path) -> Iterator[Hub]:
    """A Hub whose large files move through hf_xet, in children with a cache of their own."""
    if not xet_works(tmp_path / "attempt"):
        pytest.skip("the installed hf_xet does not store in a folder")
    with Hub(xet=True) as hub:
        yield hub


@pytest.fixture
def https_hub(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The repositories of `hub` on https, with a certificate that this process's clients trust."""
    if not shutil.which("openssl"):
        pytest.skip("there is no openssl command to make a certificate with")
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    subject = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-noenc", "-days", "2", *subject]
    subprocess.run([*command, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    with Hub(tls=(certificate, key)) as https_hub, monkeypatch.context() as context:
        https_hub.repos, https_hub.objects = hub.repos, hub.objects
        context.setenv("SSL_CERT_FILE", str(certificate))  # read by a client when it is made
        close_session()
        move_to(https_hub, context)
        yield https_hub
    close_session()


def digests(pipe: PDiffPipeline, checkpoints: Checkpoints) -> str:
    drawn = pipe(3, generator=torch.Generator().manual_seed(0)).parameters
    return " ".join(hashlib.sha256(v.numpy()).hexdigest() for v in (drawn, checkpoints.zoo.parameters))


def test_large_files_through_xet_arrive_bit_for_bit_and_are_repaired(
    xet_hub: Hub,
    nursery: Nursery,
    repo_id: str,
    saved_pipeline: Path,
    tiny_pipeline: PDiffPipeline,
    tiny_checkpoints: Checkpoints,
    tmp_path: Path,
):
    tiny_checkpoints.save(tmp_path / "zoo")

    for folder in (saved_pipeline, saved_pipeline, tmp_path / "zoo"):
        nursery.run(PUSH.format(folder=str(folder), repo_id=repo_id, out=str(tmp_path / "out")), xet_hub)
    nursery.run(PULL.format(repo_id=repo_id, out=str(tmp_path / "out")), xet_hub)

    assert (tmp_path / "out").read_text() == digests(tiny_pipeline, tiny_checkpoints)
    assert xet_hub.requests("GET", "xet-write-token")
    assert xet_hub.requests("GET", "xet-read-token")
    assert not [record for record in xet_hub.log if record.origin == "cdn"]
    assert len(xet_hub.requests("POST", "/commit/")) == 2


@pytest.mark.parametrize("case", CASES, ids=str)
def test_with_xet_a_push_survives_or_says_why_and_is_completed_by_another(
    xet_hub: Hub,
    nursery: Nursery,
    repo_id: str,
    saved_pipeline: Path,
    tmp_path: Path,
    case: Case,
    monkeypatch: pytest.MonkeyPatch,
):
    case.arrange(xet_hub, monkeypatch)
    push = PUSH.format(folder=str(saved_pipeline), repo_id=repo_id, out=str(tmp_path / "out"))

    nursery.run(push, xet_hub)
    kind, said = json.loads((tmp_path / "out").read_text())
    assert kind == (case.error and case.error.__name__), said
    assert xet_hub.titles(repo_id) == ["Upload pipeline"] * (case.error is None) + ["initial commit"]
    if case.error is not None:
        assert_clear(case.error(said), repo_id)
    case.assert_struck(xet_hub)

    xet_hub.faults.clear()
    nursery.run(push, xet_hub)
    kind, said = json.loads((tmp_path / "out").read_text())
    assert kind is None, said
    assert xet_hub.titles(repo_id) == ["Upload pipeline", "initial commit"]


def test_https_without_a_token_reads_what_is_open_and_names_what_is_not(
    https_hub: Hub, repo_id: str, saved_pipeline: Path, tiny_pipeline: PDiffPipeline, empty_cache: Path
):
    share(saved_pipeline, repo_id, token="hf_alice")
    share(saved_pipeline, f"{repo_id}-closed", private=True, token="hf_alice")
    https_hub.reset()

    pipe = PDiffPipeline.from_pretrained(repo_id, cache_dir=empty_cache)
    with pytest.raises(HubNotFoundError, match=f"no model '{repo_id}-closed' that this token can see"):
        PDiffPipeline.from_pretrained(f"{repo_id}-closed", cache_dir=empty_cache)

    assert torch.equal(pipe.denoiser.output.weight, tiny_pipeline.denoiser.output.weight)
    assert {record.origin for record in https_hub.log} == {"api", "cdn"}
    assert not any("authorization" in map(str.lower, record.request_headers) for record in https_hub.log)


def test_plain_lfs_in_several_parts_arrives(
    hub: Hub, tiny_pipeline: PDiffPipeline, repo_id: str, saved_pipeline: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(hub, "multipart_from", 1_000)
    monkeypatch.setattr(hub, "chunk_size", 500)

    tiny_pipeline.push_to_hub(repo_id, token="hf_alice")

    assert hub.requests("POST", "complete_multipart")
    name = "denoiser/diffusion_pytorch_model.safetensors"
    assert hub.files(repo_id)[name] == (saved_pipeline / name).read_bytes()
