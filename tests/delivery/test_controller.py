"""The controller beside others and beside slow providers; what it decides is test_rollout_progress.py's."""

import asyncio
from contextlib import suppress
from pathlib import Path

import pytest
from desk import LEVEL, Desk, Scripted

from core.errors import RolloutError
from delivery import controller
from delivery.analysis import MeasurementPhase
from delivery.judges import Reading
from delivery.lease import Lease
from delivery.metrics import Metric
from delivery.plan import Plan
from delivery.transitions import UNSTOPPABLE, Change, Phase, RolloutState

GATE = {"analysis": {"templates": [{"name": "level"}]}}
METRIC = LEVEL | {"name": "level", "successCondition": "result <= 1"}
PLAN = Plan.model_validate({"steps": [GATE, {"setWeight": 10}], "analysisTemplates": {"level": {"metrics": [METRIC]}}})


class Slow(Scripted):
    """Answers when it is told to."""

    def __init__(self) -> None:
        self.asked, self.answer = asyncio.Event(), asyncio.Event()

    async def read(self, metric: Metric) -> Reading:
        self.asked.set()
        await self.answer.wait()
        return await super().read(metric)


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def test_a_lease_is_renewed_while_a_provider_thinks(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(controller, "TICK_S", 0.02)
    desk.start(PLAN)
    held: list[bool] = []
    hold = Lease.hold

    def counted(lease: Lease) -> bool:
        held.append(hold(lease))
        return held[-1]

    monkeypatch.setattr(Lease, "hold", counted)

    async def story() -> None:
        desk.source = Slow()
        desk.appoint()
        tick = asyncio.create_task(desk.controller.tick())
        await desk.source.asked.wait()
        while len(held) < 4:
            await asyncio.sleep(0.005)
        desk.source.answer.set()
        await tick

    asyncio.run(asyncio.wait_for(story(), 30))
    assert all(held)
    assert desk.store.read().gate == 1


def test_who_lost_the_lease_meanwhile_records_nothing_and_moves_nothing(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(controller, "TICK_S", 0.02)
    started = desk.start(PLAN)

    async def story() -> None:
        desk.source = Slow()
        desk.appoint()
        tick = asyncio.create_task(desk.controller.tick())
        await desk.source.asked.wait()
        desk.lease.token += 1  # as if another process had taken it
        with pytest.raises(RolloutError) as error:
            await tick
        assert error.value.code == "lease_lost"

    asyncio.run(asyncio.wait_for(story(), 30))
    assert desk.store.read() == started
    assert desk.store.measurements(started.attempt) == {}


def test_the_next_controller_counts_what_the_last_one_measured(desk: Desk) -> None:
    metric = METRIC | {"consecutiveErrorLimit": 4}
    steps = [{"setWeight": 10}, GATE]
    started = desk.start(Plan.model_validate({"steps": steps, "analysisTemplates": {"level": {"metrics": [metric]}}}))
    assert desk.look("error").weight == 10
    for _ in range(4):
        assert desk.look("error").phase is Phase.CANARY
    desk.lease.release()
    desk.appoint()
    assert desk.look("error").latched  # the fifth in a row, of two processes
    (taken,) = desk.store.measurements(started.attempt).values()
    assert [one.phase for one in taken] == [MeasurementPhase.ERROR] * 5


def test_of_two_controllers_one_stands_by(desk: Desk) -> None:
    desk.start(PLAN)
    desk.look("nothing", 0.0)
    first = desk.controller
    desk.appoint()
    state = desk.store.read()
    assert desk.look("bad", 5.0) == state
    desk.controller = first
    assert desk.look("good", 5.0).version >= state.version


def test_nothing_is_written_while_nothing_is_under_way(desk: Desk) -> None:
    with desk.store.engine.connect() as connection:
        before = connection.exec_driver_sql("PRAGMA data_version").scalar()
        desk.look()
        desk.start(Plan.model_validate({"steps": [{"setWeight": 10}]}))
        desk.ask("abort")
        changed = connection.exec_driver_sql("PRAGMA data_version").scalar()
        desk.look()
        assert before != changed == connection.exec_driver_sql("PRAGMA data_version").scalar()
    assert desk.lease.token == 0


def test_what_was_found_is_told_by_metric_and_phase(desk: Desk) -> None:
    told: list[tuple[str, str]] = []
    desk.start(PLAN)
    desk.controller._measured = lambda metric, phase: told.append((metric, phase))
    desk.look("good")
    assert told == [("level", "successful")]


def test_a_look_is_heard_though_the_plan_measures_nothing_and_only_of_whoever_holds_the_lease(desk: Desk) -> None:
    heard: list[str] = []
    desk.controller._looked = lambda: heard.append("first")
    desk.look()
    assert heard == []  # nothing is under way
    desk.start(Plan.model_validate({"steps": [{"setWeight": 10}, {"pause": {}}]}))
    desk.look()
    desk.look()
    assert heard == ["first", "first"]
    desk.appoint()
    desk.controller._looked = lambda: heard.append("second")
    desk.look()
    assert heard == ["first", "first"]


def test_a_webhook_that_says_no_is_not_asked_every_second_and_holds_up_no_rollback(desk: Desk) -> None:
    asked: list[str] = []

    async def denied(change: Change, decided_on: RolloutState) -> None:
        asked.append(change.command)
        if change.command not in UNSTOPPABLE:
            raise RolloutError("not before lunch", code="webhook_denied", retryable=True)

    desk.start(Plan.model_validate({"steps": [{"setWeight": 10}], "progressDeadlineSeconds": "5m"}))
    desk.controller._act = denied
    for _ in range(61):
        with suppress(RolloutError):
            desk.look()
    assert asked == ["promote"] * 3  # at once, and twice in a minute
    desk.look(after_s=300.0)
    assert asked[3:] == ["rollback"]


class Unforeseen(Scripted):
    async def read(self, metric: Metric) -> Reading:
        raise OverflowError("nobody thought of that")


def test_a_metric_that_nobody_foresaw_is_an_error_of_that_metric_alone(desk: Desk) -> None:
    started = desk.start(PLAN)
    desk.source = Unforeseen()
    desk.appoint()
    for _ in range(5):
        desk.look()
    (taken,) = desk.store.measurements(started.attempt).values()
    assert {one.phase for one in taken} == {MeasurementPhase.ERROR}
    assert "OverflowError" in taken[0].detail


def test_while_a_step_is_asked_about_what_fails_is_taken_back(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(controller, "TICK_S", 0.02)
    watched = {"name": "watched", "count": 0} | LEVEL
    desk.start(
        Plan.model_validate(
            {
                "steps": [{"setWeight": 10}, {"pause": {"duration": 1}}, {"setWeight": 50}],
                "analysisTemplates": {"level": {"metrics": [watched]}},
                "backgroundAnalysis": {"templates": [{"name": "level"}]},
            }
        )
    )
    desk.look()
    asked = asyncio.Event()

    async def act(change: Change, decided_on: RolloutState) -> None:
        if change.command not in UNSTOPPABLE:
            asked.set()
            await asyncio.Event().wait()  # a receiver that never answers
        desk.store.apply(change)

    async def story() -> None:
        beside = controller.Controller(desk.store, desk.lease, act, desk.source, clock=lambda: desk.now)
        desk.now += 2.0
        assert await beside.tick() is None
        assert asked.is_set()
        desk.now += 2.0
        desk.source.reading = "bad"
        await beside.tick()

    asyncio.run(asyncio.wait_for(story(), 30))
    assert desk.store.read().latched


def test_what_another_controller_measured_meanwhile_is_read_when_the_lease_comes_back(desk: Desk) -> None:
    metric = METRIC | {"consecutiveErrorLimit": 1}
    steps = [{"setWeight": 10}, GATE]
    desk.start(Plan.model_validate({"steps": steps, "analysisTemplates": {"level": {"metrics": [metric]}}}))
    desk.look("error")
    first, lease = desk.controller, desk.lease
    lease.release()
    desk.appoint()
    desk.look("error")  # one, by the second
    desk.lease.release()
    desk.controller, desk.lease = first, lease
    assert desk.look("error").latched
