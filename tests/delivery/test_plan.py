"""Plans: what is refused before anything starts, and in which words; what a plan is known by; the default plan."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import ConfigError
from core.settings import Settings, load_settings
from delivery.analysis import RunPhase, measurement, metric_phase, resolved, tallied
from delivery.default_plan import default_plan
from delivery.earned import Arms
from delivery.judges import Reading, judge
from delivery.lint import TRIGGERS
from delivery.metrics import Metric, seconds
from delivery.plan import Analysis, Pause, Plan, plan_from, plan_of_steps
from serving.guard import Guard, Trigger
from serving.readings import PAIRED, counted, paired

CAREFUL = Path(__file__).parents[2] / "config" / "plans" / "careful.yaml"
SETTINGS = load_settings(preset="compact", environ={})

ERRORS = {"name": "errors", "provider": {"service": "error_ratio"}, "failureCondition": "result > args.limit"}
WHOLE: dict[str, Any] = {
    "steps": [{"pause": {}}, {"setWeight": 5}, {"analysis": {"templates": [{"name": "errors"}]}}, {"setWeight": 50}],
    "analysisTemplates": {"errors": {"args": {"limit": 0.05}, "metrics": [ERRORS]}},
}


def told(**fields: Any) -> str:
    return json.dumps(WHOLE | fields)


def metric_with(**fields: Any) -> str:
    return told(analysisTemplates={"errors": {"args": {"limit": 0.05}, "metrics": [ERRORS | fields]}})


def refused(text: str) -> str:
    with pytest.raises(ConfigError) as error:
        plan_from(text)
    assert error.value.code == "plan_invalid"
    return str(error.value)


def test_a_whole_plan_has_its_stages() -> None:
    plan = plan_from(told())
    assert [(stage.weight, [type(gate) for gate in stage.gates]) for stage in plan.stages] == [
        (0, [Pause]),
        (5, [Analysis]),
        (50, []),
    ]


def steps(*found: dict[str, Any]) -> str:
    return told(steps=[*found, {"analysis": {"templates": [{"name": "errors"}]}}])


METRIC = "analysisTemplates.errors.metrics.0"


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        (told(steps=[]), "steps", "at least 1 item"),
        (steps({"pause": {}}), "steps", "no setWeight"),
        (steps({"setWeight": 5}, {"setWeight": 5}), "steps.1.setWeight", "5 does not grow, it is 5 before"),
        (steps({"setWeight": 50}, {"pause": {}}, {"setWeight": 5}), "steps.2.setWeight", "does not grow"),
        (steps({"setWeight": 0}), "steps.0.setWeight", "the shadow needs no setWeight"),
        (steps({"setWeight": 101}), "steps.0.setWeight", "less than or equal to 100"),
        (steps({"setWeight": 5.5}), "steps.0.setWeight", "valid integer"),
        (steps({"setWeight": 5, "pause": {}}), "steps.0", "one of setWeight, pause, analysis"),
        (steps({}), "steps.0", "one of setWeight, pause, analysis"),
        (steps({"setWeigth": 5}), "steps.0", "unknown key 'setWeigth', did you mean 'setWeight'?"),
        (told(zzz=1), "", "unknown key 'zzz'; known: analysisTemplates, "),
        (steps({"setWeight": 5}, {"pause": {"duration": "5 minutes"}}), "steps.1.pause.duration", "valid number"),
        (steps({"setWeight": 5}, {"pause": {"duration": "-5m"}}), "steps.1.pause.duration", "valid number"),
        (steps({"setWeight": 5}, {"pause": {"duration": -5}}), "steps.1.pause.duration", "greater than or equal to 0"),
        (steps({"setWeight": 5}, {"pause": {"duration": ".inf"}}), "steps.1.pause.duration", "valid number"),
        (steps({"setWeight": 5}, {"pause": {"duration": "1m", "sessions": 1}}), "steps.1.pause", "write two pauses"),
        (steps({"setWeight": 5}, {"pause": {"sessions": 1}}), "steps.1.pause", "add `market: {}`"),
        (steps({"setWeight": 5}, {"pause": {"sessions": 0}}), "steps.1.pause.sessions", "greater than or equal to 1"),
        (
            steps({"setWeight": 5}, {"analysis": {"templates": [{"name": "erors"}]}}),
            "steps.1.analysis",
            "unknown template 'erors', did you mean 'errors'?",
        ),
        (steps({"setWeight": 5}, {"analysis": {"templates": []}}), "steps.1.analysis.templates", "at least 1 item"),
        (
            told(steps=[{"setWeight": 5}]),
            "analysisTemplates.errors",
            "no analysis uses it; name it in one, or delete it",
        ),
        (
            steps({"setWeight": 5}, {"analysis": {"templates": [{"name": "errors", "args": {"limt": 1}}]}}),
            "steps.1.analysis, errors",
            "unknown argument 'limt', did you mean 'limit'?",
        ),
        (
            steps({"setWeight": 5}, {"analysis": {"templates": [{"name": "errors", "args": {"limit": "5m"}}]}}),
            "steps.1.analysis, errors",
            "args.limit is compared with, so it must be a number, not '5m'",
        ),
        (
            steps({"setWeight": 5}, {"analysis": {"templates": [{"name": "errors"}, {"name": "errors"}]}}),
            "steps.1.analysis",
            "metric 'errors' is there twice",
        ),
        (metric_with(failureCondition=None), METRIC, "threshold needs a successCondition"),
        (metric_with(failureCondition="result > limit"), METRIC, "`limit` is not a number"),
        (metric_with(failureCondition="result > args.limt"), "analysisTemplates.errors", "errors: args has no 'limt'"),
        (metric_with(failureConditon="result > 1"), METRIC, "mean 'failureCondition'?"),
        (metric_with(count=0), "steps.2.analysis", "'errors' would never end; set count, or consecutiveSuccessLimit"),
        (metric_with(dryRun=True), "steps.2.analysis", "every metric is a dryRun, so nothing is judged"),
        (metric_with(interval=0), f"{METRIC}.interval", "greater than 0"),
        (metric_with(count=2, consecutiveSuccessLimit=3), METRIC, "3 is above count 2"),
        (metric_with(failureLimit=-2), f"{METRIC}.failureLimit", "greater than or equal to -1"),
        (metric_with(judge={"kind": "sprt"}), METRIC, "sprt takes no conditions"),
        (
            metric_with(judge={"kind": "conf_seq"}, failureCondition=None),
            METRIC,
            "cannot judge what this provider reads: judge it by sprt or threshold, or read service: outcome_bps",
        ),
        (
            metric_with(judge={"kind": "sprt", "healthy": 0.05, "unhealthy": 0.01}, failureCondition=None),
            f"{METRIC}.judge",
            "sprt needs 0 < healthy < unhealthy < 1, not 0.05 and 0.01",
        ),
        (
            metric_with(judge={"kind": "sprt", "healthy": 0}, failureCondition=None),
            f"{METRIC}.judge",
            "sprt needs 0 < healthy",
        ),
        (
            metric_with(provider={"service": "error_ratoi"}),
            f"{METRIC}.provider",
            "unknown reading of the service 'error_ratoi', did you mean 'error_ratio'?",
        ),
        (metric_with(provider={}), f"{METRIC}.provider", "one of service, prometheus, http, sql"),
        (
            metric_with(provider={"service": "rss_gb", "http": {"url": "http://x", "key": "y"}}),
            f"{METRIC}.provider",
            "one of service, prometheus, http, sql",
        ),
        (
            metric_with(provider={"prometheus": {"query": "up"}}),
            f"{METRIC}.provider",
            "prometheus needs exactly address and query; it has query",
        ),
        (
            metric_with(provider={"http": {"url": "http://x", "key": "{{args.Limit}}"}}),
            f"{METRIC}.provider",
            "a placeholder is {{args.NAME}}",
        ),
        (
            metric_with(provider={"http": {"url": "http://x", "key": "{{args.nobody}}"}}),
            "analysisTemplates.errors",
            "errors: args has no 'nobody'",
        ),
        (
            metric_with(provider={"http": {"url": "http://x", "key": "y"}}, minSamples=5),
            METRIC,
            "minSamples needs a provider that counts samples: service, sql or plugin",
        ),
        (
            told(backgroundAnalysis={"templates": [{"name": "errors"}]}),
            "backgroundAnalysis",
            "'errors' would watch no longer after 1 measurement(s); set count: 0",
        ),
        (
            told(backgroundAnalysis={"templates": [{"name": "errors"}], "startingStep": 3}),
            "backgroundAnalysis.startingStep",
            "3, the last stage is 2",
        ),
        (told(weightBasis="notional"), "symbols.notional", "needs the shares of the symbols"),
        (told(weightBasis="var", symbols={"notional": {"A": 1}}), "symbols.volatility", "needs that of A too"),
        (
            told(weightBasis="notional", symbols={"notional": {"A": 1}, "allow": ["B"]}),
            "symbols.notional",
            "needs the shares",
        ),
        (
            told(weightBasis="notional", symbols={"notional": {"A": 1}, "deny": ["A"]}),
            "symbols.notional",
            "needs the shares",
        ),
        (told(symbols={"notional": {"A": 0}}), "symbols.notional.A", "greater than 0"),
        (told(symbols={"allow": []}), "symbols", "none is left to the challenger"),
        (told(symbols={"allow": ["A"], "deny": ["A"]}), "symbols", "none is left to the challenger"),
        (
            told(market={"sessions": [{"day": "2026-03-02", "open": 900, "close": 800}]}),
            "market.sessions.0",
            "the session of 2026-03-02 closes before it opens",
        ),
        (
            told(
                market={
                    "sessions": [
                        {"day": "2026-03-03", "open": 900, "close": 950},
                        {"day": "2026-03-02", "open": 100, "close": 200},
                    ]
                }
            ),
            "market.sessions",
            "2026-03-02 opens before 2026-03-03 has closed",
        ),
        (
            told(handover={"triggers": {"drawdown_exceded": "flatten"}}),
            "handover.triggers",
            "unknown trigger 'drawdown_exceded', did you mean 'drawdown_exceeded'?",
        ),
        (told(handover={"default": "sell"}), "handover.default", "'adopt', 'reduce_only', 'flatten' or 'freeze'"),
        (told(limits={"book": {"maxDrawdownPct": 0}}), "limits.book.maxDrawdownPct", "greater than 0"),
        (told(approvals={"required": 6}), "approvals.required", "less than or equal to 5"),
        (
            told(webhooks=[{"name": "ops", "type": "event", "url": "http://a"}] * 2),
            "webhooks",
            "'ops' is there twice",
        ),
        (
            told(webhooks=[{"name": "ops", "type": "confirm-rolout", "url": "http://a"}]),
            "webhooks.0.type",
            "'confirm-rollout'",
        ),
        (
            steps({"setWeight": 5}, {"pause": {"duration": "8d"}}),
            "progressDeadlineSeconds",
            "604800 s, but stage 1 (weight 5) takes at least 691200 s; raise it",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_with_its_place_and_the_remedy(text: str, place: str, words: str) -> None:
    message = refused(text)
    assert any(line.startswith(f"  - {place}") and words in line for line in message.splitlines()), message


def test_an_argument_without_a_default_must_be_given() -> None:
    templates = {"errors": {"args": {"limit": None}, "metrics": [ERRORS]}}
    assert "errors: args.limit has no default and is not given" in refused(told(analysisTemplates=templates))


def test_every_problem_is_told_at_once() -> None:
    message = refused(
        steps({"setWeight": 5}, {"setWeight": 5}, {"pause": {"sessions": 2}}).replace(
            '"templates": [{"name": "errors"', '"templates": [{"name": "erors"'
        )
    )
    assert message.count("\n  - ") >= 3


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "a plan is a mapping with steps, not NoneType"),
        ("- setWeight: 5", "not list"),
        ("steps: [", "not readable as YAML"),
        ("steps: [{setWeight: 5}]\nsteps: [{setWeight: 50}]", "'steps' is there twice"),
        ("a: &all [{setWeight: 5}]\nsteps: *all", "aliases are not allowed"),
        ("market: {sessions: [{day: 2026-13-45}]}", "not readable as YAML"),
        ("[" * 20_000, "not readable as YAML"),
        ("steps: !!python/object/apply:os.system ['true']", "not readable as YAML"),
        ("? [1]\n: 2", "not readable as YAML"),
        ("steps: " + "x" * 300_000, "at most"),
    ],
)
def test_a_text_that_is_no_plan_is_refused(text: str, words: str) -> None:
    assert words in refused(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [("30s", 30.0), ("5m", 300.0), ("1.5h", 5400.0), ("2d", 172800.0), (7, 7), ("7", "7"), ("5w", "5w")],
)
def test_durations_have_units(text: Any, value: Any) -> None:
    assert seconds(text) == value


plans = st.builds(
    lambda weights, basis, pauses, required: {
        "steps": [
            step
            for weight, pause in zip(sorted(weights), pauses, strict=False)
            for step in ({"setWeight": weight}, pause)
        ],
        "weightBasis": basis,
        "symbols": {"notional": {"B": 2.5, "A": 1}},
        "market": {"sessions": [{"day": "2026-03-02", "open": 1.5, "close": 9}]},
        "approvals": {"required": required},
    },
    st.sets(st.integers(1, 100), min_size=1, max_size=5),
    st.sampled_from(["requests", "symbols", "notional"]),
    st.lists(
        st.sampled_from([{"pause": {}}, {"pause": {"duration": "5m"}}, {"pause": {"sessions": 2}}]),
        min_size=5,
        max_size=5,
    ),
    st.integers(0, 5),
)


@given(plans)
def test_a_plan_is_the_same_after_it_was_kept_and_read(tree: dict[str, Any]) -> None:
    plan = plan_from(json.dumps(tree))
    again = plan_from(plan.canonical)
    assert (again, again.sha256) == (plan, plan.sha256)
    assert plan_from(json.dumps(tree, sort_keys=True)).sha256 == plan.sha256


def test_any_change_changes_what_a_plan_is_known_by() -> None:
    changed = deepcopy(WHOLE)
    changed["analysisTemplates"]["errors"]["args"]["limit"] = 0.06
    assert plan_from(json.dumps(changed)).sha256 != plan_from(told()).sha256


def test_a_plan_that_ends_below_100_percent_is_promoted_from_there() -> None:
    assert [stage.weight for stage in plan_from(told()).stages] == [0, 5, 50]


def test_the_plan_of_steps_waits_at_every_weight() -> None:
    plan = plan_of_steps((5, 100))
    assert [stage.weight for stage in plan.stages] == [0, 5, 100]
    assert all(isinstance(gate, Pause) and gate.indefinite for stage in plan.stages for gate in stage.gates)


def test_the_careful_plan_teaches_what_it_says() -> None:
    plan = plan_from(CAREFUL.read_text())
    assert plan_from(plan.canonical).sha256 == plan.sha256
    assert [stage.weight for stage in plan.stages] == [0, 5, 25, 50, 100]
    assert plan.approvals.required == 2
    assert plan.market is not None
    assert isinstance(plan.stages[-1].gates[-1], Analysis)  # before the promotion
    for stage, limit_ms in ((1, 100.0), (2, 80.0)):
        analysis = plan.stages[stage].gates[-1]
        assert isinstance(analysis, Analysis)
        ((_, args),) = resolved(plan, analysis)
        assert args == {"p95_ms": limit_ms}


def test_a_losing_or_broken_models_positions_are_reduced_and_a_slow_ones_adopted() -> None:
    for plan in (default_plan(SETTINGS), plan_from(CAREFUL.read_text())):
        modes = plan.handover.triggers
        for trigger in ("drawdown_exceeded", "daily_loss_exceeded", Trigger.ERRORS, Trigger.PERFORMANCE):
            assert modes[trigger] == "reduce_only"
        for trigger in (Trigger.LATENCY, Trigger.MEMORY):
            assert modes.get(trigger, plan.handover.default) == "adopt"


def test_every_trigger_of_the_guard_can_have_a_handover() -> None:
    assert {str(trigger) for trigger in Trigger} <= TRIGGERS


NOTHING: Arms = (np.zeros(0), np.zeros(0))


def reading_of(metric: Metric, guard: Guard, arms: Arms) -> Reading:
    name = str(metric.provider.service)
    if name in PAIRED:
        return paired(name, arms, SETTINGS.triggers.performance_batch)
    return counted(name, guard.seen("challenger"))


def watched(settings: Settings, guard: Guard, arms: Arms = NOTHING) -> dict[str, RunPhase]:
    """One measurement of everything the default plan watches."""
    plan = default_plan(settings)
    assert plan.background_analysis is not None
    found = {}
    for metric, args in resolved(plan, plan.background_analysis):
        reading = reading_of(metric, guard, arms)
        if not metric.dry_run:
            found[metric.name] = metric_phase(metric, [measurement(judge(metric, reading, args), 0.0, reading)])
    return found


def test_the_default_plan_is_the_seeds_steps_and_triggers_with_the_settings_values() -> None:
    changed = SETTINGS.model_copy(
        update={"triggers": SETTINGS.triggers.model_copy(update={"error_ratio": 0.1, "memory_gb": 7.0})}
    )
    plan = default_plan(changed)
    assert [stage.weight for stage in plan.stages] == [0, *SETTINGS.rollout.steps]
    assert plan_from(plan.canonical).sha256 == plan.sha256 != default_plan(SETTINGS).sha256
    assert plan.background_analysis is not None
    found = {metric.name: (metric, args) for metric, args in resolved(plan, plan.background_analysis)}
    assert {str(trigger) for trigger in Trigger if trigger in found} == {
        "performance_degradation",
        "error_rate_exceeded",
        "latency_violation",
        "memory_overflow",
    }
    assert found["error_rate_exceeded"][0].judge.unhealthy == 0.1
    assert found["memory_overflow"][1]["memory_gb"] == 7.0
    assert found["performance_degradation"][0].judge.allowed == SETTINGS.triggers.performance_drop
    assert [m.name for m, _ in found.values() if m.dry_run] == [
        "error_ratio_alert",
        "latency_alert",
        "memory_warning",
        "memory_mitigation",
        "performance_alert",
    ]


def test_the_default_plan_says_nothing_without_data_and_condemns_what_the_triggers_condemn() -> None:
    guard = Guard(SETTINGS.triggers)
    assert set(watched(SETTINGS, guard).values()) == {RunPhase.RUNNING}
    guard.rss_gb = SETTINGS.triggers.memory_gb + 1
    for number in range(2000):
        guard.observe("challenger", 10 * SETTINGS.triggers.latency_ms, failed=number % 2 == 0)
    numbers = np.arange(2000)
    arms = (1.0 + numbers % 3, -1.0 - numbers % 5)
    assert set(watched(SETTINGS, guard, arms).values()) == {RunPhase.FAILED}


def test_a_quiet_night_does_not_end_a_rollout_under_the_default_plan() -> None:
    plan, guard = default_plan(SETTINGS), Guard(SETTINGS.triggers)
    assert plan.background_analysis is not None
    for metric, args in resolved(plan, plan.background_analysis):
        reading = reading_of(metric, guard, NOTHING)
        night = [measurement(judge(metric, reading, args), 60.0 * minute, reading) for minute in range(18 * 60)]
        assert tallied(metric, night).phase is RunPhase.RUNNING


@pytest.mark.parametrize("limit", [0.0, 1.0])
def test_limits_that_leave_no_second_hypothesis_are_judged_as_they_stand(limit: float) -> None:
    triggers = SETTINGS.triggers.model_copy(update={"error_ratio": limit})
    guard = Guard(triggers)
    for number in range(100):
        guard.observe("challenger", 1.0, failed=number == 0)
    found = watched(SETTINGS.model_copy(update={"triggers": triggers}), guard)
    assert found["error_rate_exceeded"] is (RunPhase.RUNNING if limit else RunPhase.FAILED)


def test_a_plan_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Plan.model_validate(WHOLE).weight_basis = "requests"
