"""What a live process watches: prices that stop, clocks that differ, a market that is not open."""

from __future__ import annotations

from datetime import date
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.settings import load_settings
from trading.market import SECOND_NS
from trading.session_grid import Grid
from trading.ticks import Tick
from trading.vigil import (
    REMEDIES,
    RESTART_MAX_S,
    SILENT_S,
    STATUS_S,
    STATUS_UNKNOWN_S,
    AskQuotes,
    AskStatus,
    Deed,
    RestartFeed,
    Vigil,
    Warn,
)

RULES = load_settings(environ={}).live  # stale after 10 s, 2 s of skew
GRID = Grid.of("NIFTY", date(2026, 11, 18), RULES)
FUTURE = "NSE:NIFTY26NOVFUT"


class Watched:
    """A vigil whose two clocks go on together; `at_s` is from the open on."""

    def __init__(self, at_s: float = 0.0, *, is_open: bool | None = True) -> None:
        self.vigil = Vigil(RULES, ["NIFTY", FUTURE], {"NIFTY": GRID}, at_s)
        self.at_s, self.is_open = at_s, is_open
        self.alive: set[str] = {"NIFTY", FUTURE}
        self.answered: set[str] = set()
        self.deeds: list[tuple[float, Deed]] = []
        self.server: tuple[int, int] | None = None

    @property
    def now_ns(self) -> int:
        return GRID.opens_ns + round(self.at_s * 1000) * (SECOND_NS // 1000)

    def tell(self, symbol: str, *, ahead_s: float = 0.0, asked: bool = False) -> None:
        at_ns = self.now_ns + round(ahead_s * 1000) * (SECOND_NS // 1000)
        self.vigil.seen(Tick(symbol, 24_000.0, at_ns, self.now_ns), self.at_s, asked=asked)

    def go_on(self, seconds: float) -> list[Deed]:
        """Half a second at a time; what was to be done meanwhile."""
        done: list[Deed] = []
        for _ in range(round(2 * seconds)):
            self.at_s += 0.5
            for symbol in self.alive:
                self.tell(symbol)
            for deed in self.vigil.due(self.now_ns, self.at_s):
                done.append(deed)
                self.deeds.append((self.at_s, deed))
                self._answer(deed)
        return done

    def _answer(self, deed: Deed) -> None:
        if isinstance(deed, AskStatus):
            self.vigil.told_status(self.is_open, self.at_s, self.server)
        if isinstance(deed, AskQuotes):
            for symbol in self.answered & set(deed.symbols):
                self.tell(symbol, asked=True)

    def gate(self) -> str | None:
        return self.vigil.gate(self.now_ns, self.at_s)

    def times(self, kind: type) -> list[float]:
        return [at_s for at_s, deed in self.deeds if isinstance(deed, kind)]


def no_openings(why: str) -> Warn:
    return Warn("warning", f"no openings: {why}; {REMEDIES[why]}")


def test_while_prices_come_only_the_status_is_asked_for() -> None:
    world = Watched()
    world.go_on(600)
    assert len(world.times(AskStatus)) == 600 / STATUS_S
    assert [deed for _, deed in world.deeds if not isinstance(deed, AskStatus)] == [
        Warn("info", "openings are allowed")
    ]
    assert world.gate() is None


def test_a_silent_feed_is_asked_for_prices_and_connected_anew_less_and_less_often() -> None:
    world = Watched()
    world.go_on(100)
    world.alive, world.answered = set(), {"NIFTY", FUTURE}
    world.go_on(RULES.stale_ticks_s)
    assert not world.times(AskQuotes)
    world.go_on(2000)
    restarts = world.times(RestartFeed)
    assert restarts[0] == 100 + RULES.stale_ticks_s + 0.5
    waits = [later - before for before, later in pairwise(restarts)]
    assert waits[:3] == [60.0, 120.0, 240.0]
    assert waits[3:] == [RESTART_MAX_S] * len(waits[3:])
    assert world.gate() is None  # asking gave prices
    quotes = world.times(AskQuotes)
    assert max(later - before for before, later in pairwise(quotes)) == 2.0


def test_once_prices_come_by_themselves_nothing_is_asked_and_the_next_silence_begins_anew() -> None:
    world = Watched()
    world.alive = set()
    world.go_on(400)
    world.alive = {"NIFTY", FUTURE}
    world.go_on(1)
    world.deeds.clear()
    world.go_on(60)
    assert not world.times(AskQuotes)
    assert not world.times(RestartFeed)
    world.alive = set()
    world.go_on(75)
    first, second = world.times(RestartFeed)
    assert second - first == 60.0


def test_without_any_price_for_long_nothing_is_opened_until_one_comes() -> None:
    world = Watched()
    world.go_on(20)
    world.alive = {FUTURE}
    world.go_on(3 * RULES.stale_ticks_s)
    assert world.gate() is None
    said = world.go_on(1)
    assert world.gate() == "feed_stale"
    assert no_openings("feed_stale") in said
    world.tell("NIFTY", asked=True)
    assert world.gate() is None


def test_one_symbol_that_is_silent_is_asked_for_and_the_others_keep_their_connection_for_a_while() -> None:
    world = Watched()
    world.go_on(100)
    world.alive, world.answered = {"NIFTY"}, {FUTURE}
    world.go_on(SILENT_S)
    assert not world.times(RestartFeed)
    assert {deed.symbols for _, deed in world.deeds if isinstance(deed, AskQuotes)} == {(FUTURE,)}
    world.go_on(1)
    assert len(world.times(RestartFeed)) == 1


def test_outside_the_session_nothing_is_late_and_nothing_may_be_opened() -> None:
    world = Watched(-600.0)
    world.alive = set()
    assert {type(deed) for deed in world.go_on(599.5)} == {AskStatus}
    assert world.gate() == "market_closed"
    world.go_on(RULES.stale_ticks_s)  # the open lies half a second before: from there on it counts
    assert not world.times(AskQuotes)
    world.go_on(1)
    assert world.times(AskQuotes)
    close_s = (GRID.closes_ns - GRID.opens_ns) / SECOND_NS
    world = Watched(close_s)
    world.alive = set()
    assert {type(deed) for deed in world.go_on(300)} == {AskStatus}
    assert world.gate() == "market_closed"


def test_a_process_that_starts_in_the_middle_asks_for_prices_at_once() -> None:
    world = Watched(3600.0)
    world.alive = set()
    assert AskQuotes(("NIFTY", FUTURE)) in world.go_on(0.5)


def test_calendar_and_market_status_must_both_say_open() -> None:
    world = Watched(is_open=False)
    said = world.go_on(1)
    assert world.gate() == "market_not_open"
    assert no_openings("market_not_open") in said
    world.is_open = True
    said = world.go_on(STATUS_S)
    assert world.gate() is None
    assert Warn("info", "openings are allowed") in said


def test_a_status_that_is_not_known_for_a_minute_closes_the_gate_and_says_so() -> None:
    world = Watched()
    world.go_on(STATUS_S)
    world.is_open = None
    world.go_on(STATUS_UNKNOWN_S - STATUS_S)
    assert world.gate() is None
    said = world.go_on(STATUS_S)
    assert world.gate() == "status_unknown"
    assert said.count(no_openings("status_unknown")) == 1


def test_before_the_first_answer_nothing_is_opened_and_that_none_ever_comes_is_said() -> None:
    world = Watched(is_open=None)
    assert not [deed for deed in world.go_on(STATUS_UNKNOWN_S) if isinstance(deed, Warn)]
    assert world.gate() == "status_unknown"
    assert no_openings("status_unknown") in world.go_on(1)


@pytest.mark.parametrize(("ahead_s", "why"), [(2.1, "clock_skew"), (1.9, None), (-60.0, None)])
def test_an_exchange_ahead_of_this_machine_is_a_skew_and_a_delay_is_none(ahead_s: float, why: str | None) -> None:
    world = Watched()
    world.go_on(1)
    for _ in range(31):
        world.tell("NIFTY", ahead_s=ahead_s)
    assert world.gate() == why


def test_one_tick_with_a_wrong_time_is_no_skew() -> None:
    world = Watched()
    world.go_on(10)
    for _ in range(10):
        world.tell("NIFTY", ahead_s=1000.0)
    assert world.gate() is None


@pytest.mark.parametrize(
    ("server_s", "why"), [(2.1, "clock_skew"), (2.0, None), (0.0, None), (-2.9, None), (-3.1, "clock_skew")]
)
def test_a_server_clock_that_differs_is_a_skew_but_it_tells_whole_seconds_only(
    server_s: float, why: str | None
) -> None:
    world = Watched()
    world.server = (round(server_s * 1000) * (SECOND_NS // 1000), 0)
    world.go_on(1)
    assert world.gate() == why
    world.server = (0, 0)
    world.go_on(STATUS_S)
    assert world.gate() is None


@given(st.lists(st.tuples(st.sets(st.sampled_from(["NIFTY", FUTURE])), st.floats(0.5, 90.0)), max_size=12))
def test_however_prices_come_and_go_nothing_is_asked_too_often(phases: list[tuple[set[str], float]]) -> None:
    world = Watched()
    for alive, seconds in phases:
        world.alive = alive
        world.go_on(seconds)
        if alive == {"NIFTY", FUTURE}:
            assert world.gate() is None
    for kind, least_s in ((AskQuotes, 2.0), (RestartFeed, 30.0), (AskStatus, STATUS_S)):
        at = world.times(kind)
        assert all(later - before >= least_s for before, later in pairwise(at))
