"""Python in processes of its own, with a Hub of ours as the only one it knows."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from .environment import hub_environment
from .server import Hub

WITHOUT_PACKAGE = "import sys; sys.modules['pdiff_hf'] = None\n"
NURSERY = """
import json, os, sys
from pdiff_hf import *

print("ready", flush=True)
for line in sys.stdin:
    child = os.fork()
    if not child:
        try:
            exec(json.loads(line))
            os._exit(0)
        finally:
            os._exit(1)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def run_python(
    code: str, hub: Hub, *, cache: Path, token: str | None = "hf_alice", block_package: bool = False
) -> str:
    """Runs `python -c code` and returns what it prints; `cache` is its HF_HOME.

    With `block_package` it cannot import pdiff_hf, as where the package is not installed.

    Raises:
        AssertionError: If it fails.
    """
    process = subprocess.run(
        [sys.executable, "-c", WITHOUT_PACKAGE * block_package + code],
        env=hub_environment(hub, cache, token=token) | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert process.returncode == 0, f"The child process ended with {process.returncode}:\n{process.stderr}"
    return process.stdout


class Nursery:
    """A process that forks itself for every piece of code, with everything imported: children that a test can kill.

    Args:
        hub: The only Hub that it knows.
        cache: Its HF_HOME.
        xet: Whether large files move through hf_xet.
        env: Further variables of its environment.
    """

    def __init__(self, hub: Hub, cache: Path, *, xet: bool = False, env: dict[str, str] | None = None):
        environment = hub_environment(hub, cache, token="hf_alice", xet=xet) | {"OMP_NUM_THREADS": "1"}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.process = subprocess.Popen(
            [sys.executable, "-c", NURSERY], env=environment | (env or {}), text=True, **pipes
        )
        self._read()

    def _read(self) -> str:
        return self.process.stdout.readline().strip()

    def start(self, code: str) -> int:
        """Starts a child, and returns its id; `end` is to be called before the next one."""
        self.process.stdin.write(json.dumps(code) + "\n")
        self.process.stdin.flush()
        return int(self._read())

    def run(self, code: str) -> None:
        """Runs code in a child; raises AssertionError if it fails."""
        self.start(code)
        assert self.end() == 0, "The child failed; see what it has written to stderr."

    def end(self) -> int:
        """Waits for the child and returns its exit code; -9 if it was killed."""
        return int(self._read())

    def kill(self, child: int) -> int:
        """Kills a child, unless it has ended just now, and returns its exit code."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        return self.end()

    def close(self) -> None:
        """Ends the process."""
        self.process.kill()
        self.process.communicate()
