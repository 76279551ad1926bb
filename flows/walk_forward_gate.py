"""What a walk-forward says to a retraining: the recipe judged on years, a training only on its own test sessions.

`folds` bounds the cost: both models are trained once more in each. A retraining that did not walk says why.
"""

from __future__ import annotations

from typing import Any

from core.errors import DataError
from core.gates import Verdict
from flows.run_state import Run
from flows.walk_forward import open_walk, walk_forward


def walked(run: Run, verdict: dict[str, Any], folds: int) -> dict[str, Any]:
    """`folds`, and of HRM less PPO `return_pct` over all tests with its interval, `verdict`, `walk`; or `why_not`.

    `verdict`: of the gates of `run`'s training; what they stop is not walked.
    """
    file, why_not = run.inputs.data, _why_not(run, verdict, folds)
    if why_not is not None or file is None:
        return {"folds": folds, "why_not": why_not}
    try:
        walk = open_walk(run.settings, file, folds=folds, seed=run.inputs.seed)
    except DataError as error:  # too few sessions for so many folds; the training was not in vain
        return {"folds": folds, "why_not": str(error)}
    found: dict[str, Any] = walk_forward(str(file), folds=folds, run_dir=str(walk.folder))
    said = {"verdict": found["hrm_for_ppo"]["verdict"], "walk": walk.id}
    return {"folds": folds, **found["hrm_minus_ppo"], **said}


def _why_not(run: Run, verdict: dict[str, Any], folds: int) -> str | None:
    if folds == 0:
        return "not asked for"
    if run.inputs.data is None:
        return "simulated bars are not walked"
    return None if verdict["verdict"] == Verdict.PASS else "the gates come first"


def shown_worse(walk: dict[str, Any]) -> dict[str, Any] | None:
    """`kept_back` with the reason, if over the walk an HRM earns less than a PPO with 95 % confidence."""
    if walk.get("ci95_high", 0.0) >= 0:
        return None
    return {"kept_back": f"walked forward in {walk['folds']} folds an HRM is shown to earn less than a PPO"}


def in_words(walk: dict[str, Any]) -> str:
    if "why_not" in walk:
        return f"{walk['folds']} folds, {walk['why_not']}"
    difference = f"{walk['return_pct']:+.2f} % [{walk['ci95_low']:+.2f}, {walk['ci95_high']:+.2f}]"
    return f"HRM less PPO {difference} over {walk['folds']} folds, {walk['verdict']} ({walk['walk']})"
