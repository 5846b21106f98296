"""Actions in forked processes that are killed at one of their changes to files."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator

import torch

CHANGES = {"os.rename", "os.mkdir", "os.rmdir", "os.remove", "os.chmod", "os.truncate", "shutil.copyfile"}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def run_forked(action: Callable[[], object], moment: int | None = None) -> int | None:
    """Runs an action in a process of its own, which kills itself just before the change to files of this number.

    Returns the number of changes, or None if the process was killed.
    """
    reading, writing = os.pipe()
    if not (process := os.fork()):
        status = 1
        try:
            torch.set_num_threads(1)  # OpenMP's threads do not survive a fork
            changes = _count_changes(moment)
            action()
            os.write(writing, str(changes[0]).encode())
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(writing)
    with os.fdopen(reading) as output:
        count = output.read()
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    assert code in (0, -signal.SIGKILL), code
    return int(count) if code == 0 else None


def _count_changes(moment: int | None) -> list[int]:
    changes = [0]

    def watch(event: str, args: tuple) -> None:
        if event in CHANGES or (event == "open" and isinstance(args[2], int) and args[2] & WRITING):
            if changes[0] == moment:
                os.kill(os.getpid(), signal.SIGKILL)
            changes[0] += 1

    sys.addaudithook(watch)
    return changes


def moments(action: Callable[[], object], kills: int) -> Iterator[int]:
    """Yields as many moments, evenly spread over the changes that an action makes, up to the last."""
    count = run_forked(action)
    assert count is not None
    assert count > 2
    yield from (max(1, (i + 1) * count // kills) - 1 for i in range(kills))
