"""What a rollout waits for and what is done about it, on invented measurements and a clock that is an argument."""

from dataclasses import replace

import pytest

from core.errors import RolloutError
from delivery.analysis import Measurement, MeasurementPhase
from delivery.plan import Plan
from delivery.progress import BACKGROUND, DEADLINE, WATCH, Tallies, may_step, next_change, runs, silent, tallies_of
from delivery.transitions import Change, Command, Phase, RolloutState, Rules, transition

GOOD, BAD, UNSURE, BROKEN = (
    MeasurementPhase.SUCCESSFUL,
    MeasurementPhase.FAILED,
    MeasurementPhase.INCONCLUSIVE,
    MeasurementPhase.ERROR,
)
HOUR, DAY = 3600.0, 86400.0
IDLE = RolloutState(champion="ppo/v1", version=1)
NONE = tallies_of({})


def metric(name: str, **told: object) -> dict[str, object]:
    return {"name": name, "provider": {"service": "p95_ms"}, "failureCondition": "result > 1", "count": 0, **told}


def plan(*steps: dict[str, object], **told: object) -> Plan:
    templates = {
        "gate": {"metrics": [metric("gate_metric", count=1, successCondition="result <= 1")]},
        "watch": {"metrics": [metric("watched")]},
        "loose": {"metrics": [metric("loose", critical=False), metric("shown", dryRun=True)]},
    }
    used = {name: template for name, template in templates.items() if f"'{name}'" in f"{steps}{told}"}
    return Plan.model_validate({"steps": steps, "analysisTemplates": used, **told})


def analysis(template: str) -> dict[str, object]:
    return {"templates": [{"name": template}]}


def started(plan: Plan, stage: int = 0, at: float = 0.0) -> RolloutState:
    state = transition(IDLE, Change(Command.START, at, challenger="hrm/v1"), Rules(plan, 0.0))
    for number in range(1, stage + 1):
        state = replace(
            state, step=number, weight=plan.stages[number].weight, phase=Phase.CANARY, version=state.version + 1
        )
    return state


def taken(run: str, name: str, *phases: MeasurementPhase, at: float = 1.0) -> Tallies:
    return tallies_of({(run, name): [Measurement(at + i, phase, 1.0, "as measured") for i, phase in enumerate(phases)]})


def test_a_timed_pause_is_over_when_its_time_is_and_not_before() -> None:
    p = plan({"setWeight": 10}, {"pause": {"duration": "5m"}})
    state = started(p, 1)
    assert next_change(state, p, NONE, 299.9) is None
    change = next_change(state, p, NONE, 300.0)
    assert change is not None
    assert change.command is Command.ADVANCE
    state = transition(state, change, Rules(p, 0.0))
    promote = next_change(state, p, NONE, 300.0)
    assert promote is not None
    assert promote.command is Command.PROMOTE
    assert transition(state, promote, Rules(p, 0.0)).champion == "hrm/v1"


def test_a_pause_without_an_end_waits_for_a_person_however_long() -> None:
    p = plan({"pause": {}}, {"setWeight": 10}, progressDeadlineSeconds="1000d")
    assert next_change(started(p), p, NONE, 900 * DAY) is None


@pytest.mark.parametrize(
    ("phases", "stage", "command"),
    [
        ([], 1, None),
        ([GOOD], 1, Command.ADVANCE),
        ([BAD], 1, Command.ROLLBACK),
        ([BAD], 0, Command.ROLLBACK),
        ([UNSURE], 1, Command.ROLLBACK),  # critical, and the challenger decides
        ([UNSURE], 0, Command.PAUSE),
        ([BROKEN] * 4, 1, None),
        ([BROKEN] * 5, 1, Command.ROLLBACK),
        ([BROKEN] * 5, 0, Command.PAUSE),
    ],
)
def test_an_analysis_gate_ends_by_what_was_measured(
    phases: list[MeasurementPhase], stage: int, command: Command | None
) -> None:
    gate = {"analysis": analysis("gate")}
    p = plan(gate, {"setWeight": 10}, gate)
    state = started(p, stage)
    change = next_change(state, p, taken(f"stage {stage}, gate 0", "gate_metric", *phases), 10.0)
    assert (change.command if change else None) is command
    if command is Command.ROLLBACK:
        assert change is not None
        assert change.trigger == "gate_metric"
        assert "as measured" in change.reason


