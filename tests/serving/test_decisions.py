"""What is answered when models fail, stall or lose their traffic while they think. Real engines, no HTTP."""

import asyncio
import sqlite3
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_models import publish_hrm, settings_in

from core.errors import DataError, ModelError, RolloutError
from core.settings import Settings
from delivery.routing import bucket
from delivery.transitions import Change, Command, Phase, RolloutState
from flows.drill_models import FAULT_LEVEL, SCHEMA, publish_policy, slow_products
from serving.batcher import Batcher, Observation
from serving.decisions import decide
from serving.engine import Engine
from serving.guard import Trigger
from serving.health import health
from serving.question import Question
from serving.schemas import DecisionRequest, DecisionResponse
from serving.service import Service

W, F, A = SCHEMA.window, len(SCHEMA.bar_features), len(SCHEMA.account_features)


def question(level: float = 1.0, symbol: str = "A", positions: tuple[int, int | None] = (0, None)) -> Question:
    champion, challenger = positions
    accounts: dict[str, Any] = {"champion": {"features": [0.0] * A, "position": champion}}
    if challenger is not None:
        accounts["challenger"] = {"features": [0.0] * A, "position": challenger}
    return DecisionRequest(symbol=symbol, bars=[[level] * F] * W, complexity=0.1, accounts=accounts).question()


POISON = question(FAULT_LEVEL + 1)


async def command(service: Service, name: str, **fields: str) -> None:
    await service.command(Change(Command(name), time.time(), **fields))


async def to_canary(service: Service, challenger: str, promotions: int = 4) -> None:
    await command(service, "start", challenger=challenger)
    for _ in range(promotions):
        await command(service, "promote")


def serve(settings: Settings, story: Callable[[Service], Awaitable[None]], champion: str | None = "ppo/v1") -> None:
    async def run() -> None:
        service = Service(settings, champion)
        await service.open()
        try:
            await story(service)
        finally:
            await service.close()

    asyncio.run(run())


async def until(condition: Callable[[], bool], limit_s: float = 20.0) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        await asyncio.sleep(0.01)


async def ask_until_latched(service: Service) -> list[DecisionResponse]:
    """For more than a moment, if need be: one bad batch condemns nobody."""
    deadline, answers = time.monotonic() + 20.0, []
    while not service.live.state.latched and time.monotonic() < deadline:
        answers.append(await decide(service, POISON))
    return answers


def test_a_failing_challenger_is_answered_for_by_the_champion_in_the_same_question(settings: Settings) -> None:
    async def story(service: Service) -> None:
        await to_canary(service, "nan/v1")
        answer = await decide(service, POISON)
        assert (answer.role, answer.model, answer.fallback) == ("champion", "ppo", True)
        assert answer.action_name == "BUY_LONG"
        assert service.guard.windows["challenger"].failed == 1

    serve(settings, story)


def test_the_champion_that_answers_for_the_challenger_decides_on_the_challengers_account(settings: Settings) -> None:
    async def story(service: Service) -> None:
        await to_canary(service, "nan/v1")
        answer = await decide(service, question(FAULT_LEVEL + 1, positions=(0, 1)))
        assert answer.fallback
        assert answer.action_name == "CLOSE_LONG"  # legal for a long account only
        assert answer.shadow is not None
        assert answer.shadow.action_name == "BUY_LONG"

    serve(settings, story)


def test_when_no_model_answers_the_decision_is_hold_and_says_so(settings: Settings) -> None:
    async def story(service: Service) -> None:
        answer = await decide(service, POISON)
        assert (answer.action_name, answer.quantity, answer.role) == ("HOLD", 1.0, "safe")
        assert (answer.fallback, answer.model, answer.halt_reason) == (True, "none", "no_model_answered")
        assert b'hrm_inference_errors_total{code="output_not_finite"' in service.telemetry.exposition.text()

    serve(settings, story, champion="nan/v1")


def test_a_promoted_champion_that_fails_is_answered_for_by_the_one_before(settings: Settings) -> None:
    async def story(service: Service) -> None:
        await to_canary(service, "nan/v1", promotions=5)
        assert service.live.state.phase is Phase.PROMOTED
        answer = await decide(service, POISON)
        assert (answer.model, answer.fallback) == ("ppo", True)
        await ask_until_latched(service)
        state = service.live.state
        assert (state.phase, state.champion, state.reason) == (Phase.ROLLED_BACK, "ppo/v1", Trigger.ERRORS)

    serve(settings, story)


