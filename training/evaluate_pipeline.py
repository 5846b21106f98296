"""Draws networks from a pipeline and judges them beside the zoo, held-out checkpoints and baselines.

    accelerate launch training/evaluate_pipeline.py --pipeline runs/digits/pipeline \\
        --checkpoints runs/digits/checkpoints --output_dir runs/digits/report
"""

from __future__ import annotations

from collections.abc import Sequence

from accelerate import Accelerator
from transformers import HfArgumentParser

from pdiff_hf.evaluation import metrics_table, summarize
from pdiff_hf.evaluation.auditing import AuditSettings, audit_pipeline


def main(argv: Sequence[str] | None = None) -> None:
    """Parses the flags, evaluates on the main process, writes the report and prints the table."""
    (settings,) = HfArgumentParser(AuditSettings, description=__doc__).parse_args_into_dataclasses(
        argv, look_for_args_file=False
    )
    accelerator = Accelerator()
    if accelerator.is_main_process:
        metrics = audit_pipeline(settings, accelerator.device)
        print(f"\n{metrics_table(metrics)}\n\n{summarize(metrics)}\n\nReport and pictures: {settings.output_dir}")
    accelerator.wait_for_everyone()


if __name__ == "__main__":
    main()
