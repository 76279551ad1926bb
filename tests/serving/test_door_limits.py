"""How often, how much and how slowly, over real HTTP."""

import asyncio
import json
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import uvicorn
from identity_provider import publish_keys, token
from raw_http import Answer, bearer, chunked, connected, json_of, raw, read_answer
from structlog.testing import capture_logs
from tiny_models import publish_all, settings_in

from core.settings import RateLimits, Settings
from flows.drill_models import SCHEMA
from flows.service_process import ServiceProcess, service_process
from serving import door
from serving.app import create_app
from serving.keys import create
from serving.limits import BURST_S
from serving.scopes import Scope

SLOW = 0.001  # per second: one, and none again within any test
RATES = RateLimits(decisions_per_s=SLOW, reads_per_s=SLOW, changes_per_s=SLOW, aborts_per_s=2)
DECISION = json_of(
    symbol="A",
    bars=[[0.5] * len(SCHEMA.bar_features)] * SCHEMA.window,
    complexity=0.2,
    accounts={"champion": {"features": [0.0] * len(SCHEMA.account_features), "position": 0}},
)
TYPE = b"Content-Type: application/json"
HEARD = 409  # by the rollout itself: there is nothing to abort


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("limits")
    publish_all(folder / "models")
    return folder


@pytest.fixture(scope="module")
def keys(folder: Path) -> list[str]:
    return [create(folder, str(number), (Scope.ADMIN,))[1] for number in range(3)]


@pytest.fixture(scope="module")
def strict(folder: Path, keys: list[str]) -> Iterator[ServiceProcess]:
    """A service that gives its callers little; each test takes a key of its own."""
    settings = settings_in(folder, rollout={"cool_down_s": 0.0}, serving={"rate_limits": RATES})
    with service_process(settings, champion="ppo/v1") as service:
        yield service


def post(url: str, path: str, credentials: str, body: bytes = b"", *headers: bytes) -> Answer:
    length = b"Content-Length: %d" % len(body)
    return raw(url, path, bearer(credentials), TYPE, length, *headers, method="POST", body=body)


def get(url: str, path: str, credentials: str, *headers: bytes) -> Answer:
    return raw(url, path, bearer(credentials), *headers)


def test_who_asks_too_often_is_told_when_to_come_again(strict: ServiceProcess, keys: list[str]) -> None:
    assert post(strict.url, "/v1/decisions", keys[0], DECISION).status == 200
    refused = post(strict.url, "/v1/decisions", keys[0], DECISION)
    assert (refused.status, refused.code) == (429, "rate_limited")
    assert refused.headers["content-type"] == "application/problem+json"
    assert 900 <= int(refused.headers["retry-after"]) <= 1000
    assert refused.headers["ratelimit-policy"] == '"decisions";q=1;w=2'
    assert refused.headers["ratelimit"].startswith('"decisions";r=0;t=')
    assert post(strict.url, "/v1/decisions", keys[1], DECISION).status == 200  # another caller, another allowance
    assert get(strict.url, "/v1/rollout", keys[0]).status == 200  # and another kind of request


def test_nothing_uses_up_what_an_abort_is_allowed(strict: ServiceProcess, keys: list[str]) -> None:
    for path in ("/v1/decisions", "/v1/rollout/pause"):
        while post(strict.url, path, keys[2], b"{}").status != 429:
            pass
    while get(strict.url, "/v1/models", keys[2]).status != 429:
        pass
    for _ in range(int(RATES.aborts_per_s * BURST_S)):
        assert post(strict.url, "/v1/rollout/abort", keys[2]).status == HEARD


@contextmanager
def served(settings: Settings) -> Iterator[str]:
    """The service in a thread of this process: for what a test must change inside."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        app = create_app(settings, champion="ppo/v1")
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, ws="none"))
        thread = Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])))
        thread.start()
        try:
            deadline = time.monotonic() + 60
            while not server.started:
                assert time.monotonic() < deadline, "did not start"
                assert thread.is_alive(), "ended at start"
                time.sleep(0.02)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(20)


@pytest.fixture
def flooded(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A service that 203.0.113.7 and 2001:db8:0:1::1 have sent more bad credentials than it wants to hear of."""
    monkeypatch.setattr(door, "FAILURES_PER_S", SLOW)
    serving = settings.serving.model_copy(update={"jwt": publish_keys(tmp_path / "jwks.json")})
    with served(settings.model_copy(update={"serving": serving})) as url:
        for address in ("203.0.113.7", "2001:db8:0:1::1"):
            assert get(url, "/v1/rollout", "wrong", sent_by(address)).status == 401
            refused = get(url, "/v1/rollout", "wrong", sent_by(address))
            assert (refused.status, refused.code) == (429, "too_many_failures")
            assert int(refused.headers["retry-after"]) > 900
        yield url


def sent_by(address: str) -> bytes:
    return f"X-Forwarded-For: {address}".encode()


def test_a_flood_of_bad_credentials_shuts_out_no_key(flooded: str, settings: Settings, local: str) -> None:
    far = sent_by("203.0.113.7")
    key = create(settings.paths.state_dir, "ops", (Scope.ROLLOUT_ABORT,))[1]
    deadline = time.monotonic() + 60
    while (answer := post(flooded, "/v1/rollout/abort", key, b"", far)).status != HEARD:
        assert (answer.status, time.monotonic() < deadline) == (429, True)
        time.sleep(0.05)
    assert post(flooded, "/v1/rollout/abort", local, b"", far).status == HEARD


