"""Analysis runs: what measurements lead to, and what must never pass for success."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.gates import Verdict
from delivery.analysis import (
    Measurement,
    MeasurementPhase,
    RunPhase,
    due,
    measurement,
    metric_phase,
    resolved,
    run_phase,
    tallied,
)
from delivery.judges import Judged, Reading, judge
from delivery.metrics import Metric
from delivery.plan import Plan

GOOD, BAD = MeasurementPhase.SUCCESSFUL, MeasurementPhase.FAILED
UNSURE, BROKEN = MeasurementPhase.INCONCLUSIVE, MeasurementPhase.ERROR
GOING_ON = {RunPhase.PENDING, RunPhase.RUNNING}
LETTERS = {"s": GOOD, "f": BAD, "i": UNSURE, "e": BROKEN}


def metric(name: str = "metric", **told: Any) -> Metric:
    return Metric.model_validate(
        {"name": name, "provider": {"service": "p95_ms"}, "failureCondition": "result > 100", **told}
    )


def taken(phases: str, *, every: float = 10.0) -> list[Measurement]:
    """`s` successful, `f` failed, `i` inconclusive, `e` error."""
    return [Measurement(i * every, LETTERS[letter], None, "") for i, letter in enumerate(phases)]


sequences = st.text("sfie", max_size=12)
limits = st.integers(-1, 4)


@st.composite
def metrics(draw: st.DrawFn) -> Metric:
    count = draw(st.integers(0, 6))
    return metric(
        count=count,
        failureLimit=draw(limits),
        inconclusiveLimit=draw(limits),
        consecutiveErrorLimit=draw(st.integers(0, 4)),
        consecutiveSuccessLimit=draw(st.integers(0, count or 4)),
    )


@given(metrics(), st.text("fie", max_size=20), st.booleans())
def test_what_never_succeeded_is_never_successful(m: Metric, phases: str, ended: bool) -> None:
    """argo#4479: runs whose every measurement failed or errored were Successful."""
    assert metric_phase(m, taken(phases), ended=ended) is not RunPhase.SUCCESSFUL


@given(metrics(), sequences)
def test_a_run_that_is_ended_early_is_not_successful(m: Metric, phases: str) -> None:
    before, after = metric_phase(m, taken(phases)), metric_phase(m, taken(phases), ended=True)
    assert after is (RunPhase.INCONCLUSIVE if before in GOING_ON else before)


@given(metrics(), sequences, sequences)
def test_an_end_is_an_end_whatever_is_measured_after_it(m: Metric, phases: str, more: str) -> None:
    phase = metric_phase(m, taken(phases))
    if phase not in GOING_ON:
        assert metric_phase(m, taken(phases + more)) is phase
        assert not due(m, taken(phases), 0.0, 1e9)


@given(metrics(), sequences)
def test_the_fold_says_what_argos_rules_say_read_one_by_one(m: Metric, phases: str) -> None:
    assert metric_phase(m, taken(phases)) is next(
        (phase for n in range(1, len(phases) + 1) if (phase := ends(m, phases[:n]))),
        RunPhase.RUNNING if phases else RunPhase.PENDING,
    )


def ends(m: Metric, phases: str) -> RunPhase | None:
    """The rules of the limits on everything measured so far; the first prefix that ends, ends the metric."""
    tail = {letter: len(phases) - len(phases.rstrip(letter)) for letter in "se"}
    if 0 <= m.failure_limit < phases.count("f"):
        return RunPhase.FAILED
    if 0 <= m.inconclusive_limit < phases.count("i"):
        return RunPhase.INCONCLUSIVE
    if tail["e"] > m.consecutive_error_limit:
        return RunPhase.ERROR
    if m.consecutive_success_limit and tail["s"] >= m.consecutive_success_limit:
        return RunPhase.SUCCESSFUL
    if m.count and len(phases.replace("e", "")) >= m.count:
        return RunPhase.SUCCESSFUL if "s" in phases and not m.consecutive_success_limit else RunPhase.INCONCLUSIVE
    return None


