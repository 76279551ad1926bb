"""A replay keeps the arms apart, counts what got no answer, and stops when told to."""

from __future__ import annotations

from typing import Any

import pytest
from tiny_migration import tiny_settings

from core.actions import ACTION_OF
from core.errors import RolloutError
from flows.arms import compare
from flows.replay import Course, replay
from serving.client import hold
from serving.question import Question
from serving.schemas import Decision, DecisionResponse
from trading.dataset import build_dataset


@pytest.fixture(scope="module")
def course(tmp_path_factory: pytest.TempPathFactory) -> Course:
    data = build_dataset(tiny_settings(tmp_path_factory.mktemp("replay")), None, 0)
    return Course(data.test, data.schema, data.cost_bps, data.optimum_known)


class Scripted:
    """A service whose champion always goes flat and whose challenger always goes long."""

    def __init__(self, acting: str = "champion", *, fails: bool = False) -> None:
        self.acting, self.fails = acting, fails
        self.outcomes: list[tuple[float, float]] = []

    def decide(self, question: Question) -> DecisionResponse:
        if self.fails:
            raise RolloutError("gone")
        shadow_of = "challenger" if self.acting == "champion" else "champion"
        told = self._part(self.acting, question) | {"account": self.acting}
        answer = hold(question, "script").model_copy(update=told)
        facts = answer.model_dump(include=set(Decision.model_fields)) | self._part(shadow_of, question)
        return answer.model_copy(update={"shadow": Decision.model_validate(facts)})

    def outcome(self, symbol: str, champion_bps: float, challenger_bps: float) -> None:
        self.outcomes.append((champion_bps, challenger_bps))

    def _part(self, role: str, question: Question) -> dict[str, Any]:
        target = 0 if role == "champion" else 1
        action = int(ACTION_OF[question.account(role).position + 1, target + 1])
        numbers = {"quantity": 10.0, "segments": 1, "latency_ms": 1.0}
        return {"role": role, "action": action, "model": role, "model_version": "1", "fallback": False} | numbers


def lanes_of(course: Course, count: int = 4) -> dict[str, int]:
    return {f"X#{i}": int(session) for i, session in enumerate(course.market.sessions[:count])}


@pytest.mark.parametrize("acting", ["champion", "challenger"])
def test_each_arm_earns_on_its_own_positions_whoever_acts(course, acting):
    service = Scripted(acting)
    played = replay(service, course, lanes_of(course))
    champion, challenger = played.arms["champion"], played.arms["challenger"]
    assert played.finished
    assert (champion.return_bps == 0).all()
    assert set(challenger.position) == {1}
    assert sum(one for _, one in service.outcomes) == pytest.approx(challenger.return_bps.sum())
    assert {decided.acting for decided in challenger.decided} == {acting == "challenger"}


def test_numbers_of_both_arms_are_compared_decision_by_decision(course):
    compared = compare([replay(Scripted(), course, lanes_of(course))], late_ms=50.0)
    metrics = compared["metrics"]
    assert metrics["challenger_error_ratio"] == metrics["lost_decisions"] == 0
    assert metrics["position_agreement_ratio"] == 0.0
    assert metrics["quantity_agreement_ratio"] == 1.0
    assert compared["agreement"].sum() == metrics["decisions"]


def test_what_got_no_answer_is_counted_and_held(course):
    played = replay(Scripted(fails=True), course, lanes_of(course))
    decisions = len(played.arms["champion"].decided)
    assert played.lost == decisions > 0
    assert compare([played], late_ms=50.0)["metrics"]["challenger_error_ratio"] == 1.0
    assert (played.arms["challenger"].return_bps == 0).all()


@pytest.mark.parametrize(
    ("missing", "ratio"), [("late", "challenger_late_ratio"), ("failed", "challenger_error_ratio")]
)
def test_a_shadow_that_is_late_is_told_from_one_that_failed(course, missing, ratio):
    class Missing(Scripted):
        def decide(self, question: Question) -> DecisionResponse:
            return super().decide(question).model_copy(update={"shadow": None, "shadow_missing": missing})

    metrics = compare([replay(Missing(), course, lanes_of(course))], late_ms=50.0)["metrics"]
    assert metrics.pop(ratio) == 1.0
    assert metrics["challenger_late_ratio" if missing == "failed" else "challenger_error_ratio"] == 0.0


@pytest.mark.parametrize(("ran_ms", "counted_ms"), [(None, 50.0), (80.0, 80.0)])
def test_a_late_shadow_stays_in_the_latency_percentiles(course, ran_ms, counted_ms):
    class SometimesLate(Scripted):
        def decide(self, question: Question) -> DecisionResponse:
            answer = super().decide(question)
            if question.symbol != "X#0":
                return answer
            late = {"shadow": None, "shadow_missing": "late", "shadow_latency_ms": ran_ms}
            return answer.model_copy(update=late)

    metrics = compare([replay(SometimesLate(), course, lanes_of(course))], late_ms=50.0)["metrics"]
    assert 0.05 < metrics["challenger_late_ratio"] < 0.5
    assert metrics["challenger_p99_ms"] == counted_ms
    assert metrics["challenger_p50_ms"] == 1.0


def test_a_stop_hands_over_what_the_challenger_holds(course):
    asked: list[float] = []
    played = replay(
        Scripted("challenger"),
        course,
        lanes_of(course),
        keep_going=lambda ratio: not asked.append(ratio) and len(asked) < 3,
    )
    assert not played.finished
    assert played.handover == dict.fromkeys(played.symbols, 1)


def test_the_champion_hands_nothing_over(course):
    played = replay(Scripted("champion"), course, lanes_of(course), keep_going=lambda ratio: ratio < 0.3)
    assert played.handover == {}
