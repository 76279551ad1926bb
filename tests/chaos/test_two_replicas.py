"""Two replicas behind the proxy that is shipped, their rollout on one Postgres server: what a client sees."""

from __future__ import annotations

import csv
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import httpx
import numpy as np
import pytest

from benchmarks.postgres import PostgresServer
from core.settings import Settings, load_settings
from flows.drill_models import SCHEMA, publish_policy
from flows.processes import free_port
from flows.service_process import ServiceProcess, service_process
from serving import calls
from serving.calls import ServiceError
from serving.client import ServiceClient
from serving.local_token import read_or_create_token
from serving.question import Account, Question

CONFIG = Path(__file__).resolve().parents[2] / "deploy" / "proxy" / "haproxy.cfg"
HAPROXY = shutil.which("haproxy", path=f"{os.environ['PATH']}:/usr/sbin")
CLIENTS, CHALLENGERS, WITHIN_S = 3, 4, 60.0
pytestmark = pytest.mark.skipif(HAPROXY is None, reason="haproxy is not installed (Debian: haproxy)")


@dataclass
class Replica:
    settings: Settings
    environ: dict[str, str]
    url: str
    stack: ExitStack = field(default_factory=ExitStack)
    process: ServiceProcess | None = None

    def start(self) -> None:
        self.process = self.stack.enter_context(service_process(self.settings, champion="ppo/v1", environ=self.environ))

    def end(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.process.send_signal(number)
        self.process.process.wait(30)


@dataclass
class Desk:
    url: str
    token: str
    replicas: list[Replica]
    admin: Path  # the proxy's socket

    def set_state(self, number: int, state: str) -> None:
        """Of a replica for the proxy: `drain` it, and wait until nothing is on its way to it, or `ready`."""
        name = ("one", "two")[number]
        assert _told(self.admin, f"set server replicas/{name} state {state}").strip() == ""
        if state == "drain":
            _until(lambda: self._of(name)["scur"] == "0")

    def serves(self, number: int) -> bool:
        return self._of(("one", "two")[number])["status"] == "UP"

    def _of(self, name: str) -> dict[str, str]:
        rows = csv.DictReader(_told(self.admin, "show stat").removeprefix("# ").splitlines())
        return next(row for row in rows if (row["pxname"], row["svname"]) == ("replicas", name))


def _told(admin: Path, command: str) -> str:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(admin))
        connection.sendall(f"{command}\n".encode())
        return b"".join(iter(lambda: connection.recv(65536), b"")).decode()


@pytest.fixture
def desk(tmp_path: Path, postgres: PostgresServer) -> Iterator[Desk]:
    first = tmp_path / "one"
    first.mkdir()
    token = read_or_create_token(first)
    for name in ("ppo/v1", *(f"hrm/v{n}" for n in range(1, CHALLENGERS + 1))):
        publish_policy(first / "models", name)
    shutil.copytree(first, tmp_path / "two")
    url = postgres.new_database().render_as_string(hide_password=False)
    with ExitStack() as stack:
        replicas = [_replica(tmp_path / name, url) for name in ("one", "two")]
        for replica in replicas:
            stack.enter_context(replica.stack)
            replica.start()
        admin = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "proxy"  # a short path, as sockets need
        yield Desk(stack.enter_context(_proxy(replicas, token, admin)), token, replicas, admin)


def _replica(state_dir: Path, database: str) -> Replica:
    settings = load_settings(preset="compact", environ={"HRM_PATHS__STATE_DIR": str(state_dir)})
    settings = settings.model_copy(update={"rollout": settings.rollout.model_copy(update={"cool_down_s": 0.0})})
    port = free_port()
    environ = {
        "HRM_SERVING__PORT": str(port),
        "HRM_ROLLOUT__DATABASE_URL_ENV": "ROLLOUT_DATABASE_URL",
        "ROLLOUT_DATABASE_URL": database,
    }
    return Replica(settings, environ, f"http://127.0.0.1:{port}")


