"""Who is promoted, who is not, and that the reasons say why."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import date, timedelta

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.confidence import FIRST_LOOK
from core.errors import DataError
from core.settings import EvaluationSettings, load_settings
from trading import bootstrap
from trading.comparison import Comparison, Record, compare, max_drawdown
from trading.significance import Trials

LIMITS: EvaluationSettings = load_settings(environ={}).evaluation
NOISE = np.random.default_rng(0).standard_normal(1000)


def days(count: int) -> tuple[date, ...]:
    return tuple(date(2020, 1, 1) + timedelta(days=day) for day in range(count))


def record(net_bps: np.ndarray, name: str = "challenger", cost_bps: float = 1.0) -> Record:
    return Record(name, days(len(net_bps)), net_bps + cost_bps, np.full(len(net_bps), cost_bps))


CHAMPION = record(10 * (NOISE[:600] - NOISE[:600].mean()) + 3.0, "champion")


def against(champion: Record, net_bps: np.ndarray, trials: Trials = Trials(), **more: float) -> Comparison:  # noqa: B008 - frozen
    return compare(champion, record(net_bps), LIMITS, trials=trials, **more)


def better(by_bps: float, noise_bps: float = 5.0) -> np.ndarray:
    noise = np.roll(NOISE, 300)[:600]
    return CHAMPION.net_bps + by_bps + noise_bps * (noise - noise.mean())


def test_a_challenger_that_is_clearly_better_and_earns_is_promoted_and_every_check_says_so() -> None:
    found = against(CHAMPION, better(3.0), overfitting_probability=0.1)
    assert found.verdict == "promote"
    assert found.sequence_low_bps > 0
    assert found.difference_bps.ci95_low < found.difference_bps.value < found.difference_bps.ci95_high
    assert found.worse_probability == 0.0
    assert found.sessions_needed is not None
    assert found.sessions_needed < 600
    assert len(found.reasons) == 4
    for reason, words in zip(found.reasons, ("above -0.50", "above 0", "at least 0.95", "at most 0.2"), strict=True):
        assert reason.startswith("For: ")
        assert f"must be {words}" in reason


def test_a_challenger_that_is_clearly_worse_is_kept_out() -> None:
    found = against(CHAMPION, better(-2.5))
    assert found.challenger["return_bps_per_session"] > 0  # it earns, and is worse
    assert found.verdict == "keep"
    assert found.sequence_high_bps < -LIMITS.non_inferiority_bps
    assert found.worse_probability == 1.0


def test_a_challenger_that_loses_money_after_costs_is_never_promoted_however_much_more_the_champion_loses() -> None:
    losing = record(10 * NOISE[:600] - 9.0, "champion")
    net = losing.net_bps + 8.0 + np.roll(NOISE, 300)[:600]
    assert net.mean() < 0
    for cost_bps, words in ((0.1, "it would lose without any costs, too"), (5.0, "it breaks even at 0.")):
        found = compare(losing, record(net, cost_bps=cost_bps), LIMITS, trials=Trials())
        assert found.sequence_low_bps > 5
        assert found.verdict == "keep"
        assert found.reasons[1].startswith("Against: after costs")
        assert f"must be above 0 ({words}" in found.reasons[1]


@settings(max_examples=25)
@given(st.floats(-50, 50), st.floats(-20, 0), st.integers(2, 200))
def test_no_record_that_loses_is_promoted(champion_bps: float, challenger_bps: float, sessions: int) -> None:
    noise = NOISE[:sessions] - NOISE[:sessions].mean()
    champion = record(champion_bps + noise, "champion")
    found = against(champion, challenger_bps - 1e-6 + noise[::-1])
    assert found.verdict != "promote"


def test_agents_that_never_differ_are_undecided_for_that_reason() -> None:
    found = against(CHAMPION, CHAMPION.net_bps.copy())
    assert found.verdict == "undecided"
    assert found.reasons == ("Open: the two never differ: both earned the same in each of 600 sessions.",)
    assert found.sessions_needed is None


def test_too_small_a_difference_is_undecided_and_says_how_long_it_takes() -> None:
    found = against(CHAMPION, better(0.3, noise_bps=15.0))
    assert found.verdict == "undecided"
    assert found.sequence_low_bps < -LIMITS.non_inferiority_bps < found.sequence_high_bps
    assert found.sessions_needed is not None
    assert found.sessions_needed > 600
    assert found.reasons[-1].endswith(
        f"{found.sessions_needed:,} sessions decide with a probability of 80%; there are 600."
    )


def test_a_difference_at_the_very_margin_is_never_decided() -> None:
    difference = 15 * (NOISE[:600] - NOISE[:600].mean()) - LIMITS.non_inferiority_bps
    found = against(CHAMPION, CHAMPION.net_bps + difference + 0.0)
    assert found.sessions_needed is None
    assert found.verdict == "undecided"
    assert "no number of sessions decides" in found.reasons[-1]


def test_many_trials_make_a_good_record_undecided() -> None:
    champion, net = record(np.zeros(600), "champion", cost_bps=0.0), 10 * NOISE[:600] + 2.5
    assert against(champion, net).verdict == "promote"
    tried = Trials(tuple((0.1 * NOISE[600:900]).tolist()), complete=False)
    found = against(champion, net, tried)
    assert found.verdict == "undecided"
    assert "no luck of at least 300 trials with probability 0." in found.reasons[2]
    assert (found.trials, found.trials_complete) == (300, False)


def test_an_overfitted_choice_keeps_the_champion() -> None:
    found = against(CHAMPION, better(3.0), overfitting_probability=0.21)
    assert found.verdict == "keep"
    assert found.reasons[-1].startswith("Against: its choice")
    assert "with probability 0.21; must be at most 0.2" in found.reasons[-1]


def test_before_the_first_look_nothing_is_decided_although_everything_looks_good() -> None:
    champion = record(NOISE[: FIRST_LOOK - 1], "champion")
    found = against(champion, champion.net_bps + 10)
    assert found.verdict == "undecided"
    assert found.reasons[-1] == "Bring at least 1 more sessions."
    assert found.to_dict()["sequence_low_bps"] is None
    again = record(NOISE[:FIRST_LOOK], "champion")
    assert against(again, again.net_bps + 10).verdict == "promote"


def test_equals_are_promoted_at_most_alpha_often_though_compared_again_and_again(monkeypatch) -> None:
    """The whole verdict, not only its sequence; the champion earns, the margin is what they differ by."""
    monkeypatch.setattr(bootstrap, "REPETITIONS", 2)  # intervals are told, not judged by
    rng = np.random.default_rng(3)
    promoted = 0
    for _ in range(40):
        champion = record(5 * rng.standard_normal(200) + 3.0, "champion")
        net = 5 * rng.standard_normal(200) + 3.0 - LIMITS.non_inferiority_bps
        for sessions in range(FIRST_LOOK, 201, 20):
            early = replace(
                champion,
                sessions=champion.sessions[:sessions],
                gross_bps=champion.gross_bps[:sessions],
                cost_bps=champion.cost_bps[:sessions],
            )
            if against(early, net[:sessions]).verdict == "promote":
                promoted += 1
                break
    assert promoted <= 5  # 5 % of 40, and three standard deviations


def test_costs_are_swept_and_break_even_where_gross_and_costs_meet() -> None:
    gross, cost = np.array([3.0, 5.0, -2.0]), np.array([1.0, 1.0, 2.0])
    agent = Record("agent", days(3), gross, cost)
    assert agent.break_even_multiple == 1.5
    assert agent.cost_sweep() == pytest.approx({0: 2.0, 1: 2 / 3, 2: -2 / 3, 4: -10 / 3})
    assert (gross - agent.break_even_multiple * cost).sum() == pytest.approx(0.0)
    assert Record("flat", days(3), np.zeros(3), np.zeros(3)).break_even_multiple is None
    assert Record("losing", days(3), -gross, cost).break_even_multiple == -1.5


def test_the_drawdown_is_the_deepest_fall_from_a_height_the_start_included() -> None:
    assert max_drawdown(np.array([-2.0, 5.0, -1.0, -3.0, 2.0])) == 4.0
    assert max_drawdown(np.array([-2.0, -1.0])) == 3.0
    assert max_drawdown(np.array([1.0, 2.0])) == 0.0


def test_the_answer_is_plain_json() -> None:
    found = against(CHAMPION, better(1.0))
    values = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert values["verdict"] == found.verdict
    assert values["reasons"] == list(found.reasons)
    assert values["difference_bps"]["ci95_low"] == found.difference_bps.ci95_low
    assert set(values["challenger"]["return_bps_by_cost_multiple"]) == {"0", "1", "2", "4"}


def test_records_of_other_sessions_are_not_compared() -> None:
    for other in (record(NOISE[:599]), Record("late", days(601)[1:], NOISE[:600], np.zeros(600))):
        with pytest.raises(DataError, match="on the same bars") as refused:
            compare(CHAMPION, other, LIMITS, trials=Trials())
        assert refused.value.code == "sessions_differ"
    one = record(NOISE[:1])
    with pytest.raises(DataError, match="two sessions at least"):
        compare(one, one, LIMITS, trials=Trials())


@pytest.mark.parametrize(
    ("sessions", "gross", "cost"),
    [
        (days(2), [1.0, np.nan], [0.0, 0.0]),
        (days(2), [1.0, 1.0], [0.0, np.inf]),
        (days(2), [1.0, 1.0], [0.0, -0.1]),
        (days(2), [1.0, 1.0, 1.0], [0.0, 0.0]),
        (days(3), [1.0, 1.0], [0.0, 0.0]),
        (days(2)[::-1], [1.0, 1.0], [0.0, 0.0]),
        ((date(2020, 1, 1),) * 2, [1.0, 1.0], [0.0, 0.0]),
    ],
)
def test_a_record_with_holes_repeats_or_negative_costs_is_refused(sessions, gross, cost) -> None:
    with pytest.raises(DataError, match="agent: a record needs") as refused:
        Record("agent", sessions, np.array(gross), np.array(cost))
    assert refused.value.code == "bad_record"


def test_a_challenger_that_lost_everything_stays_out_whatever_else_speaks_for_it() -> None:
    earned = better(3.0)
    assert against(CHAMPION, earned).verdict == "promote"
    ruined = replace(record(earned), ruined_on=days(600)[-1])
    found = compare(CHAMPION, ruined, LIMITS, trials=Trials())
    assert found.verdict == "keep"
    assert "lost all of its capital" in found.reasons[-1]
    assert found.to_dict()["challenger"]["ruined_on"] == days(600)[-1].isoformat()
