"""The memory that recording, saving, loading and fitting a zoo take, over the size of its matrix."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from scripts import environment

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "memory.py"


@pytest.mark.parametrize("zoo", ["long", "many"])
def test_a_zoo_is_in_memory_once_and_what_is_made_of_it_in_blocks(zoo):
    arguments = ["--megabytes", "120", "--zoos", zoo, "--stages", "record", "load", "fit"]

    process = subprocess.run(
        [sys.executable, str(BENCHMARK), *arguments], env=environment(), capture_output=True, text=True
    )

    assert process.returncode == 0, process.stderr
    peaks = {stage: float(peak) for stage, peak in re.findall(r"^  (\w+): ([\d.]+),", process.stdout, re.MULTILINE)}
    # Of 100 MB, with copies of the whole zoo, they were 3.4 to 4.7, 4.8 to 7.5 and 11 to 13.
    assert peaks["record"] < 3
    assert peaks["load"] < 2
    assert peaks["fit"] < 3.5
