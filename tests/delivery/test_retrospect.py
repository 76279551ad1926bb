"""Judged again: by the same plan it is the same, by another one what that would have said, as far as is on record."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from desk import Desk, Scripted
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.errors import DataError, RolloutError
from delivery import tables
from delivery.analysis import MeasurementPhase, RunPhase, tallied
from delivery.earned import Earned, Pairs
from delivery.judges import Reading
from delivery.losses import Arms, Ledger, LossStore, Outcome, Page, joined
from delivery.metrics import Metric
from delivery.plan import Plan
from delivery.progress import measurements, runs
from delivery.retrospect import CANNOT, Judgement, MetricAgain, judged_again
from delivery.transitions import ACTIVE, Phase

LEVEL = {"name": "level", "provider": {"service": "p95_ms"}, "interval": 1}
LIMIT = LEVEL | {"successCondition": "result <= 80", "failureCondition": "result > 100"}
MONEY = {"name": "money", "provider": {"service": "outcome_bps"}, "interval": 2}
FOREVER = {"count": 0, "inconclusiveLimit": -1}
PATIENT = {"count": 9, "inconclusiveLimit": -1}


def plan(*steps: dict[str, Any], metrics: Sequence[dict[str, Any]] = (LIMIT,)) -> Plan:
    """A gate is `analysis: {templates: [{name: gate}]}`."""
    templates = {"gate": {"metrics": list(metrics)}} if any("analysis" in step for step in steps) else {}
    return Plan.model_validate({"steps": list(steps), "analysisTemplates": templates})


GATE = {"analysis": {"templates": [{"name": "gate"}]}}
GATED = plan(GATE, {"setWeight": 10}, {"pause": {}})


class Told(Scripted):
    """A source of whatever readings a test wants, by metric; an exception is raised."""

    def __init__(self) -> None:
        self.next: dict[str, Reading | DataError] = {}

    async def read(self, metric: Metric) -> Reading:
        found = self.next.get(metric.name, Reading())
        if isinstance(found, DataError):
            raise found
        return found


class Story(Desk):
    """A desk with readings of a test's own, and outcomes."""

    source: Told

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.source = Told()
        self.appoint()

    def reads(self, *found: Reading | DataError, name: str = "level") -> None:
        """One look for each."""
        for one in found:
            self.source.next[name] = one
            self.look()

    def earns(self, *pairs: tuple[float, float]) -> Reading:
        """Outcomes of both arms, and what is then read of all of them."""
        attempt = self.store.read().attempt
        ledger, earned, pages = Ledger(attempt), list[Earned](), dict[Page, Arms]()
        for champion_bps, challenger_bps in pairs:
            outcome = Outcome("A", "2026-03-02", champion_bps, challenger_bps)
            pages = joined(pages, ledger.add(outcome))
            earned.append(Earned(attempt, self.now, outcome))
        if pairs:
            LossStore(self.store.engine).write(pages, earned)
        state = self.store.read()
        since = state.stage_at if state.phase is Phase.PROMOTED else 0.0
        champion, challenger = Pairs(self.store.engine, attempt, since).read()
        return Reading(samples=len(champion), champion=champion, challenger=challenger)

    def again(self, other: Plan | None = None) -> Judgement:
        state = self.store.read()
        return judged_again(self.store, state.attempt, other or self.store.plan(state))


@pytest.fixture
def story(tmp_path: Path) -> Iterator[Story]:
    story = Story(tmp_path)
    yield story
    story.store.close()


def of(judgement: Judgement, run: str, metric: str = "level") -> MetricAgain:
    (found,) = [one for one in judgement.metrics if (one.run, one.metric) == (run, metric)]
    return found


RANKS = MONEY | PATIENT | {"name": "ranks", "judge": {"kind": "mann_whitney", "batch": 1}, "count": 1, "dryRun": True}
ERRORS = {"name": "errors", "provider": {"service": "error_ratio"}, "judge": {"kind": "sprt"}, "interval": 1}
RATIO = {"name": "ratio", "provider": {"service": "slow_ratio"}, "failureCondition": "result > args.limit"}
CARELESS = {"onNoData": "fail", "failureLimit": 2, "interval": 1, "critical": False}
PAIRED = {"judge": {"kind": "conf_seq", "direction": "decrease", "batch": 1}}
WATCH = [ERRORS | FOREVER, MONEY | FOREVER | PAIRED, RATIO | FOREVER | CARELESS]
COUNTED = LIMIT | {"minSamples": 3, "failureLimit": 1, "inconclusiveLimit": 2, "count": 3}
EVERYTHING = Plan.model_validate(
    {
        "steps": [GATE, {"setWeight": 10}, {"pause": {"duration": 5}}, {"setWeight": 50}, GATE],
        "backgroundAnalysis": {"templates": [{"name": "watch"}], "startingStep": 1},
        "postPromotionAnalysis": {"templates": [{"name": "watch"}]},
        "rollbackWindow": 20,
        "progressDeadlineSeconds": 40,
        "analysisTemplates": {
            "gate": {"metrics": [COUNTED, RANKS]},
            "watch": {"args": {"limit": 0.3}, "metrics": WATCH},
        },
    }
)

