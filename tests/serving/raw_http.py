"""HTTP/1.1 as it is on the wire: what clients that mean well never send."""

from __future__ import annotations

import http.client
import json
import socket
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def code(self) -> str:
        return str(json.loads(self.body)["code"])


def raw(url: str, target: str, *headers: bytes, method: str = "GET", body: bytes = b"") -> Answer:
    """Send `target` and `headers` as they stand, on a connection of their own. ConnectionError if it is just closed."""
    head = [f"{method} {target} HTTP/1.1".encode("latin-1"), b"Host: service", b"Connection: close", *headers]
    with connected(url) as connection:
        connection.sendall(b"\r\n".join(head) + b"\r\n\r\n" + body)
        return read_answer(connection, method)


def connected(url: str) -> socket.socket:
    place = urlsplit(url)
    return socket.create_connection((place.hostname or "", place.port or 0), timeout=20)


def read_answer(connection: socket.socket, method: str = "POST") -> Answer:
    answer = http.client.HTTPResponse(connection, method=method)
    try:
        answer.begin()
        return Answer(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())
    except http.client.HTTPException as error:
        raise ConnectionError(str(error)) from None


def bearer(credentials: str | bytes) -> bytes:
    return b"Authorization: Bearer " + (credentials.encode() if isinstance(credentials, str) else credentials)


def chunked(*parts: bytes) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (*parts, b""))


def json_of(**fields: Any) -> bytes:
    return json.dumps(fields).encode()
