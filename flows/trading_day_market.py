"""One session of many symbols, with the bars before it that features need: simulated, or days of a file side by side.

A file holds one symbol, so each of its last full sessions becomes a symbol of its own, NAME#01 being the latest, moved
by whole days to the day of the latest: the same minutes, as many independent price paths, real moves and real costs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from core.errors import DataError
from core.settings import Settings
from trading.costs import CostModel, flat_costs, nse_index_future_costs
from trading.features import WARM_UP_BARS
from trading.files import load_market_bars
from trading.market import DAY_NS, MAX_BREAK_NS, Bars, Ints
from trading.stream import usual_session_length
from trading.synthetic import simulate


@dataclass(frozen=True)
class Day:
    """`bars` by symbol: sessions that only feed the features, then the one that is traded, at the same times in all."""

    name: str
    bars: dict[str, Bars]
    cost: CostModel
    synthetic: bool

    @cached_property
    def session_bars(self) -> int:
        return usual_session_length(self._first)

    @cached_property
    def times(self) -> Ints:
        """Starts of the traded bars [T], UTC ns."""
        return self._first.timestamps[-self.session_bars :]

    @property
    def interval_s(self) -> int:
        return self._first.interval_s

    @property
    def _first(self) -> Bars:
        return next(iter(self.bars.values()))


def synthetic_day(settings: Settings, symbols: int, seed: int) -> Day:
    """Independent symbols of the synthetic market; the same seed gives the same prices on every machine."""
    law = settings.synthetic_market
    sessions = _before(law.bars_per_session) + 1
    names = [f"SYN{number:02d}" for number in range(1, symbols + 1)]
    bars = {
        name: simulate(law, sessions=sessions, seed=[seed, number], name=name).bars for number, name in enumerate(names)
    }
    return Day("synthetic market", bars, flat_costs(settings.trading.cost_bps), synthetic=True)


def replayed_day(settings: Settings, file: Path, symbols: int) -> Day:
    """The last `symbols` full sessions of a file as symbols. Raises DataError where it has fewer."""
    whole = load_market_bars(file)
    length = usual_session_length(whole)
    starts = np.flatnonzero(whole.first_of_session)
    lengths = np.diff(np.append(starts, len(whole)))
    lanes: list[Bars] = []
    for session in range(len(starts) - 1, _before(length) - 1, -1):
        lane = whole.part(int(starts[session - _before(length)]), int(starts[session] + lengths[session]))
        if len(lanes) < symbols and _usable(lane, length, int(lengths[session])):
            lanes.append(lane)
    if len(lanes) < symbols:
        raise DataError(
            f"{file}: {len(lanes)} full sessions with enough history before them, {symbols} are needed; give a longer "
            f"file, or fewer --symbols",
            code="too_few_sessions",
        )
    names = [f"{whole.name}#{number:02d}" for number in range(1, symbols + 1)]
    moved = {name: _moved(lane, name, lanes[0], length) for name, lane in zip(names, lanes, strict=True)}
    return Day(whole.name, moved, nse_index_future_costs(settings.trading.slippage_bps), synthetic=False)


def _before(session_bars: int) -> int:
    """Sessions that feed the features."""
    return math.ceil(WARM_UP_BARS / session_bars)


def _usable(lane: Bars, length: int, traded: int) -> bool:
    """A full session with all the history: features start anew after a hole."""
    return (
        traded == length and len(lane) >= WARM_UP_BARS + length and int(np.diff(lane.timestamps).max()) < MAX_BREAK_NS
    )


def _moved(lane: Bars, name: str, latest: Bars, length: int) -> Bars:
    """The lane on the latest one's day. Raises DataError unless its bars then begin when that one's do."""
    days = round((int(latest.timestamps[-length]) - int(lane.timestamps[-length])) / DAY_NS)
    moved = replace(lane, name=name, timestamps=lane.timestamps + days * DAY_NS)
    if not np.array_equal(moved.timestamps[-length:], latest.timestamps[-length:]):
        raise DataError(f"{name}: its session has other times than the latest; `hrm data check` says where bars miss")
    return moved
