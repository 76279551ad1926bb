"""Continuous batching at segment granularity: where the requests of one model meet.

    waiting ──join──> rows that think ──segment──> halted, capped or past their deadline: answered, and gone
                            ^                 │
                            └── the others ───┘

Each of a few threads keeps a batch of its own. Between two segments rows leave it and waiting ones join, so a shallow
decision never waits for a deep one and the batch stays full. A run holds no more rows than lets a decision of full
depth end in time (serving/pace.py): what is waiting waits here, where it can be refused, not in a batch.

Load is shed early: a request that would wait too long is refused when it arrives. A run has a limit of its own: a
model that hangs costs its threads, never the event loop. Whoever passes it was held up by the model (alone, or in one
segment: `inference_timeout`) or, while the machine became slower, by the others of its batch (`overloaded`).
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from cachetools import LRUCache
from numpy.typing import NDArray

from core.errors import ModelError
from core.settings import Performance, Serving, Settings
from serving.allocator import return_memory
from serving.engine import Engine, load_engine
from serving.graph import GPU_PROVIDERS
from serving.pace import Pace, rows_within
from serving.reasoning import UNLIMITED, Decisions, Reasoning, Step

QUEUE_LIMIT_S = 1.0  # a decision that waited longer answers a market that has moved on
# The hard limit of one decision in the batch. Twice the latency trigger's 100 ms: below that the trigger would never
# see the slowness it judges, far above it one stuck run would hold up a trade.
TIMEOUT_FACTOR = 4
PACE_RATIO = 0.75  # of it, for a decision of full depth: the rest is for a machine that slows down meanwhile
FREED_S = 2.0  # after a model was closed nobody holds it any more
WATCH_S = 0.02  # how often limits are looked at
SMOOTHING = 0.1  # of the running mean of what a decision costs
NOT_THE_MODELS_FAULT = frozenset({"inference_timeout", "overloaded", "shutting_down"})

Key = tuple[bytes | float, ...]


class Row(Protocol):
    """What one decision is made on."""

    @property
    def feeds(self) -> Mapping[str, NDArray[np.float32]]:
        """By the names of the graph's inputs, in the shapes of the model's observation."""

    @property
    def complexity(self) -> float: ...

    @property
    def position(self) -> int | NDArray[np.int64]:
        """In {-1, 0, +1}, for the action mask; of a book [K]."""


@dataclass(frozen=True)
class Observation:
    """One row: bars [W, F], account [A], float32."""

    bars: NDArray[np.float32]
    account: NDArray[np.float32]
    complexity: float
    position: int

    @property
    def feeds(self) -> Mapping[str, NDArray[np.float32]]:
        return {"bars": self.bars, "account": self.account}


@dataclass(frozen=True)
class Run:
    """What became of one row. `latency_ms` is the time in the batch, or the time waited when there is no answer."""

    model_id: str
    provider: str
    decisions: Decisions | None  # of one row
    latency_ms: float
    queued_ms: float = 0.0
    cached: bool = False
    error_code: str | None = None
    error: str | None = None

    @property
    def failed(self) -> bool:
        """A run that was too slow is slow, not failed: the latency trigger judges it. Load is nobody's fault."""
        return self.error_code is not None and self.error_code not in NOT_THE_MODELS_FAULT


@dataclass(eq=False)
class _Ticket:
    """A row on its way. Written by the thread that has it, once it has `started`."""

    observation: Row
    cap: int
    deadline: float  # perf_counter, s
    answer: asyncio.Future[Run]
    arrived: float = field(default_factory=time.perf_counter)
    started: float | None = None
    pace: Pace | None = None  # of that thread
    share_s: float = 0.0  # of the pace, when it joined


