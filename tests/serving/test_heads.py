"""A request's head has an end, or the connection has one."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn

from flows.service_process import ServiceProcess
from serving import http
from serving.http import MAX_HEAD_BYTES, Http


@pytest.fixture
def line(running: ServiceProcess) -> Iterator[socket.socket]:
    host, _, port = running.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        yield connection


def answer(connection: socket.socket) -> bytes:
    head = b""
    while b"\r\n\r\n" not in head and (piece := connection.recv(65536)):
        head += piece
    return head


@pytest.mark.parametrize("part", [b"x-long: " + b"a" * 4096 + b"\r\n", b"a" * 4096])
def test_a_head_without_an_end_is_refused_long_before_it_is_large(line: socket.socket, part: bytes) -> None:
    """Many headers, or one that does not end."""
    line.sendall(b"GET /health/live HTTP/1.1\r\nhost: x\r\nx-first: ")
    sent = 0
    with pytest.raises(OSError):  # the service stops reading and closes
        while sent < 64 * MAX_HEAD_BYTES:
            sent += line.send(part)
    assert sent < 64 * MAX_HEAD_BYTES


@pytest.mark.parametrize(
    "start", [b"0\r\nx-first: ", b"0\r\n", b"5;x="], ids=["one trailer", "trailers", "extension of a chunk"]
)
def test_what_follows_a_body_has_an_end_too(line: socket.socket, start: bytes) -> None:
    """Nobody is asked who they are for it: the 401 is out before the body has ended."""
    line.sendall(b"POST /v1/decisions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n" + start)
    part, sent = b"x-long: " + b"a" * 4096 + (b"\r\n" if start == b"0\r\n" else b""), 0
    with pytest.raises(OSError):
        while sent < 256 * MAX_HEAD_BYTES:
            sent += line.send(part)


def test_a_trailer_is_no_header(running: ServiceProcess, line: socket.socket) -> None:
    line.sendall(
        b"POST /v1/outcomes HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
        b"2\r\n{}\r\n0\r\nauthorization: Bearer " + running.token.encode() + b"\r\n\r\n"
    )
    assert answer(line).startswith(b"HTTP/1.1 401")


def test_a_long_head_and_a_long_body_are_two_things(running: ServiceProcess, line: socket.socket) -> None:
    padding = b"x-padding: " + b"a" * (MAX_HEAD_BYTES - 4096) + b"\r\n"
    authorization = f"authorization: Bearer {running.token}\r\n".encode()
    for body in (b" " * 50_000, b"{}"):  # twice on one connection: each head counts for itself
        size = f"content-length: {len(body)}\r\n\r\n".encode()
        line.sendall(b"POST /v1/outcomes HTTP/1.1\r\nhost: x\r\n" + authorization + padding + size + body)
        head = answer(line)
        assert head.startswith(b"HTTP/1.1 4")
        assert not head.startswith(b"HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain")
        while not head.endswith(b"}"):
            head += line.recv(65536)


async def empty(scope: Any, _receive: Any, send: Any) -> None:
    assert scope["type"] == "http"
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body"})


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """A connection to a server that waits half a second for a head."""
    monkeypatch.setattr(http, "HEAD_WITHIN_S", 0.5)
    server = uvicorn.Server(uvicorn.Config(empty, http=Http, lifespan="off", log_config=None))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        with socket.create_connection(listener.getsockname(), timeout=60) as connection:
            yield connection
        server.should_exit = True
        thread.join()


HEAD = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"


@pytest.mark.parametrize(("before", "sent"), [(b"", b""), (b"", HEAD[:-2]), (HEAD, HEAD[:-2])])
def test_a_head_that_does_not_come_ends_the_connection(impatient: socket.socket, before: bytes, sent: bytes) -> None:
    if before:
        impatient.sendall(before)
        assert answer(impatient).startswith(b"HTTP/1.1 200")
    impatient.sendall(sent)
    assert impatient.recv(1) == b""


def test_a_head_in_time_stops_the_clock(impatient: socket.socket) -> None:
    for _ in range(2):
        impatient.sendall(HEAD)
        assert answer(impatient).startswith(b"HTTP/1.1 200")
        time.sleep(0.7)  # longer than a head may take
