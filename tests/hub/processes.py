"""Python in a process of its own, with a Hub of ours as the only one it knows."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from .environment import hub_environment
from .server import Hub

WITHOUT_PACKAGE = "import sys; sys.modules['pdiff_hf'] = None\n"


def start_python(
    code: str,
    hub: Hub,
    *,
    cache: Path,
    env: dict[str, str] | None = None,
    offline: bool = False,
    xet: bool = False,
    token: str | None = "hf_alice",
    block_package: bool = False,
) -> subprocess.Popen[str]:
    """Starts `python -c code`, with its output in pipes; `cache` is its HF_HOME.

    With `block_package` it cannot import pdiff_hf, as where the package is not installed.
    """
    environment = hub_environment(hub, cache, token=token, offline=offline, xet=xet)
    return subprocess.Popen(
        [sys.executable, "-c", WITHOUT_PACKAGE * block_package + code],
        env=environment | {"OMP_NUM_THREADS": "1"} | (env or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run_python(
    code: str,
    hub: Hub,
    *,
    cache: Path,
    env: dict[str, str] | None = None,
    offline: bool = False,
    xet: bool = False,
    token: str | None = "hf_alice",
    block_package: bool = False,
    timeout: float = 120,
) -> str:
    """Runs `python -c code` as `start_python` does and returns what it prints; raises AssertionError if it fails."""
    process = start_python(
        code, hub, cache=cache, env=env, offline=offline, xet=xet, token=token, block_package=block_package
    )
    try:
        output, errors = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        output, errors = process.communicate()
        raise AssertionError(f"The child process took more than {timeout} seconds:\n{errors}") from None
    if process.returncode:
        raise AssertionError(f"The child process ended with {process.returncode}:\n{errors}")
    return output
