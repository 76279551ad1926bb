"""Bars from ticks: against a plain group-by, and every way in which a tick can be wrong."""

from __future__ import annotations

import math
from collections import defaultdict
from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.settings import load_settings
from trading.bar_builder import GRACE_S, OUTLIER_S, BarBuilder, Closed
from trading.market import SECOND_NS
from trading.session_grid import Grid
from trading.stream import Bar
from trading.ticks import Tick

GRID = Grid.of("NIFTY", date(2026, 11, 18), load_settings(environ={}).live)
FUTURE = "NSE:NIFTY26NOVFUT"
SESSION_S = (GRID.closes_ns - GRID.opens_ns) // SECOND_NS
STARTS = list(GRID.closed_by(GRID.closes_ns))
BAR_S = GRID.interval_ns // SECOND_NS
MS = SECOND_NS // 1000


def a_builder(close: float | None = None) -> BarBuilder:
    """`close`: the last one before the session."""
    return BarBuilder({"NIFTY": GRID}, {"NIFTY": FUTURE}, lambda _: close)


def a_tick(at_s: float, price: float = 24_000.0, symbol: str = "NIFTY") -> Tick:
    """`at_s`: from the open on."""
    at_ns = GRID.opens_ns + round(at_s * 1000) * MS
    return Tick(symbol, price, at_ns, at_ns)


def pushed(builder: BarBuilder, *ticks: Tick) -> list[Closed]:
    return [closed for tick in ticks for closed in builder.push(tick, tick.seen_ns)]


def at(second: float) -> int:
    return GRID.opens_ns + round(second * 1000) * MS


def grouped(ticks: list[Tick]) -> dict[int, Bar]:
    """The bars of ticks in order, the plain way."""
    prices = defaultdict(list)
    for tick in ticks:
        prices[max(start for start in STARTS if start <= tick.at_ns)].append(tick.price)
    return {
        start: Bar(start, each[0], max(each), min(each), each[-1], math.nan, GRID.session, start == GRID.last_ns)
        for start, each in prices.items()
    }


def rows(closed: list[Closed]) -> list[tuple[object, ...]]:
    """Comparable: a NaN is not itself."""
    return [(each.symbol, each.start_ns, each.bar and repr(each.bar)) for each in closed]


prices = st.floats(23_000.0, 25_000.0)
seconds = st.floats(0.0, SESSION_S - 0.001)


@given(st.lists(st.tuples(seconds, prices), max_size=60), st.sets(st.integers(0, 60)))
def test_bars_are_a_plain_group_by_of_the_ticks_whatever_is_asked_in_between(
    told: list[tuple[float, float]], looks: set[int]
) -> None:
    ticks = [a_tick(*each) for each in sorted(told)]
    builder, closed = a_builder(), []
    for number, tick in enumerate(ticks):
        closed += builder.push(tick, tick.seen_ns)
        if number in looks:
            closed += builder.close_due(tick.seen_ns)
    closed += builder.close_due(GRID.closes_ns + int(GRACE_S * SECOND_NS))
    bars = grouped(ticks)
    assert rows(closed) == rows([Closed("NIFTY", start, bars.get(start)) for start in STARTS])
    assert not builder.counts


anything = st.builds(
    lambda second, price, symbol, delay_s: Tick(symbol, price, at(second), at(second) + round(delay_s * 1000) * MS),
    st.floats(-600.0, SESSION_S + 600.0),
    prices | st.sampled_from([math.nan, math.inf, -math.inf, 0.0, -1.0, 0.05, 1e12]),
    st.sampled_from(["NIFTY", FUTURE, "BANKNIFTY", ""]),
    st.floats(-5.0, 400.0),
)


