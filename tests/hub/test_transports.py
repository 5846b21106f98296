"""The same push and pull over the transports a user has: large files through Xet, and https without a token."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import HfApi

from pdiff_hf import Checkpoints, PDiffPipeline

from .processes import run_python
from .server import Hub

DRAWN = "print(hashlib.sha256(pipe(3, generator=torch.Generator().manual_seed(0)).parameters.numpy()).hexdigest())"
PUSH = (
    """
import hashlib, torch
from pdiff_hf import PDiffPipeline, load_checkpoints
pipe = PDiffPipeline.from_pretrained({folder!r})
first = pipe.push_to_hub("alice/generator")
assert pipe.push_to_hub("alice/generator") == first
load_checkpoints({zoo!r}).push_to_hub("alice/zoo")
"""
    + DRAWN
)
PULL = (
    """
import hashlib, torch
from pdiff_hf import PDiffPipeline, load_checkpoints
zoo = load_checkpoints("alice/zoo").zoo
print(hashlib.sha256(zoo.parameters.numpy()).hexdigest())
pipe = PDiffPipeline.from_pretrained("alice/generator")
"""
    + DRAWN
)
DAMAGE = """
from pathlib import Path
from huggingface_hub.constants import HF_HUB_CACHE
cache = Path(HF_HUB_CACHE)
(weights,) = cache.glob("models--alice--generator/snapshots/*/denoiser/*.safetensors")
damaged = bytearray(weights.read_bytes())
damaged[-1] ^= 1
weights.resolve().write_bytes(damaged)
"""
ANONYMOUS = """
from pdiff_hf import HubNotFoundError, PDiffPipeline
print(len(PDiffPipeline.from_pretrained("alice/open")(2, output_type="pt").parameters))
try:
    PDiffPipeline.from_pretrained("alice/closed")
except HubNotFoundError as error:
    print(error)
"""


def test_large_files_through_xet_arrive_bit_for_bit(
    xet_hub: Hub, tiny_pipeline: PDiffPipeline, tiny_checkpoints: Checkpoints, tmp_path: Path
):
    tiny_pipeline.save_pretrained(tmp_path / "pipeline")
    tiny_checkpoints.save(tmp_path / "zoo")
    push = PUSH.format(folder=str(tmp_path / "pipeline"), zoo=str(tmp_path / "zoo"))

    pushed = run_python(push, xet_hub, cache=tmp_path / "pushing", xet=True).split()
    pulled = run_python(PULL, xet_hub, cache=tmp_path / "pulling", xet=True).split()
    over_http = run_python(PULL, xet_hub, cache=tmp_path / "plain", xet=False).split()

    repaired = run_python(DAMAGE + PULL, xet_hub, cache=tmp_path / "pulling", xet=True).split()
    assert pulled == over_http == repaired
    assert pulled[-1] == pushed[-1]
    assert xet_hub.requests("GET", "xet-write-token")
    assert xet_hub.requests("GET", "xet-read-token")
    assert not xet_hub.requests("PUT")
    assert len(xet_hub.requests("POST", "/commit/")) == 2


def test_https_without_a_token_reads_what_is_open_and_names_what_is_not(
    tls_hub: Hub, certificate: tuple[Path, Path], tiny_pipeline: PDiffPipeline, tmp_path: Path
):
    trusted = {"SSL_CERT_FILE": str(certificate[0])}
    tiny_pipeline.save_pretrained(tmp_path / "pipeline")
    push = f"from pdiff_hf import share\nshare({str(tmp_path / 'pipeline')!r}, 'alice/open')\n"
    push += f"share({str(tmp_path / 'pipeline')!r}, 'alice/closed', private=True)"
    run_python(push, tls_hub, cache=tmp_path / "pushing", env=trusted)
    tls_hub.reset()

    output = run_python(ANONYMOUS, tls_hub, cache=tmp_path / "anonymous", env=trusted, token=None)

    assert output.startswith("2\n")
    assert "There is no model 'alice/closed' that this token can see" in output
    assert not any("authorization" in map(str.lower, record.request_headers) for record in tls_hub.log)


@pytest.mark.usefixtures("hub")
def test_plain_lfs_in_several_parts_arrives(
    hub: Hub, tiny_pipeline: PDiffPipeline, repo_id: str, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(hub, "multipart_from", 1_000)
    monkeypatch.setattr(hub, "chunk_size", 500)

    tiny_pipeline.push_to_hub(repo_id, token="hf_alice")

    assert hub.requests("POST", "complete_multipart")
    loaded = PDiffPipeline.from_pretrained(repo_id, token="hf_alice", cache_dir=empty_cache)
    assert loaded.processor.names == tiny_pipeline.processor.names
    assert len(HfApi(token="hf_alice").list_repo_commits(repo_id)) == 2