@pytest.mark.parametrize(
    ("told", "phases", "phase"),
    [
        ({}, "", RunPhase.PENDING),
        ({}, "s", RunPhase.SUCCESSFUL),
        ({}, "f", RunPhase.FAILED),
        ({}, "i", RunPhase.INCONCLUSIVE),
        ({}, "eeee", RunPhase.RUNNING),  # an error is no measurement; four are tolerated
        ({}, "eeeee", RunPhase.ERROR),
        ({}, "eeees", RunPhase.SUCCESSFUL),
        ({"count": 3, "failureLimit": 1}, "fss", RunPhase.SUCCESSFUL),
        ({"count": 3, "failureLimit": 1}, "sff", RunPhase.FAILED),
        ({"count": 3, "failureLimit": -1}, "fff", RunPhase.INCONCLUSIVE),  # tolerated is not the same as good
        ({"count": 3, "inconclusiveLimit": -1}, "iii", RunPhase.INCONCLUSIVE),
        ({"count": 3, "inconclusiveLimit": -1}, "iis", RunPhase.SUCCESSFUL),
        ({"count": 0}, "s" * 99, RunPhase.RUNNING),
        ({"count": 0}, "s" * 99 + "f", RunPhase.FAILED),
    ],
)
def test_limits_as_argo_has_them(told: dict[str, Any], phases: str, phase: RunPhase) -> None:
    assert metric_phase(metric(**told), taken(phases)) is phase


@pytest.mark.parametrize(
    ("phases", "phase"),
    [
        ("ss", RunPhase.RUNNING),
        ("sss", RunPhase.SUCCESSFUL),
        ("ssfsss", RunPhase.SUCCESSFUL),
        ("sssf", RunPhase.SUCCESSFUL),  # ended before
        ("ssissfss", RunPhase.RUNNING),  # flapping is no success
        ("ssesse", RunPhase.RUNNING),
    ],
)
def test_hysteresis_asks_for_successes_in_a_row(phases: str, phase: RunPhase) -> None:
    m = metric(count=0, consecutiveSuccessLimit=3, failureLimit=2, inconclusiveLimit=2)
    assert metric_phase(m, taken(phases)) is phase


def test_a_count_that_ends_before_the_row_is_long_enough_is_inconclusive() -> None:
    m = metric(count=5, consecutiveSuccessLimit=3, failureLimit=-1)
    assert metric_phase(m, taken("ssfss")) is RunPhase.INCONCLUSIVE


def test_errors_count_in_a_row_only() -> None:
    m = metric(count=0, consecutiveErrorLimit=2)
    assert metric_phase(m, taken("ees" * 50)) is RunPhase.RUNNING
    assert metric_phase(m, taken("ees" * 50 + "eee")) is RunPhase.ERROR


NO_DATA = {
    ("inconclusive", 0): RunPhase.INCONCLUSIVE,
    ("inconclusive", 3): RunPhase.INCONCLUSIVE,  # after four of them
    ("inconclusive", -1): RunPhase.INCONCLUSIVE,  # when all five are taken
    ("fail", 0): RunPhase.FAILED,
    ("fail", 3): RunPhase.FAILED,
    ("fail", -1): RunPhase.FAILED,
}


@pytest.mark.parametrize(("policy", "limit"), NO_DATA)
def test_a_metric_without_data_is_never_successful(policy: str, limit: int) -> None:
    """The matrix of onNoData: argo#1466 erred, flagger#1035 hung, Kayenta passed."""
    m = metric(onNoData=policy, inconclusiveLimit=limit, count=5)
    seen: list[Measurement] = []
    for now in range(0, 200, 10):
        if due(m, seen, 0.0, float(now)):
            seen.append(measurement(judge(m, Reading(), {}), float(now), Reading()))
    assert metric_phase(m, seen) is NO_DATA[policy, limit]
    assert len(seen) == {"fail": 1}.get(policy, 5 if limit < 0 else limit + 1)


phases_of_runs = st.sampled_from(list(RunPhase))


@given(st.lists(st.tuples(st.booleans(), phases_of_runs), max_size=6))
def test_a_run_is_as_bad_as_its_worst_metric_that_counts(told: list[tuple[bool, RunPhase]]) -> None:
    found = run_phase([(metric(dryRun=dry), phase) for dry, phase in told])
    counted = {phase for dry, phase in told if not dry}
    if found is RunPhase.SUCCESSFUL:
        assert counted == {RunPhase.SUCCESSFUL}
    if RunPhase.FAILED in counted:
        assert found is RunPhase.FAILED
    if not counted:
        assert found is RunPhase.INCONCLUSIVE
    assert not counted or found in counted


