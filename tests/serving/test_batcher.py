"""Continuous batching: who joins, who leaves, who is refused; and that company changes nothing."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from tiny_models import RULE, publish_all, settings_in

from core.errors import ModelError
from core.settings import Settings
from flows.drill_models import FAULT_LEVEL, SCHEMA, publish_policy
from serving.batcher import QUEUE_LIMIT_S, Batcher, Observation, Run, _Ticket, open_model
from serving.engine import Engine, load_engine
from serving.reasoning import Reasoning, Step

W, F, A = SCHEMA.window, len(SCHEMA.bar_features), len(SCHEMA.account_features)

Story = Callable[[Batcher], Awaitable[None]]


def row(depth: float = 1.0, *, level: float = 0.5, complexity: float = 0.0, position: int = 0) -> Observation:
    """The tiny model thinks for `depth` segments (tiny_models)."""
    return Observation(np.full((W, F), level, np.float32), np.full(A, depth - 0.75, np.float32), complexity, position)


def with_model(settings: Settings, model_id: str, story: Story) -> None:
    async def run() -> None:
        batcher = await open_model(settings, model_id)
        try:
            await story(batcher)
        finally:
            await batcher.close(drain=False)

    asyncio.run(run())


def depth_of(run: Run) -> int:
    assert run.decisions is not None, run.error
    return int(run.decisions.segments[0])


def test_rows_leave_at_their_own_depth(settings: Settings) -> None:
    async def story(batcher: Batcher) -> None:
        depths = [1, 6, 2, 3, 1, 5, 4] * 20
        runs = await asyncio.gather(*(batcher.run(row(depth)) for depth in depths))
        assert [depth_of(run) for run in runs] == depths
        assert batcher.waiting == batcher.thinking == 0

    with_model(settings, "hrm/v1", story)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    folder = tmp_path_factory.mktemp("batcher")
    publish_all(folder / "models")
    return settings_in(folder)


@hypothesis_settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(1, 60),
    pauses=st.lists(st.floats(0, 0.003), min_size=1, max_size=5),
)
def test_a_decision_is_bit_for_bit_the_same_in_any_company(
    store: Settings, seed: int, count: int, pauses: list[float]
) -> None:
    random = np.random.default_rng(seed)
    rows = [
        Observation(
            random.normal(size=(W, F)).astype(np.float32),
            random.uniform(0, 6, size=A).astype(np.float32),
            float(random.random()),
            int(random.integers(-1, 2)),
        )
        for _ in range(count)
    ]
    engine = load_engine(store, "hrm/v1")

    async def story(batcher: Batcher) -> None:
        async def later(number: int, each: Observation) -> Run:
            await asyncio.sleep(pauses[number % len(pauses)] * (number % 7))
            return await batcher.run(each)

        runs = await asyncio.gather(*(later(number, each) for number, each in enumerate(rows)))
        for each, run in zip(rows, runs, strict=True):
            alone = engine.decide(
                each.bars[None], each.account[None], np.array([each.complexity]), np.array([each.position])
            )
            assert run.decisions is not None
            assert run.decisions.halt_reason == alone.halt_reason
            for name in ("action", "quantity", "probabilities", "value", "segments", "stable"):
                np.testing.assert_array_equal(getattr(run.decisions, name), getattr(alone, name))

    with_model(store, "hrm/v1", story)


def test_one_rows_nan_is_not_its_mates(settings: Settings) -> None:
    async def story(batcher: Batcher) -> None:
        rows = [row(level=FAULT_LEVEL + 1 if number % 5 == 0 else 0.5) for number in range(50)]
        runs = await asyncio.gather(*(batcher.run(each) for each in rows))
        codes = [run.error_code for run in runs]
        assert codes == ["output_not_finite" if number % 5 == 0 else None for number in range(50)]

    with_model(settings, "nan/v1", story)


def test_past_its_deadline_a_request_is_answered_with_the_best_segment_so_far(settings: Settings) -> None:
    async def story(batcher: Batcher) -> None:
        run = await batcher.run(row(6), deadline=time.perf_counter())
        assert run.decisions is not None
        assert run.decisions.halt_reason == ["deadline_reached"]
        assert depth_of(run) == 1
        replayed = batcher.engine.decide(
            row(6).bars[None], row(6).account[None], np.zeros(1), np.zeros(1, np.int64), max_segments=np.array([1])
        )
        np.testing.assert_array_equal(replayed.quantity, run.decisions.quantity)
        np.testing.assert_array_equal(replayed.action, run.decisions.action)
        assert replayed.halt_reason == ["segments_capped"]

    with_model(settings, "hrm/v1", story)


def test_a_full_queue_refuses_at_once(tmp_path: Path) -> None:
    publish_policy(tmp_path / "models", "slow/v1", "slow", products=2000)
    settings = settings_in(tmp_path, serving={"max_waiting": 3, "max_rows": 1})

    async def story(batcher: Batcher) -> None:
        poison = row(level=FAULT_LEVEL + 1)
        started = time.perf_counter()
        runs = [asyncio.create_task(batcher.run(poison)) for _ in range(40)]
        done, waiting = await asyncio.wait(runs, return_when=asyncio.FIRST_COMPLETED)
        assert time.perf_counter() - started < QUEUE_LIMIT_S
        codes = [task.result().error_code for task in done]
        assert codes.count("overloaded") >= 40 - 3 - len(batcher._threads) - 1
        assert not any(task.result().failed for task in done)  # load is nobody's fault
        for task in waiting:
            task.cancel()

    with_model(settings, "slow/v1", story)


def test_a_request_that_would_wait_past_its_deadline_is_refused_when_it_arrives(settings: Settings) -> None:
    async def story(batcher: Batcher) -> None:
        batcher._decision_s = 10.0  # what decisions have cost lately
        with batcher._changed:  # held by this thread, so that the batcher's own take nothing
            first = asyncio.create_task(batcher.run(row(6)))
            await asyncio.sleep(0)
            late = await batcher.run(row(), deadline=time.perf_counter() + 0.05)
        assert late.error_code == "overloaded"
        assert depth_of(await first) == 6

    with_model(settings, "hrm/v1", story)


def test_closing_answers_what_is_here_and_refuses_what_comes(settings: Settings) -> None:
    async def story(batcher: Batcher) -> None:
        runs = [asyncio.create_task(batcher.run(row(depth))) for depth in (1, 6, 3) * 20]
        await asyncio.sleep(0)
        closing = asyncio.create_task(batcher.close())
        await asyncio.sleep(0)
        refused = await batcher.run(row())
        assert refused.error_code == "shutting_down"
        assert [depth_of(run) for run in await asyncio.gather(*runs)] == [1, 6, 3] * 20
        await closing
        for thread in batcher._threads:
            thread.join(5)
            assert not thread.is_alive()

    with_model(settings, "hrm/v1", story)


def test_a_cancelled_request_leaves_room(settings: Settings) -> None:
    async def story(batcher: Batcher) -> None:
        runs = [asyncio.create_task(batcher.run(row(6))) for _ in range(100)]
        await asyncio.sleep(0)
        for task in runs:
            task.cancel()
        assert depth_of(await batcher.run(row(2))) == 2
        await asyncio.gather(*runs, return_exceptions=True)
        assert batcher.waiting == 0

    with_model(settings, "hrm/v1", story)


def test_a_wrong_shape_is_refused_and_harms_nobody(settings: Settings) -> None:
    async def story(batcher: Batcher) -> None:
        wrong = Observation(np.zeros((W + 1, F), np.float32), np.zeros(A, np.float32), 0.0, 0)
        bad, good = await asyncio.gather(batcher.run(wrong), batcher.run(row(2)))
        assert bad.error_code == "shape_mismatch"
        assert depth_of(good) == 2

    with_model(settings, "hrm/v1", story)


def test_the_rule_bounds_depth_in_company_too(settings: Settings) -> None:
    async def story(batcher: Batcher) -> None:
        runs = await asyncio.gather(
            batcher.run(row(50)), batcher.run(row(1, complexity=1.0)), batcher.run(row(5), max_segments=2)
        )
        assert [depth_of(run) for run in runs] == [RULE.max_segments, 3, 2]

    with_model(settings, "hrm/v1", story)


@hypothesis_settings(max_examples=10, deadline=None)
@given(seeds=st.lists(st.integers(0, 5), min_size=1, max_size=40))
def test_the_cache_never_changes_a_decision(store: Settings, seeds: list[int]) -> None:
    remembering = store.model_copy(update={"serving": store.serving.model_copy(update={"cache_entries": 3})})

    async def answers(batcher: Batcher) -> list[tuple[int, float, int]]:
        found = []
        for seed in seeds:
            random = np.random.default_rng(seed)
            account = random.uniform(0, 6, size=A).astype(np.float32)
            bars = random.normal(size=(W, F)).astype(np.float32)
            run = await batcher.run(Observation(bars, account, 0.2, seed % 3 - 1))
            assert run.decisions is not None
            found.append((int(run.decisions.action[0]), float(run.decisions.quantity[0]), depth_of(run)))
        return found

    both: list[list[tuple[int, float, int]]] = []

    async def story(batcher: Batcher) -> None:
        both.append(await answers(batcher))

    with_model(store, "hrm/v1", story)
    with_model(remembering, "hrm/v1", story)
    assert both[0] == both[1]


def test_the_cache_knows_a_question_by_every_byte_and_the_position(tmp_path: Path) -> None:
    publish_all(tmp_path / "models")
    settings = settings_in(tmp_path, serving={"cache_entries": 8})

    async def story(batcher: Batcher) -> None:
        assert not (await batcher.run(row(2))).cached
        assert (await batcher.run(row(2))).cached
        for other in (row(2, position=1), row(2, complexity=0.1), row(2.0001), row(2, level=0.5001)):
            assert not (await batcher.run(other)).cached
        assert not (await batcher.run(row(2), max_segments=1)).cached

    with_model(settings, "hrm/v1", story)


def test_a_model_without_room_on_its_device_is_refused(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    room = Engine.reasoning

    def full(engine: Engine, rows: int, *, resident: bool = False) -> Reasoning:
        if resident:
            raise RuntimeError("out of memory")
        return room(engine, rows)

    monkeypatch.setattr(Engine, "reasoning", full)
    with pytest.raises(ModelError, match="out of memory"):
        asyncio.run(open_model(settings, "hrm/v1"))


def slowed(monkeypatch: pytest.MonkeyPatch, row_s: float) -> None:
    """From now on a machine on which every row of a segment takes so long."""
    step = Reasoning.step

    def slower(reasoning: Reasoning, slots: Any = None) -> Step:
        time.sleep(row_s * len(reasoning.here if slots is None else slots))
        return step(reasoning, slots)

    monkeypatch.setattr(Reasoning, "step", slower)


def test_on_a_machine_that_became_slow_less_is_taken_on_and_nothing_times_out(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(batcher: Batcher) -> None:
        assert batcher.rows > 20
        slowed(monkeypatch, 0.004)
        runs: list[Run] = []

        async def client() -> None:
            for _ in range(4):
                runs.append(await batcher.run(row(6)))

        await asyncio.gather(*(client() for _ in range(40)))
        assert {run.error_code for run in runs} <= {None, "overloaded"}
        assert sum(run.decisions is not None for run in runs) > 10  # with full batches it would be none
        assert batcher._decision_s > 6 * 0.004 / 2

    with_model(settings, "hrm/v1", story)


def test_a_model_that_is_too_slow_alone_is_told_from_one_with_too_much_company(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(batcher: Batcher) -> None:
        slowed(monkeypatch, 0.06)
        alone = await batcher.run(row(6))
        assert alone.error_code == "inference_timeout"

    with_model(settings, "hrm/v1", story)


def test_those_who_gave_up_are_not_thought_about(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(batcher: Batcher) -> None:
        seen: list[int] = []
        batcher.on_segment = seen.append
        gone = [asyncio.create_task(batcher.run(row())) for _ in range(50)]
        with batcher._changed:  # the threads wait for it
            await asyncio.sleep(0)
            for task in gone:
                task.cancel()
            await asyncio.gather(*gone, return_exceptions=True)
        assert depth_of(await batcher.run(row())) == 1
        assert seen == [1]

    with_model(settings, "hrm/v1", story)


def test_limits_are_looked_at_under_the_lock_that_the_threads_take(settings: Settings) -> None:
    """Or the queue is empty between a look and a grasp, and the watch ends with an IndexError: no limit holds then."""

    class Watched(deque[Any]):
        def __getitem__(self, index: Any) -> Any:
            assert batchers[0]._changed._is_owned()  # type: ignore[attr-defined]  # threading's own way to ask
            return super().__getitem__(index)

    batchers: list[Batcher] = []

    async def story(batcher: Batcher) -> None:
        batchers.append(batcher)
        batcher._waiting = Watched()
        await asyncio.gather(*(batcher.run(row(6)) for _ in range(300)))
        stale = _Ticket(row(), 1, math.inf, asyncio.get_running_loop().create_future(), arrived=-math.inf)
        while batcher._idle < len(batcher._threads):
            await asyncio.sleep(0.001)
        with batcher._changed:
            batcher._waiting.append(stale)  # nobody is notified
        assert (await stale.answer).error_code == "overloaded"
        assert not batcher._watch.done()

    with_model(settings, "hrm/v1", story)
