"""The verdict: one word for the five criteria, by the rule of `docs/audit.md`."""

from __future__ import annotations

from .criteria import Criteria, NotAssessable

BROKEN = 0.5  # of what the zoo does above chance
COPY = 0.5  # of the natural distance between zoo members
NEARER = 0.25  # chance of being further from the zoo than a held-out checkpoint
AVERAGER = 0.8  # of the zoo's spread, or of held-out checkpoints' disagreement
MEANINGS = {
    "broken": "they do less than half of what the zoo does above chance",
    "copier": "they lie much closer to training checkpoints than real, unseen checkpoints do",
    "averager": "they are more alike than real checkpoints are, as averages of checkpoints would be",
    "beyond the curve": "at the zoo's diversity they are more accurate than every baseline, the zoo included",
    "Gaussian-equivalent": "nothing measured here tells them from a Gaussian fitted in the generator's own codes",
    "faithful": "they perform, spread and lie as far from the zoo as unseen real checkpoints do",
    "inconclusive": "an interval contains a threshold that decides",
    "not assessable": "the zoo's runs and steps are not known, so novelty cannot be assessed",
}


def decide(criteria: Criteria) -> tuple[str, str]:
    """Returns the verdict, by the precedence of `docs/audit.md`, and the figures that decided."""
    # 1. Do the samples work at all?
    share = criteria.performs.share_above_chance
    if share.high < BROKEN:
        return "broken", f"share above chance {share}"
    if share.low < BROKEN:
        return "inconclusive", f"share above chance {share} straddles {BROKEN:g}"
    # 2. Are they copies? Averages are nearer to the zoo than real checkpoints, too: the AUC does not count for them.
    r, f, novel = criteria.disperses.R, criteria.disperses.F, criteria.novel
    averager = r.high < AVERAGER or f.high < AVERAGER
    if not isinstance(novel, NotAssessable):
        ratio, auc = novel.weights.r, novel.weights.auc
        if ratio.high < COPY:
            return "copier", f"r = {ratio}"
        if not averager and auc.high < NEARER and ratio.high < 1:
            return "copier", f"AUC = {auc} and r = {ratio}"
        if ratio.low < COPY:
            return "inconclusive", f"r = {ratio} straddles {COPY:g}"
    # 3. Are they averages?
    if averager:
        return "averager", f"R = {r}, F = {f}"
    for name, value in (("R", r), ("F", f)):
        if value.low < AVERAGER:
            return "inconclusive", f"{name} = {value} straddles {AVERAGER:g}"
    if isinstance(novel, NotAssessable):
        return "not assessable", novel.reason
    # 4. Are they better than what is simpler, and if not, different from it?
    area = criteria.outside_the_curve.area
    if area.low > 0:
        return "beyond the curve", f"gain over the curve {area}"
    p_value = f"p = {criteria.distinguishable.energy_p_value:.3f}"
    return ("faithful" if criteria.distinguishable.answer else "Gaussian-equivalent"), p_value
