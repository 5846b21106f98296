"""Judging generators: metrics, baselines, and the report that puts them side by side."""

from .baselines import average, averages, gaussian_codes, gaussian_diagonal, gaussian_full
from .evaluator import Evaluation, evaluate
from .metrics import (
    accuracy_statistics,
    dispersion,
    iou,
    max_similarity,
    mean_pairwise_disagreement,
    mean_pairwise_iou,
)
from .report import metrics_table, summarize, write_report

__all__ = [
    "Evaluation",
    "accuracy_statistics",
    "average",
    "averages",
    "dispersion",
    "evaluate",
    "gaussian_codes",
    "gaussian_diagonal",
    "gaussian_full",
    "iou",
    "max_similarity",
    "mean_pairwise_disagreement",
    "mean_pairwise_iou",
    "metrics_table",
    "summarize",
    "write_report",
]
