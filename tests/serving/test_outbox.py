"""Rollbacks reach Prefect: each once, in order, late after an outage, and never at the service's expense."""

from __future__ import annotations

import asyncio
import base64
import json
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import pytest
import structlog
from live_prefect import LIMIT_S, Prefect, call, decide, let_the_guard_roll_back, until
from tiny_models import publish_all, settings_in

from core.settings import Rollout, Settings
from delivery.store import RolloutStore
from delivery.transitions import Change, Command
from flows.drill_models import FAULT_LEVEL
from flows.service_process import ServiceProcess, service_process
from serving import outbox
from serving.outbox import BREACH, SUPERSEDED, Outbox, PrefectApi, prefect_api

# A real Prefect server and the real service.


@dataclass
class Story:
    """What was seen at each stage of the life of a service whose Prefect server comes and goes."""

    log_in_outage: str = ""
    untold: list[tuple[float, float]] = field(default_factory=list)  # in the outage, and after it
    rolled_back: dict[str, Any] = field(default_factory=dict)
    decision_in_outage: dict[str, Any] = field(default_factory=dict)
    after_outage: list[dict[str, Any]] = field(default_factory=list)
    after_restart: list[dict[str, Any]] = field(default_factory=list)
    posts_after_restart: int = 0
    after_a_lost_cursor: list[dict[str, Any]] = field(default_factory=list)
    posts_after_a_lost_cursor: int = 0


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    told, server = Story(), Prefect(tmp_path_factory.mktemp("prefect"))
    folder = tmp_path_factory.mktemp("service")
    publish_all(folder / "models")
    settings = settings_in(folder, rollout={"cool_down_s": 0.0})
    _without_prefect(settings)
    with service_process(settings, environ=server.environ) as service:
        at_first = (folder / "outbox.json", folder / "outbox.json.first")
        until(at_first[0].exists)
        at_first[1].write_bytes(at_first[0].read_bytes())
        _in_outage(service, told)
        with server.running():
            until(lambda: bool(server.events()))
            until(lambda: cursor_in(folder) == told.rolled_back["version"])
            until(lambda: untold(service)[0] == 0)
            told.untold.append(untold(service))
            told.after_outage = server.events()
            service.process.terminate()
            service.process.wait(15)
            _after_restart(settings, server, told)
            at_first[1].replace(at_first[0])  # as if the machine had died between the server's answer and the disk
            _after_a_lost_cursor(settings, server, told)
    return told


def cursor_in(folder: Path) -> int | None:
    """The version up to which rollbacks are told, None while no cursor can be read."""
    try:
        version: int = json.loads((folder / "outbox.json").read_text())["version"]
    except (FileNotFoundError, ValueError, KeyError):
        return None
    return version


def untold(service: ServiceProcess) -> tuple[float, float]:
    """As Prometheus reads it: how many, and since how many seconds."""
    text = httpx.get(f"{service.url}/metrics", trust_env=False, timeout=60).text
    values = dict(line.split() for line in text.splitlines() if line.startswith("hrm_outbox_"))
    return float(values["hrm_outbox_pending"]), float(values["hrm_outbox_oldest_seconds"])


def _without_prefect(settings: Settings) -> None:
    with service_process(settings, champion="ppo/v1") as service:
        call(service, "/v1/rollout/start", champion="ppo/v1", challenger="hrm/v1")
        call(service, "/v1/rollout/abort", reason="long ago")
        assert decide(service, 0.0)["model"] == "ppo"
    assert not (settings.paths.state_dir / "outbox.json").exists()


def _in_outage(service: ServiceProcess, told: Story) -> None:
    told.rolled_back = let_the_guard_roll_back(service)
    until(lambda: "rollback_not_told" in service.log.read_text())
    until(lambda: untold(service)[0] > 0)
    told.untold.append(untold(service))
    told.decision_in_outage = decide(service, FAULT_LEVEL + 1)
    told.log_in_outage = service.log.read_text()


def _after_restart(settings: Settings, server: Prefect, told: Story) -> None:
    with service_process(settings, environ=server.environ) as service:
        call(service, "/v1/rollout/start", champion="ppo/v1", challenger="hrm/v2")
        aborted = call(service, "/v1/rollout/abort", reason="second thoughts", actor="anna")
        until(lambda: len(server.events()) > 1)
        until(lambda: cursor_in(settings.paths.state_dir) == aborted["version"])
    told.after_restart, told.posts_after_restart = server.events(), server.posts


