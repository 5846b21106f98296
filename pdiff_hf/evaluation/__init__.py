"""Evaluation of generators: metrics, baselines, the audit, and the report that shows them side by side."""

from ..pipelines.card import metrics_table, summarize
from .audit import Audit, audit
from .baselines import Baseline, average, averages, gaussian_codes, gaussian_diagonal, gaussian_full, swept_baselines
from .evaluator import Evaluation, evaluate
from .metrics import (
    accuracy_statistics,
    dispersion,
    iou,
    max_similarity,
    mean_pairwise_iou,
)
from .novelty import copying_auc
from .report import write_report

__all__ = [
    "Audit",
    "Baseline",
    "Evaluation",
    "accuracy_statistics",
    "audit",
    "average",
    "averages",
    "copying_auc",
    "dispersion",
    "evaluate",
    "gaussian_codes",
    "gaussian_diagonal",
    "gaussian_full",
    "iou",
    "max_similarity",
    "mean_pairwise_iou",
    "metrics_table",
    "summarize",
    "swept_baselines",
    "write_report",
]
