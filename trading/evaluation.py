"""Honest evaluation: returns after costs per session and, where an oracle exists, exact regret.

    regret = max_q Q(t, p, q) - Q(t, p, chosen),  Q(t, p, q) = values[t, q] - cost |q - p|
    score  = 1 - mean regret per session / mean optimal value per session     oracle 1, flat 0

By the performance-difference lemma the regrets along the agent's own path sum to J* - J, without the noise of
realised P&L. Confidence intervals: trading/bootstrap.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from core.actions import ACTION_OF
from core.observation import ObservationSchema
from trading.bootstrap import Interval, resampled
from trading.env import SessionEnv, Step, run_policy
from trading.features import Floats
from trading.market import Ints, Market
from trading.observations import Policy

TARGETS = np.array([-1, 0, 1])


@dataclass(frozen=True)
class Evaluation:
    """One policy over many sessions; arrays are per session [S]."""

    sessions: Ints
    return_bps: Floats  # after costs, per unit of direction
    regret_bps: Floats | None  # None where the optimum is unknown
    optimal_bps: Floats | None  # value of the optimal policy from the session's start
    turnover: Ints
    action_counts: Ints  # [5]
    mean_segments: float
    flat_ratio: float  # share of the decisions after which nothing was held

    @property
    def loss_bps(self) -> float:
        """What the best weights minimise, bps per session: regret, or the negative return without an optimum."""
        return float(-self.return_bps.mean() if self.regret_bps is None else self.regret_bps.mean())

    @property
    def score(self) -> float | None:
        """Fraction of the optimum: 1 the oracle, 0 always flat."""
        if self.regret_bps is None or self.optimal_bps is None:
            return None
        return float(1.0 - self.regret_bps.mean() / self.optimal_bps.mean())


def regret_of(step: Step, before: Ints, market: Market, cost_bps: float) -> Floats:
    """Regret [B] in bps of the decisions of one lock-step, taken from positions `before`."""
    assert market.values is not None  # noqa: S101 - callers ask `market.values` first
    q = market.values[step.at] - cost_bps * np.abs(TARGETS - before[:, None])
    chosen = q[np.arange(len(q)), step.position + 1]
    return np.where(step.active, q.max(axis=1) - chosen, 0.0)


def evaluate(
    policy: Policy,
    market: Market,
    schema: ObservationSchema,
    cost_bps: float,
    sessions: Ints | None = None,
) -> Evaluation:
    """Run `policy` greedily over `sessions` (default: all) of a market, all of them in lock-step."""
    return _play(policy, SessionEnv(market, schema, market.sessions if sessions is None else sessions, cost_bps))


def evaluate_targets(targets: Ints, market: Market, schema: ObservationSchema, cost_bps: float) -> Evaluation:
    """The same for decisions made beforehand: `targets` [n, 3] by bar and by position index p + 1."""
    env = SessionEnv(market, schema, market.sessions, cost_bps)

    def follow(*_: object) -> PlannedDecisions:
        target = targets[env.at, env.position + 1]
        return PlannedDecisions(ACTION_OF[env.position + 1, target + 1], np.ones(len(env)), np.ones_like(target))

    return _play(follow, env)


class PlannedDecisions(NamedTuple):
    """Decisions read from a table, [B] each: one unit, one segment."""

    action: Ints
    quantity: Floats
    segments: Ints


def best_targets(values: Floats, cost_bps: float) -> Ints:
    """What continuation values [n, 3] advise, [n, 3] by bar and by position index p + 1."""
    turnover = np.abs(TARGETS - TARGETS[:, None])  # [p + 1, q + 1]
    return np.asarray((values[:, None] - cost_bps * turnover).argmax(axis=2) - 1)


def _play(policy: Policy, env: SessionEnv) -> Evaluation:
    market, cost_bps = env.market, env.cost_bps
    returns = np.zeros(len(env))
    regret = np.zeros(len(env))
    turnover = np.zeros(len(env), dtype=np.int64)
    counts = np.zeros(5, dtype=np.int64)
    segments, decisions, flat = 0, 0, 0
    optimal = None if market.values is None else start_value(market, env.at, cost_bps)
    for seen, decided, step in run_policy(policy, env):
        returns += step.reward_bps
        turnover += step.turnover
        counts += np.bincount(np.asarray(decided.action)[step.active], minlength=5)
        segments += int(np.asarray(decided.segments)[step.active].sum())
        decisions += int(step.active.sum())
        flat += int((step.position[step.active] == 0).sum())
        if market.values is not None:
            regret += regret_of(step, seen.position, market, cost_bps)
    return Evaluation(
        sessions=env.sessions,
        return_bps=returns,
        regret_bps=None if market.values is None else regret,
        optimal_bps=optimal,
        turnover=turnover,
        action_counts=counts,
        mean_segments=segments / decisions,
        flat_ratio=flat / decisions,
    )


def start_value(market: Market, at: Ints, cost_bps: float) -> Floats:
    """Optimal value [B] in bps of starting flat at bars `at`."""
    assert market.values is not None  # noqa: S101 - callers ask `market.values` first
    return np.asarray((market.values[at] - cost_bps * np.abs(TARGETS)).max(axis=1))


def score_interval(evaluation: Evaluation, seed: int = 0) -> Interval:
    """Score with its interval: the ratio of means, resampled over sessions. Needs a known optimum."""
    regret, optimal = evaluation.regret_bps, evaluation.optimal_bps
    assert regret is not None and optimal is not None  # noqa: S101 - callers ask `score` first
    found = resampled(np.stack([regret, optimal], axis=1), _score, seed)
    low, high = np.quantile(found, [0.025, 0.975])
    return Interval(1.0 - float(regret.mean() / optimal.mean()), float(low), float(high))


def _score(columns: Floats) -> Floats:
    """Of regret and optimum [S, 2]."""
    regret, optimal = columns.mean(axis=0)
    return np.asarray(1.0 - regret / optimal)


def advantage(challenger: Evaluation, champion: Evaluation) -> Floats:
    """Paired advantage per session [S] in bps: saved regret where the optimum is known, else excess return."""
    if challenger.regret_bps is not None and champion.regret_bps is not None:
        return champion.regret_bps - challenger.regret_bps
    return challenger.return_bps - champion.return_bps
