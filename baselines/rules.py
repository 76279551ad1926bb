"""The controls: a challenger that cannot beat these has learned nothing worth its latency."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from core.actions import ACTION_OF, Action


@dataclass(frozen=True)
class RuleDecisions:
    """One decision per row [B]; a rule has one segment and trades one unit."""

    action: NDArray[np.int64]

    @property
    def quantity(self) -> NDArray[np.float64]:
        return np.ones(len(self.action))

    @property
    def segments(self) -> NDArray[np.int64]:
        return np.ones(len(self.action), dtype=np.int64)


Array = NDArray[np.float32]
Rule = Callable[[Array, Array, Array, NDArray[np.int64]], RuleDecisions]


def hold(bars: Array, account: Array, complexity: Array, position: NDArray[np.int64]) -> RuleDecisions:
    """Never trade."""
    return RuleDecisions(np.full(len(position), Action.HOLD, dtype=np.int64))


def buy_and_hold(bars: Array, account: Array, complexity: Array, position: NDArray[np.int64]) -> RuleDecisions:
    """Long from the first bar of the session to the last."""
    return RuleDecisions(ACTION_OF[position + 1, 2])


def momentum(account_index: int, threshold: float) -> Rule:
    """Follow one account feature: enter beyond +-threshold, leave when its sign turns."""

    def rule(bars: Array, account: Array, complexity: Array, position: NDArray[np.int64]) -> RuleDecisions:
        edge = account[:, account_index]
        entered = np.sign(edge).astype(np.int64) * (np.abs(edge) > threshold)
        kept = position * (np.sign(edge) == position)
        return RuleDecisions(ACTION_OF[position + 1, np.where(entered != 0, entered, kept) + 1])

    return rule