@given(st.lists(anything, max_size=60))
def test_whatever_comes_every_bar_is_told_once_in_order_and_holds_good_ticks_only(ticks: list[Tick]) -> None:
    builder, closed, good = a_builder(), [], []
    for tick in sorted(ticks, key=lambda tick: tick.seen_ns):
        late = builder.counts["tick:late"]
        closed += builder.push(tick, tick.seen_ns)
        taken = builder.last.get(tick.symbol) is tick
        if taken and tick.symbol == "NIFTY" and builder.counts["tick:late"] == late:
            good.append(tick)
        closed += builder.close_due(tick.seen_ns)
    closed += builder.close_due(GRID.closes_ns + 3600 * SECOND_NS)
    assert [each.start_ns for each in closed] == STARTS
    bars = grouped(good)
    for each in closed:
        if each.bar is not None:  # a bar whose prices contradict each other is not built
            each.bar.check()
            assert repr(each.bar) == repr(bars[each.start_ns])


@pytest.mark.parametrize(
    ("tick", "reason"),
    [
        (a_tick(1, symbol="BANKNIFTY"), "unknown_symbol"),
        (a_tick(1, math.nan), "malformed"),
        (a_tick(1, math.inf), "malformed"),
        (a_tick(1, 0.0), "not_positive"),
        (a_tick(1, -1.0), "not_positive"),
        (Tick("NIFTY", 24_000.0, 0, at(1)), "outside_session"),
        (a_tick(-0.001), "outside_session"),
        (a_tick(SESSION_S), "outside_session"),
        (a_tick(-1, symbol=FUTURE), "outside_session"),
        (Tick("NIFTY", 24_000.0, at(3.001), at(1)), "future"),
    ],
)
def test_a_bad_tick_is_counted_by_its_reason_and_never_used(tick: Tick, reason: str) -> None:
    builder = a_builder()
    assert builder.push(tick, tick.seen_ns) == []
    assert dict(builder.counts) == {f"tick:{reason}": 1}
    assert not builder.last
    assert builder.close_due(at(BAR_S + GRACE_S)) == [Closed("NIFTY", STARTS[0], None)]


def test_an_older_tick_than_the_last_is_not_used_and_one_of_the_same_time_is() -> None:
    builder = a_builder()
    pushed(builder, a_tick(10, 24_000), a_tick(9, 25_000), a_tick(10, 24_100))
    assert builder.last["NIFTY"].price == 24_100
    (closed,) = builder.close_due(at(BAR_S + GRACE_S))
    assert closed.bar is not None
    assert (closed.bar.open, closed.bar.high, closed.bar.close) == (24_000, 24_100, 24_100)
    assert dict(builder.counts) == {"tick:out_of_order": 1}


def test_a_bar_waits_its_grace_for_ticks_that_are_on_their_way() -> None:
    builder = a_builder()
    pushed(builder, a_tick(10))
    assert builder.close_due(at(BAR_S + GRACE_S) - 1) == []
    builder.push(a_tick(BAR_S - 1, 24_050), at(BAR_S + 0.5))
    (closed,) = builder.close_due(at(BAR_S + GRACE_S))
    assert closed.bar is not None
    assert closed.bar.close == 24_050


def test_a_tick_that_is_too_late_changes_no_bar_and_is_counted_but_is_a_price() -> None:
    builder = a_builder()
    pushed(builder, a_tick(10))
    builder.close_due(at(BAR_S + GRACE_S))
    late = a_tick(BAR_S - 1, 24_050)
    assert builder.push(late, at(BAR_S + 2)) == []
    assert builder.last["NIFTY"] is late
    assert dict(builder.counts) == {"tick:late": 1}
    (closed,) = pushed(builder, a_tick(2 * BAR_S))
    assert closed == Closed("NIFTY", STARTS[1], None)


def test_a_tick_of_a_later_bar_closes_all_before_it_and_says_which_had_none() -> None:
    builder = a_builder()
    closed = pushed(builder, a_tick(10), a_tick(3 * BAR_S))
    assert [each.start_ns for each in closed] == STARTS[:3]
    assert [each.bar is None for each in closed] == [False, True, True]


