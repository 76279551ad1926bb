"""What a policy is shown and what it answers: batches of observations, gathered from a market.

B rows, W rows of a window, F bar features, A account features.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from core.observation import ObservationSchema
from trading.market import Ints, Market


class Observations(NamedTuple):
    """A batch of observations: what a policy is called with."""

    bars: NDArray[np.float32]  # [B, W, F]
    account: NDArray[np.float32]  # [B, A]
    complexity: NDArray[np.float32]  # [B]
    position: Ints  # [B] in {-1, 0, +1}


class PolicyDecisions(Protocol):
    """What a policy answers: arrays over the batch."""

    @property
    def action(self) -> NDArray[np.integer]: ...
    @property
    def quantity(self) -> NDArray[np.floating]: ...
    @property
    def segments(self) -> NDArray[np.integer]: ...


class Policy(Protocol):
    def __call__(
        self,
        bars: NDArray[np.float32],
        account: NDArray[np.float32],
        complexity: NDArray[np.float32],
        position: Ints,
        /,
    ) -> PolicyDecisions: ...


def observe(market: Market, schema: ObservationSchema, at: Ints, position: Ints) -> Observations:
    """Observations at bars `at` [B] with positions [B]; windows are gathered from a view, never from the future."""
    windows = sliding_window_view(market.bar_features, schema.window, axis=0)  # [n - W + 1, F, W]
    bars = windows[at - schema.window + 1].transpose(0, 2, 1)
    return Observations(np.ascontiguousarray(bars), account_of(market, at, position), market.complexity[at], position)


def account_of(market: Market, at: Ints, position: Ints) -> NDArray[np.float32]:
    """The account features [B, A] at bars `at` [B] with positions [B]."""
    return np.concatenate([market.context[at], position[:, None].astype(np.float32)], axis=1)
