"""Draws networks from a pipeline and evaluates them against the zoo, held-out checkpoints and baselines.

    accelerate launch training/evaluate_pipeline.py --pipeline runs/digits/pipeline \\
        --checkpoints runs/digits/checkpoints --output_dir runs/digits/report

The command `pdiff-hf audit` takes the same flags.
"""

from __future__ import annotations

from collections.abc import Sequence

from pdiff_hf.evaluation import auditing
from pdiff_hf.settings import run_script


def main(argv: Sequence[str] | None = None) -> None:
    """Parses the flags, audits the pipeline and prints the report's table."""
    auditing.main(argv, description=__doc__)


if __name__ == "__main__":
    run_script(main)
