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

from core.errors import DataError, ModelError
from core.observation import ObservationSchema, Timeframe
from trading.features import (
    BAR_FEATURES,
    WARM_UP_BARS,
    FeatureSettings,
    Floats,
    account_features,
    advance_all,
    initial_state,
    one_hot,
)
from trading.timeframes import BaseBars, CoarseBars, coarse_bars

Ints = NDArray[np.int64]
SECOND_NS = 10**9
DAY_NS = 24 * 3600 * SECOND_NS
MAX_BREAK_NS = 7 * DAY_NS  # a longer silence is a hole in the data: history starts again after it


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
    def interval_s(self) -> int:
        """Seconds from bar to bar inside most of the sessions. Raises DataError if they say no such thing."""
        steps = np.diff(self.timestamps)[~self.first_of_session[1:]]
        intervals, counts = np.unique(steps, return_counts=True)
        if len(intervals) == 0 or intervals[counts.argmax()] < SECOND_NS:
            raise DataError(
                f"{self.name}: no interval of a second or more between the bars of a session; give intraday bars",
                code="wrong_timeframe",
            )
        return int(intervals[counts.argmax()] // SECOND_NS)

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
    context: NDArray[np.float32]  # [n, C], the symbol's one-hot at the end where there is one
    volatility: Floats  # [n] one-bar sigma known at t, ratio
    complexity: NDArray[np.float32]  # [n]
    decision_bars: Ints  # [m] ascending
    values: Floats | None = None  # [n, 3] bps, oracle continuation values by target -1, 0, +1
    coarse: tuple[CoarseBars, ...] = ()  # by timeframe, the coarsest first
    begins: tuple[tuple[str, int], ...] = ()  # of a mixed market: each symbol's name and first bar

    @property
    def name(self) -> str:
        return self.bars.name

    @property
    def sessions(self) -> Ints:
        """Ids of the sessions in which at least one decision can be taken."""
        ids = self.bars.session[self.decision_bars]
        return np.asarray(ids[np.diff(ids, prepend=ids[:1] - 1) != 0])

    @property
    def symbols(self) -> list[str]:
        """The symbol of each of `sessions`, [S]."""
        names = [name for name, _ in self.begins] or [self.name]
        begins = [begin for _, begin in self.begins] or [0]
        first = np.searchsorted(self.bars.session, self.sessions)
        return [names[at] for at in np.searchsorted(begins, first, side="right") - 1]

    def with_values(self, values: Floats) -> Market:
        return replace(self, values=values)

    def restricted_to(self, first_session: int, last_session: int) -> Market:
        """The same market, with decisions only in sessions first..last inclusive; history stays visible."""
        ids = self.bars.session[self.decision_bars]
        inside = (ids >= first_session) & (ids <= last_session)
        return replace(self, decision_bars=self.decision_bars[inside])

    def between(self, first: date, last: date) -> Market:
        """The same market, with decisions only in sessions of the days first..last inclusive, of every symbol."""
        days = session_days(self)
        inside = [session for session, day in zip(self.sessions, days, strict=True) if first <= day <= last]
        return replace(self, decision_bars=self.decision_bars[np.isin(self.bars.session[self.decision_bars], inside)])


def session_days(market: Market) -> list[date]:
    """The day, in UTC, on which each session with decisions begins, [S]."""
    first = np.searchsorted(market.bars.session, market.sessions)
    days: list[date] = (market.bars.timestamps[first] // DAY_NS).astype("datetime64[D]").tolist()
    return days


def day_of(timestamp_ns: int) -> date:
    """The UTC day of a bar, which is the trading day wherever the session does not cross midnight UTC."""
    return datetime.fromtimestamp(timestamp_ns / 1e9, UTC).date()


def require_fit(bars: Bars, schema: ObservationSchema) -> None:
    """Raise DataError unless `bars` are of the schema's timeframe, and of one of its symbols if it names any.

    Raises ModelError if the schema's features are not those computed here.
    """
    if (schema.bar_features, schema.account_features) != (BAR_FEATURES, account_features(schema.symbols)):
        raise ModelError(
            f"a model with features {[*schema.bar_features, *schema.account_features]}, which are not those of "
            f"trading.features; retrain it with the current ones",
            code="schema_mismatch",
        )
    if bars.interval_s != schema.interval_s:
        raise DataError(
            f"{bars.name}: bars of {bars.interval_s} s, the model looks at bars of {schema.interval_s} s; give it bars "
            f"of its own timeframe, or train one on these",
            code="wrong_timeframe",
        )
    one_hot(bars.name, schema.symbols)


def market_of(bars: Bars, settings: FeatureSettings, schema: ObservationSchema) -> Market:
    """A market as the models of a schema look at it. Raises DataError if `bars` do not fit it or are too few."""
    require_fit(bars, schema)
    return prepare(bars, settings, window=schema.base_window, timeframes=schema.timeframes, symbols=schema.symbols)


def prepare(
    bars: Bars,
    settings: FeatureSettings,
    *,
    window: int,
    timeframes: tuple[Timeframe, ...] = (),
    symbols: tuple[str, ...] = (),
) -> Market:
    """Compute features and find the bars at which a decision may be taken.

    A decision needs `window` bars and the features' warm-up behind it, and the bars of every timeframe (counted from
    the last hole of more than seven days), and one more bar of its session ahead. With `symbols` the context ends
    with the one-hot of the bars' name among them. Raises DataError if there is no such bar, or no such symbol.
    """
    edges = [0, *_holes(bars).tolist(), len(bars)]
    parameters = settings.vector()
    columns = [bars.open, bars.high, bars.low, bars.close]
    signal = np.full(len(bars), np.nan) if bars.signal is None else bars.signal
    raw = np.stack([*columns, signal], axis=1)
    first = bars.first_of_session
    first[edges[:-1]] = True
    pieces = [
        advance_all(initial_state(), raw[start:stop], first[start:stop], parameters)
        for start, stop in itertools.pairwise(edges)
    ]
    bar_features, context, volatility, complexity = (np.concatenate(part) for part in zip(*pieces, strict=True))
    if symbols:
        hot = np.tile(one_hot(bars.name, symbols), (len(bars), 1))
        context = np.concatenate([context, hot], axis=1)
    base = BaseBars(raw, first, _offset_s(bars.timestamps, first), edges, bars.interval_s if timeframes else 0)
    coarse = tuple(coarse_bars(each, base, settings) for each in timeframes)
    decisions = _decision_bars(bars, edges, history=max(window, WARM_UP_BARS))
    for each in coarse:
        decisions = decisions[each.filled[decisions]]
    if len(decisions) == 0:
        blocks = "".join(f", {each.bars} complete {each.name} bars" for each in timeframes)
        raise DataError(
            f"{bars.name}: {len(bars)} bars are too few: a decision needs {max(window, WARM_UP_BARS)} bars{blocks} "
            f"behind it and one ahead in the same session; bring more history",
            code="too_few_bars",
        )
    return Market(bars, bar_features, context, volatility, complexity, decisions, coarse=coarse)


def _holes(bars: Bars) -> Ints:
    return np.flatnonzero(np.diff(bars.timestamps) > MAX_BREAK_NS) + 1


def _offset_s(timestamps: Ints, first: NDArray[np.bool_]) -> Floats:
    """Seconds from the start of each bar's session, [n]."""
    begin = timestamps[np.flatnonzero(first)][np.cumsum(first) - 1]
    return np.asarray((timestamps - begin) / SECOND_NS)


def _decision_bars(bars: Bars, edges: list[int], history: int) -> Ints:
    behind = np.concatenate([np.arange(1, b - a + 1) for a, b in itertools.pairwise(edges)])
    ahead = np.concatenate([~bars.first_of_session[1:], [False]])
    return np.flatnonzero((behind >= history) & ahead).astype(np.int64)
