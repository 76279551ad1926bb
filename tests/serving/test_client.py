import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from flows.drill_models import SCHEMA
from flows.service_process import ServiceProcess
from serving import client as calls
from serving.client import AsyncServiceClient, ServiceClient, ServiceError, local_client

ACCOUNT = {"features": [0.0] * len(SCHEMA.account_features), "position": 0}
BARS = [[0.5] * len(SCHEMA.bar_features)] * SCHEMA.window
DECISION = calls.decision("NIFTY50", BARS, 0.1, {"champion": ACCOUNT}, request_id="r1")


@contextmanager
def server_that_answers(*answers: bytes) -> Iterator[tuple[str, list[bytes]]]:
    """A bare TCP server: one answer per connection, then it hangs up. Yields its URL and what it was sent."""
    received: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(1.0)

        def serve() -> None:
            for answer in answers:
                try:
                    connection, _ = listener.accept()
                except TimeoutError:
                    return  # nobody came again
                with connection:
                    received.append(connection.recv(65536))
                    connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}", received
        finally:
            thread.join(10)


def response(status: str, body: bytes = b'{"ok": true}') -> bytes:
    head = f"HTTP/1.1 {status}\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
    return head.encode() + body


def test_the_client_speaks_to_the_real_service(running: ServiceProcess) -> None:
    with ServiceClient(running.url, running.token) as client:
        assert client.decide(DECISION)["role"] == "champion"
        assert client.call(calls.rollout())["champion"] == "ppo/v1"
        assert client.call(calls.health())["overall_health"] == "healthy"
        assert client.call(calls.events())["events"][0]["command"] == "install"
        assert "ppo/v1" in client.call(calls.models())["loaded"]


def test_the_async_client_speaks_to_the_real_service(running: ServiceProcess) -> None:
    async def story() -> dict[str, Any]:
        async with AsyncServiceClient(running.url, running.token) as client:
            await client.call(calls.rollout())
            return await client.decide(DECISION)

    assert asyncio.run(story())["request_id"] == "r1"


def test_the_local_client_finds_the_token(running: ServiceProcess) -> None:
    with local_client(running.log.parent, "127.0.0.1", int(running.url.rsplit(":", 1)[1])) as client:
        assert client.call(calls.rollout())["phase"] == "idle"


def test_a_refusal_carries_status_code_and_words(running: ServiceProcess) -> None:
    with ServiceClient(running.url, running.token) as client, pytest.raises(ServiceError) as error:
        client.call(calls.command("promote"))
    assert (error.value.status, error.value.code) == (409, "invalid_transition")
    assert "allowed now" in str(error.value)


def test_a_wrong_token_is_an_error_and_not_a_hold(running: ServiceProcess) -> None:
    with ServiceClient(running.url, "wrong") as client, pytest.raises(ServiceError) as error:
        client.decide(DECISION)
    assert error.value.status == 401


def test_an_unreachable_service_is_a_hold_that_says_so() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with ServiceClient(url, "t") as client:
            answer = client.decide(DECISION)
            with pytest.raises(httpx.TransportError):
                client.call(DECISION)
        assert asyncio.run(_decide_async(url)) == answer
    assert (answer["action_name"], answer["quantity"], answer["fallback"]) == ("HOLD", 1.0, True)
    assert answer["halt_reason"] == "service_unavailable: ConnectError"
    assert (answer["request_id"], answer["symbol"], answer["epoch"]) == ("r1", "NIFTY50", None)


async def _decide_async(url: str) -> dict[str, Any]:
    async with AsyncServiceClient(url, "t") as client:
        return await client.decide(DECISION)


def test_a_server_error_is_a_hold() -> None:
    with server_that_answers(response("500 Oops", b"<html>")) as (url, _), ServiceClient(url, "t") as client:
        assert client.decide(DECISION)["role"] == "safe"


def test_a_get_is_repeated_when_the_connection_breaks() -> None:
    with server_that_answers(b"", response("200 OK")) as (url, seen), ServiceClient(url, "t") as client:
        assert client.call(calls.rollout()) == {"ok": True}
    assert len(seen) == 2


def test_a_decision_is_sent_once_because_it_may_have_been_taken() -> None:
    with server_that_answers(b"", response("200 OK")) as (url, seen), ServiceClient(url, "t") as client:
        assert client.decide(DECISION)["role"] == "safe"
    assert len(seen) == 1
