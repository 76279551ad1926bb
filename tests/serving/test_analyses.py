"""What is told of the analyses: each run with its own measurements, however they came and were asked for."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.settings import load_settings
from delivery.analysis import Measurement, MeasurementPhase, RunPhase, metric_phase
from delivery.plan import Plan
from delivery.store import RolloutStore
from delivery.transitions import Change, Command, RolloutState
from serving.analyses import Analyses
from serving.schemas_rollout import AnalysisRun

ROLLOUT = load_settings(preset="compact", environ={}).rollout.model_copy(update={"cool_down_s": 0.0})
FOREVER = {"count": 0, "inconclusiveLimit": -1}
METRIC = {"provider": {"service": "rss_gb"}, "failureCondition": "result > 4"}
PLAN = Plan.model_validate(
    {
        "steps": [
            {"analysis": {"templates": [{"name": "gate"}]}},
            {"setWeight": 5},
            {"pause": {}},
            {"analysis": {"templates": [{"name": "gate"}]}},
        ],
        "backgroundAnalysis": {"templates": [{"name": "watch"}]},
        "analysisTemplates": {
            "gate": {"metrics": [METRIC | {"name": "memory", "count": 3, "failureLimit": 1, "inconclusiveLimit": 1}]},
            "watch": {
                "metrics": [METRIC | FOREVER | {"name": "level"}, METRIC | FOREVER | {"name": "alert", "dryRun": True}]
            },
        },
    }
)  # fmt: skip
SHADOW_GATE = "stage 0, gate 0"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[RolloutStore]:
    store = RolloutStore(tmp_path / "rollout.db", ROLLOUT)
    yield store
    store.close()


def change(store: RolloutStore, command: Command, *, challenger: str | None = None) -> RolloutState:
    started = Change(command, time.time(), "test", "somebody", champion="ppo/v1", challenger=challenger, plan=PLAN)
    return store.apply(started if challenger else Change(command, time.time(), "test", "somebody"))


def measure(store: RolloutStore, state: RolloutState, run: str, *phases: str, metric: str = "memory") -> None:
    for phase in phases:
        one = Measurement(time.time(), MeasurementPhase(phase), 1.5, "a detail")
        store.record_measurement(state.attempt, run, metric, one)


def told(analyses: Analyses, store: RolloutStore, last: int = 20) -> dict[str, AnalysisRun]:
    state = store.read()
    return {run.run: run for run in analyses.told(store, state, store.plan(state), last).runs}


def test_before_the_first_rollout_there_is_nothing(store: RolloutStore) -> None:
    assert Analyses().told(store, RolloutState(), PLAN, 20).runs == []


def test_each_run_has_its_own_measurements_and_phase(store: RolloutStore) -> None:
    analyses, state = Analyses(), change(store, Command.START, challenger="hrm/v1")
    assert [(run.run, run.phase, run.ended) for run in told(analyses, store).values()] == [
        ("background", RunPhase.PENDING, False),
        (SHADOW_GATE, RunPhase.PENDING, False),
    ]
    measure(store, state, SHADOW_GATE, "successful", "failed")
    measure(store, state, "background", "inconclusive", metric="level")
    runs = told(analyses, store)
    (memory,) = runs[SHADOW_GATE].metrics
    assert (memory.name, memory.phase, memory.taken) == ("memory", RunPhase.RUNNING, 2)
    assert [(one.phase, one.value, one.detail) for one in memory.measurements] == [
        ("successful", 1.5, "a detail"),
        ("failed", 1.5, "a detail"),
    ]
    level, alert = runs["background"].metrics
    assert (level.phase, level.dry_run, alert.phase, alert.dry_run) == ("running", False, "pending", True)
    measure(store, state, SHADOW_GATE, "failed")
    assert told(analyses, store)[SHADOW_GATE].phase is RunPhase.FAILED


def test_what_was_passed_keeps_its_phase_and_what_was_left_early_says_nothing(store: RolloutStore) -> None:
    analyses, state = Analyses(), change(store, Command.START, challenger="hrm/v1")
    measure(store, state, SHADOW_GATE, *3 * ["successful"])
    change(store, Command.ADVANCE)
    change(store, Command.PROMOTE)
    change(store, Command.PROMOTE)  # the wait for a person
    measure(store, state, "stage 1, gate 1", "successful")
    runs = told(analyses, store)
    assert (runs[SHADOW_GATE].ended, runs[SHADOW_GATE].phase) == (True, RunPhase.SUCCESSFUL)
    assert (runs["stage 1, gate 1"].ended, runs["stage 1, gate 1"].phase) == (False, RunPhase.RUNNING)
    change(store, Command.ABORT)
    after = told(analyses, store)
    assert list(after) == list(runs)
    assert all(run.ended for run in after.values())
    assert (after[SHADOW_GATE].phase, after["stage 1, gate 1"].phase) == (RunPhase.SUCCESSFUL, RunPhase.INCONCLUSIVE)


def test_a_resume_lets_a_run_begin_anew(store: RolloutStore) -> None:
    analyses, state = Analyses(), change(store, Command.START, challenger="hrm/v1")
    measure(store, state, SHADOW_GATE, "failed", "successful")
    assert told(analyses, store)[SHADOW_GATE].metrics[0].taken == 2
    change(store, Command.PAUSE)
    resumed = change(store, Command.RESUME)
    (anew,) = told(analyses, store)[SHADOW_GATE].metrics
    assert (anew.taken, anew.phase, told(analyses, store)[SHADOW_GATE].since) == (0, RunPhase.PENDING, resumed.gate_at)
    measure(store, state, SHADOW_GATE, "failed")
    assert told(analyses, store)[SHADOW_GATE].phase is RunPhase.RUNNING  # one failure is tolerated, and it is the first


def test_another_attempt_is_another_story(store: RolloutStore) -> None:
    analyses, first = Analyses(), change(store, Command.START, challenger="hrm/v1")
    measure(store, first, SHADOW_GATE, "failed", "failed")
    assert told(analyses, store)[SHADOW_GATE].phase is RunPhase.FAILED
    change(store, Command.ABORT)
    change(store, Command.START, challenger="hrm/v2")
    assert told(analyses, store)[SHADOW_GATE].phase is RunPhase.PENDING


@pytest.mark.parametrize(("last", "shown"), [(0, 0), (1, 1), (3, 3), (20, 4)])
def test_only_the_latest_are_told_and_all_are_counted(store: RolloutStore, last: int, shown: int) -> None:
    state = change(store, Command.START, challenger="hrm/v1")
    measure(store, state, "background", "error", "error", "error", "successful", metric="level")
    level = told(Analyses(), store, last)["background"].metrics[0]
    assert (level.taken, len(level.measurements)) == (4, shown)
    assert not shown or level.measurements[-1].phase == "successful"


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(st.sampled_from(list(MeasurementPhase)), max_size=3), max_size=5))
def test_asked_in_between_or_not_it_comes_to_the_same(store: RolloutStore, portions: list[list[str]]) -> None:
    number = store.read().version
    state = change(store, Command.START, challenger=f"hrm/v{number}")
    often = Analyses()
    for portion in portions:
        measure(store, state, SHADOW_GATE, *portion)
        told(often, store)
    taken = store.measurements(state.attempt).get((SHADOW_GATE, "memory"), [])
    metric = PLAN.analysis_templates["gate"].metrics[0]
    assert told(often, store) == told(Analyses(), store)
    assert told(often, store)[SHADOW_GATE].phase == metric_phase(metric, taken)
    change(store, Command.ABORT)
