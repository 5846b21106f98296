"""The memory that loading and fitting a zoo take, over the size of its matrix."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from scripts import environment

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "memory.py"


@pytest.mark.exhaustive
def test_a_zoo_is_in_memory_once_and_what_is_made_of_it_in_blocks():
    command = [sys.executable, str(BENCHMARK), "--megabytes", "120", "--zoos", "long", "--stages", "load", "fit"]

    process = subprocess.run(command, env=environment(), capture_output=True, text=True)

    assert process.returncode == 0, process.stderr
    peaks = {stage: float(peak) for stage, peak in re.findall(r"^  (\w+): ([\d.]+),", process.stdout, re.MULTILINE)}
    assert peaks["load"] < 2  # with copies of the whole zoo 7
    assert peaks["fit"] < 3.5  # and 11; the directions of random vectors are as large as the zoo
