"""May the challenger replace the champion? Two records of the same sessions in, a verdict with its reasons out.

Each check speaks for a promotion, against it, or leaves it open; one against keeps the champion, all for promote:

    difference  confidence sequence of the paired differences (core/confidence.py), valid although the comparison is
                made again after every session: above -margin is for, below it against
    earnings    what the challenger earns after costs: above 0 is for, everything else against
    luck        deflated Sharpe ratio with the number of trials (trading/significance.py): never against
    survival    losing the whole capital is against
    choice      probability that choosing among the validated weights was overfitting, where it is known

Everything is in bps of the capital per session; nothing is compounded. S sessions.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from datetime import date
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from core.confidence import FIRST_LOOK, confidence_sequence, long_run_deviation
from core.errors import DataError
from core.settings import EvaluationSettings
from trading.bootstrap import (
    YEAR,
    Interval,
    mean_interval,
    sharpe,
    sharpe_difference_interval,
    worse_probability,
)
from trading.significance import Trials, deflated_sharpe, minimum_track_record, sessions_to_decide

Floats = NDArray[np.float64]
Verdict = Literal["promote", "keep", "undecided"]
Speaks = Literal["for", "against", "open"]

COST_MULTIPLES = (0, 1, 2, 4)


@dataclass(frozen=True, eq=False)
class Record:
    """What an agent earned, session by session: before costs, and the costs of its orders, [S] each.

    Raises DataError unless there is a finite result for each of ascending days (add up what several symbols earned
    in one) and no cost is negative.
    """

    name: str
    sessions: tuple[date, ...]
    gross_bps: Floats
    cost_bps: Floats
    ruined_on: date | None = None  # the day that lost what was left of the capital; later ones are zero

    def __post_init__(self) -> None:
        shapes = {self.gross_bps.shape, self.cost_bps.shape, (len(self.sessions),)}
        ascending = all(earlier < later for earlier, later in pairwise(self.sessions))
        if len(shapes) > 1 or not ascending or not np.isfinite(self.net_bps).all() or (self.cost_bps < 0).any():
            raise DataError(
                f"{self.name}: a record needs one finite result and a cost of at least 0 for each of its days, which "
                f"ascend; add up what several symbols earned in a day",
                code="bad_record",
            )

    @property
    def net_bps(self) -> Floats:
        return self.gross_bps - self.cost_bps

    @property
    def break_even_multiple(self) -> float | None:
        """Of its costs, at which it would earn nothing; negative if it loses without any, None if it has none."""
        total = float(self.cost_bps.sum())
        return float(self.gross_bps.sum()) / total if total > 0 else None

    def cost_sweep(self) -> dict[int, float]:
        """Mean return per session, in bps, were all costs this multiple of what they are and the orders the same."""
        return {multiple: float((self.gross_bps - multiple * self.cost_bps).mean()) for multiple in COST_MULTIPLES}

    def summary(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "name": self.name,
            "return_bps_per_session": float(self.net_bps.mean()),
            "sharpe": sharpe(self.net_bps) * YEAR**0.5,
            "ruined_on": self.ruined_on and self.ruined_on.isoformat(),
            "max_drawdown_bps": max_drawdown(self.net_bps),
            "cost_bps_per_session": float(self.cost_bps.mean()),
            "break_even_cost_multiple": self.break_even_multiple,
            "return_bps_by_cost_multiple": {str(multiple): mean for multiple, mean in self.cost_sweep().items()},
        }


def max_drawdown(per_session: Floats) -> float:
    """Deepest fall of the sum of returns [S] below its highest value before, the start included."""
    equity = np.concatenate([[0.0], np.cumsum(per_session)])
    return float((np.maximum.accumulate(equity) - equity).max())


@dataclass(frozen=True)
class Comparison:
    """A verdict and what it rests on. Differences are the challenger's less the champion's."""

    verdict: Verdict
    reasons: tuple[str, ...]
    sessions: int
    champion: dict[str, Any]
    challenger: dict[str, Any]
    difference_bps: Interval  # mean per session
    sharpe_difference: Interval  # annual
    worse_probability: float  # that the mean difference is below zero
    sequence_low_bps: float  # of the mean difference, one-sided each, at any number of looks; infinite at first
    sequence_high_bps: float
    deflated_sharpe: float  # of the challenger
    trials: int
    trials_complete: bool  # False: at least so many
    overfitting_probability: float | None
    sessions_needed: int | None  # in all, to decide at this difference; None: never, or nothing can be said yet

    def to_dict(self) -> dict[str, Any]:
        """As JSON values; None for what is infinite."""
        values = asdict(self) | {"reasons": list(self.reasons)}
        bounds = {name: values[name] for name in ("sequence_low_bps", "sequence_high_bps")}
        return values | {name: bound if math.isfinite(bound) else None for name, bound in bounds.items()}


class _Check(NamedTuple):
    speaks: Speaks
    sentence: str


def compare(
    champion: Record,
    challenger: Record,
    limits: EvaluationSettings,
    *,
    trials: Trials,
    overfitting_probability: float | None = None,
) -> Comparison:
    """Judge the challenger by what both earned in the same sessions.

    `trials`: all weights that were judged on validation sessions before these were chosen (flows/tracking.py);
    `overfitting_probability`: of that choice, if it was measured. Raises DataError if the sessions differ or are
    fewer than two.
    """
    _require_same_sessions(champion, challenger)
    earned, difference = challenger.net_bps, challenger.net_bps - champion.net_bps
    sequence = confidence_sequence(difference, limits.alpha)
    bounds = float(sequence.low[-1]), float(sequence.high[-1])
    needed = _sessions_needed(difference, limits)
    checks = [_beside_the_champion(difference, bounds, limits), _earnings(challenger), _luck(earned, trials, limits)]
    if challenger.ruined_on is not None:
        checks.append(_Check("against", f"the challenger lost all of its capital by {challenger.ruined_on}."))
    if overfitting_probability is not None:
        checks.append(_choice(overfitting_probability, limits))
    if not difference.any():
        never = f"the two never differ: both earned the same in each of {len(difference)} sessions."
        checks = [_Check("open", never)]
    verdict = _verdict(checks)
    reasons = [f"{check.speaks.capitalize()}: {check.sentence}" for check in checks]
    if verdict == "undecided" and difference.any():
        reasons.append(_waiting(len(difference), needed, limits))
    return Comparison(
        verdict=verdict,
        reasons=tuple(reasons),
        sessions=len(difference),
        champion=champion.summary(),
        challenger=challenger.summary(),
        difference_bps=mean_interval(difference),
        sharpe_difference=sharpe_difference_interval(earned, champion.net_bps),
        worse_probability=worse_probability(difference),
        sequence_low_bps=bounds[0],
        sequence_high_bps=bounds[1],
        deflated_sharpe=deflated_sharpe(earned, trials),
        trials=trials.count,
        trials_complete=trials.complete,
        overfitting_probability=overfitting_probability,
        sessions_needed=needed,
    )


def _require_same_sessions(champion: Record, challenger: Record) -> None:
    if champion.sessions != challenger.sessions or len(champion.sessions) < 2:
        apart = len(set(champion.sessions) ^ set(challenger.sessions))
        raise DataError(
            f"{champion.name} and {challenger.name}: {len(champion.sessions)} and {len(challenger.sessions)} sessions, "
            f"{apart} of one only; compare them on the same bars, two sessions at least",
            code="sessions_differ",
        )


def _verdict(checks: list[_Check]) -> Verdict:
    said = {check.speaks for check in checks}
    if "against" in said:
        return "keep"
    return "promote" if said == {"for"} else "undecided"


def _beside_the_champion(difference: Floats, bounds: tuple[float, float], limits: EvaluationSettings) -> _Check:
    earns = f"the challenger earns {difference.mean():+.2f} bps a session beside the champion"
    if len(difference) < FIRST_LOOK:
        return _Check("open", f"{earns}; {len(difference)} sessions bound nothing, the first look is at {FIRST_LOOK}.")
    margin = 0.0 - limits.non_inferiority_bps
    speaks: Speaks = "open"
    if bounds[0] > margin or bounds[1] < margin:
        speaks = "for" if bounds[0] > margin else "against"
    level = f"each bound wrong at most {limits.alpha:.0%} of the time, however often one looks"
    return _Check(
        speaks, f"{earns}, between {bounds[0]:+.2f} and {bounds[1]:+.2f} ({level}); must be above {margin:+.2f}."
    )


def _earnings(challenger: Record) -> _Check:
    mean, multiple = float(challenger.net_bps.mean()), challenger.break_even_multiple
    costs = f"it breaks even at {multiple:.2f} times its costs" if multiple is not None else "it has no costs"
    if multiple is not None and multiple <= 0:
        costs = "it would lose without any costs, too"
    sentence = f"after costs the challenger earns {mean:+.2f} bps a session; must be above 0 ({costs})."
    return _Check("for" if mean > 0 else "against", sentence)


def _luck(earned: Floats, trials: Trials, limits: EvaluationSettings) -> _Check:
    found, least = deflated_sharpe(earned, trials), limits.min_deflated_sharpe
    sentence = f"its Sharpe ratio is no luck of {trials} with probability {found:.3f}; must be at least {least:g}"
    if found >= least:
        return _Check("for", f"{sentence}.")
    needed = minimum_track_record(earned, trials, least)
    wait = "no number of such sessions would do" if needed is None else f"{needed:,} such sessions would do"
    return _Check("open", f"{sentence} ({wait}).")


def _choice(probability: float, limits: EvaluationSettings) -> _Check:
    most = limits.max_overfitting_probability
    sentence = f"its choice among the validated weights is overfitted with probability {probability:.2f}"
    return _Check("for" if probability <= most else "against", f"{sentence}; must be at most {most:g}.")


def _sessions_needed(difference: Floats, limits: EvaluationSettings) -> int | None:
    """In all, until the sequence lies on one side of the margin; None: never, or nothing can be said."""
    if len(difference) < FIRST_LOOK or not difference.any():
        return None
    effect = float(difference.mean()) + limits.non_inferiority_bps
    deviation = float(long_run_deviation(difference)[-1])
    return sessions_to_decide(effect, deviation, alpha=limits.alpha, power=limits.power)


def _waiting(sessions: int, needed: int | None, limits: EvaluationSettings) -> str:
    if sessions < FIRST_LOOK:
        return f"Bring at least {FIRST_LOOK - sessions} more sessions."
    if needed is None:
        return "At this difference no number of sessions decides."
    power = f"{limits.power:.0%}"
    return f"At this difference {needed:,} sessions decide with a probability of {power}; there are {sessions:,}."
