"""The training scripts, run in this process or in processes of their own."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

TRAINING = Path(__file__).parents[1] / "training"


def load_script(name: str) -> ModuleType:
    """Imports a script by its path: `training/` is no package."""
    spec = importlib.util.spec_from_file_location(f"training_script_{name}", TRAINING / f"{name}.py")
    script = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = script
    spec.loader.exec_module(script)
    return script


def run(name: str, *arguments: str | Path) -> None:
    """Runs a script in this process."""
    load_script(name).main([str(argument) for argument in arguments])


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}


def run_alone(name: str, *arguments: str | Path, launcher: tuple[str, ...] = ()) -> None:
    process = start(name, *arguments, launcher=launcher)
    output, _ = process.communicate()
    assert process.returncode == 0, output


def start(name: str, *arguments: str | Path, launcher: tuple[str, ...] = ()) -> subprocess.Popen:
    """Starts a script in a process of its own."""
    command = [sys.executable, *launcher, str(TRAINING / f"{name}.py"), *map(str, arguments)]
    return subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def files_of(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
