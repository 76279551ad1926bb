import numpy as np
import pytest

from core.confidence import long_run_deviation
from core.settings import Triggers, load_settings
from delivery.sequential import (
    FIRST_LOOK_BATCHES,
    LAGS,
    MOMENT_S,
    Collapse,
    Excess,
    PerformanceTest,
    UpperBound,
    ratio_exceeded,
)
from serving.guard import Guard, Trigger

TRIGGERS: Triggers = load_settings(environ={}).triggers


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Ticking(Clock):
    """Two seconds from one look to the next: every sample is a moment of its own."""

    def __call__(self) -> float:
        self.now += 2 * MOMENT_S
        return self.now


def guard_at(clock: Clock | None = None) -> Guard:
    return Guard(TRIGGERS, clock or Clock())


def feed(guard: Guard, n: int, *, failed: bool = False, latency_ms: float = 5.0) -> None:
    for _ in range(n):
        guard.observe("challenger", latency_ms, failed=failed, segments=0 if failed else 2)


def test_without_data_nobody_is_condemned() -> None:
    assert guard_at().verdict("challenger") is None
    assert guard_at().verdict("champion") is None


def test_a_quarter_of_errors_needs_as_many_samples_as_the_evidence_does() -> None:
    """Each failure is worth log 5, each answer costs log(99 / 95): 12 are reached with the eighth failure."""
    guard = guard_at(Ticking())
    for i in range(31):
        guard.observe("challenger", 5.0, failed=i % 4 == 3)
    assert guard.verdict("challenger") is None
    feed(guard, 1, failed=True)
    assert guard.verdict("challenger") is Trigger.ERRORS


@pytest.mark.parametrize(
    ("failed", "latency_ms", "trigger"), [(True, 5.0, Trigger.ERRORS), (False, 500.0, Trigger.LATENCY)]
)
def test_a_collapse_waits_for_no_minimum_of_samples(failed: bool, latency_ms: float, trigger: Trigger) -> None:
    guard = guard_at(Ticking())
    feed(guard, 7, failed=failed, latency_ms=latency_ms)
    assert guard.verdict("challenger") is None
    feed(guard, 1, failed=failed, latency_ms=latency_ms)
    assert guard.verdict("challenger") is trigger


@pytest.mark.parametrize(
    ("failed", "latency_ms", "trigger"), [(True, 5.0, Trigger.ERRORS), (False, 500.0, Trigger.LATENCY)]
)
def test_one_stall_or_one_failed_batch_condemns_nobody_and_a_second_moment_of_it_does(
    failed: bool, latency_ms: float, trigger: Trigger
) -> None:
    """Twenty symbols decide at once every five minutes; whatever holds the machine up hits all of them."""
    clock = Clock()
    guard = guard_at(clock)
    feed(guard, 20, failed=failed, latency_ms=latency_ms)
    for _ in range(10):
        clock.now += BAR_S
        feed(guard, 20)
        assert guard.verdict("challenger") is None
    for _ in range(2):
        clock.now += BAR_S
        feed(guard, 20, failed=failed, latency_ms=latency_ms)
    assert guard.verdict("challenger") is trigger


def test_a_moment_is_worth_half_of_the_evidence_however_many_samples_it_has() -> None:
    excess = Excess(0.05)
    for i in range(10_000):
        excess.add(True, at=i / 10_000 * MOMENT_S)
    assert not excess.fired
    for _ in range(4):
        excess.add(True, at=MOMENT_S)
    assert excess.fired


def test_a_limit_of_zero_tolerates_nothing_and_one_of_one_everything() -> None:
    nothing, everything = Excess(0.0), Excess(1.0)
    for i in range(1000):
        nothing.add(False, at=float(i))
        everything.add(True, at=float(i))
    assert not nothing.fired
    assert not everything.fired
    nothing.add(True, at=1000.0)
    assert nothing.fired


SYMBOLS, BARS_PER_DAY, BAR_S = 10, 75, 300.0


