"""The live stream over real sockets: who may listen, what is told, and what a hostile client gets."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.routing import APIWebSocketRoute, iter_route_contexts
from live_clients import WITHIN_S, decided, heard, listening, opened, ticket
from test_backend_app import backend, settings_of
from test_backtest_jobs import client_of
from websockets.exceptions import ConnectionClosed, InvalidStatus

from backend import live_data
from backend.app import create_app
from benchmarks.dashboard import run
from serving import keys
from serving.records import Records
from serving.scopes import Directory, Scope
from tests.benchmarks.fixed_keys import fixed, measured
from trading import switch


@pytest.fixture(scope="module")
def state_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("state")


@pytest.fixture(scope="module")
def texts(state_dir: Path) -> dict[str, str]:
    """API keys: of one who may listen, of one who may not, and of one whose key is revoked."""
    scopes = {"reader": Scope.ROLLOUT_READ, "trader": Scope.TRADE_WRITE, "leaver": Scope.ROLLOUT_READ}
    return {name: keys.create(state_dir, name, (scope,))[1] for name, scope in scopes.items()}


@pytest.fixture(scope="module")
def client(state_dir: Path, texts: dict[str, str]) -> Iterator[httpx.Client]:
    del texts  # made by now
    with backend(state_dir) as (_, said), client_of(state_dir, said) as client:
        yield client


@pytest.fixture
def records(state_dir: Path) -> Iterator[Records]:
    records = Records(state_dir / "decisions", settings_of(state_dir).records)
    yield records
    records.close()


def said(given: dict[str, Any], **more: Any) -> str:
    return json.dumps({"type": "authenticate", "ticket": given["ticket"], **more})


def closed(socket: Any) -> int:
    """The code that a connection ends with, whatever is told before."""
    give_up = time.monotonic() + WITHIN_S
    while time.monotonic() < give_up:
        try:
            socket.recv(timeout=WITHIN_S)
        except ConnectionClosed as end:
            assert end.rcvd is not None
            return end.rcvd.code
    raise AssertionError("it never ended")


def test_a_decision_on_record_is_told_with_the_seed_s_metrics(client: httpx.Client, records: Records) -> None:
    with listening(client) as socket:
        snapshot = json.loads(socket.recv(timeout=WITHIN_S))
        assert snapshot["type"] == "snapshot"
        decision_id = decided(records)
        decision = heard(socket, "decision", decision_id=decision_id)
        metrics = heard(socket, "hrm_metrics")
    assert metrics["seq"] == decision["seq"] + 1 > snapshot["seq"]
    assert metrics["epoch"] == decision["epoch"] == snapshot["epoch"]
    assert metrics["data"].keys() == {
        "hierarchical_efficiency",
        "computation_depth",
        "convergence_stability",
        "inference_performance",
        "adaptive_reasoning",
    }
    assert metrics["data"]["inference_performance"].keys() == {"latency_ms", "memory_mb", "status"}
    assert metrics["data"]["adaptive_reasoning"].keys() == {"market_complexity", "reasoning_depth", "efficiency_score"}


def test_only_what_was_asked_for_is_told_and_what_concerns_all(
    client: httpx.Client, records: Records, state_dir: Path
) -> None:
    with listening(client, symbols=["BANKNIFTY"]) as socket:
        socket.recv(timeout=WITHIN_S)
        decided(records, "NIFTY")
        wanted = decided(records, "BANKNIFTY")
        assert json.loads(socket.recv(timeout=WITHIN_S))["data"]["decision_id"] == wanted
        switch.engage(state_dir, "halted", "ravi", "the feed")
        assert heard(socket, "alert", alert="switch")["data"]["active"]
        switch.release(state_dir, "ravi", "it is back")
        assert heard(socket, "alert", alert="switch", active=False)


def test_who_comes_back_gets_what_was_missed_and_is_told_of_a_gap(client: httpx.Client, records: Records) -> None:
    with listening(client) as socket:
        socket.recv(timeout=WITHIN_S)
        decided(records)
        last = heard(socket, "hrm_metrics")
    with listening(client) as socket:  # somebody else, who sees when they are all in the stream
        missed = [decided(records) for _ in range(2)]
        for decision_id in missed:
            latest = heard(socket, "decision", decision_id=decision_id)
        latest = heard(socket, "hrm_metrics")
    with listening(client, resume_from={"epoch": last["epoch"], "seq": last["seq"]}) as socket:
        told = [json.loads(socket.recv(timeout=WITHIN_S)) for _ in range(last["seq"], latest["seq"] + 1)]
    assert told.pop(0)["type"] == "resumed"
    assert [message["seq"] for message in told] == list(range(last["seq"] + 1, latest["seq"] + 1))
    told = [message for message in told if message["type"] != "alert"]  # there is no service, and that is told, too
    assert [message["type"] for message in told] == ["decision", "hrm_metrics"] * 2
    assert [message["data"]["decision_id"] for message in told[::2]] == missed
    for epoch, seq in ((last["epoch"], 10**9), ("another", 1)):
        with listening(client, resume_from={"epoch": epoch, "seq": seq}) as socket:
            told = [json.loads(socket.recv(timeout=WITHIN_S))["type"] for _ in range(2)]
        assert told == ["gap", "snapshot"]


def test_it_says_that_it_is_alive(client: httpx.Client) -> None:
    with listening(client) as socket:
        assert heard(socket, "heartbeat")["epoch"] == client.get("/api/live-data").json()["epoch"]


def test_a_ticket_opens_once_for_whom_it_was_given_and_is_no_part_of_an_address(
    client: httpx.Client, texts: dict[str, str]
) -> None:
    given = ticket(client)
    assert given["ticket"] not in given["path"]
    with opened(client, given["path"]) as socket, opened(client, given["path"]) as second:
        socket.send(said(given))
        assert json.loads(socket.recv(timeout=WITHIN_S))["type"] == "snapshot"
        second.send(said(given))
        assert closed(second) == live_data.UNAUTHENTICATED
    reader = {"Authorization": f"Bearer {texts['reader']}"}
    other = client.post("/api/live-data/tickets", headers=reader).json()
    with opened(client, given["path"]) as socket:  # the reader's ticket, at the address of another one
        socket.send(said(other))
        assert closed(socket) == live_data.NOT_YOURS
    with opened(client, other["path"]) as socket:  # and it is used up
        socket.send(said(other))
        assert closed(socket) == live_data.UNAUTHENTICATED
    trader = client.post("/api/live-data/tickets", headers={"Authorization": f"Bearer {texts['trader']}"})
    assert (trader.status_code, trader.json()["code"]) == (403, "scope_missing")


def test_who_may_not_any_more_is_sent_away(client: httpx.Client, state_dir: Path, texts: dict[str, str]) -> None:
    given = client.post("/api/live-data/tickets", headers={"Authorization": f"Bearer {texts['leaver']}"}).json()
    with opened(client, given["path"]) as socket:
        socket.send(said(given))
        assert json.loads(socket.recv(timeout=WITHIN_S))["type"] == "snapshot"
        keys.revoke(state_dir, given["user_id"].removeprefix("key:"))
        assert closed(socket) == live_data.UNAUTHENTICATED


def test_a_page_of_another_origin_is_refused_before_a_word(client: httpx.Client) -> None:
    given = ticket(client)
    own = f"http://{client.base_url.host}:{client.base_url.port}"
    for origin in ("https://evil.example", "null", own.replace("http", "file"), f"{own}.evil.example", f"{own}0"):
        with pytest.raises(InvalidStatus) as error, opened(client, given["path"], origin=origin):
            pass
        assert error.value.response.status_code == 403
    with opened(client, given["path"], origin=own) as socket:
        socket.send(said(given))
        assert json.loads(socket.recv(timeout=WITHIN_S))["type"] == "snapshot"
    for path in ("/", "/api/live-data", "/health/live", "/ws/nothing"):
        with pytest.raises(InvalidStatus) as error, opened(client, path):
            pass
        assert error.value.response.status_code == 403


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        (b"\x00\x01", live_data.NOT_TEXT),
        ("", live_data.NOT_UNDERSTOOD),
        ("[]", live_data.NOT_UNDERSTOOD),
        ('{"type": "authenticate"}', live_data.NOT_UNDERSTOOD),
        ('{"type": "authenticate", "ticket": 7}', live_data.NOT_UNDERSTOOD),
        ('{"type": "authenticate", "ticket": "x", "admin": true}', live_data.NOT_UNDERSTOOD),
        ('{"type": "authenticate", "ticket": "x", "resume_from": {"epoch": "e", "seq": -1}}', live_data.NOT_UNDERSTOOD),
        ('{"type": "authenticate", "ticket": "x"}', live_data.UNAUTHENTICATED),
        ("x" * 20_000, 1009),  # larger than a frame may be
    ],
)
def test_what_is_not_understood_ends_the_connection(client: httpx.Client, frame: str | bytes, code: int) -> None:
    with opened(client, "/ws/live-data/local") as socket:
        socket.send(frame)
        assert closed(socket) == code
    assert client.get("/health/live").status_code == 200


def test_a_flood_of_messages_ends_the_connection(client: httpx.Client) -> None:
    with listening(client) as socket:
        try:
            for _ in range(1000):
                socket.send("x" * 1000)
        except ConnectionClosed as end:
            assert end.rcvd is not None
            assert end.rcvd.code == live_data.NOT_UNDERSTOOD
        else:
            assert closed(socket) == live_data.NOT_UNDERSTOOD


def test_who_says_nothing_is_not_waited_for(client: httpx.Client) -> None:
    with opened(client, "/ws/live-data/local") as socket:
        assert closed(socket) == live_data.TOO_LATE


def test_every_websocket_asks_for_a_ticket(state_dir: Path) -> None:
    app = create_app(settings_of(state_dir))
    sockets = [each for each in iter_route_contexts(app.routes) if isinstance(each.original_route, APIWebSocketRoute)]
    assert len(Directory(app.routes).sockets) == len(sockets) == 1
    for route in sockets:
        access = getattr(route.endpoint, "__access__")  # noqa: B009 - no attribute of functions in general
        assert access.ticket
        assert access.scope is not None


@pytest.mark.slow
def test_twenty_clients_hear_everything_and_one_that_does_not_read_is_dropped() -> None:
    """The bounded form of `hrm bench dashboard`, without its limit in time: machines of tests are shared."""
    found = run(clients=20, duration_s=8.0)
    assert (found["lost"], found["dropped_slow_clients"], found["clients_at_the_end"]) == (0, 1, 20)
    assert measured("dashboard", found) == set(fixed("dashboard", found))
    assert found["decisions"] == 400
    assert found["fanout_p50_ms"] < 5000