def test_a_flood_of_tokens_costs_no_signatures(flooded: str) -> None:
    far, good = sent_by("203.0.113.7"), token(scope="rollout:read")
    assert get(flooded, "/v1/rollout", good, far).status == 429  # not looked into
    assert get(flooded, "/v1/rollout", good).status == 200  # of loopback it always is
    assert get(flooded, "/v1/rollout", good, far).status == 200  # and then it is known


def test_a_network_of_ipv6_is_one_address(flooded: str) -> None:
    other = sent_by("2001:db8:0:2::1")
    for same in ("2001:db8:0:1:ffff::2", "2001:db8:0:1::ffff", "2001:0db8::1:0:0:0:5"):
        assert get(flooded, "/v1/rollout", "wrong", sent_by(same)).status == 429
    assert get(flooded, "/v1/rollout", "wrong", other).status == 401


def test_on_loopback_a_wrong_key_is_always_told_so(flooded: str) -> None:
    with capture_logs() as logged:
        assert [get(flooded, "/v1/rollout", "wrong").status for _ in range(5)] == [401] * 5
    assert [line["event"] for line in logged] == ["refused"]  # and the log is not filled with it


@pytest.fixture
def patient(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A service that waits half a second for a body."""
    monkeypatch.setattr(door, "BODY_WITHIN_S", 0.5)
    with served(settings) as url:
        yield url


@pytest.fixture
def local(settings: Settings) -> str:
    return (settings.paths.state_dir / "api_token").read_text().strip()


def version(url: str, credentials: str) -> int:
    return int(json.loads(get(url, "/v1/rollout", credentials).body)["version"])


def begun(url: str, path: str, credentials: str, *headers: bytes) -> Any:
    """A request whose headers are sent and whose body is not."""
    connection = connected(url)
    head = [f"POST {path} HTTP/1.1".encode(), b"Host: service", bearer(credentials), TYPE, *headers]
    connection.sendall(b"\r\n".join(head) + b"\r\n\r\n")
    return connection


@pytest.mark.parametrize("path", ["/v1/rollout/abort", "/v1/decisions", "/v1/rollout/start"])
@pytest.mark.parametrize("sent", [b"", b"{"])
def test_a_body_that_does_not_come_is_a_408_and_does_nothing(patient: str, local: str, path: str, sent: bytes) -> None:
    """Not even what an empty body would: an abort has no field that must be given."""
    before = version(patient, local)
    with begun(patient, path, local, b"Content-Length: 20") as connection:
        connection.sendall(sent)
        answer = read_answer(connection)
        assert (answer.status, answer.code, answer.headers["connection"]) == (408, "body_too_slow", "close")
    assert version(patient, local) == before


def test_a_body_in_drops_is_as_late_as_one_that_stops(patient: str, local: str) -> None:
    """The time counts for all of it: each byte that comes buys no other half second."""
    with begun(patient, "/v1/decisions", local, b"Content-Length: 1000") as connection:
        started = time.monotonic()
        connection.settimeout(0.05)
        answer = b""
        while not answer:
            assert time.monotonic() < started + 15
            connection.sendall(b" ")
            try:
                answer = connection.recv(4096)
            except TimeoutError:
                continue
    assert answer.startswith(b"HTTP/1.1 408")


def test_a_client_that_leaves_in_the_middle_harms_nobody(patient: str, local: str) -> None:
    before = version(patient, local)
    for path in ("/v1/rollout/abort", "/v1/decisions"):
        with begun(patient, path, local, b"Content-Length: 20") as connection:
            connection.sendall(b"{}")
    assert post(patient, "/v1/decisions", local, DECISION).status == 200
    assert version(patient, local) == before


COMMAND = b'{"reason": "test"}'


@pytest.mark.parametrize(
    ("path", "limit_bytes"),
    [
        ("/v1/rollout/abort", door.SMALL_BODY_BYTES),
        ("/v1/rollout/start", door.PLAN_BODY_BYTES),
        ("/v1/rollout/promote", door.PLAN_BODY_BYTES),
    ],
)
def test_only_decisions_may_be_large(patient: str, local: str, path: str, limit_bytes: int) -> None:
    before, padding = version(patient, local), b" " * limit_bytes
    declared = post(patient, path, local, COMMAND + padding)
    assert (declared.status, declared.code) == (413, "body_too_large")
    body = chunked(COMMAND, padding)
    streamed = raw(patient, path, bearer(local), TYPE, b"Transfer-Encoding: chunked", method="POST", body=body)
    assert (streamed.status, streamed.code) == (413, "body_too_large")
    assert version(patient, local) == before  # what came before the limit was a whole command; it was not carried out
    assert post(patient, "/v1/decisions", local, DECISION + padding).status == 200


def test_a_body_within_its_limit_may_come_in_pieces(patient: str, local: str) -> None:
    pieces = chunked(*(DECISION[i : i + 10] for i in range(0, len(DECISION), 10)))
    answer = raw(
        patient, "/v1/decisions", bearer(local), TYPE, b"Transfer-Encoding: chunked", method="POST", body=pieces
    )
    assert answer.status == 200
