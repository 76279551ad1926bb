import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.settings import RateLimits
from serving.limits import BURST_S, KIND_OF, MAX_CALLERS, Allowance, Kind, allowances
from serving.scopes import Scope

GAPS = st.lists(st.floats(0.0, 3.0), min_size=1, max_size=200)


def admitted(allowance: Allowance, gaps: list[float], caller: str = "a") -> list[float]:
    """The times at which a caller that comes after these gaps is let through."""
    now, times = 1000.0, []
    for gap in gaps:
        now += gap
        if allowance.wait_s(caller, now) == 0.0:
            times.append(now)
    return times


@given(GAPS, st.sampled_from([0.3, 1.0, 2.5, 10.0]))
def test_no_stretch_of_time_lets_more_through_than_the_rate_and_one_burst(gaps: list[float], per_s: float) -> None:
    allowance = Allowance(per_s)
    times = admitted(allowance, gaps)
    for first, start in enumerate(times):
        for last, end in enumerate(times[first:], first):
            assert last - first + 1 <= (end - start) * per_s + allowance.burst + 1e-6


@given(GAPS, st.sampled_from([0.3, 1.0, 2.5, 10.0]))
def test_who_waits_as_told_is_let_through_and_who_comes_earlier_is_not(gaps: list[float], per_s: float) -> None:
    allowance, now = Allowance(per_s), 1000.0
    for gap in gaps:
        now += gap
        wait_s = allowance.wait_s("a", now)
        if wait_s:
            assert allowance.is_spent("a", now)
            assert allowance.wait_s("a", now + 0.9 * wait_s) > 0.0
            now += wait_s + 1e-6
            assert allowance.wait_s("a", now) == 0.0


@given(st.integers(1, 50))
def test_a_steady_caller_at_its_rate_never_waits(per_s: int) -> None:
    allowance = Allowance(per_s)
    assert len(admitted(allowance, [1.0 / per_s] * 500)) == 500


def test_a_burst_is_what_the_settings_say() -> None:
    assert len(admitted(Allowance(20.0), [0.0] * 100)) == 20 * BURST_S


def test_callers_do_not_share_an_allowance() -> None:
    allowance = Allowance(1.0)
    while not allowance.wait_s("greedy", 0.0):
        pass
    assert allowance.is_spent("greedy", 0.0)
    assert not allowance.is_spent("other", 0.0)
    assert allowance.wait_s("other", 0.0) == 0.0


def test_memory_is_bounded_and_callers_of_before_are_still_heard() -> None:
    allowance = Allowance(1.0)
    for i in range(MAX_CALLERS):
        assert allowance.wait_s(str(i), 10.0) == 0.0
    assert not allowance.is_spent("0", 10.0)
    assert allowance.is_spent("one too many", 10.0)
    assert allowance.wait_s("one too many", 10.0) == 1.0
    assert allowance.wait_s("0", 10.0) == 0.0
    assert allowance.wait_s("later", 15.0) == 0.0  # the others are forgotten
    assert allowance.wait_s("0", 15.0) == 0.0


def test_abort_has_an_allowance_of_its_own() -> None:
    kinds = allowances(RateLimits(decisions_per_s=1, reads_per_s=1, changes_per_s=1, aborts_per_s=1))
    assert {scope for scope, kind in KIND_OF.items() if kind is Kind.ABORTS} == {Scope.ROLLOUT_ABORT}
    for kind in set(Kind) - {Kind.ABORTS}:
        while not kinds[kind].wait_s("a", 0.0):
            pass
    assert kinds[Kind.ABORTS].wait_s("a", 0.0) == 0.0


@pytest.mark.parametrize("scope", Scope)
def test_every_scope_has_a_kind(scope: Scope) -> None:
    assert KIND_OF.get(scope, Kind.READS) in Kind