def alarm_when_trading(rng: np.random.Generator, days: int, failing: float, slow: float) -> Trigger | None:
    """The verdict on a challenger of ten symbols on five-minute bars, nights between the days."""
    clock = Clock()
    guard = guard_at(clock)
    for day in range(days):
        faults = rng.random((BARS_PER_DAY, SYMBOLS, 2)) < (failing, slow)
        for bar, symbols in enumerate(faults.tolist()):
            clock.now = day * 86_400.0 + bar * BAR_S
            for failed, is_slow in symbols:
                guard.observe("challenger", 500.0 if is_slow else 5.0, failed=failed)
            if (found := guard.verdict("challenger")) is not None:
                return found
    return None


@pytest.mark.parametrize("ratio", [1.0, 0.4])
def test_a_broken_challenger_is_found_within_an_hour_of_five_minute_bars(ratio: float) -> None:
    rng = np.random.default_rng(10)
    assert alarm_when_trading(rng, 1, failing=ratio, slow=0.0) is Trigger.ERRORS
    assert alarm_when_trading(rng, 1, failing=0.0, slow=ratio) is Trigger.LATENCY


def test_a_level_above_the_limit_is_found_on_five_minute_bars_although_it_is_no_collapse() -> None:
    clock = Clock()
    guard = guard_at(clock)
    for i in range(60):
        clock.now += 30.0
        guard.observe("challenger", 5.0, failed=i % 5 == 0)
        if guard.verdict("challenger") is Trigger.ERRORS:
            break
    assert i + 1 == 41  # the ninth failure; Wald expects 41.5


def test_a_healthy_challenger_on_five_minute_bars_is_left_alone_for_twenty_days() -> None:
    rng = np.random.default_rng(11)
    assert [alarm_when_trading(rng, 20, failing=0.002, slow=0.002) for _ in range(3)] == [None] * 3
    at_the_warning_level = [alarm_when_trading(rng, 20, failing=0.01, slow=0.0) for _ in range(10)]
    assert at_the_warning_level.count(None) >= 9


def test_errors_above_the_ratio_fire_and_at_the_warning_level_do_not() -> None:
    guard = guard_at(Ticking())
    for i in range(1000):
        guard.observe("challenger", 5.0, failed=i % 100 == 0)
    assert guard.verdict("challenger") is None
    for i in range(1000):
        guard.observe("challenger", 5.0, failed=i % 8 == 0)
    assert guard.verdict("challenger") is Trigger.ERRORS


def test_slow_answers_fire_and_fast_ones_never_do() -> None:
    guard = guard_at(Ticking())
    feed(guard, 500, latency_ms=0.001)  # far faster than before is no violation: one-sided
    assert guard.verdict("challenger") is None
    feed(guard, 8, latency_ms=TRIGGERS.latency_ms + 1)
    assert guard.verdict("challenger") is Trigger.LATENCY


def test_exactly_the_latency_limit_is_allowed() -> None:
    guard = guard_at(Ticking())
    feed(guard, 200, latency_ms=TRIGGERS.latency_ms)
    assert guard.verdict("challenger") is None


def test_memory_fires_above_its_limit_whatever_the_samples_say() -> None:
    guard = guard_at()
    guard.rss_gb = TRIGGERS.memory_gb
    assert guard.verdict("challenger") is None
    guard.rss_gb = TRIGGERS.memory_gb + 0.01
    assert guard.verdict("challenger") is Trigger.MEMORY


def test_old_samples_leave_the_window() -> None:
    clock = Clock()
    guard = guard_at(clock)
    for i in range(40):  # 10 % errors, spread so that they are no collapse
        guard.observe("challenger", 5.0, failed=i % 10 == 0)
    clock.now = TRIGGERS.window_s + 1
    feed(guard, 40)
    assert guard.windows["challenger"].failed == 0
    assert len(guard.windows["challenger"]) == 40
    assert guard.verdict("challenger") is None
    assert guard.windows["challenger"].total == 80


def test_the_windows_stay_bounded_at_any_rate() -> None:
    guard = guard_at()
    feed(guard, 12_000)
    assert len(guard.windows["challenger"]) == 10_000


