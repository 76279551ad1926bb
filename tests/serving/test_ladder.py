"""The ladder by itself, with an injected clock, and in front of a queue that is overloaded, breaks and recovers."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.settings import load_settings
from serving.ladder import (
    PROBE_EVERY_S,
    PROBES,
    SETTLE_S,
    SHORT_S,
    STANDING_S,
    SYMBOLS,
    WELL_INSIDE,
    Ladder,
    Rung,
    Transition,
)

LIMITS = load_settings(environ={}).ladder
ALL = frozenset(Rung)
FAST_MS, SLOW_MS = 20.0, 2 * LIMITS.latency_ms


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def ladder_at(clock: Clock) -> Ladder:
    return Ladder(LIMITS, clock)


def decisions(ladder: Ladder, clock: Clock, n: int, *, latency_ms: float = FAST_MS, failed: bool = False) -> None:
    for _ in range(n):
        ladder.observe(ladder.rung, clock.now, latency_ms, symbol="A", failed=failed)


def fall(ladder: Ladder, clock: Clock, *, failed: bool = True, available: frozenset[Rung] = ALL) -> Transition | None:
    """As many bad decisions as it takes, and time enough for the breach to stand."""
    clock.now += SETTLE_S
    decisions(ladder, clock, LIMITS.min_samples, latency_ms=FAST_MS if failed else SLOW_MS, failed=failed)
    for _ in range(2):
        assert ladder.advance(available) is None
        clock.now += STANDING_S / 2
    return ladder.advance(available)


def climb(ladder: Ladder, clock: Clock, *, after_s: float, probe_ms: float = FAST_MS) -> Transition | None:
    clock.now += after_s
    for _ in range(PROBES):
        rung = ladder.probe(ALL)
        if rung is None:
            return None
        ladder.probed(rung, probe_ms, failed=False)
        clock.now += PROBE_EVERY_S
    return ladder.advance(ALL)


def test_failures_lead_down_one_rung_at_a_time_to_hold_and_no_further() -> None:
    clock = Clock()
    ladder = ladder_at(clock)
    for below in (Rung.CAPPED, Rung.PPO, Rung.RULE, Rung.HOLD):
        assert fall(ladder, clock) == Transition(Rung(below - 1), below, "errors")
    assert fall(ladder, clock) is None
    assert ladder.rung is Rung.HOLD


def test_slow_answers_lead_down_and_say_why() -> None:
    clock = Clock()
    assert fall(ladder_at(clock), clock, failed=False) == Transition(Rung.FULL, Rung.CAPPED, "latency")


def test_slowness_ends_at_the_cheapest_model_and_never_closes_a_position() -> None:
    clock = Clock()
    ladder = ladder_at(clock)
    for below in (Rung.CAPPED, Rung.PPO):
        assert fall(ladder, clock, failed=False) == Transition(Rung(below - 1), below, "latency")
    assert fall(ladder, clock, failed=False) is None
    alone = ladder_at(clock)
    models_only = frozenset({Rung.FULL, Rung.RULE, Rung.HOLD})
    assert fall(alone, clock, failed=False, available=models_only) is None
    assert fall(alone, clock, failed=True, available=models_only) == Transition(Rung.FULL, Rung.RULE, "errors")


def test_rungs_that_cannot_be_stood_on_are_left_out() -> None:
    clock = Clock()
    ladder = ladder_at(clock)
    single_pass_only = frozenset({Rung.FULL, Rung.RULE, Rung.HOLD})
    assert fall(ladder, clock, available=single_pass_only) == Transition(Rung.FULL, Rung.RULE, "errors")


def test_a_rung_whose_model_is_gone_is_left_upwards() -> None:
    clock = Clock()
    ladder = ladder_at(clock)
    fall(ladder, clock)
    fall(ladder, clock)
    assert ladder.rung is Rung.PPO
    assert ladder.advance(ALL - {Rung.PPO, Rung.CAPPED}) == Transition(Rung.PPO, Rung.FULL, "models_changed")


def test_a_stall_that_is_over_soon_changes_nothing() -> None:
    clock = Clock()
    ladder = ladder_at(clock)
    decisions(ladder, clock, 100, latency_ms=SLOW_MS)
    assert ladder.advance(ALL) is None
    clock.now += STANDING_S / 2
    decisions(ladder, clock, 500)  # 17 % of the window were slow, but all of that is past
    clock.now += SHORT_S
    decisions(ladder, clock, 500)
    for _ in range(10):
        assert ladder.advance(ALL) is None
        clock.now += STANDING_S


def test_what_waited_behind_the_rung_before_is_not_held_against_the_next_one() -> None:
    clock = Clock()
    ladder = ladder_at(clock)
    before = clock.now
    fall(ladder, clock)
    for _ in range(1000):
        ladder.observe(Rung.FULL, before, SLOW_MS, symbol="A", failed=True)
        ladder.observe(Rung.CAPPED, clock.now + SETTLE_S / 2, SLOW_MS, symbol="A", failed=True)
    ladder.observe(Rung.CAPPED, clock.now + SETTLE_S / 2, FAST_MS, symbol="A", failed=False)
    clock.now += 10 * STANDING_S
    assert ladder.advance(ALL) is None
    clock.now += STANDING_S
    assert ladder.advance(ALL) is None


def test_the_way_up_takes_the_wait_and_every_probe() -> None:
    clock = Clock()
    ladder = ladder_at(clock)
    fall(ladder, clock)
    assert climb(ladder, clock, after_s=LIMITS.dwell_s - 0.1) is None  # too early to ask
    assert ladder.rung is Rung.CAPPED
    assert climb(ladder, clock, after_s=0.1) == Transition(Rung.CAPPED, Rung.FULL, "recovered")


def test_the_way_up_asks_for_more_than_the_way_down_forgives() -> None:
    clock = Clock()
    ladder = ladder_at(clock)
    fall(ladder, clock)
    inside = WELL_INSIDE * LIMITS.latency_ms
    assert climb(ladder, clock, after_s=LIMITS.dwell_s, probe_ms=inside + 1.0) is None
    assert climb(ladder, clock, after_s=0.0, probe_ms=inside) == Transition(Rung.CAPPED, Rung.FULL, "recovered")


def test_one_bad_probe_among_the_last_ones_keeps_it_down() -> None:
    clock = Clock()
    ladder = ladder_at(clock)
    fall(ladder, clock)
    clock.now += LIMITS.dwell_s
    for number in range(3 * PROBES):
        rung = ladder.probe(ALL)
        assert rung is Rung.FULL
        ladder.probed(rung, FAST_MS, failed=number % (PROBES - 1) == 0)
        clock.now += PROBE_EVERY_S
        assert ladder.advance(ALL) is None


def test_probes_are_few_and_one_at_a_time() -> None:
    clock = Clock()
    ladder = ladder_at(clock)
    assert ladder.probe(ALL) is None  # nothing is above
    fall(ladder, clock)
    clock.now += LIMITS.dwell_s
    assert ladder.probe(ALL) is Rung.FULL
    clock.now += 100 * PROBE_EVERY_S
    assert ladder.probe(ALL) is None  # the first is still under way
    ladder.probed(Rung.FULL, FAST_MS, failed=False)
    assert ladder.probe(ALL) is Rung.FULL
    ladder.probed(Rung.FULL, FAST_MS, failed=False)
    assert ladder.probe(ALL) is None  # too soon after it


def test_a_probe_from_before_a_change_says_nothing() -> None:
    clock = Clock()
    ladder = ladder_at(clock)
    fall(ladder, clock)
    clock.now += LIMITS.dwell_s
    assert ladder.probe(ALL) is Rung.FULL
    assert fall(ladder, clock) == Transition(Rung.CAPPED, Rung.PPO, "errors")
    ladder.probed(Rung.FULL, FAST_MS, failed=False)
    assert ladder.statistics()["good_probes"] == 0


def test_probes_of_one_rung_do_not_prove_another() -> None:
    clock = Clock()
    ladder = ladder_at(clock)
    fall(ladder, clock)
    fall(ladder, clock)
    clock.now += LIMITS.dwell_s
    for _ in range(PROBES):
        ladder.probed(ladder.probe(ALL) or Rung.HOLD, FAST_MS, failed=False)
        clock.now += PROBE_EVERY_S
    assert ladder.advance(ALL - {Rung.CAPPED}) is None  # now FULL is the one above, and nobody has tried it
    assert ladder.advance(ALL) == Transition(Rung.PPO, Rung.CAPPED, "recovered")


def test_each_relapse_doubles_the_wait_up_to_the_longest_and_a_lasting_recovery_forgets_it() -> None:
    clock = Clock()
    ladder = ladder_at(clock)
    waits = []
    for _ in range(8):
        fall(ladder, clock)
        since = clock.now
        while ladder.rung is not Rung.FULL:
            climb(ladder, clock, after_s=1.0)
        waits.append(round(clock.now - since - PROBES * PROBE_EVERY_S))
    assert waits == [10, 20, 40, 80, 160, 300, 300, 300]
    clock.now += LIMITS.max_dwell_s
    fall(ladder, clock)
    assert ladder.statistics()["waits_s"] == {"full": LIMITS.dwell_s}


@pytest.mark.parametrize(("broken", "rung"), [(0, Rung.FULL), (4, Rung.FULL), (6, Rung.CAPPED), (10, Rung.CAPPED)])
def test_a_few_symbols_that_keep_failing_do_not_take_the_others_along(broken: int, rung: Rung) -> None:
    clock = Clock()
    ladder = ladder_at(clock)
    for _ in range(40):
        for number in range(10):
            ladder.observe(ladder.rung, clock.now, FAST_MS, symbol=f"S{number}", failed=number < broken)
        clock.now += 0.5
        ladder.advance(ALL)
        if ladder.rung is not Rung.FULL:
            break
    assert ladder.rung is rung


def test_a_failure_that_goes_from_symbol_to_symbol_is_the_services() -> None:
    clock = Clock()
    ladder = ladder_at(clock)
    for number in range(400):
        ladder.observe(ladder.rung, clock.now, FAST_MS, symbol=f"S{number % 10}", failed=number % 7 == 0)
        clock.now += 0.05
        ladder.advance(ALL)
    assert ladder.rung is not Rung.FULL


def test_symbols_without_end_take_no_memory_without_end() -> None:
    clock = Clock()
    ladder = ladder_at(clock)
    for number in range(2 * SYMBOLS):
        ladder.observe(Rung.FULL, clock.now, FAST_MS, symbol=f"S{number}", failed=number % 3 == 0)
    symbols = ladder._stay.symbols
    assert len(symbols.failing) == SYMBOLS
    assert symbols.count == sum(symbols.failing.values())


def test_the_numbers_are_told_and_finite() -> None:
    clock = Clock()
    ladder = ladder_at(clock)
    assert ladder.statistics()["for_s"] is None
    fall(ladder, clock)
    clock.now += 5
    told = ladder.statistics()
    assert (told["rung"], told["for_s"], told["waits_s"]) == ("capped", 5.0, {"full": LIMITS.dwell_s})


@given(st.lists(st.tuples(st.floats(0, 30), st.booleans(), st.booleans(), st.integers(0, 40)), max_size=60))
@settings(deadline=None, max_examples=60)
def test_whatever_happens_every_step_is_one_rung_and_no_step_up_comes_before_its_wait(
    events: list[tuple[float, bool, bool, int]],
) -> None:
    clock = Clock()
    ladder = ladder_at(clock)
    last = -math.inf
    for gap_s, failed, slow, n in events:
        clock.now += gap_s
        decisions(ladder, clock, n, latency_ms=SLOW_MS if slow else FAST_MS, failed=failed)
        for _ in range(PROBES):
            if (rung := ladder.probe(ALL)) is not None:
                ladder.probed(rung, SLOW_MS if slow else FAST_MS, failed=failed)
            clock.now += PROBE_EVERY_S
        before = ladder.rung
        change = ladder.advance(ALL)
        assert ladder.rung is (before if change is None else change.after)
        if change is not None:
            assert abs(change.after - change.before) == 1
            assert change.reason == "recovered" or clock.now - last >= STANDING_S
            assert change.reason != "recovered" or clock.now - last >= LIMITS.dwell_s
            last = clock.now


RATE = 10.0  # decisions/s
QUEUE_LIMIT_S = 1.0
CAPACITY = {Rung.FULL: 20.0, Rung.CAPPED: 30.0, Rung.PPO: 100.0, Rung.RULE: 1000.0, Rung.HOLD: 1000.0}

Faulty = Callable[[Rung, float], bool]


class Desk:
    """Decisions at a rate, one server that takes them in order, and the ladder in front of it.

    What a decision came to is known when it is done, not when it arrives.
    """

    def __init__(self, *, rate: float = RATE, faulty: Faulty = lambda rung, at: False) -> None:
        self.clock = Clock()
        self.ladder = ladder_at(self.clock)
        self.begun = self.clock.now
        self.changes: list[tuple[float, Transition]] = []
        self.bad = 0
        self.total = 0
        self._rate = rate
        self._faulty = faulty
        self._free_at = 0.0
        self._under_way: deque[tuple[float, Callable[[], None]]] = deque()

    def run(self, seconds: float) -> None:
        end = self.clock.now + seconds
        while self.clock.now < end:
            self.clock.now += 1 / self._rate
            while self._under_way and self._under_way[0][0] <= self.clock.now:
                self._under_way.popleft()[1]()
            change = self.ladder.advance(ALL)
            if change is not None:
                self.changes.append((self.clock.now - self.begun, change))
            self._decide()

    def _decide(self) -> None:
        arrived, rung, ladder = self.clock.now, self.ladder.rung, self.ladder
        latency_ms, failed = self._job(rung)
        symbol = f"S{self.total % 10}"
        self.total += 1
        self.bad += failed or latency_ms > LIMITS.latency_ms
        self._when_done(latency_ms, lambda: ladder.observe(rung, arrived, latency_ms, symbol=symbol, failed=failed))
        trial = ladder.probe(ALL)
        if trial is not None:
            probe_ms, probe_failed = self._job(trial)
            self._when_done(probe_ms, lambda: ladder.probed(trial, probe_ms, failed=probe_failed))

    def _job(self, rung: Rung) -> tuple[float, bool]:
        wait_s = max(0.0, self._free_at - self.clock.now)
        if wait_s > QUEUE_LIMIT_S:
            return 0.0, True  # refused
        self._free_at = self.clock.now + wait_s + 1 / CAPACITY[rung]
        return (wait_s + 1 / CAPACITY[rung]) * 1e3, self._faulty(rung, self.clock.now - self.begun)

    def _when_done(self, latency_ms: float, tell: Callable[[], None]) -> None:
        self._under_way.append((self.clock.now + latency_ms / 1e3, tell))


def test_an_ordinary_day_with_ordinary_hiccups_stays_on_the_top_rung() -> None:
    rng = np.random.default_rng(0)
    desk = Desk(faulty=lambda rung, at: rng.random() < 0.2 * LIMITS.error_ratio)
    desk.run(3600)
    assert desk.changes == []


def test_constant_overload_does_not_make_it_flap_and_hardly_anybody_waits() -> None:
    desk = Desk(rate=25.0)  # more than FULL can, less than CAPPED can
    desk.run(4000)
    rungs = {change.after for _, change in desk.changes}
    assert rungs == {Rung.FULL, Rung.CAPPED}
    trials = math.log2(LIMITS.max_dwell_s / LIMITS.dwell_s) + 4000 / LIMITS.max_dwell_s
    assert len(desk.changes) <= 2 * (trials + 1)
    later = [at for at, change in desk.changes if at > 1000 and change.after is Rung.FULL]
    assert len(later) <= 3000 / LIMITS.max_dwell_s
    assert desk.bad / desk.total < 0.03


@pytest.mark.parametrize("fault_s", [60.0, 3600.0])
def test_a_fault_of_every_model_ends_at_the_rule_and_is_forgotten_within_a_bounded_time(fault_s: float) -> None:
    """One bad hour does not disable the model for ever (and no fault is exposed to more than a few decisions)."""
    desk = Desk(faulty=lambda rung, at: rung < Rung.RULE and at < fault_s)
    desk.run(fault_s)
    assert desk.ladder.rung is Rung.RULE
    assert desk.bad < 30 * RATE  # the three ways down together
    desk.run(60)
    assert desk.ladder.rung is Rung.FULL


def test_a_fault_that_comes_and_goes_is_tried_ever_more_rarely_and_the_model_is_back_within_the_longest_wait() -> None:
    """Healthy for twenty seconds, broken for twenty: what a probe sees is true, and over a moment later."""
    fault_s = 3600.0
    desk = Desk(faulty=lambda rung, at: rung is Rung.FULL and at < fault_s and at % 40 < 20)
    desk.run(fault_s)
    climbs = [at for at, change in desk.changes if change.reason == "recovered"]
    assert len(climbs) <= 5 + fault_s / LIMITS.max_dwell_s
    desk.run(LIMITS.max_dwell_s + PROBES * PROBE_EVERY_S + 5)
    assert desk.ladder.rung is Rung.FULL


@given(st.floats(5, 1800), st.sampled_from([Rung.FULL, Rung.CAPPED, Rung.PPO]), st.floats(0.3, 1.0), st.integers(0, 99))
@settings(deadline=None, max_examples=5)
def test_whatever_part_of_decisions_failed_for_however_long_it_is_back_on_top_in_bounded_time(
    fault_s: float, deepest: Rung, part: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    desk = Desk(faulty=lambda rung, at: rung <= deepest and at < fault_s and rng.random() < part)
    desk.run(fault_s)
    desk.run(4 * (LIMITS.max_dwell_s + PROBES * PROBE_EVERY_S + 5))
    assert desk.ladder.rung is Rung.FULL