numbers = st.sampled_from([0.0, 0.2, 80.0, 90.0, 101.0, math.nan, math.inf]) | st.none()
readings = st.builds(Reading, numbers, st.sampled_from([0, 2, 3, 1000]), st.sampled_from([0, 1, 40]))
failing = st.just(DataError("nobody answers", code="provider_failed", retryable=True))
bps = st.sampled_from([-3.0, 0.0, 1.0, 5.0])
ALL_IS_WELL = {"level": Reading(0.2, 1000), "errors": Reading(0.0, 1000, 0), "ratio": Reading(0.2, 1000, 200)}
looks = st.just(ALL_IS_WELL) | st.fixed_dictionaries(
    {"level": readings | failing, "errors": readings | failing, "ratio": readings},
    optional={"earned": st.lists(st.tuples(bps, bps), min_size=5, max_size=15)},
)
commands = st.sampled_from(["promote", "pause", "resume", "abort", "wait"])


@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 18), st.lists(looks | looks | looks | commands, max_size=10))
def test_by_the_same_plan_everything_is_as_it_was(well: int, moves: list[Any]) -> None:
    """So many looks at which all is well, which is how far it comes, and then anything."""
    with tempfile.TemporaryDirectory() as folder:
        story = Story(Path(folder))
        started = story.start(EVERYTHING)
        for move in [*well * [ALL_IS_WELL], *moves]:
            if move == "wait":
                story.now += 30
            elif isinstance(move, str):
                with suppress(RolloutError):
                    story.ask(move)
            else:
                story.source.next = {name: read for name, read in move.items() if name != "earned"}
                story.source.next |= dict.fromkeys(("money", "ranks"), story.earns(*move.get("earned", ())))
                story.look()
        found = story.again()
        assert found.difference is None
        assert [one.now for one in found.metrics] == [one.was for one in found.metrics]
        assert not any(one.unjudged for one in found.metrics)
        taken = story.store.measurements(started.attempt)
        assert {(one.run, one.metric, one.since): one.was for one in found.metrics} == {
            (run.name, metric.name, run.since): tallied(
                metric, [one for one in measurements(run, metric, taken) if one.at <= until]
            ).phase
            for run, until in runs_of(story, started.attempt)
            for metric, _ in run.metrics
        }
        story.store.close()


def runs_of(story: Story, attempt: int) -> list[tuple[Any, float]]:
    """Each with when the last state it belonged to was over: what a resume ended goes on under another number."""
    states = list(story.store.states(attempt))
    ends = [at for at, _ in states[1:]] + [math.inf]
    found = {}
    for (at, state), until in zip(states, ends, strict=True):
        for run in runs(state, EVERYTHING, at):
            found[run.name, run.since] = run, until
    return list(found.values())


def test_a_stricter_limit_would_have_ended_it_where_it_was_passed(story: Story) -> None:
    story.start(GATED)
    story.reads(Reading(75.0, samples=50))
    assert story.store.read().gate == 1
    strict = plan(GATE, {"setWeight": 10}, {"pause": {}}, metrics=[LEVEL | {"failureCondition": "result > 70"}])
    found = story.again(strict)
    one = of(found, "stage 0, gate 0")
    assert (one.was, one.now, one.taken, one.unjudged) == (RunPhase.SUCCESSFUL, RunPhase.FAILED, 1, 0)
    assert found.difference is not None
    assert (found.difference.at, found.difference.was) == (1001.0, "advance: stage 0, gate 0: successful")
    assert found.difference.now == "rollback: stage 0, gate 0: level failed: 75: result > 70"
    assert found.plan_was == GATED.sha256 != found.plan_now


