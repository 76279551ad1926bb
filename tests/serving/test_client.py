"""The client against the real service, and against servers that break in every way one can break."""

from __future__ import annotations

import asyncio
import json
import math
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import structlog

from core.actions import Action
from flows.drill_models import SCHEMA
from flows.service_process import ServiceProcess
from serving import calls
from serving.calls import Call, ServiceError
from serving.client import NO_EPOCH, AsyncServiceClient, ServiceClient, hold
from serving.question import Account, Question
from serving.schemas import DecisionResponse

W, F, A = SCHEMA.window, len(SCHEMA.bar_features), len(SCHEMA.account_features)
ACCOUNT = Account(np.zeros(A, np.float32), 0)
QUESTION = Question("NIFTY50", np.full((W, F), 0.5, np.float32), 0.1, ACCOUNT, request_id="r1")
DECIDED = hold(QUESTION, "none").model_copy(update={"role": "champion", "halt_reason": "single_pass", "epoch": 3})
ROLLOUT = {
    "phase": "idle", "champion": None, "challenger": None, "fallback": None, "weight": 0, "step": 0, "steps": [5],
    "epoch": 0, "version": 0, "paused": False, "latched": False, "durable": True, "reason": "", "statistics": {},
    "gate": 0, "gates": [], "waits_for": "", "approvals": {"required": 0, "given": [], "missing": 0}, "stage_at": 0.0,
    "gate_at": 0.0, "attempt": 0, "started_by": "", "plan_sha256": None, "trigger": "",
}  # fmt: skip


@contextmanager
def server_that(*answers: bytes | Callable[[socket.socket], None]) -> Iterator[tuple[str, list[bytes]]]:
    """A bare TCP server: one answer, or one behaviour, per connection. Yields its URL and what it was sent."""
    received: list[bytes] = []
    over = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.05)

        def accepted() -> socket.socket | None:
            while not over.is_set():
                with suppress(TimeoutError):
                    return listener.accept()[0]
            return None

        def serve() -> None:
            for answer in answers:
                if (connection := accepted()) is None:
                    return  # nobody came again
                with connection:
                    connection.settimeout(10)
                    received.append(connection.recv(65536))
                    answer(connection) if callable(answer) else connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}", received
        finally:
            over.set()
            thread.join(10)


def response(status: str, body: Any = ROLLOUT, *headers: str) -> bytes:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = (f"HTTP/1.1 {status}", f"content-length: {len(content)}", "connection: close", *headers, "", "")
    return "\r\n".join(lines).encode() + content


def problem(status: int, code: str, **extra: Any) -> dict[str, Any]:
    return {"type": f"urn:hrm:{code}", "title": "", "status": status, "code": code, "detail": "d", "error": "d"} | extra


def decided(**changes: Any) -> bytes:
    return response("200 OK", json.loads(DECIDED.model_dump_json()) | changes)


BUSY = response("503 Service Unavailable", problem(503, "overloaded", retryable=True), "retry-after: 0")


def test_the_client_speaks_to_the_real_service(running: ServiceProcess) -> None:
    with ServiceClient(running.url, running.token) as client:
        answer = client.decide(QUESTION)
        assert (answer.role, answer.model, answer.request_id) == ("champion", "ppo", "r1")
        assert client.call(calls.rollout()).champion == "ppo/v1"
        assert client.call(calls.health()).overall_health == "healthy"
        assert client.call(calls.events()).events[0].command == "install"
        assert client.call(calls.load("hrm/v2")).algorithm == "hrm"
        assert {"ppo/v1", "hrm/v2"} <= client.call(calls.models()).loaded.keys()
        assert client.call(calls.unload("hrm/v2")).status == "unloaded"
        assert client.call(calls.outcome("X", champion_bps=1.0, challenger_bps=1.0)).durable
        assert not client.holds.count


def test_the_async_client_speaks_to_the_real_service(running: ServiceProcess) -> None:
    async def story() -> list[DecisionResponse]:
        async with AsyncServiceClient(running.url, running.token) as client:
            assert (await client.call(calls.rollout())).phase == "idle"
            return await asyncio.gather(*(client.decide(replace(QUESTION, request_id=f"r{n}")) for n in range(20)))

    assert [answer.request_id for answer in asyncio.run(story())] == [f"r{n}" for n in range(20)]


def test_a_batch_is_answered_one_by_one(running: ServiceProcess) -> None:
    both = replace(QUESTION, challenger=Account(np.zeros(A, np.float32), 1), deadline=time.perf_counter() + 5)
    short = replace(QUESTION, bars=QUESTION.bars[1:], request_id="r2")
    questions = [QUESTION, short, replace(both, request_id="r3")]

    async def story() -> list[DecisionResponse | ServiceError]:
        async with AsyncServiceClient(running.url, running.token) as client:
            return await client.decide_all(questions)

    with ServiceClient(running.url, running.token) as client:
        for first, second, third in (client.decide_all(questions), asyncio.run(story())):
            assert isinstance(first, DecisionResponse)
            assert first.role == "champion"
            assert isinstance(second, ServiceError)
            assert (second.status, second.code) == (422, "shape_mismatch")
            assert isinstance(third, DecisionResponse)
            assert third.request_id == "r3"