def _after_a_lost_cursor(settings: Settings, server: Prefect, told: Story) -> None:
    with service_process(settings, environ=server.environ) as service:
        until(lambda: service.log.read_text().count("rollback_told") == 2)
        call(service, "/v1/rollout/start", champion="ppo/v1", challenger="hrm/v3")
        call(service, "/v1/rollout/rollback", reason="third")
        until(lambda: len(server.events()) > 2)
    told.after_a_lost_cursor, told.posts_after_a_lost_cursor = server.events(), server.posts


def test_without_a_server_the_guard_rolls_back_and_the_champion_answers(story: Story) -> None:
    assert story.rolled_back["phase"] == "rolled_back"
    assert story.rolled_back["reason"] == "error_rate_exceeded"
    assert (story.decision_in_outage["model"], story.decision_in_outage["fallback"]) == ("ppo", False)
    assert story.log_in_outage.count("rollback_not_told") == 1


def test_prometheus_hears_of_what_prefect_does_not(story: Story) -> None:
    (pending, oldest_s), after = story.untold
    assert pending == 1
    assert 0 < oldest_s < 600
    assert after == (0.0, 0.0)


def test_after_the_outage_the_breach_arrives_as_the_automation_expects_it(story: Story) -> None:
    (event,) = story.after_outage  # and not the abort of the time before the outbox
    assert event["event"] == BREACH
    assert event["resource"]["prefect.resource.id"].startswith("hrm.serving.")
    state = story.rolled_back
    assert event["payload"] == {
        "reason": "error_rate_exceeded",
        "actor": "guard",
        "command": "rollback",
        "champion": "ppo/v1",
        "rejected": "nan/v1",
        "epoch": state["epoch"],
        "version": state["version"],
    }


def test_after_a_restart_only_what_is_new_is_told(story: Story) -> None:
    first, second = story.after_restart
    assert first == story.after_outage[0]
    assert (second["event"], second["payload"]["reason"]) == (BREACH, "second thoughts (for anna)")
    assert second["payload"]["actor"] == "local"
    assert second["resource"] == first["resource"]
    assert story.posts_after_restart == 2


def test_an_event_that_is_told_twice_is_known_once(story: Story) -> None:
    assert story.posts_after_a_lost_cursor == 2 + 3
    assert story.after_a_lost_cursor[:2] == story.after_restart
    assert [event["payload"]["reason"] for event in story.after_a_lost_cursor[2:]] == ["third"]


# The outbox alone, against a real HTTP server that refuses when told to.


class Receiver(ThreadingHTTPServer):
    """Answers each POST with the next of `answers` (204 when there are none) and keeps what it got."""

    def __init__(self, *answers: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.daemon_threads = True  # a kept-alive connection must not hold up the end
        self.answers = list(answers)
        self.got: list[tuple[int, dict[str, str], dict[str, Any]]] = []

    @property
    def api(self) -> PrefectApi:
        found = prefect_api({"PREFECT_API_URL": f"http://127.0.0.1:{self.server_port}/api/"})
        assert found is not None
        return found

    @property
    def accepted(self) -> list[dict[str, Any]]:
        return [event for status, _, event in self.got if status == 204]


class _Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        (event,) = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        status = self.server.answers.pop(0) if self.server.answers else 204
        status = status if self.path == "/api/events" else 404
        self.server.got.append((status, dict(self.headers), event))
        self.send_response(status)
        if status != 204:
            self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "FIRST_RETRY_S", 0.01)
    monkeypatch.setattr(outbox, "LONGEST_RETRY_S", 0.02)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[RolloutStore]:
    store = RolloutStore(tmp_path / "rollout.db", Rollout(steps=(100,), salt="s", cool_down_s=0.0))
    store.apply(Change(Command.INSTALL, time.time(), champion="ppo/v1"))
    yield store
    store.close()


@contextmanager
def receiver(*answers: int) -> Iterator[Receiver]:
    with Receiver(*answers) as server:
        Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()


def roll_back(store: RolloutStore, challenger: str) -> None:
    store.apply(Change(Command.START, time.time(), champion="ppo/v1", challenger=challenger))
    store.apply(Change(Command.ROLLBACK, time.time(), challenger))


def ship(box: Outbox, done: Callable[[], bool], meanwhile: Callable[[], None] = lambda: None) -> None:
    """Run the outbox until `done`."""

    async def wait() -> None:
        task = asyncio.create_task(box.run())
        meanwhile()
        box.wake()
        deadline = time.monotonic() + LIMIT_S
        while not done():
            assert time.monotonic() < deadline, "waited in vain"
            assert not task.done(), task
            await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.wait({task}, timeout=LIMIT_S)
        assert task.done(), "the outbox holds up the end of the service"

    asyncio.run(wait())


