"""A load of HTTP requests from a process of its own, each request's own latency: `python -m benchmarks.serving_load`.

    closed loop   every connection sends its next request when the last one is answered
    open loop     requests fall due at random instants (Poisson) at a fixed rate, whatever became of the others;
                  one that finds no free connection waits, and its latency counts from when it fell due

Reads a `Load` as JSON from stdin, prints one JSON object. HTTP/1.1 over asyncio protocols, since an HTTP library would
cost as much as what it measures; what this one costs is in `client_us` (serving_echo.py gives it a server that costs
next to nothing). Only loopback is loaded, and never longer than asked.
"""

from __future__ import annotations

import asyncio
import base64
import ipaddress
import json
import os
import random
import re
import subprocess
import sys
import time
from collections import Counter, deque
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.peers import ONE_THREAD
from core.errors import ConfigError

ROOT = Path(__file__).resolve().parent.parent
GRACE_S = 60.0  # for the process to start, to connect and to sum up
DRAIN_S = 5.0  # for answers still due when the time is over
BACK_OFF_S = 0.02  # after a refusal: a client that hammers a full service is another benchmark
_DECISION = re.compile(rb'"action":\s*(\d+)')
_SEGMENTS = re.compile(rb'"segments":\s*(\d+)')
_SAFE = b'"role":"safe"'


@dataclass(frozen=True)
class Load:
    """`requests` are whole HTTP requests, taken in turn. `rate_per_s` None: closed loop. `pid`: whose CPU to count."""

    port: int
    requests: tuple[bytes, ...]
    clients: int
    seconds: float
    host: str = "127.0.0.1"
    warmup_s: float = 1.0
    rate_per_s: float | None = None
    pid: int | None = None


def request(method: str, path: str, body: bytes, headers: dict[str, str]) -> bytes:
    """A request as it goes over the wire."""
    lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode("ascii") + body


def measured(load: Load) -> dict[str, Any]:
    """`load` from a process of its own. Raises ConfigError when that process fails: a benchmark without a measure."""
    if not ipaddress.ip_address(load.host).is_loopback:
        raise ConfigError(f"{load.host}: only a server of this machine is loaded; name a loopback address")
    asked = asdict(load) | {"requests": [base64.b64encode(each).decode() for each in load.requests]}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.serving_load"],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=dict(os.environ) | ONE_THREAD,
        timeout=load.warmup_s + load.seconds + DRAIN_S + GRACE_S,
        check=False,
    )
    if done.returncode:
        raise ConfigError(f"the load generator failed: {done.stderr.strip().splitlines()[-1:]}")
    return dict(json.loads(done.stdout))


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
                self._run.loop.call_later(BACK_OFF_S, self._run.free, self)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._run.over:
            self._run.errors["connection lost" if self.sent else "idle connection lost"] += 1
            self._run.connect(self)
        self.sent = None
        self._buffer.clear()


class _Run:
    """What was answered between the end of the warm-up and the end of the load."""

    def __init__(self, load: Load, loop: asyncio.AbstractEventLoop) -> None:
        self.load, self.loop = load, loop
        self.errors: Counter[str] = Counter()
        self.over = False
        self._tasks: set[asyncio.Task[Any]] = set()
        self._idle: deque[_Connection] = deque()
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
        if pace is not None:
            pace.cancel()
        unanswered = len(self._due)
        await self._drain(connections)
        return self._summary(errors, [b - a for a, b in zip(before, after, strict=True)], unanswered)

    def connect(self, connection: _Connection) -> None:
        task = self.loop.create_task(self._open(connection))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _open(self, connection: _Connection) -> None:
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
            self._idle.append(connection)

    def answered(self, since: float, which: int, status: int, body: bytes) -> bool:
        """Take note; whether it was the answer asked for."""
        now = time.perf_counter()
        safe = _SAFE in body.replace(b" ", b"") if status == 200 else False
        if status != 200 or safe:
            self.errors["held: no model answered" if safe else f"status {status}"] += 1
            return False
        if self._from <= now < self._until:
            segments, action = _SEGMENTS.search(body), _DECISION.search(body)
            self._latency_s.append(now - since)
            self._depth.append(int(segments[1]) if segments else 0)
            self._choices[which] = (int(action[1]) if action else -1, self._depth[-1])
        return True

    async def _pace(self) -> None:
        assert self.load.rate_per_s is not None  # noqa: S101 - started for an open loop only
        gaps, due = random.Random(0), time.perf_counter()
        while True:
            due += gaps.expovariate(self.load.rate_per_s)
            await asyncio.sleep(due - time.perf_counter())
            if self._idle:
                self._idle.popleft().send(due)
            else:
                self._due.append(due)

    async def _drain(self, connections: list[_Connection]) -> None:
        """Let requests under way be answered: a server is not to be found busy by whoever comes next."""
        deadline = time.perf_counter() + DRAIN_S
        while any(each.sent for each in connections) and time.perf_counter() < deadline:
            await asyncio.sleep(0.01)
        for task in list(self._tasks):
            task.cancel()

    def _summary(self, errors: dict[str, int], cpu_s: list[float], unanswered: int) -> dict[str, Any]:
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
            "unanswered": unanswered,
            "server_cores": cpu_s[0] / self.load.seconds,
            "client_us": cpu_s[1] / count * 1e6 if count else None,
            "choices": {str(which): list(choice) for which, choice in self._choices.items()},
        }


def _percentiles(latency_ms: np.ndarray[Any, np.dtype[np.float64]]) -> dict[str, float]:
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
    asked = json.load(sys.stdin)
    asked["requests"] = tuple(base64.b64decode(each) for each in asked["requests"])
    load = Load(**asked)

    async def go() -> dict[str, Any]:
        return await _Run(load, asyncio.get_running_loop()).go()

    print(json.dumps(asyncio.run(go()), allow_nan=False))  # noqa: T201 - the answer


if __name__ == "__main__":
    main()