class Batcher:
    """A loaded model and its threads. `run` belongs to the event loop that made it; `close` ends the threads."""

    def __init__(self, engine: Engine, rows: int, serving: Serving, performance: Performance) -> None:
        """`rows` of one run at most (`rows_within`)."""
        self.engine = engine
        self.rows = rows
        self.on_segment: Callable[[int], None] = lambda rows: None  # told of every run, by its thread
        self._run_limit_s = performance.inference_timeout_ms * TIMEOUT_FACTOR / 1e3
        self._max_waiting = serving.max_waiting
        self._waiting: deque[_Ticket] = deque()
        self._active: set[_Ticket] = set()
        self._changed = threading.Condition()
        self._idle = 0
        self._closed = False
        self._decision_s = 0.0  # of one thread, for one decision: a running mean
        self._known: LRUCache[Key, Decisions] = LRUCache(serving.cache_entries)
        self._loop = asyncio.get_running_loop()
        self._watch = self._loop.create_task(self._watch_limits())
        self._threads = [
            threading.Thread(target=self._work, args=(number,), name=f"{engine.id}-{number}", daemon=True)
            for number in range(1 if engine.provider in GPU_PROVIDERS else cores(serving))
        ]
        self._ready: list[Future[None]] = [Future() for _ in self._threads]
        for thread in self._threads:
            thread.start()

    async def ready(self) -> None:
        """When every thread has its room, on a device with all its runs captured. Raises what one of them met."""
        try:
            await asyncio.gather(*map(asyncio.wrap_future, self._ready))
        except Exception as error:
            await self.close(drain=False)
            if isinstance(error, ModelError):
                raise
            raise ModelError(f"{self.engine.id}: no room on its device: {error}", code="inference_failed") from error

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def thinking(self) -> int:
        return len(self._active)

    def expected_wait_s(self) -> float:
        """What a request that arrives now will wait for its first segment, by what decisions have cost lately."""
        return len(self._waiting) * self._decision_s / len(self._threads)

    async def run(self, row: Row, deadline: float = math.inf, max_segments: int = UNLIMITED) -> Run:
        """Never raises: a failure is a Run with an error. `deadline` is a time.perf_counter()."""
        key = _key(row, max_segments) if self._known.maxsize else None
        if key is not None and (known := self._known.get(key)) is not None:
            return self._run(known, 0.0, cached=True)
        ticket = _Ticket(row, max_segments, deadline, self._loop.create_future())
        refusal = self._refusal(ticket)
        if refusal is not None:
            return refusal
        with self._changed:
            self._waiting.append(ticket)
            self._changed.notify()
        run = await ticket.answer
        if key is not None and run.decisions is not None and run.decisions.halt_reason[0] != "deadline_reached":
            self._known[key] = run.decisions
        return run

    def forget(self) -> int:
        """Decisions that are known already are worked out again from now on; how many they were. On the event loop."""
        known = len(self._known)
        self._known.clear()
        return known

    async def close(self, *, drain: bool = True) -> None:
        """Answer what is here (or, without `drain`, refuse it) and end the threads; one that hangs is left behind."""
        self._closed = True
        limit = time.perf_counter() + (QUEUE_LIMIT_S + self._run_limit_s if drain else 0.0)
        while (self._waiting or self._active) and time.perf_counter() < limit:
            await asyncio.sleep(WATCH_S)
        self._watch.cancel()
        with self._changed:
            left = [*self._waiting, *self._active]
            self._waiting.clear()
            self._changed.notify_all()
        for ticket in left:
            _resolve(ticket, self._error(ticket, "shutting_down", "the model was unloaded"))
        self.engine.stop()
        self._loop.call_later(FREED_S, self._loop.run_in_executor, None, return_memory)

    def _refusal(self, ticket: _Ticket) -> Run | None:
        if self._closed:
            return self._error(ticket, "shutting_down", "the model is being unloaded")
        shapes = {name: array.shape for name, array in ticket.observation.feeds.items()}
        if shapes != self.engine.row_shapes:
            return self._error(ticket, "shape_mismatch", f"got {shapes}, expected {self.engine.row_shapes}")
        if len(self._waiting) >= self._max_waiting:
            return self._error(ticket, "overloaded", f"{self._max_waiting} requests are waiting")
        wait_s = self.expected_wait_s()
        if wait_s > max(0.0, min(QUEUE_LIMIT_S, ticket.deadline - ticket.arrived)):
            return self._error(ticket, "overloaded", f"would wait {wait_s * 1e3:.0f} ms")
        return None

    async def _watch_limits(self) -> None:
        while True:
            await asyncio.sleep(WATCH_S)
            now = time.perf_counter()
            with self._changed:  # the threads take and give back at any moment
                waited: list[_Ticket] = []
                while self._waiting and now - self._waiting[0].arrived > QUEUE_LIMIT_S:
                    waited.append(self._waiting.popleft())
                thought = [each for each in self._active if now - (each.started or now) > self._run_limit_s]
                self._active.difference_update(thought)
            for ticket in waited:
                _resolve(ticket, self._error(ticket, "overloaded", "waited too long for its first segment"))
            for ticket in thought:
                crowded = ticket.pace is not None and ticket.pace.crowded(now)
                code = "overloaded" if crowded else "inference_timeout"
                _resolve(ticket, self._error(ticket, code, "the run took too long"))

    def _error(self, ticket: _Ticket, code: str, why: str) -> Run:
        now = time.perf_counter()
        since = ticket.arrived if ticket.started is None else ticket.started
        queued_ms = 0.0 if ticket.started is None else (ticket.started - ticket.arrived) * 1e3
        return self._run(None, (now - since) * 1e3, queued_ms, error_code=code, error=f"{self.engine.id}: {why}")

    def _run(self, decisions: Decisions | None, latency_ms: float, queued_ms: float = 0.0, **facts: Any) -> Run:
        return Run(self.engine.id, self.engine.provider, decisions, latency_ms, queued_ms, **facts)

    def _work(self, number: int) -> None:
        """A thread's life: let rows join, run a segment, answer who is done."""
        try:  # here, because what is captured on a device belongs to the thread that did it
            reasoning = self.engine.reasoning(self.rows, resident=True)
        except Exception as error:
            self._ready[number].set_exception(error)
            return
        self._ready[number].set_result(None)
        rule = self.engine.manifest.halting
        pace = Pace(self.rows, rule.max_segments if rule else 1, self._run_limit_s * PACE_RATIO)
        tickets: dict[int, _Ticket] = {}
        while (joined := self._take(pace, len(tickets))) is not None:
            if joined:
                tickets |= zip(_join(reasoning, joined), joined, strict=True)
            elif not tickets:
                continue  # those who had asked have gone
            done = self._segment(reasoning, tickets)
            pace.end()
            gone = [slot for slot, ticket in tickets.items() if slot in done or ticket.answer.done()]
            reasoning.leave(np.array(gone, dtype=np.int64))
            self._tell([(tickets.pop(slot), done.get(slot)) for slot in gone], pace)

    def _take(self, pace: Pace, here: int) -> list[_Ticket] | None:
        """Who joins now; an idle thread leaves the others their share. Blocks while idle; None: closed."""
        idle = not here
        with self._changed:
            self._idle += idle
            while idle and not self._waiting and not self._closed:
                self._changed.wait()
            share = -(-len(self._waiting) // self._idle) if idle else len(self._waiting)
            self._idle -= idle
            joined: list[_Ticket] = []
            while self._waiting and len(joined) < min(pace.allowed - here, share):
                ticket = self._waiting.popleft()
                if not ticket.answer.done():  # whoever asked may have gone
                    joined.append(ticket)
            pace.begin(here + len(joined))
            for ticket in joined:
                ticket.started, ticket.pace, ticket.share_s = pace.began, pace, pace.share_s
            self._active.update(joined)
            return None if self._closed and idle and not joined else joined

    def _segment(self, reasoning: Reasoning, tickets: dict[int, _Ticket]) -> dict[int, Run]:
        """One segment of everybody here; the runs of those who are done, by slot."""
        self.on_segment(len(tickets))
        steps, failures = _steps(reasoning)
        now = time.perf_counter()
        done = {slot: self._failure(tickets[slot], error) for slot, error in failures.items()}
        for step in steps:
            late = np.array([tickets[slot].deadline <= now for slot in step.slots.tolist()])
            for row in np.flatnonzero(step.halted | step.broken | late).tolist():
                slot = int(step.slots[row])
                done[slot] = self._finished(tickets[slot], step, row)
        return done

    def _finished(self, ticket: _Ticket, step: Step, row: int) -> Run:
        if step.broken[row]:
            error = ModelError("an output is not finite; roll the model back", code="output_not_finite")
            return self._failure(ticket, error)
        decisions = step.decisions[row : row + 1]
        if not step.halted[row]:
            decisions = replace(decisions, halt_reason=["deadline_reached"])
        return self._run(decisions, *_times(ticket))

    def _failure(self, ticket: _Ticket, error: Exception) -> Run:
        code = error.code if isinstance(error, ModelError) else "inference_failed"
        return self._run(None, *_times(ticket), error_code=code, error=f"{self.engine.id}: {error}")

    def _tell(self, done: list[tuple[_Ticket, Run | None]], pace: Pace) -> None:
        with self._changed:
            self._active.difference_update(ticket for ticket, _ in done)
            for ticket, _ in done:  # also of those who did not wait for it: they cost as much
                self._decision_s += SMOOTHING * (pace.share_s - ticket.share_s - self._decision_s)
        answered = [(ticket, run) for ticket, run in done if run is not None]
        if answered:
            with contextlib.suppress(RuntimeError):  # the loop has ended: nobody waits any more
                self._loop.call_soon_threadsafe(_resolve_all, answered)


async def open_model(settings: Settings, model_id: str) -> Batcher:
    """Load, verify, warm and measure `name/version`, and start its threads. Raises ModelError."""
    serving, performance = settings.serving, settings.performance

    def loaded() -> tuple[Engine, int]:
        engine = load_engine(settings, model_id)
        return engine, rows_within(engine, performance.inference_timeout_ms, serving.max_rows)

    batcher = Batcher(*await asyncio.to_thread(loaded), serving, performance)
    await batcher.ready()
    return batcher


def cores(serving: Serving) -> int:
    """Runs at a time: one for each core that is this process's share."""
    return max(1, len(os.sched_getaffinity(0)) // (serving.threads * serving.workers))


def _join(reasoning: Reasoning, tickets: list[_Ticket]) -> list[int]:
    rows = [ticket.observation for ticket in tickets]
    fed = [row.feeds for row in rows]
    feeds = {name: np.stack([each[name] for each in fed]) for name in fed[0]}
    complexity = np.array([row.complexity for row in rows], dtype=np.float32)
    position = np.array([row.position for row in rows], dtype=np.int64)
    slots: list[int] = reasoning.join(feeds, complexity, position, np.array([t.cap for t in tickets])).tolist()
    return slots


def _steps(reasoning: Reasoning) -> tuple[list[Step], dict[int, Exception]]:
    """One segment of everybody here. A run that fails is repeated row by row: one row's failure is not its mates'."""
    here = reasoning.here
    steps: list[Step] = []
    failures: dict[int, Exception] = {}
    try:
        return [reasoning.step(here)], failures
    except Exception as error:  # whatever a model's arrays may provoke is that model's failure
        if len(here) == 1 or not reasoning.separable:
            return [], dict.fromkeys(here.tolist(), error)
    for slot in here:
        try:
            steps.append(reasoning.step(np.array([slot])))
        except Exception as error:  # as above
            failures[int(slot)] = error
    return steps, failures


def _times(ticket: _Ticket) -> tuple[float, float]:
    """In the batch and in the queue, ms."""
    assert ticket.started is not None  # noqa: S101 - it has joined
    return (time.perf_counter() - ticket.started) * 1e3, (ticket.started - ticket.arrived) * 1e3


def _resolve_all(answered: list[tuple[_Ticket, Run]]) -> None:
    for ticket, run in answered:
        _resolve(ticket, run)


def _resolve(ticket: _Ticket, run: Run) -> None:
    if not ticket.answer.done():
        ticket.answer.set_result(run)


def _key(row: Row, max_segments: int) -> Key:
    """Everything a decision follows from: all bytes of the observation, and the position."""
    seen = [array.tobytes() for array in row.feeds.values()]
    return *seen, np.asarray(row.position).tobytes(), row.complexity, max_segments