def reasons(server: Receiver) -> list[str]:
    return [event["payload"]["reason"] for event in server.accepted]


def test_a_refused_event_is_sent_again_as_the_same_one_and_holds_back_the_next(
    store: RolloutStore, tmp_path: Path
) -> None:
    with receiver(503, 503, 401) as server, structlog.testing.capture_logs() as lines:
        box = Outbox(server.api, store, tmp_path / "outbox.json")
        roll_back(store, "hrm/v1")
        roll_back(store, "hrm/v2")
        ship(box, lambda: len(server.accepted) == 2)
    assert reasons(server) == ["hrm/v1", "hrm/v2"]
    assert [status for status, _, _ in server.got] == [503, 503, 401, 204, 204]
    assert len({event["id"] for _, _, event in server.got[:4]}) == 1
    warnings = [line["error"] for line in lines if line["log_level"] == "warning"]
    assert [text.split(": ")[1] for text in warnings] == ["HTTP 503", "HTTP 401"]  # once for each kind of trouble


def test_what_is_untold_is_counted_with_the_age_of_the_oldest_until_it_is_told(
    store: RolloutStore, tmp_path: Path
) -> None:
    with receiver(*[503] * 100_000) as server:
        box = Outbox(server.api, store, tmp_path / "outbox.json")
        assert (box.untold.count, box.untold.oldest_s(time.time())) == (0, 0.0)
        roll_back(store, "hrm/v1")
        roll_back(store, "hrm/v2")
        first, second = (event.at for event in store.events(0) if event.command == Command.ROLLBACK)
        ship(box, lambda: box.untold.count == 2)
        assert box.untold.since == first <= second
        assert box.untold.oldest_s(first + 7) == 7
        assert box.untold.oldest_s(first - 7) == 0  # the clock was set back
    with receiver(204, 503) as server:  # another one: the first may still be asked by the box that was ended
        box = Outbox(server.api, store, tmp_path / "outbox.json")
        ship(box, lambda: len(server.accepted) == 2 and box.untold.count == 0)
    assert [status for status, _, _ in server.got] == [204, 503, 204]


def test_an_event_that_cannot_be_read_is_trouble_like_any_other(store: RolloutStore, tmp_path: Path) -> None:
    with receiver() as server, structlog.testing.capture_logs() as lines:
        box = Outbox(server.api, store, tmp_path / "outbox.json")
        roll_back(store, "hrm/v1")
        as_it_was = store.events(0)[-1]
        write_state(tmp_path, as_it_was.version, "{}")  # by hand, or by a release that nobody knows
        ship(box, lambda: box.untold.count == 1 and bool(lines))
        write_state(tmp_path, as_it_was.version, as_it_was.state)
        box = Outbox(server.api, store, tmp_path / "outbox.json")
        ship(box, lambda: len(server.accepted) == 1)
    assert lines[0]["event"] == "rollback_not_told"


def write_state(folder: Path, version: int, state: str) -> None:
    with closing(sqlite3.connect(folder / "rollout.db")) as database, database:
        database.execute("UPDATE event SET state = ? WHERE version = ?", (state, version))


def test_a_breach_that_a_new_rollout_has_overtaken_starts_no_rollback_of_that(
    store: RolloutStore, tmp_path: Path
) -> None:
    with receiver() as server:
        box = Outbox(server.api, store, tmp_path / "outbox.json")
        roll_back(store, "hrm/v1")
        roll_back(store, "hrm/v2")
        ship(box, lambda: len(server.accepted) == 2)
    assert [event["event"] for event in server.accepted] == [SUPERSEDED, BREACH]


@pytest.mark.parametrize("cursor", [None, "{", '{"version": 1}', json.dumps({"version": 1, "hash": "a" * 64})])
def test_without_a_cursor_of_this_log_its_history_is_not_told(
    store: RolloutStore, tmp_path: Path, cursor: str | None
) -> None:
    roll_back(store, "hrm/v1")
    if cursor is not None:
        (tmp_path / "outbox.json").write_text(cursor)
    with receiver() as server, structlog.testing.capture_logs() as lines:
        box = Outbox(server.api, store, tmp_path / "outbox.json")
        ship(box, lambda: cursor_in(tmp_path) == store.read().version, lambda: roll_back(store, "hrm/v2"))
    assert reasons(server) == ["hrm/v2"]
    assert [line["event"].startswith("outbox_cursor") for line in lines if line["log_level"] == "warning"] == (
        [] if cursor is None else [True]
    )


