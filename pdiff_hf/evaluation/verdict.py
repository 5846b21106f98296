"""The verdict: one word for the criteria, by the rule of `docs/audit.md`."""

from __future__ import annotations

from .criteria import BETTER, CHANCE, Evidence
from .evidence import BROKEN, NotAssessable
from .intervals import FEWEST_UNITS
from .measures import Criterion, rare, within

WORKING = 0.75  # share of what the zoo does above chance, of the median sample
HALF = 0.5  # share of the samples
NEAR = 0.6  # of the natural distance
FAITHFUL = ("works", "spreads", "new", "near", "distinct")
MEANINGS = {
    "broken": "they do less than half of what the zoo does above chance",
    "partly broken": "most of them work, but some do less than half of what the zoo does above chance",
    "worse than real": "they are less accurate than real networks",
    "copier": "they are training checkpoints, in weights or in function, or much closer to them than unseen ones",
    "copier in part": "some of them are near-copies of training checkpoints, in weights or in function",
    "averager": "they are more alike than real checkpoints are, as averages of checkpoints would be",
    "repeats itself": "some of them are copies of each other",
    "off the zoo": "they are further from the zoo, or from each other, than unseen real checkpoints are",
    "Gaussian-equivalent": "nothing measured here tells them from a Gaussian fitted in the generator's own codes",
    "faithful": "they perform, spread and lie as far from the zoo as unseen real checkpoints do",
    "better than real": "they are more accurate than unseen real checkpoints, and spread and lie as far from the zoo",
    "inconclusive": "neither faithful nor one of the other words is shown",
    "not assessable": "the zoo's runs and steps are not known, so novelty cannot be assessed",
}


def decide(evidence: Evidence, criteria: dict[str, Criterion]) -> tuple[str, str]:
    """Returns the verdict, by the precedence of `docs/audit.md`, and the figures that decided."""
    # 1. Do all of the samples work?
    works, performs = criteria["works"], evidence.performs
    share = works.measures["share"]
    if share.value.high < BROKEN:
        return "broken", f"share above chance {share.value}"
    if works.measures["broken"].status == "failed" and performs.median_share >= WORKING:
        return "partly broken", f"share of broken samples {works.measures['broken'].value}"
    # 2. Are they copies? Averages may be nearer to the zoo than real networks, too: there, closer is needed.
    spreads, novel = criteria["spreads"], evidence.novel
    averager = any(measure.too_low for measure in spreads.measures.values())
    if not isinstance(novel, NotAssessable):
        for space, name in ((novel.weights, "in weights"), (novel.functions, "in function")):
            copies = space.strict_copies if averager else space.copies
            found = rare(f"near-copies {name}", copies, space.total, space.heldout_copies)
            if found.value.low > HALF:
                return "copier", f"{found.name} {found.value}"
            if found.status == "failed" and not averager:
                return "copier in part", f"{found.name} {found.value}"
            if not averager and space.auc.high < CHANCE[0] and space.r.high < NEAR:
                return "copier", f"AUC {name} = {space.auc} and r = {space.r}"
    # 3. Are they averages, or copies of each other?
    if averager:
        return "averager", str(spreads)
    if criteria["distinct"].status == "failed":
        return "repeats itself", str(criteria["distinct"])
    # 4. Are they more than a Gaussian? If so, are they worse than real networks, or further out?
    if criteria["more than a Gaussian"].status == "failed":
        p_value = f"energy test p = {evidence.distinguishable.energy_p_value:.3f}"
        return "Gaussian-equivalent", f"{p_value}, score {evidence.distinguishable.accuracy_difference}"
    if works.status == "failed":
        return "worse than real", str(works)
    for name in ("near", "spreads"):
        if any(measure.too_high for measure in criteria[name].measures.values()):
            return "off the zoo", str(criteria[name])
    # 5. Are they as real networks are in everything?
    if isinstance(novel, NotAssessable):
        return "not assessable", novel.reason
    needed = [criteria[name] for name in (*FAITHFUL, "more than a Gaussian")]
    if all(criterion.status == "passed" for criterion in needed):
        better = within("share", performs.share_above_chance, None, BETTER * performs.heldout_share)
        if better.status == "passed":
            return "better than real", f"share above chance {performs.share_above_chance}"
        return "faithful", "all criteria passed"
    blocks = evidence.independent_blocks
    if blocks is not None and blocks < FEWEST_UNITS:
        remedy = "collect a longer trajectory, of a training that has settled"
        return "inconclusive", f"too few independent blocks: {blocks}, at least {FEWEST_UNITS} are needed; {remedy}"
    return "inconclusive", "; ".join(f"{c}: {c.status}" for c in needed if c.status != "passed")
