"""How long it takes from a decision on record to every page that watches, and what one that does not read costs others.

A backend of its own (`python -m backend`), decisions recorded as the service records them, clients over loopback, all
on this machine: clients are parts of one process, whose own time is in the figures. Milliseconds, from the moment that
a record is out of its writer's hands to the moment a client has the message.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from benchmarks.machine import described
from benchmarks.serving_goals import Goal, judged
from core.settings import load_settings
from serving.local_token import read_or_create_token
from serving.record_format import Answer, DecisionFacts, Record
from serving.records import Records

DELIVERIES_PER_S = 1000  # decisions times clients: of 200, five a second, each two messages
MOST_PER_S = 50.0
SETTLE_S = 1.0  # before, and after for what is on its way
READY_WITHIN_S = 60.0
SLOW_BUFFER_BYTES = 4096
GOALS = (
    Goal("fanout_p99_ms", most=250),
    Goal("lost", most=0),
    Goal("dropped_slow_clients", least=1, most=1),
)


@dataclass
class Watched:
    """What the clients have seen. `durable_s`: of each decision, Unix time."""

    durable_s: dict[str, float] = field(default_factory=dict)
    delays_ms: list[float] = field(default_factory=list)

    def told(self, decision_id: str) -> None:
        self.delays_ms.append(1e3 * (time.time() - self.durable_s[decision_id]))


def run(*, clients: int, duration_s: float) -> dict[str, Any]:
    """`clients` that read and one that does not, for so long. Keys: clients, decisions, fanout_*_ms, lost, ..."""
    with tempfile.TemporaryDirectory(prefix="hrm-bench-") as folder, _backend(Path(folder)) as url:
        found = asyncio.run(_measured(Path(folder), url, clients, duration_s))
    return described(1) | found | {"goals": judged(found, "", gpu=False, goals=GOALS)}


async def _measured(state_dir: Path, url: str, clients: int, duration_s: float) -> dict[str, Any]:
    watched, per_s = Watched(), min(MOST_PER_S, DELIVERIES_PER_S / clients)
    headers = {"Authorization": f"Bearer {read_or_create_token(state_dir)}"}
    async with AsyncExitStack() as stack:
        http = await stack.enter_async_context(httpx.AsyncClient(base_url=url, headers=headers, trust_env=False))
        sockets = [await _joined(stack, http, url) for _ in range(clients)]
        slow = await _joined(stack, http, url, slow=True)
        tasks = [asyncio.create_task(_watch(each, watched)) for each in sockets]
        await asyncio.sleep(SETTLE_S)
        await _decide(state_dir, watched, per_s, duration_s)
        await asyncio.sleep(SETTLE_S)
        stream = (await http.get("/api/live-data")).json()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        slow.transport.abort()
    return _figures(watched, clients, stream, per_s)


def _figures(watched: Watched, clients: int, stream: dict[str, Any], per_s: float) -> dict[str, Any]:
    delays = np.array(watched.delays_ms or [np.inf])
    p50, p99 = np.percentile(delays, [50, 99]).tolist()
    return {
        "clients": clients,
        "decisions": len(watched.durable_s),
        "messages_per_s": round(2 * per_s * clients),  # each decision, and its metrics
        "fanout_p50_ms": round(p50, 1),
        "fanout_p99_ms": round(p99, 1),
        "fanout_max_ms": round(float(delays.max()), 1),
        "lost": len(watched.durable_s) * clients - len(watched.delays_ms),
        "dropped_slow_clients": stream["dropped_slow_clients"],
        "clients_at_the_end": stream["clients"],
    }


async def _joined(stack: AsyncExitStack, http: httpx.AsyncClient, url: str, *, slow: bool = False) -> ClientConnection:
    """A client that has said who it is. A slow one takes no more than its small buffers."""
    given = (await http.post("/api/live-data/tickets")).raise_for_status().json()
    address = url.replace("http", "ws", 1) + given["path"]
    more: dict[str, Any] = {"sock": _small(url), "max_queue": 1, "ping_interval": None} if slow else {}
    client = await stack.enter_async_context(connect(address, proxy=None, compression=None, close_timeout=0.1, **more))
    await client.send(json.dumps({"type": "authenticate", "ticket": given["ticket"]}))
    return client


def _small(url: str) -> socket.socket:
    """A connection whose kernel buffer is small."""
    address = httpx.URL(url)
    found = socket.socket()
    found.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SLOW_BUFFER_BYTES)
    found.connect((address.host, address.port))
    return found


async def _watch(client: ClientConnection, watched: Watched) -> None:
    try:
        async for text in client:
            if '"type":"decision"' in str(text)[:40]:
                watched.told(json.loads(text)["data"]["decision_id"])
    except ConnectionClosed:
        return  # it was dropped: what it missed is counted as lost


async def _decide(state_dir: Path, watched: Watched, per_s: float, duration_s: float) -> None:
    """Records decisions evenly over that time."""
    settings = load_settings(preset="compact", environ={"HRM_PATHS__STATE_DIR": str(state_dir)})
    records = Records(state_dir / "decisions", settings.records)
    began = time.monotonic()
    for number in range(int(per_s * duration_s)):
        await asyncio.sleep(began + number / per_s - time.monotonic())
        record = _record(records)
        if not records.write(record):
            raise OSError(f"{state_dir}: {records.problem}")
        watched.durable_s[record.facts.decision_id] = time.time()
    records.close()


def _record(records: Records) -> Record:
    decision_id, at = records.new_id()
    answer = Answer(
        model="hrm/v1",
        manifest_sha256=None,
        onnx_sha256=None,
        provider=None,
        storage=None,
        role="champion",
        position=0,
        segment_cap=None,
        action=4,
        quantity=1.0,
        probabilities=(0.2,) * 5,
        value=0.0,
        segments=2,
        halt_reason="q_learning_decision",
    )
    facts = DecisionFacts(
        decision_id=decision_id,
        at=at,
        deadline_ms=None,
        latency_ms=10.0,
        request_id="bench",
        symbol="NIFTY",
        complexity=0.5,
        epoch=1,
        rung="full",
        fallback=False,
        errors={},
        answer=answer,
    )
    arrays = {"bars": np.zeros((64, 12), np.float32), "account": np.zeros(8, np.float32)}
    return Record(facts, arrays)


@contextmanager
def _backend(state_dir: Path) -> Iterator[str]:
    """The process; its address once it answers."""
    environment = {**os.environ, "HRM_PATHS__STATE_DIR": str(state_dir), "HRM_PRESET": "compact"}
    command = [sys.executable, "-m", "backend", "--port", "0"]
    with (
        (state_dir / "backend.log").open("w+") as log,
        subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT) as process,  # noqa: S603 - ours
    ):
        try:
            yield f"http://127.0.0.1:{_port(state_dir / 'backend.log', process)}"
        finally:
            process.terminate()


def _port(file: Path, process: subprocess.Popen[bytes]) -> int:
    give_up = time.monotonic() + READY_WITHIN_S
    while time.monotonic() < give_up and process.poll() is None:
        for line in file.read_text().splitlines():
            if '"event": "listening"' in line:
                return int(json.loads(line)["port"])
        time.sleep(0.05)
    raise OSError(f"the backend did not begin: {file.read_text()[-500:]}")