def test_what_was_too_little_for_one_plan_may_be_enough_for_another(story: Story) -> None:
    enough = LIMIT | {"minSamples": 100, "inconclusiveLimit": -1, "count": 9}
    story.start(plan(GATE, {"setWeight": 10}, {"pause": {}}, metrics=[enough]))
    story.reads(Reading(120.0, samples=50), Reading(120.0, samples=60))
    (row,) = story.store.measurements(2).values()
    assert [(one.phase, one.value, one.samples) for one in row] == [
        ("inconclusive", 120.0, 50),
        ("inconclusive", 120.0, 60),
    ]
    lenient = plan(GATE, {"setWeight": 10}, {"pause": {}}, metrics=[enough | {"minSamples": 60}])
    found = story.again(lenient)
    assert of(found, "stage 0, gate 0").now is RunPhase.FAILED
    assert found.difference is not None
    assert found.difference.at == 1002.0


def test_counts_may_be_judged_by_a_test_of_another_kind(story: Story) -> None:
    counts = {
        "name": "level",
        "provider": {"service": "error_ratio"},
        "interval": 1,
        "count": 9,
        "inconclusiveLimit": -1,
    }
    limit, test = {"failureCondition": "result > 0.5"}, {"judge": {"kind": "sprt"}}
    story.start(plan(GATE, {"setWeight": 10}, {"pause": {}}, metrics=[counts | limit]))
    story.reads(Reading(0.02, 50, 1), Reading(0.3, 100, 30))
    found = story.again(plan(GATE, {"setWeight": 10}, {"pause": {}}, metrics=[counts | test]))
    assert (of(found, "stage 0, gate 0").was, of(found, "stage 0, gate 0").now) == (RunPhase.RUNNING, RunPhase.FAILED)


def test_pairs_are_judged_as_they_were_then_and_not_with_those_that_came_later(story: Story) -> None:
    pairs = {
        "name": "money",
        "provider": {"service": "outcome_bps"},
        "interval": 1,
        "count": 9,
        "inconclusiveLimit": -1,
    }
    test = {"kind": "conf_seq", "direction": "decrease", "batch": 1}
    noise = np.random.default_rng(1).normal(size=400)
    wide = plan(GATE, {"setWeight": 10}, {"pause": {}}, metrics=[pairs | {"judge": test | {"allowed": 30.0}}])
    story.start(wide)
    for half, worse in ((noise[:200], 0.0), (noise[200:], 9.0)):
        story.reads(story.earns(*((1.0 + bps, 1.0 + bps - worse) for bps in half)), name="money")
    assert [one.samples for one in story.store.measurements(2)["stage 0, gate 0", "money"]] == [200, 400]
    found = story.again(plan(GATE, {"setWeight": 10}, {"pause": {}}, metrics=[pairs | {"judge": test}]))
    assert of(found, "stage 0, gate 0", "money").now is RunPhase.FAILED
    assert found.difference is not None
    assert found.difference.at == 1002.0  # not a look earlier, although all 400 are there now
    with story.store.engine.begin() as connection:
        connection.execute(sa.delete(tables.outcome).where(tables.outcome.c.id > 300))
    assert of(story.again(wide), "stage 0, gate 0", "money").unjudged == 1


def test_an_error_stays_one_under_any_plan(story: Story) -> None:
    patient = LIMIT | {"consecutiveErrorLimit": 1, "count": 9, "inconclusiveLimit": -1}
    story.start(plan(GATE, {"setWeight": 10}, {"pause": {}}, metrics=[patient]))
    story.reads(*3 * [DataError("nobody answers", code="provider_failed", retryable=True)])
    assert story.store.read().paused
    found = story.again(plan(GATE, {"setWeight": 10}, {"pause": {}}, metrics=[patient | {"consecutiveErrorLimit": 4}]))
    one = of(found, "stage 0, gate 0")
    assert (one.was, one.now, one.unjudged) == (RunPhase.ERROR, RunPhase.RUNNING, 0)
    assert found.difference is not None
    assert (found.difference.at, found.difference.now) == (1002.0, "nothing")
    assert found.difference.was.startswith("pause: ")


