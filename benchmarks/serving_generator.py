"""The process behind `measured`: `python -m benchmarks.serving_generator`, a Load from stdin, one JSON object out.

HTTP/1.1 over asyncio protocols: an HTTP library would cost as much as what it is to measure. What this costs is in
`client_us`, and what the server does in `server_us`: CPU time per answer, which a busy machine changes far less than
the time on the clock. serving_echo.py is a server that costs next to nothing.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import sys
import time
from collections import Counter, deque
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from benchmarks.serving_load import DRAIN_S, Load

HTTP_OK = 200
BACK_OFF_S = 0.02  # after a refusal: a client that hammers a full service is another benchmark
_ACTION = re.compile(rb'"action":\s*(\d+)')
_SEGMENTS = re.compile(rb'"segments":\s*(\d+)')
_SAFE = re.compile(rb'"role":\s*"safe"')


def answer_in(buffer: bytes | bytearray) -> tuple[int, bytes] | None:
    """Status and body of the HTTP answer that `buffer` holds, None while it is incomplete."""
    end = buffer.find(b"\r\n\r\n")
    if end < 0:
        return None
    head = bytes(buffer[:end]).lower()
    status = int(head[9:12])
    if b"transfer-encoding: chunked" in head:
        return (status, bytes(buffer[end + 4 :])) if buffer.endswith(b"0\r\n\r\n") else None
    place = head.find(b"content-length:")
    length = int(head[place + 15 : (head + b"\r\n").find(b"\r\n", place)]) if place >= 0 else 0
    body = bytes(buffer[end + 4 : end + 4 + length])
    return (status, body) if len(body) == length else None


class _Connection(asyncio.Protocol):
    """One keep-alive connection with at most one request under way; connects again when it is lost."""

    def __init__(self, run: _Run, number: int) -> None:
        self._run = run
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None
        self._back_off: asyncio.TimerHandle | None = None
        self.next = number * 7919  # where in the requests it begins: no two alike, whatever their number
        self.sent: tuple[float, int] | None = None  # since when, which request

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - asyncio's own; for the type checker
        self._transport = transport
        self._run.free(self)

    def send(self, since: float) -> None:
        assert self._transport is not None  # noqa: S101 - a free connection is connected
        requests = self._run.load.requests
        self.sent = (since, self.next % len(requests))
        self.next += 1
        self._transport.write(requests[self.sent[1]])

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        answer = answer_in(self._buffer)
        if answer is None:
            return
        self._buffer.clear()
        sent, self.sent = self.sent, None
        if sent is not None:
            accepted = self._run.answered(*sent, *answer)
            if accepted:
                self._run.free(self)
            else:
                self._back_off = self._run.loop.call_later(BACK_OFF_S, self._run.free, self)

    def connection_lost(self, exc: Exception | None) -> None:
        lost, self.sent, self._transport = self.sent, None, None
        self._buffer.clear()
        if self._back_off is not None:  # it is free when it is connected again
            self._back_off.cancel()
        if not self._run.over:
            self._run.lost(self, under_way=lost is not None)


class _Run:
    """What was answered between the end of the warm-up and the end of the load."""

    def __init__(self, load: Load, loop: asyncio.AbstractEventLoop) -> None:
        self.load, self.loop = load, loop
        loop.set_exception_handler(self._failed)
        self.errors: Counter[str] = Counter()
        self.over = False
        self._tasks: set[asyncio.Task[Any]] = set()
        self._idle: dict[_Connection, None] = {}  # in the order in which they became free
        self._due: deque[float] = deque()
        self._latency_s: list[float] = []
        self._depth: list[int] = []
        self._choices: dict[int, tuple[int, int]] = {}
        self._from = self._until = float("inf")

    async def go(self) -> dict[str, Any]:
        connections = [_Connection(self, number) for number in range(self.load.clients)]
        started = time.perf_counter()
        self._from = started + self.load.warmup_s
        self._until = self._from + self.load.seconds
        await asyncio.gather(*(self._open(each) for each in connections))
        pace = asyncio.create_task(self._pace()) if self.load.rate_per_s else None
        await asyncio.sleep(self._from - time.perf_counter())
        before = _cpu_s(self.load.pid), _cpu_s(None)
        self.errors.clear()
        await asyncio.sleep(self._until - time.perf_counter())
        after = _cpu_s(self.load.pid), _cpu_s(None)
        errors = dict(self.errors)
        self.over = True
        if pace is not None and not pace.cancel():
            pace.result()  # it has ended by itself, which it never should: this raises why
        await self._drain(connections)
        unanswered = sum(each.sent is not None for each in connections)
        if unanswered:
            errors["unanswered"] = unanswered
        return self.summary(errors, [b - a for a, b in zip(before, after, strict=True)])

    def lost(self, connection: _Connection, *, under_way: bool) -> None:
        self.errors["connection lost" if under_way else "idle connection lost"] += 1
        self._idle.pop(connection, None)
        task = self.loop.create_task(self._open(connection, BACK_OFF_S))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _open(self, connection: _Connection, pause_s: float = 0.0) -> None:
        await asyncio.sleep(pause_s)
        while not self.over:
            try:
                await self.loop.create_connection(lambda: connection, self.load.host, self.load.port)
            except OSError:
                self.errors["not connected"] += 1
                await asyncio.sleep(BACK_OFF_S)
            else:
                return

    def free(self, connection: _Connection) -> None:
        """The connection's turn: the next request at once, the oldest one due, or none yet."""
        if self.over:
            return
        if self.load.rate_per_s is None:
            connection.send(time.perf_counter())
        elif self._due:
            connection.send(self._due.popleft())
        else:
            self._idle[connection] = None

    def answered(self, since: float, which: int, status: int, body: bytes) -> bool:
        """Take note; whether it was the answer asked for."""
        now = time.perf_counter()
        if status != HTTP_OK or _SAFE.search(body):
            self.errors["held: no model answered" if status == HTTP_OK else f"status {status}"] += 1
            return False
        if self._from <= now < self._until:
            segments, action = _SEGMENTS.search(body), _ACTION.search(body)
            self._latency_s.append(now - since)
            self._depth.append(int(segments[1]) if segments else 0)
            self._choices[which] = (int(action[1]) if action else -1, self._depth[-1])
        return True

    def _failed(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Whatever goes wrong here, such as an answer that is no HTTP, is an error of the load."""
        self.errors[f"{context['message']}: {context.get('exception')!r}"] += 1

    async def _pace(self) -> None:
        assert self.load.rate_per_s is not None  # noqa: S101 - started for an open loop only
        gaps, due = random.Random(0), time.perf_counter()
        while True:
            due += gaps.expovariate(self.load.rate_per_s)
            await asyncio.sleep(due - time.perf_counter())
            if self._idle:
                longest = next(iter(self._idle))
                del self._idle[longest]
                longest.send(due)
            else:
                self._due.append(due)

    async def _drain(self, connections: list[_Connection]) -> None:
        """Let requests under way be answered: a server is not to be found busy by whoever comes next."""
        deadline = time.perf_counter() + DRAIN_S
        while any(each.sent for each in connections) and time.perf_counter() < deadline:
            await asyncio.sleep(0.01)
        for task in list(self._tasks):
            task.cancel()

    def summary(self, errors: dict[str, int], cpu_s: list[float]) -> dict[str, Any]:
        latency_ms, depth = np.array(self._latency_s) * 1e3, np.array(self._depth, dtype=np.int64)
        count = len(latency_ms)
        by_depth = {str(each): _percentiles(latency_ms[depth == each]) for each in np.unique(depth)}
        return {
            "decisions": count,
            "decisions_per_s": count / self.load.seconds,
            "latency_ms": _percentiles(latency_ms),
            "by_depth_ms": by_depth,
            "mean_depth": float(depth.mean()) if count else None,
            "errors": errors,
            "waiting": len(self._due),
            "server_cores": cpu_s[0] / self.load.seconds,
            "server_us": cpu_s[0] / count * 1e6 if count else None,
            "client_us": cpu_s[1] / count * 1e6 if count else None,
            "choices": {str(which): list(choice) for which, choice in self._choices.items()},
        }


def _percentiles(latency_ms: NDArray[np.float64]) -> dict[str, float]:
    if not len(latency_ms):
        return {"count": 0}
    p50, p95, p99 = (float(value) for value in np.percentile(latency_ms, (50, 95, 99)))
    mean, worst = float(latency_ms.mean()), float(latency_ms.max())
    return {"count": len(latency_ms), "mean": mean, "p50": p50, "p95": p95, "p99": p99, "max": worst}


def _cpu_s(pid: int | None) -> float:
    """CPU time of a process and its descendants; of this one for None, 0 for a process that is gone."""
    try:
        root = psutil.Process(pid)
        family = [root, *root.children(recursive=True)] if pid is not None else [root]
        return sum(sum(each.cpu_times()[:2]) for each in family)
    except psutil.NoSuchProcess:
        return 0.0


def main() -> None:
    load = Load.from_json(sys.stdin.read())

    async def go() -> dict[str, Any]:
        return await _Run(load, asyncio.get_running_loop()).go()

    print(json.dumps(asyncio.run(go()), allow_nan=False))  # noqa: T201 - the answer


if __name__ == "__main__":
    main()
