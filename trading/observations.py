"""What a policy is shown and what it answers: batches of observations, gathered from a market.

B rows, W rows of a window, F bar features, A account features.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from core.errors import DataError
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
    """Observations at bars `at` [B] with positions [B]: copies of past rows, never of the future.

    Raises DataError if the market was prepared for another schema, or has too little history at one of the bars.
    """
    _require_prepared(market, schema)
    base = _rows_before(market.bar_features, at + 1, schema.base_window)
    blocks = [_rows_before(each.bar_features, each.closed[at], each.timeframe.bars) for each in market.coarse]
    bars = np.concatenate([*blocks, base], axis=1) if blocks else base
    return Observations(bars, account_of(market, at, position), market.complexity[at], position)


def _rows_before(table: NDArray[np.float32], stops: Ints, rows: int) -> NDArray[np.float32]:
    """The `rows` rows of the table [m, F] before each of `stops` [B]: [B, rows, F], one block of memory each."""
    if len(stops) and stops.min() < rows:
        raise DataError(f"fewer than {rows} bars behind one of the bars observed; observe at decision bars only")
    return _views(table, rows)[stops - rows]


def _views(table: NDArray[np.float32], rows: int) -> NDArray[np.float32]:
    """Every run of `rows` rows [m - rows + 1, rows, F], in the table's own memory."""
    return sliding_window_view(table, rows, axis=0).transpose(0, 2, 1)


def windows(market: Market, schema: ObservationSchema) -> NDArray[np.float32]:
    """All base windows [n - W + 1, W, F] as a read-only view of the market's memory; the one of bar t is at t - W + 1.

    Raises DataError for a schema with coarser timeframes: their blocks lie elsewhere, `observe` gathers them.
    """
    _require_prepared(market, schema)
    if schema.timeframes:
        raise DataError(f"{market.name}: windows of several timeframes are no view; gather them with observe()")
    return _views(market.bar_features, schema.window)


def _require_prepared(market: Market, schema: ObservationSchema) -> None:
    shown = (tuple(each.timeframe for each in market.coarse), market.bar_features.shape[1], market.context.shape[1] + 1)
    if shown != (schema.timeframes, len(schema.bar_features), len(schema.account_features)):
        raise DataError(
            f"{market.name}: prepared for other timeframes, symbols or features than the schema's; prepare the bars "
            f"with trading.market.market_of and this schema",
            code="schema_mismatch",
        )


def account_of(market: Market, at: Ints, position: Ints) -> NDArray[np.float32]:
    """The account features [B, A] at bars `at` [B] with positions [B]."""
    return np.concatenate([market.context[at], position[:, None].astype(np.float32)], axis=1)