def test_the_roles_are_judged_apart() -> None:
    guard = guard_at(Ticking())
    feed(guard, 60, failed=True)
    assert guard.verdict("challenger") is Trigger.ERRORS
    assert guard.verdict("champion") is None


def test_a_reset_forgets_the_model_and_keeps_the_memory_reading() -> None:
    guard = guard_at(Ticking())
    guard.rss_gb = 1.0
    feed(guard, 60, failed=True)
    assert guard.verdict("challenger") is Trigger.ERRORS
    guard.reset()
    assert guard.verdict("challenger") is None
    assert guard.rss_gb == 1.0


def test_statistics_are_finite_numbers_or_none() -> None:
    guard = guard_at()
    empty = guard.windows["challenger"].statistics()
    assert empty["p95_ms"] is None and empty["error_ratio"] is None
    for latency_ms in range(1, 101):
        guard.observe("challenger", float(latency_ms), segments=3)
    full = guard.windows["challenger"].statistics()
    assert full["p50_ms"] == pytest.approx(50.5)
    assert full["p95_ms"] == pytest.approx(95.05)
    assert full["mean_segments"] == 3


def test_a_sudden_collapse_is_seen_behind_a_window_full_of_healthy_samples() -> None:
    guard = guard_at(Ticking())
    feed(guard, 10_000)
    feed(guard, 8, failed=True)
    assert guard.verdict("challenger") is Trigger.ERRORS


def first_alarm(rng: np.random.Generator, error_ratio: float, n: int) -> int | None:
    """The sample at which the guard fires; two samples a second, so that the window holds about sixty."""
    clock = Clock()
    guard = guard_at(clock)
    for i, failed in enumerate(rng.random(n) < error_ratio):
        clock.now += 0.5
        guard.observe("challenger", 5.0, failed=bool(failed))
        if guard.verdict("challenger") is not None:
            return i + 1
    return None


def test_a_model_at_the_warning_level_is_rarely_condemned_in_a_long_quiet_canary() -> None:
    """1 % errors is the runbook's warning, not a rollback."""
    rng = np.random.default_rng(1)
    alarms = sum(first_alarm(rng, 0.01, 1000) is not None for _ in range(150))
    assert alarms <= 6


def test_a_fifth_of_errors_is_found_within_a_few_dozen_samples() -> None:
    rng = np.random.default_rng(2)
    found = [first_alarm(rng, 0.20, 400) for _ in range(100)]
    assert None not in found
    assert np.median([n for n in found if n is not None]) <= 60


def test_evidence_is_needed_beside_the_ratio() -> None:
    assert not ratio_exceeded(2, 30, 0.05)  # 6.7 %, but healthy models do that too
    assert not ratio_exceeded(4, 30, 0.05)
    assert ratio_exceeded(5, 30, 0.05)
    assert not ratio_exceeded(50, 1000, 0.05)  # the limit itself is allowed
    assert ratio_exceeded(60, 1000, 0.05)
    assert ratio_exceeded(1, 1000, 0.0)
    assert not ratio_exceeded(0, 0, 0.05)


def test_a_collapse_needs_six_in_a_row_and_forgets() -> None:
    collapse = Collapse(0.05)
    for _ in range(100):
        for hit in (True, True, False, False, False, False, False, False, False, False):
            collapse.add(hit)
    assert not collapse.fired
    for _ in range(6):
        collapse.add(True)
    assert collapse.fired


def alarm_of(differences: np.ndarray, champion: np.ndarray) -> int | None:
    """The outcome at which performance is found degraded, looking after every one."""
    test = PerformanceTest(TRIGGERS.performance_drop, TRIGGERS.performance_alpha, TRIGGERS.performance_batch)
    for i, (difference, base) in enumerate(zip(differences.tolist(), champion.tolist(), strict=True)):
        test.add(base, base + difference)
        if test.degraded:
            return i + 1
    return None


