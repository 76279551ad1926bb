"""A market prepared for decisions: bars, features, sessions and, where it is known, the oracle's values.

Time (docs/architecture.md): decide at the close of bar t, fill at the open of t+1, earn bar t+1; the last bar of
a session ends flat.
"""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime

import numpy as np
from numpy.typing import NDArray

from core.errors import DataError
from trading.features import WARM_UP_BARS, FeatureSettings, Floats, advance_all, initial_state

Ints = NDArray[np.int64]
MAX_BREAK_NS = 7 * 24 * 3600 * 10**9  # a longer silence is a hole in the data: history starts again after it


@dataclass(frozen=True)
class Bars:
    """Raw bars, n of them: oldest first, grouped into sessions with ascending ids."""

    name: str
    timestamps: Ints  # UTC ns, bar start
    open: Floats
    high: Floats
    low: Floats
    close: Floats
    session: Ints
    signal: Floats | None = None

    def __len__(self) -> int:
        return len(self.close)

    @property
    def first_of_session(self) -> NDArray[np.bool_]:
        return np.concatenate([[True], self.session[1:] != self.session[:-1]])

    @property
    def digest(self) -> str:
        """SHA-256 over every value a model could learn from."""
        digest = hashlib.sha256(self.name.encode())
        for array in (self.timestamps, self.open, self.high, self.low, self.close, self.signal):
            if array is not None:
                digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def part(self, start: int, stop: int) -> Bars:
        """Bars [start, stop) as a market of its own."""
        cut = slice(start, stop)
        return Bars(
            self.name,
            self.timestamps[cut],
            self.open[cut],
            self.high[cut],
            self.low[cut],
            self.close[cut],
            self.session[cut],
            None if self.signal is None else self.signal[cut],
        )


@dataclass(frozen=True)
class Market:
    """Bars with everything a decision needs. Arrays are over n bars; see docs/architecture.md, "Market"."""

    bars: Bars
    bar_features: NDArray[np.float32]  # [n, F]
    context: NDArray[np.float32]  # [n, C]
    volatility: Floats  # [n] one-bar sigma known at t, ratio
    complexity: NDArray[np.float32]  # [n]
    decision_bars: Ints  # [m] ascending
    values: Floats | None = None  # [n, 3] bps, oracle continuation values by target -1, 0, +1

    @property
    def name(self) -> str:
        return self.bars.name

    @property
    def sessions(self) -> Ints:
        """Ids of the sessions in which at least one decision can be taken."""
        return np.unique(self.bars.session[self.decision_bars])

    def with_values(self, values: Floats) -> Market:
        return replace(self, values=values)

    def restricted_to(self, first_session: int, last_session: int) -> Market:
        """The same market, with decisions only in sessions first..last inclusive; history stays visible."""
        ids = self.bars.session[self.decision_bars]
        inside = (ids >= first_session) & (ids <= last_session)
        return replace(self, decision_bars=self.decision_bars[inside])


def session_days(market: Market) -> list[date]:
    """The day, in UTC, on which each session with decisions begins, [S]."""
    first = np.searchsorted(market.bars.session, market.sessions)
    return [day_of(int(market.bars.timestamps[at])) for at in first]


def day_of(timestamp_ns: int) -> date:
    """The UTC day of a bar, which is the trading day wherever the session does not cross midnight UTC."""
    return datetime.fromtimestamp(timestamp_ns / 1e9, UTC).date()


def prepare(bars: Bars, settings: FeatureSettings, *, window: int) -> Market:
    """Compute features and find the bars at which a decision may be taken.

    A decision needs `window` bars and the features' warm-up behind it (counted from the last hole of more than
    seven days) and one more bar of its session ahead. Raises DataError if there is no such bar.
    """
    breaks = _holes(bars)
    edges = [0, *breaks.tolist(), len(bars)]
    parameters = settings.vector()
    columns = [bars.open, bars.high, bars.low, bars.close]
    signal = np.full(len(bars), np.nan) if bars.signal is None else bars.signal
    raw = np.stack([*columns, signal], axis=1)
    first = bars.first_of_session
    pieces = [
        advance_all(initial_state(), raw[start:stop], first[start:stop], parameters)
        for start, stop in itertools.pairwise(edges)
    ]
    bar_features, context, volatility, complexity = (np.concatenate(part) for part in zip(*pieces, strict=True))
    decisions = _decision_bars(bars, edges, history=max(window, WARM_UP_BARS))
    if len(decisions) == 0:
        raise DataError(
            f"{bars.name}: {len(bars)} bars are too few: a decision needs {max(window, WARM_UP_BARS)} bars behind "
            f"it and one ahead in the same session; bring more history",
            code="too_few_bars",
        )
    return Market(bars, bar_features, context, volatility, complexity, decisions)


def _holes(bars: Bars) -> Ints:
    return np.flatnonzero(np.diff(bars.timestamps) > MAX_BREAK_NS) + 1


def _decision_bars(bars: Bars, edges: list[int], history: int) -> Ints:
    behind = np.concatenate([np.arange(1, b - a + 1) for a, b in itertools.pairwise(edges)])
    ahead = np.concatenate([~bars.first_of_session[1:], [False]])
    return np.flatnonzero((behind >= history) & ahead).astype(np.int64)
