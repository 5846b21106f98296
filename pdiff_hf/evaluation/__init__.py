"""Evaluation of generators: metrics, baselines, the audit, and the report that shows them side by side."""

from ..pipelines.card import metrics_table, summarize
from .audit import Audit, Auditor, audit
from .evaluator import Evaluation, evaluate
from .metrics import iou
from .report import write_report

__all__ = ["Audit", "Auditor", "Evaluation", "audit", "evaluate", "iou", "metrics_table", "summarize", "write_report"]
