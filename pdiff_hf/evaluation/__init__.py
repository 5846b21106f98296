"""Evaluation of generators: metrics, baselines, the audit, and the report that shows them side by side."""

from ..pipelines.card import metrics_table, summarize
from .audit import Audit, Auditor, audit
from .conditional import ConditionalAudit, ConditionalAuditor, audit_conditional
from .evaluator import Evaluation, evaluate
from .metrics import iou
from .predictive import compare_uncertainty
from .report import write_report

__all__ = [
    "Audit",
    "Auditor",
    "ConditionalAudit",
    "ConditionalAuditor",
    "Evaluation",
    "audit",
    "audit_conditional",
    "compare_uncertainty",
    "evaluate",
    "iou",
    "metrics_table",
    "summarize",
    "write_report",
]
