"""The criteria of the audit: what each claims of the samples, and whether that is shown."""

from __future__ import annotations

from dataclasses import dataclass, replace

from .evidence import COPY, Disperses, NotAssessable, Novel, Performs
from .intervals import FEWEST_UNITS, Interval, without_ends
from .measures import Criterion, Measure, criterion, not_assessable, rare, within
from .resemblance import Distinguishable, OutsideTheCurve

WORKS = 0.97  # least share of what the zoo does above chance
SPREAD = (0.8, 1.25)  # of R and F
LEADING = 0.5  # least R in the leading directions that passes; it fails below the limit of R
CHANCE = (0.25, 0.75)  # of being further from the zoo than a held-out checkpoint
BETTER = 1.01  # share of what held-out networks do above chance
FEWEST = 10  # samples for which an interval by resampling is trusted


@dataclass(frozen=True)
class Evidence:
    """The measured quantities of all criteria."""

    performs: Performs
    disperses: Disperses
    novel: Novel | NotAssessable
    distinguishable: Distinguishable
    outside_the_curve: OutsideTheCurve

    @property
    def independent_blocks(self) -> int | None:
        """Independent blocks of a trajectory; None if the zoo is none, or if they are not known."""
        return None if isinstance(self.novel, NotAssessable) else self.novel.blocks


def criteria_of(evidence: Evidence) -> dict[str, Criterion]:
    """Returns the criteria by name, in the order of the report."""
    performs, disperses, novel = evidence.performs, evidence.disperses, evidence.novel
    total = performs.total
    blocks = evidence.independent_blocks

    def measured(name: str, value: Interval, *limits: float | None) -> Measure:
        if total < FEWEST:
            value = without_ends(value.value, f"too few samples: {total}")
        found = within(name, value, *limits)
        if blocks is not None and blocks < FEWEST_UNITS and found.status == "passed":
            few = replace(value, note=f"too few independent blocks: {blocks}")
            found = replace(found, value=few, status="undecided")
        return found

    # A trajectory drifts along its leading directions: there, held-out checkpoints leave a wide interval.
    leading = measured("R in the zoo's leading directions", disperses.R_leading, 1.0, LEADING)
    if disperses.R_leading.high < SPREAD[0]:
        leading = replace(leading, least=SPREAD[0], status="failed")

    # 1. Works: as well as the zoo on average, and none below what real networks do.
    found = {
        "works": criterion(
            "as accurate as real networks, each of them",
            share=measured(
                "share of the zoo's score above chance", performs.share_above_chance, performs.heldout_share, WORKS
            ),
            broken=rare("samples that do less than half of that", performs.broken, total, 0.0),
            below=rare("samples below real networks' range", performs.below, total, performs.heldout_below),
        ),
        # 2. Spreads: as far apart as real networks are, in parameters and in predictions.
        "spreads": criterion(
            "as different from each other as real networks",
            R=measured("R", disperses.R, disperses.heldout_R, *SPREAD),
            R_leading=leading,
            F=measured("F at equal error rates", disperses.F_at_equal_errors, 1.0, *SPREAD),
        ),
    }
    # 3. New, near and distinct: no copies, on the manifold, and not each other's copies.
    claims = {
        "new": "no near-copies of training checkpoints, in weights or in function",
        "near": "as far from the zoo as held-out networks",
        "distinct": "no repeated samples",
    }
    if isinstance(novel, NotAssessable):
        found |= {name: not_assessable(claim) for name, claim in claims.items()}
    else:
        # Better networks are nearer to each other in function, and further from the zoo: of those, only copies count.
        better = performs.share_above_chance.low > BETTER * performs.heldout_share
        spaces = {"weights": novel.weights, "functions": novel.functions}
        compared = {"weights": novel.weights} if better else spaces
        at = {"weights": "in weights", "functions": "in function"}
        found["new"] = criterion(
            claims["new"],
            **{s: rare(f"near-copies {at[s]}", d.copies, d.total, d.heldout_copies) for s, d in spaces.items()},
        )
        found["near"] = criterion(
            claims["near"],
            **{s: measured(f"AUC of distances {at[s]}", d.auc, 0.5, *CHANCE) for s, d in compared.items()},
        )
        found["distinct"] = criterion(
            claims["distinct"],
            **{s: rare(f"repeated {at[s]}", d.repeated, d.total, 0.0) for s, d in compared.items()},
            **{
                f"{s}_apart": measured(
                    f"distance to the nearest other one {at[s]}, over real networks'", d.apart, 1.0, COPY
                )
                for s, d in compared.items()
            },
        )
    # 4. More than a Gaussian, and beyond the curve.
    gaussian = evidence.distinguishable
    gains = (gaussian.gain_in_codes, gaussian.gain_in_distance, gaussian.gain_in_score)
    best = max(gains, key=lambda gain: gain.low)
    more = measured("nearer to real networks than to a Gaussian, by", best, None, 0.0)
    if not gaussian.answer:
        more = Measure(more.name, more.value, None, 0.0, None, "failed")
    elif more.status == "failed":
        more = Measure(more.name, more.value, None, 0.0, None, "undecided")
    found["more than a Gaussian"] = criterion("more than a Gaussian of the zoo", gain=more)
    gain = measured("gain over the baselines' curve", evidence.outside_the_curve.area, None, 0.0)
    found["beyond the curve"] = criterion("more accurate than every baseline at the same diversity", gain=gain)
    return found