def test_shadow_runs_condemn_a_challenger_before_it_ever_decides(settings: Settings) -> None:
    async def story(service: Service) -> None:
        await command(service, "start", champion="ppo/v1", challenger="nan/v1")
        for answer in await ask_until_latched(service):
            assert (answer.role, answer.model, answer.fallback) == ("champion", "ppo", False)
        assert service.live.state.reason == Trigger.ERRORS

    serve(settings, story)


def test_a_slow_challenger_costs_a_shadowed_decision_no_more_than_the_inference_limit(tmp_path: Path) -> None:
    publish_policy(tmp_path / "models", "ppo/v1")
    publish_policy(tmp_path / "models", "slow/v1", "slow", products=slow_products(400.0))

    async def story(service: Service) -> None:
        await command(service, "start", champion="ppo/v1", challenger="slow/v1")
        answer = await decide(service, POISON)
        assert (answer.role, answer.shadow, answer.shadow_missing) == ("champion", None, "late")
        assert answer.shadow_latency_ms is not None  # what it has had, so that percentiles are not cut off at the limit
        assert answer.shadow_latency_ms >= service.settings.performance.inference_timeout_ms
        assert b"hrm_shadow_missed_total 1.0" in service.telemetry.exposition.text()
        await until(lambda: service.guard.windows["challenger"].slow == 1)  # late, but counted
        assert service.guard.windows["challenger"].failed == 0  # slow is not failed

    serve(settings_in(tmp_path), story)


def test_a_challenger_beyond_the_hard_limit_is_answered_for_and_rolled_back_as_slow(tmp_path: Path) -> None:
    publish_policy(tmp_path / "models", "ppo/v1")
    publish_policy(tmp_path / "models", "slow/v1", "slow", products=slow_products(800.0))
    settings = settings_in(
        tmp_path,
    )

    async def story(service: Service) -> None:
        await to_canary(service, "slow/v1")
        for _ in range(20):  # more than a moment: one stall of the machine condemns nobody
            answers = await asyncio.gather(*(decide(service, POISON) for _ in range(6)))
            assert all(answer.model == "ppo" for answer in answers)
            if service.live.state.latched:
                break
        assert service.live.state.reason == Trigger.LATENCY

    serve(settings, story)


@pytest.mark.parametrize("stops_in_time", [True, False])
def test_a_decision_made_by_a_model_that_lost_its_traffic_meanwhile_is_not_given_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stops_in_time: bool
) -> None:
    if not stops_in_time:  # as when the rollback comes after the last node of the graph
        monkeypatch.setattr(Engine, "stop", lambda _: None)
    publish_policy(tmp_path / "models", "ppo/v1")
    publish_policy(tmp_path / "models", "slow/v1", "slow", products=slow_products(100.0))

    async def story(service: Service) -> None:
        await to_canary(service, "slow/v1")
        pending = asyncio.create_task(decide(service, POISON))
        await until(lambda: service.live.models[str(service.live.state.challenger)].thinking)  # it is thinking
        await command(service, "abort")
        answer = await pending
        assert (answer.role, answer.model, answer.fallback) == ("champion", "ppo", True)
        assert answer.epoch == service.live.state.epoch

    serve(settings_in(tmp_path), story)


def slow_shadow(folder: Path) -> Settings:
    """A champion that takes 400 ms on POISON and a limit that lets a decision wait for it."""
    publish_policy(folder / "models", "ppo/v1", "slow", products=slow_products(400.0))
    for name in ("fast/v1", "fast/v2"):
        publish_policy(folder / "models", name)
    return settings_in(folder, performance={"inference_timeout_ms": 5000}, triggers={"min_samples": 1000})


def test_a_rollback_during_the_wait_for_the_shadow_takes_the_decision_back(tmp_path: Path) -> None:
    async def story(service: Service) -> None:
        await to_canary(service, "fast/v1")
        before = service.live.state.epoch
        pending = asyncio.create_task(decide(service, question(FAULT_LEVEL + 1, positions=(0, 1))))
        await until(lambda: service.guard.windows["challenger"].total == 1)  # it has answered; the shadow thinks
        await command(service, "abort")
        answer = await pending
        assert (answer.role, answer.model, answer.fallback) == ("champion", "ppo", True)
        assert answer.action_name == "CLOSE_LONG"  # on the account of the arm whose position is at stake
        assert answer.epoch == service.live.state.epoch == before + 1

    serve(slow_shadow(tmp_path), story)