def test_a_disk_that_refuses_the_cursor_does_not_repeat_an_event(store: RolloutStore, tmp_path: Path) -> None:
    (tmp_path / "outbox.json").mkdir()
    with receiver() as server:
        box = Outbox(server.api, store, tmp_path / "outbox.json")
        roll_back(store, "hrm/v1")
        ship(box, lambda: bool(server.accepted))
        box = Outbox(server.api, store, tmp_path / "outbox.json")
        ship(box, lambda: len(server.accepted) == 2, lambda: roll_back(store, "hrm/v2"))
    assert reasons(server) == ["hrm/v1", "hrm/v2"]


def test_an_address_that_is_none_is_trouble_like_any_other(store: RolloutStore, tmp_path: Path) -> None:
    for url in ("no address", "http://[", "ftp://127.0.0.1"):
        with structlog.testing.capture_logs() as lines:
            box = Outbox(PrefectApi(url, {}), store, tmp_path / "outbox.json")
            roll_back(store, f"hrm/{len(url)}")
            ship(box, lambda lines=lines: bool(lines))
        assert lines[0]["event"] == "rollback_not_told"


def test_the_environment_names_the_server_and_the_credentials_as_for_prefect_itself() -> None:
    url = {"PREFECT_API_URL": "https://prefect.example/api/"}
    assert prefect_api({}) is None
    assert prefect_api({"PREFECT_API_URL": "", "PREFECT_API_KEY": "k"}) is None
    assert prefect_api(url) == PrefectApi("https://prefect.example/api", {})
    assert prefect_api(url | {"PREFECT_API_KEY": "k"}).headers == {b"Authorization": b"Bearer k"}
    both = prefect_api(url | {"PREFECT_API_AUTH_STRING": "hrm:pä:ss", "PREFECT_API_KEY": "k"})
    assert both.headers == {b"Authorization": b"Basic " + base64.b64encode("hrm:pä:ss".encode())}
    assert "ss" not in repr(both)


def test_of_two_processes_one_tells_and_the_other_goes_on_when_it_has_ended(
    store: RolloutStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "LOCK_RETRY_S", 0.05)

    file = tmp_path / "outbox.json"

    def cursor_at(version: int) -> bool:
        return file.exists() and json.loads(file.read_bytes())["version"] == version

    async def run(server: Any) -> None:
        first, second = (Outbox(server.api, store, file) for _ in range(2))
        telling = asyncio.create_task(first.run())
        await asyncio.sleep(0)  # it has the lock
        waiting = asyncio.create_task(second.run())

        async def told(count: int) -> None:
            for box in (first, second):
                box.wake()
            deadline = time.monotonic() + 60
            while len(server.accepted) < count or not cursor_at(store.read().version):  # else it is told again: allowed
                assert time.monotonic() < deadline, "waited in vain"
                await asyncio.sleep(0.01)

        roll_back(store, "hrm/v1")
        await told(1)
        telling.cancel()  # as a death: the lock goes with the process
        await asyncio.gather(telling, return_exceptions=True)
        roll_back(store, "hrm/v2")
        await told(2)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)

    with receiver() as server:
        asyncio.run(run(server))
    assert reasons(server) == ["hrm/v1", "hrm/v2"]  # each once, and the second not again from the start


def test_a_database_that_is_away_when_its_turn_comes_is_waited_for(
    store: RolloutStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "LOCK_RETRY_S", 0.05)
    file = tmp_path / "outbox.json"

    async def until_true(condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + LIMIT_S
        while not condition():
            assert time.monotonic() < deadline, "waited in vain"
            await asyncio.sleep(0.01)

    async def run(server: Receiver, lines: Any) -> None:
        first, second = (Outbox(server.api, store, file) for _ in range(2))
        telling = asyncio.create_task(first.run())
        await until_true(file.exists)
        waiting = asyncio.create_task(second.run())
        with closing(sqlite3.connect(tmp_path / "rollout.db")) as database:
            database.execute("ALTER TABLE event RENAME TO away")
            telling.cancel()
            await until_true(lambda: bool(lines))
            database.execute("ALTER TABLE away RENAME TO event")
        roll_back(store, "hrm/v1")
        second.wake()
        await until_true(lambda: bool(server.accepted))
        waiting.cancel()
        await asyncio.gather(telling, waiting, return_exceptions=True)

    with receiver() as server, structlog.testing.capture_logs() as lines:
        asyncio.run(run(server, lines))
    assert lines[0]["event"] == "rollback_not_told" and reasons(server) == ["hrm/v1"]
