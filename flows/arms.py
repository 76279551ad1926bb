"""What a replay says about two arms: agreement, latency, errors, and what each earned on its own portfolio.

Agreement (seed 6.1.1, readings 21 and 22) is counted decision by decision: the action, the quantity within a
tolerance, and the position after it, which is what money follows.

`<role>_p99_ms` (and p50, p95) is two times in one name, each the one that role's limit is about: while the arm acts,
the time to the service's decision; while it is the shadow, the time of its model alone. A shadow that was late and
still ran when the answer left counts as the limit it missed, so that its slowest runs stay in the percentiles.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.actions import N_ACTIONS
from flows.measure import percentiles
from flows.replay import Arm, Replay, arms_of, column
from trading.bootstrap import mean_interval
from trading.features import Floats

QUANTITY_TOLERANCE_RATIO = 0.1


def compare(replays: Sequence[Replay], *, late_ms: float) -> dict[str, Any]:
    """Everything the report and the gates need; `metrics` is flat. Both arms must have been followed.

    `late_ms`: the limit that a late shadow missed, what it counts as while its true latency is unknown.
    """
    champion, challenger = arms_of(replays, "champion"), arms_of(replays, "challenger")
    latency_ms = {role: _latency_ms(arms, late_ms) for role, arms in _roles(champion, challenger)}
    paired = mean_interval(advantage_bps(champion, challenger))
    metrics = {
        "decisions": len(column(champion, "action")),
        "sessions": len(earned(champion)),
        "lost_decisions": sum(one.lost for one in replays),
        "challenger_decisions": int(column(challenger, "acting").sum()),
        "advantage_bps_per_day": paired.value,
        "advantage_ci95_low": paired.ci95_low,
        "advantage_ci95_high": paired.ci95_high,
        "challenger_mean_segments": float(column(challenger, "segments").mean()),
    }
    for role, arms in _roles(champion, challenger):
        metrics[f"{role}_return_bps_per_day"] = float(earned(arms).mean())
        metrics[f"{role}_error_ratio"] = float(column(arms, "failed").mean())
        metrics[f"{role}_late_ratio"] = float(column(arms, "late").mean())
        metrics |= {f"{role}_{name}": value for name, value in percentiles(latency_ms[role]).items()}
    return {
        "metrics": metrics | agreement(champion, challenger),
        "challenger_symbols": sum(sum(arm.acting.values()) for arm in challenger),
        "agreement": matrix(champion, challenger),
        "latency_ms": latency_ms,
        "return_bps": {role: earned(arms) for role, arms in _roles(champion, challenger)},
        "regret_bps": {role: regret(arms) for role, arms in _roles(champion, challenger)},
    }


def _roles(champion: list[Arm], challenger: list[Arm]) -> tuple[tuple[str, list[Arm]], ...]:
    return ("champion", champion), ("challenger", challenger)


def _latency_ms(arms: Sequence[Arm], late_ms: float) -> Floats:
    """Per decision [D]; NaN where the arm gave no answer at all."""
    measured = column(arms, "latency_ms").astype(np.float64)
    return np.where(column(arms, "late") & np.isnan(measured), late_ms, measured)


def earned(arms: Sequence[Arm]) -> Floats:
    """Return in bps per session [S]."""
    return np.concatenate([arm.return_bps for arm in arms])


def regret(arms: Sequence[Arm]) -> Floats | None:
    """Regret in bps per session [S]; None where the optimum is unknown."""
    known = [arm.regret_bps for arm in arms if arm.regret_bps is not None]
    return np.concatenate(known) if known else None


def advantage_bps(champion: Sequence[Arm], challenger: Sequence[Arm]) -> Floats:
    """Per session [S]: regret saved where the optimum is known, else the return gained."""
    theirs, ours = regret(champion), regret(challenger)
    if theirs is not None and ours is not None:
        return theirs - ours
    return earned(challenger) - earned(champion)


def agreement(champion: Sequence[Arm], challenger: Sequence[Arm]) -> dict[str, float]:
    """Ratios of decisions on which the arms agree."""
    actions = column(champion, "action") == column(challenger, "action")
    quantities = column(champion, "quantity"), column(challenger, "quantity")
    close = np.abs(quantities[0] - quantities[1]) <= QUANTITY_TOLERANCE_RATIO * np.maximum(*quantities)
    positions = [np.concatenate([arm.position for arm in arms]) for arms in (champion, challenger)]
    return {
        "action_agreement_ratio": float(actions.mean()),
        "quantity_agreement_ratio": float(close.mean()),
        "position_agreement_ratio": float((positions[0] == positions[1]).mean()),
    }


def matrix(champion: Sequence[Arm], challenger: Sequence[Arm]) -> NDArray[np.int64]:
    """Counts [5, 5] of (champion's action, challenger's action)."""
    counts = np.zeros((N_ACTIONS, N_ACTIONS), dtype=np.int64)
    np.add.at(counts, (column(champion, "action"), column(challenger, "action")), 1)
    return counts