def test_what_does_not_say_what_it_read_is_inconclusive(story: Story) -> None:
    """Measurements of an older release, and those of something else than the other plan's."""
    story.start(GATED)
    story.reads(Reading(75.0, samples=50))
    elsewhere = LIMIT | {"provider": {"http": {"url": "https://metrics.example/now", "key": "p95"}}}
    other = plan(GATE, {"setWeight": 10}, {"pause": {}}, metrics=[elsewhere])
    for attempt in range(2):
        found = story.again(other if attempt == 0 else GATED)
        one = of(found, "stage 0, gate 0")
        assert (one.was, one.now, one.unjudged) == (RunPhase.SUCCESSFUL, RunPhase.INCONCLUSIVE, 1)
        assert found.difference is not None
        assert CANNOT in found.difference.now
        with story.store.engine.begin() as connection:
            connection.execute(sa.update(tables.measurement).values(samples=None, hits=None))


def test_another_wait_or_weight_is_another_change(story: Story) -> None:
    wait = {"pause": {"duration": 10}}
    story.start(plan(wait, {"setWeight": 10}, {"pause": {}}))
    for _ in range(12):
        story.look()
    assert story.store.read().phase is Phase.CANARY
    for steps, was, now in (
        (({"pause": {"duration": 60}}, {"setWeight": 10}), "advance: stage 0: pause over", "nothing"),
        ((wait, {"setWeight": 20}), "promote to 10 %: ", "promote to 20 %: "),
    ):
        found = story.again(plan(*steps, {"pause": {}})).difference
        assert found is not None
        assert found.was.startswith(was)
        assert found.now.startswith(now)
    assert story.again(plan(wait, {"setWeight": 10}, {"pause": {"duration": 900}})).difference is None  # not yet


def test_a_plan_without_such_a_stage_says_so(story: Story) -> None:
    by_hand: list[dict[str, Any]] = [{"pause": {}}]
    for weight in (5, 10, 20):
        by_hand += [{"setWeight": weight}, {"pause": {}}]
    story.start(plan(*by_hand))
    for _ in range(3):
        story.now += 1
        story.ask("promote")
    story.now += 1
    story.ask("abort")
    found = story.again(plan(*by_hand[:3])).difference
    assert found is not None
    assert "no stage 2" in found.now
    assert story.again(plan(*by_hand)).difference is None


def test_a_resume_lets_a_run_begin_anew_and_each_has_its_own_end(story: Story) -> None:
    story.start(plan(GATE, {"setWeight": 10}, {"pause": {}}, metrics=[LIMIT | {"count": 3, "failureLimit": 1}]))
    story.reads(Reading(120.0))
    story.ask("pause")
    story.now += 1
    story.ask("resume")
    story.reads(Reading(120.0))
    assert story.store.read().phase in ACTIVE
    runs = [one for one in story.again().metrics if one.run == "stage 0, gate 0"]
    assert [(one.taken, one.was, one.now) for one in runs] == [(1, RunPhase.RUNNING, RunPhase.RUNNING)] * 2
    assert len({one.since for one in runs}) == 2


def test_metrics_that_only_one_plan_has_are_told_as_such(story: Story) -> None:
    story.start(GATED)
    story.reads(Reading(75.0))
    other = plan(GATE, {"setWeight": 10}, {"pause": {}}, metrics=[LIMIT | {"name": "other"}])
    found = story.again(other)
    assert (of(found, "stage 0, gate 0").was, of(found, "stage 0, gate 0").now) == (RunPhase.SUCCESSFUL, None)
    one = of(found, "stage 0, gate 0", "other")
    assert (one.was, one.now, one.taken) == (None, RunPhase.PENDING, 0)


def test_an_earlier_attempt_is_judged_by_its_own_states_and_measurements(story: Story) -> None:
    first = story.start(GATED)
    story.reads(Reading(120.0))
    assert story.store.read().latched
    second = story.start(GATED, "hrm/v2")
    story.reads(Reading(75.0))
    phases = [of(judged_again(story.store, state.attempt, GATED), "stage 0, gate 0").now for state in (first, second)]
    assert phases == [RunPhase.FAILED, RunPhase.SUCCESSFUL]


@pytest.mark.parametrize("attempt", [0, 1, 3, 99])
def test_what_is_no_attempt_is_refused(story: Story, attempt: int) -> None:
    story.start(GATED)
    story.look()
    with pytest.raises(RolloutError) as error:
        judged_again(story.store, attempt, GATED)
    assert error.value.code == "no_such_attempt"


def test_judging_again_changes_nothing(story: Story) -> None:
    story.start(GATED)
    story.reads(Reading(75.0))
    before = story.store.recorded(2), story.store.events()
    story.again()
    assert (story.store.recorded(2), story.store.events()) == before
    assert [one.phase for _, _, one in before[0]] == [MeasurementPhase.SUCCESSFUL]