def test_the_bar_in_which_the_process_began_is_not_built_and_one_that_it_saw_from_the_first_is() -> None:
    builder = a_builder()
    builder.begin("NIFTY", at(BAR_S + 100))
    closed = pushed(builder, a_tick(BAR_S + 101), a_tick(2 * BAR_S), a_tick(3 * BAR_S))
    assert [(each.start_ns, each.bar is None) for each in closed] == [(STARTS[1], True), (STARTS[2], False)]
    builder = a_builder()
    builder.begin("NIFTY", at(BAR_S))
    (whole,) = pushed(builder, a_tick(BAR_S), a_tick(2 * BAR_S))
    assert (whole.start_ns, whole.bar is None) == (STARTS[1], False)


def test_before_the_open_nothing_is_missed_and_after_the_close_nothing_is_told() -> None:
    builder = a_builder()
    builder.begin("NIFTY", at(-100))
    (first,) = pushed(builder, a_tick(0), a_tick(BAR_S))
    assert first.bar is not None
    builder.begin("NIFTY", at(SESSION_S + 100))
    assert builder.close_due(at(SESSION_S + 200)) == []


def test_what_is_traded_has_a_price_and_no_bars() -> None:
    builder = a_builder()
    assert pushed(builder, a_tick(10, 24_100, FUTURE), a_tick(BAR_S + 10, 24_110, FUTURE)) == []
    assert builder.last[FUTURE].price == 24_110


@pytest.mark.parametrize("wrong", [0.05, 2_400.0, 240_000.0])
def test_one_wrong_price_never_counts_even_after_a_long_silence(wrong: float) -> None:
    builder = a_builder()
    pushed(builder, a_tick(1), a_tick(100, wrong), a_tick(101), a_tick(140, wrong), a_tick(141))
    (closed,) = builder.close_due(at(BAR_S + GRACE_S))
    assert closed.bar is not None
    assert closed.bar.high == closed.bar.low == 24_000
    assert dict(builder.counts) == {"tick:outlier": 2}


def test_wrong_prices_that_do_not_agree_with_each_other_never_count() -> None:
    builder = a_builder()
    pushed(builder, a_tick(1), *(a_tick(2 + second, 1.0 + 1000 * (second % 2)) for second in range(200)))
    assert builder.last["NIFTY"].price == 24_000


def test_a_price_that_stays_far_away_is_believed_in_the_end_and_the_bar_of_both_is_not_built() -> None:
    builder = a_builder()
    pushed(builder, a_tick(1, 100.0), *(a_tick(2 + second) for second in range(int(OUTLIER_S) + 1)))
    assert builder.last["NIFTY"].price == 24_000
    closed = pushed(builder, a_tick(BAR_S), a_tick(2 * BAR_S))
    assert [each.bar is None for each in closed] == [True, False]
    assert dict(builder.counts) == {"tick:outlier": OUTLIER_S}


@pytest.mark.parametrize("symbol", ["NIFTY", FUTURE])
def test_a_first_price_far_from_the_last_close_moves_nothing(symbol: str) -> None:
    builder = a_builder(close=24_000.0)
    pushed(builder, a_tick(1, 12_000.0, symbol))
    assert symbol not in builder.last
    pushed(builder, a_tick(2, 24_300.0, symbol))  # a gap of an ordinary night
    assert builder.last[symbol].price == 24_300.0
    assert builder.counts["tick:outlier"] == 1


def test_a_first_price_that_others_agree_with_is_believed_and_its_bar_not_built() -> None:
    builder = a_builder(close=24_000.0)
    closed = pushed(builder, *(a_tick(second, 20_000.0) for second in (1, 20, 32, BAR_S, 2 * BAR_S)))
    assert builder.last["NIFTY"].price == 20_000.0
    assert [each.bar is None for each in closed] == [True, False]


def test_where_no_close_is_known_the_first_price_counts() -> None:
    builder = a_builder()
    pushed(builder, a_tick(1, 12_000.0))
    assert builder.last["NIFTY"].price == 12_000.0