def test_an_inconclusive_metric_keeps_a_run_from_success_whatever_the_others_say() -> None:
    """argo#3850: a rollout was promoted on an inconclusive run."""
    good, unsure = (metric("good"), RunPhase.SUCCESSFUL), (metric("unsure"), RunPhase.INCONCLUSIVE)
    assert run_phase([good, unsure]) is RunPhase.INCONCLUSIVE
    assert run_phase([good, (metric("alert", dryRun=True), RunPhase.FAILED)]) is RunPhase.SUCCESSFUL


@pytest.mark.parametrize(
    ("told", "phases", "promotes"),
    [
        ({}, "", False),  # nothing is known yet
        ({}, "s", True),
        ({}, "sf", False),
        ({"failureLimit": 2}, "sf", False),  # tolerated, but not what one promotes on
        ({"failureLimit": 2}, "sfs", True),
        ({"inconclusiveLimit": 2}, "si", False),
        ({"inconclusiveLimit": -1}, "i", True),  # the plan says any number
        ({"inconclusiveLimit": -1}, "ie", False),
        ({"inconclusiveLimit": -1, "failureLimit": -1}, "if", False),
        ({"consecutiveSuccessLimit": 2}, "ss", True),
        ({"dryRun": True}, "f", True),
    ],
)
def test_what_watches_in_the_background_must_not_speak_against_a_promotion(
    told: dict[str, Any], phases: str, promotes: bool
) -> None:
    assert tallied(metric(count=0, **told), taken(phases)).for_promotion is promotes


def test_measurements_are_due_after_the_delay_and_then_at_every_interval() -> None:
    m = metric(count=0, initialDelay="30s", interval="10s")
    assert not due(m, [], 100.0, 129.9)
    assert due(m, [], 100.0, 130.0)
    one = [Measurement(130.0, GOOD, 1.0, "")]
    assert not due(m, one, 100.0, 139.9)
    assert due(m, one, 100.0, 140.0)


def test_a_clock_that_was_set_back_does_not_stop_the_measuring() -> None:
    m = metric(count=0, interval="10s")
    assert due(m, [Measurement(4000.0, GOOD, 1.0, "")], 0.0, 400.0)


@pytest.mark.parametrize(
    ("verdict", "phase"), [(Verdict.PASS, GOOD), (Verdict.FAIL, BAD), (Verdict.INCONCLUSIVE, UNSURE)]
)
def test_a_verdict_is_a_measurement(verdict: Verdict, phase: MeasurementPhase) -> None:
    read = Reading(2.0, samples=9, hits=3)
    assert measurement(Judged(verdict, 2.0, "why"), 5.0, read) == Measurement(5.0, phase, 2.0, "why", 9, 3)
    assert measurement(Judged(verdict, None, "too few"), 5.0, read).value == 2.0


def test_templates_are_resolved_with_their_arguments_and_placeholders() -> None:
    query = 'errors{model="{{args.model}}", quantile="{{ args.quantile }}"}'
    template = {
        "args": {"model": None, "quantile": 1234567.5, "limit": 3},
        "metrics": [
            {
                "name": "slow",
                "provider": {"prometheus": {"address": "http://127.0.0.1:9090", "query": query}},
                "failureCondition": "result > args.limit",
            }
        ],
    }
    plan = Plan.model_validate(
        {
            "steps": [
                {"setWeight": 5},
                {"analysis": {"templates": [{"name": "slow", "args": {"model": "{{args.limit}} {{", "limit": 4}}]}},
            ],
            "analysisTemplates": {"slow": template},
        }
    )
    analysis = plan.steps[1].analysis
    assert analysis is not None
    ((found, args),) = resolved(plan, analysis)
    assert found.provider.prometheus is not None
    assert (
        found.provider.prometheus["query"] == 'errors{model="{{args.limit}} {{", quantile="1234567.5"}'
    )  # replaced once
    assert args == {"model": "{{args.limit}} {{", "quantile": 1234567.5, "limit": 4.0}
    assert judge(found, Reading(3.5), args).verdict is Verdict.PASS
