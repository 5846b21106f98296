"""Hubs of other kinds than the one that all tests share."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from .server import Hub, xet_works


@pytest.fixture
def xet_hub(tmp_path: Path) -> Iterator[Hub]:
    """A Hub whose large files move through hf_xet; its clients need processes of their own, with `xet=True`."""
    if not xet_works(tmp_path / "xet-attempt"):
        pytest.skip("the installed hf_xet does not store in a folder")
    with Hub(xet=True) as hub:
        yield hub


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """A self-signed certificate for 127.0.0.1, and its key."""
    if not shutil.which("openssl"):
        pytest.skip("there is no openssl command to make a certificate with")
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    subject = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-noenc", "-days", "2", *subject]
    subprocess.run([*command, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    return certificate, key


@pytest.fixture
def tls_hub(certificate: tuple[Path, Path]) -> Iterator[Hub]:
    """A Hub on https; its clients need processes of their own, with SSL_CERT_FILE set to the certificate."""
    with Hub(tls=certificate) as hub:
        yield hub