def test_what_was_measured_before_a_resume_is_not_held_against_the_rollout() -> None:
    p = plan({"analysis": analysis("gate")}, {"setWeight": 10})
    state, rules = started(p), Rules(p, 0.0)
    unsure = taken("stage 0, gate 0", "gate_metric", UNSURE)
    pause = next_change(state, p, unsure, 2.0)
    assert pause is not None
    state = transition(state, pause, rules)
    assert next_change(state, p, unsure, 3.0) is None
    state = transition(state, Change(Command.RESUME, 4.0), rules)
    assert next_change(state, p, unsure, 5.0) is None
    assert [run.since for run in runs(state, p, 5.0)] == [4.0]


def test_a_background_analysis_condemns_during_a_pause_of_a_paused_rollout_and_at_a_gate() -> None:
    p = plan({"setWeight": 10}, {"pause": {}}, backgroundAnalysis=analysis("watch") | {"startingStep": 1})
    state = started(p, 1)
    for one in (state, replace(state, paused=True)):
        change = next_change(one, p, taken(BACKGROUND, "watched", GOOD, BAD), 10.0)
        assert change is not None
        assert (change.command, change.trigger) == (Command.ROLLBACK, "watched")
    assert runs(started(p), p, 10.0) == ()  # it starts with stage 1


@pytest.mark.parametrize("phases", [[], [BROKEN], [GOOD, BROKEN]])
def test_no_step_is_taken_while_the_background_analysis_says_nothing(phases: list[MeasurementPhase]) -> None:
    p = plan({"setWeight": 10}, backgroundAnalysis=analysis("watch"))
    measured = taken(BACKGROUND, "watched", *phases)
    assert next_change(started(p, 1), p, measured, 10.0) is None
    change = next_change(started(p, 1), p, taken(BACKGROUND, "watched", *phases, GOOD), 10.0)
    assert change is not None
    assert change.command is Command.PROMOTE


def test_a_metric_that_is_not_critical_pauses_and_one_in_dry_run_is_only_shown() -> None:
    p = plan({"setWeight": 10}, {"pause": {}}, backgroundAnalysis=analysis("loose"))
    state = started(p, 1)
    change = next_change(state, p, taken(BACKGROUND, "loose", UNSURE), 10.0)
    assert change is not None
    assert change.command is Command.PAUSE
    assert next_change(state, p, taken(BACKGROUND, "shown", BAD), 10.0) is None


@pytest.mark.parametrize("paused", [False, True])
@pytest.mark.parametrize("abort", [False, True])
def test_no_stage_lasts_longer_than_its_deadline(abort: bool, paused: bool) -> None:
    p = plan({"pause": {}}, {"setWeight": 10}, progressDeadlineSeconds="1h", progressDeadlineAbort=abort)
    state = replace(started(p), paused=paused)
    assert next_change(state, p, NONE, HOUR) is None
    change = next_change(state, p, NONE, HOUR + 1)
    if abort:
        assert change is not None
        assert (change.command, change.trigger) == (Command.ROLLBACK, DEADLINE)
    else:
        assert (change.command if change else None) is (None if paused else Command.PAUSE)


def test_after_the_promotion_the_watch_brings_the_old_champion_back_within_its_window() -> None:
    p = plan({"setWeight": 10}, postPromotionAnalysis=analysis("watch"), rollbackWindow="1h")
    state = replace(started(p, 1), paused=False)
    state = transition(state, Change(Command.PROMOTE, 100.0), Rules(p, 0.0))
    bad = taken(WATCH, "watched", BAD, at=101.0)
    change = next_change(state, p, bad, 110.0)
    assert change is not None
    assert transition(state, change, Rules(p, 0.0)).champion == "ppo/v1"
    assert next_change(state, p, bad, 100.0 + HOUR) is None  # the window is over
    assert next_change(state, p, taken(WATCH, "watched", BAD, at=50.0), 110.0) is None  # before the promotion


def session(day: int, *, expiry: bool = False) -> dict[str, object]:
    opens = day * DAY + 9 * HOUR
    return {"day": f"2026-01-{day + 1:02d}", "open": opens, "close": opens + 6 * HOUR, "expiry": expiry}


MARKET = {"quiet": "15m", "sessions": [session(0), session(1), session(2, expiry=True), session(3)]}