def test_the_key_may_lie_in_a_file(running: ServiceProcess) -> None:
    with ServiceClient(running.url, running.log.parent / "api_token") as client:
        assert client.call(calls.rollout()).phase == "idle"


def test_a_client_does_not_show_its_key() -> None:
    with ServiceClient("http://127.0.0.1:1", "secret-key") as client:
        for shown in (repr(client), repr(vars(client)["_http"].headers), str(client)):
            assert "secret-key" not in shown


def test_a_refusal_carries_status_code_and_words(running: ServiceProcess) -> None:
    with ServiceClient(running.url, running.token) as client, pytest.raises(ServiceError) as error:
        client.call(calls.command("promote"))
    assert (error.value.status, error.value.code, error.value.refused) == (409, "invalid_transition", True)
    assert "allowed now" in str(error.value)


@pytest.mark.parametrize("question", [replace(QUESTION, bars=QUESTION.bars[1:]), replace(QUESTION, symbol="A\nB")])
def test_a_wrong_request_is_an_error_and_not_a_hold(running: ServiceProcess, question: Question) -> None:
    with ServiceClient(running.url, running.token) as client, pytest.raises(ServiceError) as error:
        client.decide(question)
    assert error.value.status == 422


def test_a_wrong_key_is_an_error_and_not_a_hold(running: ServiceProcess) -> None:
    with ServiceClient(running.url, "wrong") as client:
        for ask in (lambda: client.decide(QUESTION), lambda: client.decide_all([QUESTION])):
            with pytest.raises(ServiceError) as error:
                ask()
            assert error.value.status == 401