def autocorrelated(rng: np.random.Generator, n: int, phi: float) -> np.ndarray:
    noise = rng.standard_normal(n) * np.sqrt(1 - phi**2)
    for i in range(1, n):
        noise[i] += phi * noise[i - 1]
    return noise


@pytest.mark.parametrize("phi", [0.0, 0.6])
def test_equal_models_are_rarely_told_apart_however_often_one_looks(phi: float) -> None:
    rng = np.random.default_rng(3)
    alarms = sum(
        alarm_of(4 * autocorrelated(rng, 3000, phi), 2 + 5 * rng.standard_normal(3000)) is not None for _ in range(60)
    )
    assert alarms <= 3


def test_a_challenger_that_is_only_a_little_worse_than_the_allowed_drop_permits_is_kept() -> None:
    rng = np.random.default_rng(4)
    champion = 5 + 2 * rng.standard_normal(3000)
    assert alarm_of(-0.1 * champion, champion) is None  # 10 % worse, 20 % allowed


def test_a_losing_challenger_is_found_also_when_the_champion_loses() -> None:
    rng = np.random.default_rng(5)
    for base in (3.0, -3.0):
        champion = base + rng.standard_normal(3000)
        found = alarm_of(-3 + 2 * rng.standard_normal(3000), champion)
        assert found is not None
        assert found == TRIGGERS.performance_batch * FIRST_LOOK_BATCHES


def test_a_better_challenger_never_fires() -> None:
    rng = np.random.default_rng(6)
    assert alarm_of(2 + 5 * rng.standard_normal(4000), rng.standard_normal(4000)) is None


def test_performance_condemns_the_candidate_in_whatever_role_it_runs() -> None:
    guard = guard_at()
    rng = np.random.default_rng(7)
    for noise in rng.standard_normal(1000):
        guard.performance.add(5.0 + noise, -5.0 + noise)
    assert guard.verdict("challenger") is guard.verdict("champion") is Trigger.PERFORMANCE
    assert guard.performance.relative_drop() == pytest.approx(2.0, abs=0.1)


def test_a_bound_without_data_is_infinite_and_then_covers_the_mean() -> None:
    bound = UpperBound(0.01)
    assert bound.bound == float("inf")
    rng = np.random.default_rng(8)
    for value in rng.standard_normal(500):
        bound.add(float(value))
    assert 0 < bound.bound < 0.5


def test_the_running_deviation_is_the_long_run_one_of_all_values_also_far_from_zero() -> None:
    values = 1e6 + autocorrelated(np.random.default_rng(12), 60, 0.6)
    bound, expected = UpperBound(0.01), long_run_deviation(values, LAGS)
    for n, value in enumerate(values.tolist(), 1):
        bound.add(value)
        if n > 2 * LAGS + 1:
            assert bound.deviation == pytest.approx(expected[n - 1])
            assert bound.mean == pytest.approx(values[:n].mean())


def interleaved(rng: np.random.Generator, symbols: int, bars: int, phi: float) -> np.ndarray:
    """Outcomes as they come in: all symbols of a bar, then the next bar; each symbol's own depend on each other."""
    return np.stack([autocorrelated(rng, bars, phi) for _ in range(symbols)], axis=1).ravel()


def test_equal_models_of_many_symbols_are_not_told_apart_although_a_batch_of_them_is_a_few_bars() -> None:
    rng = np.random.default_rng(13)
    alarms = [alarm_of(4 * interleaved(rng, 20, 300, 0.5), 5 * rng.standard_normal(6000)) for _ in range(30)]
    assert len(alarms) - alarms.count(None) <= 1


def test_the_bound_is_wrong_no_more_often_than_promised_although_it_is_looked_at_all_the_time() -> None:
    rng = np.random.default_rng(9)
    wrong = 0
    for _ in range(300):
        bound, below = UpperBound(0.05), False
        for value in rng.standard_normal(300):
            bound.add(float(value))
            below = below or bound.bound < 0
        wrong += below
    assert wrong <= 24  # 5 % of 300, and three standard deviations of chance