def test_what_a_challenger_was_too_busy_for_says_nothing_of_it_and_the_champion_answers(settings: Settings) -> None:
    async def story(service: Service) -> None:
        await to_canary(service, "hrm/v1")
        service.live.models["hrm/v1"]._max_waiting = 0
        for _ in range(5):
            answer = await decide(service, question())
            assert (answer.model, answer.fallback) == ("ppo", True)
        assert len(service.guard.windows["challenger"]) == 0

    serve(settings, story)


def test_a_shadow_carries_the_epoch_it_was_made_in(tmp_path: Path) -> None:
    """Otherwise a challenger that lost its traffic would seem to speak under the new epoch."""
    publish_policy(tmp_path / "models", "ppo/v1")
    publish_policy(tmp_path / "models", "slow/v1", "slow", products=slow_products(400.0))
    settings = settings_in(tmp_path, performance={"inference_timeout_ms": 5000}, rollout={"steps": [1, 100]})

    async def story(service: Service) -> None:
        await to_canary(service, "slow/v1", promotions=1)
        symbol = next(f"S{i}" for i in range(1000) if bucket(settings.rollout.salt, f"S{i}") > 0.01)
        before = service.live.state.epoch
        pending = asyncio.create_task(decide(service, question(FAULT_LEVEL + 1, symbol)))
        await until(lambda: service.guard.windows["champion"].total == 1)
        await command(service, "promote")  # now the challenger decides for this symbol too
        answer = await pending
        assert (answer.model, answer.epoch) == ("slow", before + 1)
        assert answer.shadow is not None
        assert (answer.shadow.model, answer.shadow.epoch) == ("slow", before)

    serve(settings, story)


@pytest.mark.parametrize("promotions", [0, 4])
def test_a_failure_that_both_arms_share_is_the_inputs_and_condemns_nobody(settings: Settings, promotions: int) -> None:
    publish_policy(settings.paths.state_dir / "models", "nan/v2", "not_finite")

    async def story(service: Service) -> None:
        await to_canary(service, "nan/v2", promotions)
        for _ in range(40):
            answer = await decide(service, POISON)
            assert (answer.role, answer.action_name, answer.shadow_missing) == ("safe", "HOLD", "failed")
        assert service.guard.windows["challenger"].total_failed == 0
        assert not service.live.state.latched
        healthy = await decide(service, question())
        assert not healthy.fallback
        assert len(service.guard.windows["challenger"]) == 1

    serve(settings, story, champion="nan/v1")


def test_a_rollback_takes_effect_although_the_disk_refuses_and_is_durable_once_it_can(settings: Settings) -> None:
    async def story(service: Service) -> None:
        await to_canary(service, "nan/v1")
        blocker = sqlite3.connect(settings.paths.state_dir / "rollout.db", isolation_level=None)
        blocker.execute("BEGIN IMMEDIATE")  # nobody else can write now
        try:
            await ask_until_latched(service)
            assert service.live.state.latched
            assert not service.live.durable
            assert service.store.read().phase is Phase.CANARY
            answer = await decide(service, question())
            assert (answer.role, answer.fallback) == ("champion", False)
            with pytest.raises(RolloutError) as error:
                await command(service, "promote")
            assert error.value.code in ("state_not_durable", "invalid_transition")
        finally:
            blocker.execute("ROLLBACK")
            blocker.close()
        await until(lambda: service.live.durable)
        assert service.store.read().latched
        assert service.live.state.phase is Phase.ROLLED_BACK

    serve(settings, story)


def test_a_change_that_was_committed_before_a_rollback_cannot_bring_the_traffic_back(settings: Settings) -> None:
    """A promotion may reach the disk while the guard has already swapped in memory, and report back after it."""

    async def story(service: Service) -> None:
        await to_canary(service, "nan/v1", promotions=1)
        late = service.store.apply(Change(Command.PROMOTE, time.time()))
        service._roll_back(Change(Command.ROLLBACK, time.time(), "guard"))
        plan = service.store.plan(late)
        service._install(late, plan, {})
        assert service.live.state.latched
        await until(lambda: service.live.durable)
        service._install(late, plan, {})
        assert service.live.state.latched
        assert service.store.read().latched

    serve(settings, story)