@contextmanager
def _proxy(replicas: list[Replica], token: str, admin: Path) -> Iterator[str]:
    assert HAPROXY is not None
    port = free_port()
    one, two = (replica.url.removeprefix("http://") for replica in replicas)
    environ = {
        "HRM_PROXY_BIND": f"127.0.0.1:{port}",
        "HRM_PROXY_SOCKET": str(admin),
        "HRM_PROBE_KEY": token,
        "HRM_REPLICA_1": one,
        "HRM_REPLICA_2": two,
    }
    process = subprocess.Popen([HAPROXY, "-db", "-q", "-f", str(CONFIG)], env=environ)
    try:
        url = f"http://127.0.0.1:{port}"
        _until(partial(_ready, url))
        yield url
    finally:
        process.kill()
        process.wait()


def _ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health/ready", trust_env=False, timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def _until(true: Callable[[], bool]) -> float:
    """Seconds until `true()` is."""
    began = time.monotonic()
    while not true():
        assert time.monotonic() - began < WITHIN_S, "not in time"
        time.sleep(0.005)
    return time.monotonic() - began


def _question(symbol: str = "A") -> Question:
    bars = np.zeros((SCHEMA.window, len(SCHEMA.bar_features)), np.float32)
    account = Account(np.zeros(len(SCHEMA.account_features), np.float32), 0)
    return Question(symbol, bars, 0.0, account)


class Load:
    """Clients that ask for decisions and read the rollout, one after the other, until the block ends."""

    def __init__(self, desk: Desk) -> None:
        self.desk, self.over = desk, threading.Event()
        self.answered = 0
        self.held: list[str] = []  # decisions that had been sent when their replica died
        self.lost: list[str] = []  # what the client may send again, and still was not answered
        self._threads = [threading.Thread(target=self._ask) for _ in range(CLIENTS)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        for thread in self._threads:
            thread.join(WITHIN_S)

    def more(self, count: int = 30) -> None:
        wanted = self.answered + count
        _until(lambda: self.answered >= wanted)

    def _ask(self) -> None:
        with ServiceClient(self.desk.url, self.desk.token) as client:
            while not self.over.is_set():
                self._one(client)

    def _one(self, client: ServiceClient) -> None:
        try:
            client.call(calls.rollout())
        except ServiceError as error:
            self.lost.append(f"read: {error.code} {error}")
        try:
            client.call(calls.decision(_question()))
            self.answered += 1
        except ServiceError as error:
            (self.lost if error.unsent else self.held).append(f"decision: {error.code} {error}")


@pytest.mark.slow
def test_a_replica_that_is_killed_loses_nothing_that_may_be_sent_again(desk: Desk) -> None:
    with Load(desk) as load:
        load.more()
        desk.replicas[0].end(signal.SIGKILL)
        load.more(60)  # by the other one
        desk.replicas[0].start()
        load.more()
    assert load.lost == []
    assert len(load.held) <= CLIENTS, load.held  # one on its way for each client, at most


@pytest.mark.slow
def test_traffic_goes_to_what_is_ready_and_a_rolling_restart_is_not_noticed(desk: Desk) -> None:
    with Load(desk) as load:
        for number, replica in enumerate(desk.replicas):
            load.more()
            desk.set_state(number, "drain")
            replica.end(signal.SIGTERM)
            load.more()
            replica.start()
            _until(partial(_ready, replica.url))
            desk.set_state(number, "ready")
            _until(partial(desk.serves, number))
    assert (load.lost, load.held) == ([], [])


@pytest.mark.parametrize("times", [2, pytest.param(CHALLENGERS, marks=pytest.mark.slow)])
def test_a_rollback_at_the_proxy_reaches_both(desk: Desk, times: int) -> None:
    seen_s = []
    with ServiceClient(desk.url, desk.token) as client, ExitStack() as stack:
        direct = [stack.enter_context(ServiceClient(replica.url, desk.token)) for replica in desk.replicas]
        for attempt in range(1, times + 1):
            client.call(calls.start("ppo/v1", f"hrm/v{attempt}"))
            client.call(calls.command("promote", reason="canary"))
            _until(lambda: all(one.call(calls.rollout()).phase == "canary" for one in direct))
            client.abort("enough")
            seen_s.append(_until(lambda: all(one.call(calls.rollout()).phase == "rolled_back" for one in direct)))
            for one in direct:
                assert one.decide(_question()).model == "ppo"
    print(f"p99 {np.quantile(seen_s, 0.99):.3f} s until both replicas saw it, of {times}")  # noqa: T201 - the measurement
