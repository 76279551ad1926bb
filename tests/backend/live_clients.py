"""Clients of the live stream, over real sockets, and what it is told: records, fills, changes of the rollout."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import numpy as np
from websockets.sync.client import ClientConnection, connect

from serving.record_format import Answer, DecisionFacts, Record
from serving.records import Records

WITHIN_S = 60.0  # and for ever, if it does not come


def ticket(client: httpx.Client) -> dict[str, Any]:
    answer = client.post("/api/live-data/tickets")
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


@contextmanager
def opened(client: httpx.Client, path: str, **options: Any) -> Iterator[ClientConnection]:
    """A connection that has said nothing yet."""
    url = str(client.base_url.copy_with(scheme="ws")).rstrip("/") + path
    with connect(url, proxy=None, close_timeout=1.0, **options) as socket:
        yield socket


@contextmanager
def listening(client: httpx.Client, **said: Any) -> Iterator[ClientConnection]:
    """A connection that is authenticated."""
    given = ticket(client)
    with opened(client, given["path"]) as socket:
        socket.send(json.dumps({"type": "authenticate", "ticket": given["ticket"], **said}))
        yield socket


def heard(socket: ClientConnection, kind: str, **wanted: Any) -> dict[str, Any]:
    """The next message of a kind whose data has those values; what comes before is passed over."""
    while True:
        message: dict[str, Any] = json.loads(socket.recv(timeout=WITHIN_S))
        data = message.get("data", {})
        if message["type"] == kind and all(data.get(name) == value for name, value in wanted.items()):
            return message


def decided(records: Records, symbol: str = "NIFTY", *, segments: int = 2, model: str | None = "hrm/v1") -> str:
    """A decision on record, as the service writes it; its id."""
    decision_id, at = records.new_id()
    answer = Answer(
        model=model,
        manifest_sha256=None,
        onnx_sha256=None,
        provider=None,
        storage=None,
        role="champion" if model else "safe",
        position=0,
        segment_cap=None,
        action=4,
        quantity=1.0,
        probabilities=(0.2,) * 5,
        value=0.0,
        segments=segments,
        halt_reason="q_learning_decision" if segments < 8 else "max_segments_reached",
    )
    facts = DecisionFacts(
        decision_id=decision_id,
        at=at,
        deadline_ms=None,
        latency_ms=12.5,
        request_id="r1",
        symbol=symbol,
        complexity=0.25,
        epoch=1,
        rung="full",
        fallback=False,
        errors={},
        answer=answer,
    )
    assert records.write(Record(facts, {"bars": np.zeros((2, 3), np.float32), "account": np.zeros(4, np.float32)}))
    return decision_id