def test_an_abort_while_the_first_start_reaches_the_disk_leaves_a_champion_that_answers(settings: Settings) -> None:
    """The start is on disk and not yet in memory, where the abort finds nothing to take back: it waits for it."""

    async def story(service: Service) -> None:
        on_disk, asked = threading.Event(), threading.Event()
        apply = service.store.apply

        def held_up(change: Change, expected_version: int | None = None) -> RolloutState:
            state = apply(change, expected_version)
            if change.command is Command.START:
                on_disk.set()
                assert asked.wait(20)
            return state

        service.store.apply = held_up  # type: ignore[method-assign]  # the real one, and a pause after it
        start = asyncio.create_task(command(service, "start", champion="ppo/v1", challenger="hrm/v1"))
        await until(on_disk.is_set)
        abort = asyncio.create_task(command(service, "abort"))
        await until(lambda: service._aborts == 1)
        asked.set()
        await asyncio.gather(start, abort)
        state = service.live.state
        assert service.live.durable
        assert state == service.store.read()
        assert (state.phase, state.champion, state.rejected) == (Phase.ROLLED_BACK, "ppo/v1", ("hrm/v1",))
        answer = await decide(service, question())
        assert (answer.model, answer.fallback) == ("ppo", False)

    serve(settings, story, champion=None)