@contextmanager
def nobody() -> Iterator[str]:
    """The address of a port that is taken and refuses connections."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{unused.getsockname()[1]}"


async def decide_async(url: str) -> DecisionResponse:
    async with AsyncServiceClient(url, "t") as client:
        return await client.decide(QUESTION)


def test_an_unreachable_service_is_a_hold_that_says_so() -> None:
    with nobody() as url, ServiceClient(url, "t") as client:
        answer = client.decide(QUESTION)
        with pytest.raises(ServiceError) as error:
            client.call(calls.decision(QUESTION))
        assert asyncio.run(decide_async(url)) == answer
    assert (error.value.status, error.value.unsent, error.value.retryable) == (0, True, True)
    assert (answer.action, answer.quantity, answer.fallback, answer.role) == (Action.HOLD, 1.0, True, "safe")
    assert answer.halt_reason == "service_unavailable: ConnectError"
    assert (answer.request_id, answer.symbol, answer.epoch) == ("r1", "NIFTY50", NO_EPOCH)


def test_holds_are_counted_and_each_kind_is_logged_once() -> None:
    with nobody() as url, ServiceClient(url, "t") as client, structlog.testing.capture_logs() as lines:
        for _ in range(3):
            client.decide(replace(QUESTION, deadline=time.perf_counter() + 0.01))
        client.decide_all([replace(QUESTION, deadline=time.perf_counter() + 0.01)] * 2)
    assert client.holds.count == {"ConnectError": 5}
    assert [line["event"] for line in lines] == ["held_without_answer"]


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (response("500 Oops", b"<html>"), "no_problem_document"),
        (response("500 Oops", problem(500, "internal_error")), "internal_error"),
        (response("200 OK", b"<html>"), "answer_invalid"),
        (response("200 OK", b"{}"), "answer_invalid"),
        (decided(action=7), "answer_invalid"),
        (decided(quantity=0), "answer_invalid"),
        (decided(quantity="NaN"), "answer_invalid"),
        (decided(request_id="other"), "answer_to_another"),
        (decided(symbol="OTHER"), "answer_to_another"),
        (b"", "RemoteProtocolError"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{", "RemoteProtocolError"),
        (b"nonsense\r\n\r\n", "RemoteProtocolError"),
    ],
)
def test_whatever_is_no_decision_is_a_hold_and_is_not_asked_again(answer: bytes, kind: str) -> None:
    with server_that(answer) as (url, seen), ServiceClient(url, "t") as client:
        assert client.decide(QUESTION).halt_reason == f"service_unavailable: {kind}"
    assert len(seen) == 1
    with server_that(answer) as (url, seen):
        assert asyncio.run(decide_async(url)).halt_reason == f"service_unavailable: {kind}"
    assert len(seen) == 1


def test_fields_that_a_newer_service_adds_do_not_disturb() -> None:
    with server_that(decided(weather="fine")) as (url, _), ServiceClient(url, "t") as client:
        assert client.decide(QUESTION) == DECIDED


def test_a_decision_that_was_refused_for_load_is_asked_again() -> None:
    with server_that(BUSY, decided()) as (url, seen), ServiceClient(url, "t") as client:
        assert client.decide(QUESTION) == DECIDED
    assert len(seen) == 2
    with server_that(BUSY, decided()) as (url, seen):
        assert asyncio.run(decide_async(url)) == DECIDED
    assert len(seen) == 2


def test_what_the_deadline_leaves_no_time_for_is_not_asked_again() -> None:
    later = response("503 Service Unavailable", problem(503, "overloaded", retryable=True), "retry-after: 1")
    with server_that(later) as (url, seen), ServiceClient(url, "t") as client:
        answer = client.decide(replace(QUESTION, deadline=time.perf_counter() + 0.05))
    assert (answer.halt_reason, len(seen)) == ("service_unavailable: overloaded", 1)


def test_a_get_is_repeated_when_the_connection_breaks() -> None:
    with server_that(b"", BUSY, response("200 OK")) as (url, seen), ServiceClient(url, "t") as client:
        assert client.call(calls.rollout()).phase == "idle"
    assert len(seen) == 3


@pytest.mark.parametrize("answer", [b"", BUSY])
@pytest.mark.parametrize("call", [calls.command("promote"), calls.start("a/1", "b/1"), calls.load("a/1")])
def test_a_command_is_sent_once_because_it_may_have_happened(call: Call[Any], answer: bytes) -> None:
    with (
        server_that(answer, response("200 OK")) as (url, seen),
        ServiceClient(url, "t") as client,
        pytest.raises(ServiceError),
    ):
        client.call(call)
    assert len(seen) == 1


def stall(connection: socket.socket) -> None:
    connection.settimeout(5)
    while connection.recv(4096):
        pass  # until the client hangs up


def trickle(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n")
    try:
        for _ in range(200):
            connection.sendall(b" ")
            time.sleep(0.02)
    except OSError:
        return  # the client has hung up


@pytest.mark.parametrize("behaviour", [stall, trickle])
def test_a_service_that_takes_too_long_is_a_hold_in_time(behaviour: Callable[[socket.socket], None]) -> None:
    question = replace(QUESTION, deadline=time.perf_counter() + 0.1)
    with server_that(behaviour) as (url, _), ServiceClient(url, "t") as client:
        answer = client.decide(question)
        assert time.perf_counter() - question.deadline < 3.0  # `stall` and `trickle` go on for longer
    assert answer.halt_reason == "service_unavailable: ReadTimeout"
    asked = replace(QUESTION, deadline=time.perf_counter() + 0.1)

    async def story(url: str) -> DecisionResponse:
        async with AsyncServiceClient(url, "t") as client:
            return await client.decide(asked)

    with server_that(behaviour) as (url, _):
        assert asyncio.run(story(url)).role == "safe"
        assert time.perf_counter() - asked.deadline < 3.0  # `stall` and `trickle` go on for longer


def test_an_abort_gets_through_although_every_connection_hangs() -> None:
    """A pool of httpx has 100 connections; all of them wait for decisions that do not come."""
    hanging: list[socket.socket] = []
    aborted = response("200 OK", ROLLOUT | {"phase": "rolled_back", "latched": True})

    def answer(connection: socket.socket) -> None:
        if b"/v1/rollout/abort" in connection.recv(65536):
            with connection:
                connection.sendall(aborted)
        else:
            hanging.append(connection)

    async def story(url: str) -> None:
        async with AsyncServiceClient(url, "t") as client:
            waiting = [asyncio.create_task(client.decide(QUESTION)) for _ in range(100)]
            deadline = time.monotonic() + 60
            while len(hanging) < 100:
                assert time.monotonic() < deadline
                await asyncio.sleep(0.01)
            assert (await client.abort("drawdown")).latched
            assert not any(task.done() for task in waiting)
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    with socket.create_server(("127.0.0.1", 0), backlog=256) as listener, ThreadPoolExecutor(128) as pool:

        def accept() -> None:
            for _ in range(101):
                pool.submit(answer, listener.accept()[0])

        pool.submit(accept)
        asyncio.run(story(f"http://127.0.0.1:{listener.getsockname()[1]}"))
        for connection in hanging:
            connection.close()


def test_an_abort_over_http_aborts(running: ServiceProcess) -> None:
    with ServiceClient(running.url, running.token) as client:
        client.call(calls.start("ppo/v1", "hrm/v3", reason="to be aborted"))
        state = client.abort("enough", actor="risk")
        assert (state.latched, state.weight, state.reason) == (True, 0, "enough (for risk)")
        assert client.call(calls.events()).events[-1].actor == "local"  # who acted is whose key it is


def test_no_deadline_is_none() -> None:
    assert QUESTION.deadline == math.inf
    assert "deadline_ms" not in calls.decision(QUESTION).params
    assert calls.decision(QUESTION).total_s == calls.DECISION_S
    soon = calls.decision(replace(QUESTION, deadline=time.perf_counter() + 0.1))
    assert soon.total_s < 0.1 + 2 * calls.GRACE_S
    assert float(soon.params["deadline_ms"]) <= 100
