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
from huggingface_hub import constants
from pdiff_hf import *

print("ready", flush=True)
for line in sys.stdin:
    code, url, xet = json.loads(line)
    child = os.fork()
    if not child:
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE
        constants.HUGGINGFACE_CO_URL_TEMPLATE = template.replace(constants.ENDPOINT, url)
        constants.ENDPOINT, constants.HF_HUB_DISABLE_XET = url, not xet
        try:
            exec(code)
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
        hub: The Hub of its children.
        cache: Its HF_HOME.
    """

    def __init__(self, hub: Hub, cache: Path):
        # hf_xet repeats by itself, in its own time.
        environment = {"HF_XET_CLIENT_RETRY_MAX_ATTEMPTS": "1", "HF_XET_CLIENT_RETRY_BASE_DELAY": "10ms"}
        environment |= {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
        self.hub = hub
        self.process = subprocess.Popen(
            [sys.executable, "-c", NURSERY],
            env=hub_environment(hub, cache, token="hf_alice", xet=True) | environment,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._read()

    def _read(self) -> str:
        return self.process.stdout.readline().strip()

    def start(self, code: str, xet_hub: Hub | None = None) -> int:
        """Starts a child, and returns its id; `end` is to be called before the next one.

        Args:
            code: Its Python; `from pdiff_hf import *` is done.
            xet_hub: The only Hub that it knows, in place of the usual one; large files then move through hf_xet.
        """
        url = (xet_hub or self.hub).url
        self.process.stdin.write(json.dumps([code, url, xet_hub is not None]) + "\n")
        self.process.stdin.flush()
        return int(self._read())

    def run(self, code: str, xet_hub: Hub | None = None) -> None:
        """Runs code in a child; raises AssertionError if it fails."""
        self.start(code, xet_hub)
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