def test_an_abort_while_a_start_still_loads_its_models_ends_that_start(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(service: Service) -> None:
        loading, asked = asyncio.Event(), asyncio.Event()
        opened = service._open

        async def held_up(model_id: str) -> Batcher:
            loading.set()
            await asked.wait()
            return await opened(model_id)

        monkeypatch.setattr(service, "_open", held_up)  # the real one, and a pause before it
        start = asyncio.create_task(command(service, "start", challenger="hrm/v1"))
        await loading.wait()
        with pytest.raises(RolloutError) as nothing:
            await command(service, "abort")
        asked.set()
        with pytest.raises(RolloutError) as overtaken:
            await start
        assert (nothing.value.code, overtaken.value.code) == ("nothing_to_abort", "aborted")
        assert service.live.state.phase is Phase.IDLE
        assert service.store.read().phase is Phase.IDLE

    serve(settings, story)


def test_a_start_that_is_refused_loads_nothing(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(service: Service) -> None:
        monkeypatch.setattr("serving.service.open_model", lambda *_: pytest.fail("a model was loaded"))
        with pytest.raises(RolloutError) as error:
            await command(service, "start", champion="hrm/v1", challenger="hrm/v2")
        assert error.value.code == "champion_mismatch"

    serve(settings, story)


def threads_of(model_id: str) -> int:
    return sum(thread.name.startswith(f"{model_id}-") for thread in threading.enumerate())


def test_a_start_that_is_refused_after_it_has_loaded_leaves_nothing_loaded(settings: Settings) -> None:
    async def story(service: Service) -> None:
        change = Change(Command.START, time.time(), challenger="hrm/v2")
        with pytest.raises(RolloutError) as error:
            await service.command(change, expected_version=99)
        assert error.value.code == "stale_version"
        await until(lambda: threads_of("hrm/v2") == 0)

    serve(settings, story)


def test_a_start_and_a_load_of_one_model_at_once_leave_it_loaded_once(settings: Settings) -> None:
    async def story(service: Service) -> None:
        await asyncio.gather(command(service, "start", challenger="hrm/v2"), service.load("hrm/v2"))
        await until(lambda: threads_of("hrm/v2") == len(service.live.models["hrm/v2"]._threads))
        run = await service.live.models["hrm/v2"].run(
            Observation(np.zeros((W, F), np.float32), np.zeros(A, np.float32), 0.0, 0)
        )
        assert run.decisions is not None

    serve(settings, story)


def test_memory_over_the_limit_takes_the_challenger_away_without_a_single_question(tmp_path: Path) -> None:
    publish_policy(tmp_path / "models", "ppo/v1")
    publish_hrm(tmp_path / "models", "hrm/v1")
    settings = settings_in(tmp_path, triggers={"memory_gb": 0.001})

    async def story(service: Service) -> None:
        await command(service, "start", champion="ppo/v1", challenger="hrm/v1")
        await until(lambda: service.live.state.latched)
        assert service.live.state.trigger == Trigger.MEMORY  # the guard's, or the analysis' of the same name

    serve(settings, story)


def test_without_a_challenger_the_guard_only_warns(tmp_path: Path) -> None:
    publish_policy(tmp_path / "models", "ppo/v1")
    alerts = {"memory_warning_gb": 0.001, "memory_mitigation_gb": 0.002}
    settings = settings_in(tmp_path, triggers={"memory_gb": 0.001}, alerts=alerts)

    async def story(service: Service) -> None:
        service.judge()
        assert service.live.state.phase is Phase.IDLE
        document = await health(service)
        assert document["warnings"] == ["memory_warning", "memory_mitigation"]

    serve(settings, story)


def test_each_health_check_fails_for_its_own_reason(tmp_path: Path) -> None:
    publish_policy(tmp_path / "models", "ppo/v1")
    limits = {"memory_limit_gb": 0.001, "inference_timeout_ms": 1e-6}
    settings = settings_in(tmp_path, performance=limits)

    async def story(service: Service) -> None:
        document: Any = await health(service)
        status = {name: check["status"] for name, check in document["individual_checks"].items()}
        assert document["overall_health"] == "unhealthy"
        assert status["check_memory_usage"] == status["check_inference_performance"] == "unhealthy"
        assert status["check_model_loading"] == status["check_hierarchical_convergence"] == "healthy"

    serve(settings, story)


def test_wrong_shapes_are_the_callers_mistake_and_not_the_models(settings: Settings) -> None:
    async def story(service: Service) -> None:
        bad = replace(question(), bars=np.zeros((W + 1, F), np.float32))
        with pytest.raises(DataError, match="bars"):
            await decide(service, bad)
        assert len(service.guard.windows["champion"]) == 0

    serve(settings, story)


def test_models_with_different_observations_cannot_share_a_rollout(settings: Settings) -> None:
    other = SCHEMA.model_copy(update={"bar_features": ("return", "volume")})
    publish_policy(settings.paths.state_dir / "models", "other/v1", schema=other)

    async def story(service: Service) -> None:
        for named in ({"champion": "ppo/v1"}, {}):
            with pytest.raises(ModelError) as error:
                await command(service, "start", challenger="other/v1", **named)
            assert error.value.code == "schema_mismatch"
            assert service.live.state.phase is Phase.IDLE
        await until(lambda: threads_of("other/v1") == 0)

    serve(settings, story)


def test_symbols_are_split_by_weight_and_keep_their_side(settings: Settings) -> None:
    async def roles(service: Service) -> list[str]:
        answers: list[DecisionResponse] = [await decide(service, question(symbol=f"S{i}")) for i in range(60)]
        return [answer.role for answer in answers]

    async def story(service: Service) -> None:
        await to_canary(service, "hrm/v1", promotions=3)
        half = await roles(service)
        assert half == await roles(service)
        assert 15 <= half.count("challenger") <= 45
        await command(service, "promote")
        assert await roles(service) == ["challenger"] * 60

    serve(settings, story)


def test_a_model_that_was_rolled_back_is_stopped_and_unloaded(settings: Settings) -> None:
    async def story(service: Service) -> None:
        await to_canary(service, "hrm/v1")
        engine = service.live.models["hrm/v1"].engine
        await command(service, "abort")
        assert set(service.live.models) == {"ppo/v1"}
        with pytest.raises(ModelError):
            engine.decide(*(np.zeros(shape) for shape in ((1, W, F), (1, A), (1,), (1,))))

    serve(settings, story)


def test_an_abort_takes_the_traffic_before_it_cleans_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """argo#4900: the traffic moved only after the pods of the new version had been given their time to end."""
    monkeypatch.setattr(Engine, "stop", lambda _: None)  # a run that cannot be stopped
    publish_policy(tmp_path / "models", "ppo/v1")
    publish_policy(tmp_path / "models", "slow/v1", "slow", products=slow_products(600.0))

    async def story(service: Service) -> None:
        await to_canary(service, "slow/v1")
        leaving = service.live.models["slow/v1"]
        thinking = asyncio.create_task(decide(service, POISON))
        await until(lambda: leaving.thinking > 0)
        await command(service, "abort", reason="slow")
        answers = [await decide(service, question(symbol=symbol)) for symbol in "BCDEF"]
        assert {answer.role for answer in answers} == {"champion"}
        at_work = [thread.name for thread in threading.enumerate() if thread.name.startswith("slow/v1")]
        assert at_work, "its end was waited for"
        assert (await thinking).role == "champion"

    serve(settings_in(tmp_path), story)