@pytest.mark.parametrize(
    ("at", "may"),
    [
        (8.9 * HOUR, False),
        (9.2 * HOUR, False),  # just opened
        (9.25 * HOUR, True),
        (14.7 * HOUR, True),
        (14.75 * HOUR, False),  # about to close
        (20 * HOUR, False),
        (2 * DAY + 12 * HOUR, False),  # something expires
        (3 * DAY + 12 * HOUR, True),
    ],
)
def test_steps_are_taken_in_sessions_and_never_near_an_open_a_close_or_an_expiry(at: float, may: bool) -> None:
    p = plan({"setWeight": 10}, market=MARKET)
    assert may_step(p.market, at) is may
    change = next_change(started(p, 1), p, NONE, at)
    assert (change is not None and change.command is Command.PROMOTE) is may


def test_a_pause_of_sessions_counts_only_whole_ones() -> None:
    p = plan({"setWeight": 10}, {"pause": {"sessions": 2}}, market=MARKET)
    state = replace(started(p, 1), gate_at=10 * HOUR)  # within the first
    assert next_change(state, p, NONE, 2 * DAY + 14.9 * HOUR) is None
    change = next_change(state, p, NONE, 2 * DAY + 15 * HOUR)
    assert change is not None
    assert change.command is Command.ADVANCE


def test_a_plan_whose_sessions_are_over_pauses_instead_of_waiting_for_ever() -> None:
    p = plan({"setWeight": 10}, market=MARKET)
    change = next_change(started(p, 1, at=0.0), p, NONE, 4 * DAY)
    assert change is not None
    assert change.command is Command.PAUSE
    assert "sessions are over" in change.reason


def test_a_promotion_waits_for_its_approvals() -> None:
    p = plan({"setWeight": 10}, approvals={"required": 1})
    state = started(p, 1)
    assert next_change(state, p, NONE, 10.0) is None
    approved = transition(state, Change(Command.APPROVE, 5.0, actor="somebody else"), Rules(p, 0.0))
    change = next_change(approved, p, NONE, 10.0)
    assert change is not None
    assert change.command is Command.PROMOTE


def test_the_controller_never_asks_for_what_the_transitions_refuse() -> None:
    """Every change that is proposed is one that can be made."""
    gate = {"analysis": analysis("gate")}
    p = plan(gate, {"setWeight": 10}, {"pause": {"duration": 10}}, gate, {"setWeight": 50}, {"pause": {"duration": 5}})
    state, measured, now = started(p), dict[tuple[str, str], list[Measurement]](), 0.0
    for _ in range(60):
        now += 1.0
        for run in runs(state, p, now):
            measured.setdefault((run.name, "gate_metric"), []).append(Measurement(now, GOOD, 0.0, ""))
        change = next_change(state, p, tallies_of(measured), now)
        if change is not None:
            try:
                state = transition(state, change, Rules(p, 0.0))
            except RolloutError as error:
                pytest.fail(str(error))
    assert state.phase is Phase.PROMOTED


@pytest.mark.parametrize("unclear", [UNSURE, BROKEN])
@pytest.mark.parametrize("paused", [False, True])
def test_a_metric_without_data_hides_no_other_one_that_failed(unclear: MeasurementPhase, paused: bool) -> None:
    first, second = metric("unclear", critical=False, consecutiveErrorLimit=0), metric("failing")
    p = Plan.model_validate(
        {
            "steps": [{"setWeight": 10}, {"pause": {}}],
            "analysisTemplates": {"both": {"metrics": [first, second]}},
            "backgroundAnalysis": analysis("both"),
        }
    )
    phases = {"unclear": [unclear] * 3, "failing": [BAD]}
    tallies = tallies_of(
        {
            (BACKGROUND, name): [Measurement(1.0 + i, one, 1.0, "") for i, one in enumerate(of)]
            for name, of in phases.items()
        }
    )
    change = next_change(replace(started(p, 1), paused=paused), p, tallies, 9.0)
    assert change is not None
    assert (change.command, change.trigger) == (Command.ROLLBACK, "failing")


def test_who_promotes_needs_a_background_analysis_that_speaks_for_it() -> None:
    p = plan({"pause": {}}, {"setWeight": 10}, backgroundAnalysis=analysis("watch"))
    state = started(p)
    assert silent(state, p, NONE, 9.0) == ["watched: not measured"]
    assert silent(state, p, taken(BACKGROUND, "watched", GOOD), 9.0) == []
    assert silent(state, p, taken(BACKGROUND, "watched", GOOD, BROKEN), 9.0) == ["watched error: as measured"]
