"""`hrm rollout ...` against a running service: what a person sees, what a script reads, and what the log proves."""

from __future__ import annotations

import io
import json
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console
from typer.testing import CliRunner, Result

from benchmarks.postgres import postgres_server
from core.errors import ConfigError, DataError
from core.settings import Settings, load_settings
from delivery.plan import plan_from
from delivery.refusals import RefusalLog, Refused
from delivery.store import RolloutStore
from delivery.transitions import Change, Command
from flows import rollout_commands, rollout_log, rollout_watch
from flows.drill_models import publish_policy
from flows.processes import free_port
from flows.rollout_plan import coming_sessions, read_plan, with_sessions
from flows.rollout_screen import Seen
from flows.service_process import ServiceProcess, service_process
from serving import calls
from serving.client import ServiceClient
from serving.keys import create
from serving.schemas_rollout import Event
from serving.scopes import Scope

BY_HAND: dict[str, Any] = {"steps": [{"pause": {}}, {"setWeight": 5}, {"pause": {}}, {"setWeight": 50}, {"pause": {}}]}
CAREFUL = Path(__file__).parents[2] / "config" / "plans" / "careful.yaml"
WATCHED = BY_HAND | {
    "backgroundAnalysis": {"templates": [{"name": "memory"}]},
    "analysisTemplates": {
        "memory": {
            "metrics": [
                {
                    "name": "memory_overflow",
                    "provider": {"service": "rss_gb"},
                    "failureCondition": "result > 64",
                    "interval": "1s",
                    "count": 0,
                    "inconclusiveLimit": -1,
                }
            ]
        }
    },
}


def within(folder: Path) -> Settings:
    settings = load_settings(preset="compact", environ={})
    return settings.model_copy(
        update={
            "paths": settings.paths.model_copy(update={"state_dir": folder}),
            "rollout": settings.rollout.model_copy(update={"cool_down_s": 0.0}),
        }
    )


Started = Callable[[], AbstractContextManager[ServiceProcess]]


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Started:
    """Starts the service, as often as one likes, at the same address and with the same state."""
    folder, port = tmp_path_factory.mktemp("state"), str(free_port())
    for name in ("ppo/v1", *(f"hrm/v{number}" for number in range(1, 13))):
        publish_policy(folder / "models", name)
    settings = within(folder)
    return lambda: service_process(settings, champion="ppo/v1", environ={"HRM_SERVING__PORT": port})


@pytest.fixture(scope="module")
def service(started: Started) -> Iterator[ServiceProcess]:
    with started() as process:
        yield process


@pytest.fixture
def state(service: ServiceProcess) -> Path:
    return service.log.parent


@pytest.fixture
def hrm(service: ServiceProcess, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Runs a command of `hrm rollout` against the service; what a command raises is raised."""
    monkeypatch.setenv("HRM_PATHS__STATE_DIR", str(service.log.parent))
    monkeypatch.setenv("HRM_SERVING__PORT", service.url.rpartition(":")[2])
    monkeypatch.setenv("COLUMNS", "160")

    def run(*arguments: str, code: int = 0) -> Result:
        result = CliRunner().invoke(rollout_commands.app, arguments)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == code, result.output
        return result

    return run


@pytest.fixture
def client(service: ServiceProcess) -> Iterator[ServiceClient]:
    with ServiceClient(service.url, service.token) as client:
        yield client
        client.abort("the end of a test")


def last_object(result: Result) -> dict[str, Any]:
    return dict(json.loads(result.stdout.strip().splitlines()[-1]))


def written(file: Path, plan: dict[str, Any]) -> str:
    file.write_text(yaml.safe_dump(plan), encoding="utf-8")
    return str(file)


def test_a_rollout_is_steered_and_shown(
    hrm: Callable[..., Result], client: ServiceClient, state: Path, tmp_path: Path
) -> None:
    plan = written(tmp_path / "plan.yaml", BY_HAND | {"approvals": {"required": 1}})
    begun = last_object(hrm("start", "--challenger", "hrm/v1", "--plan", plan, "--reason", "why not", "--json"))
    assert (begun["champion"], begun["phase"], begun["steps"]) == ("ppo/v1", "shadow", [5, 50])
    shown = hrm("status").stdout
    for part in ("shadow", "ppo/v1", "hrm/v1", "until somebody promotes", "0 of 1, 1 missing", "why not", "by local"):
        assert part in shown, part
    assert last_object(hrm("promote", "--at-version", str(begun["version"]), "--json"))["weight"] == 5
    assert "paused" in hrm("pause").stdout
    assert "a resume" in hrm("status").stdout
    hrm("resume")
    assert "50 %" in hrm("promote").stdout
    _approve(hrm, state, tmp_path)
    promoted = hrm("promote").stdout
    assert "promoted" in promoted and "ppo/v1, loaded and warm" in promoted
    back = hrm("rollback", "--reason", "second thoughts").stdout
    assert "rolled back" in back and "second thoughts (trigger: manual)" in back


def _approve(hrm: Callable[..., Result], state: Path, folder: Path) -> None:
    with pytest.raises(ConfigError, match="--key FILE approve"):
        hrm("approve")  # of who started
    key = folder / "key"
    with pytest.raises(ConfigError, match="no readable key"):
        hrm("--key", str(key), "approve")
    identity, text = create(state, "anna", (Scope.ROLLOUT_APPROVE,))
    key.write_text(text)
    deadline = time.monotonic() + 60  # the service looks for new keys every other second
    while True:
        try:
            approved = last_object(hrm("--key", str(key), "approve", "--json"))
            break
        except calls.ServiceError as error:
            assert error.status == 401 and time.monotonic() < deadline
            time.sleep(0.05)
    assert approved["approvals"] == {"required": 1, "given": [f"key:{identity.id}"], "missing": 0}


def test_a_command_at_another_version_is_refused_with_the_present_one(
    hrm: Callable[..., Result], client: ServiceClient
) -> None:
    client.call(calls.start("ppo/v1", "hrm/v2", plan=plan_from(json.dumps(BY_HAND))))
    with pytest.raises(calls.ServiceError, match="now version") as error:
        hrm("promote", "--at-version", "1")
    assert error.value.status == 412


def test_the_events_are_a_table_or_an_object(hrm: Callable[..., Result], client: ServiceClient) -> None:
    client.call(calls.start("ppo/v1", "hrm/v3", reason="to be seen"))
    client.abort("seen [red]enough[/] \x1b[2J\x07")  # markup to rich, a command to a terminal: a reason is neither
    for command in ("events", "status"):
        shown = hrm(command).stdout
        assert "seen [red]enough[/] " in shown
        assert "\x1b" not in shown and "\x07" not in shown
    assert "to be seen" in hrm("events").stdout
    found = last_object(hrm("events", "--after", "1", "--json"))["events"]
    assert [event["command"] for event in found][-2:] == ["start", "abort"]
    assert found[0]["version"] == 2


def test_lint_draws_the_stages_of_a_plan(hrm: Callable[..., Result]) -> None:
    shown = hrm("lint", str(CAREFUL)).stdout
    assert "5 whole sessions" in shown and "analysis: answers" in shown and "2 approvals" in shown
    facts = last_object(hrm("lint", str(CAREFUL), "--json"))
    assert facts["market_time"].startswith("no step within 15m")


def test_lint_of_a_plan_that_is_not_valid_exits_with_1_and_every_problem(
    hrm: Callable[..., Result], tmp_path: Path
) -> None:
    file = written(tmp_path / "plan.yaml", {"steps": [{"setWeight": 9}, {"setWeight": 5}, {"pause": {"sessions": 1}}]})
    told = hrm("lint", file, code=1).stderr
    assert "steps.1.setWeight: 5 does not grow" in told and "add `market: {}`" in told
    assert "no readable plan" in hrm("lint", str(tmp_path / "none.yaml"), code=2).stderr


def test_a_plan_that_is_not_valid_starts_nothing(
    hrm: Callable[..., Result], client: ServiceClient, tmp_path: Path
) -> None:
    before = client.call(calls.rollout()).version
    with pytest.raises(ConfigError, match="did you mean 'setWeight'"):
        hrm("start", "--challenger", "hrm/v4", "--plan", written(tmp_path / "p.yaml", {"steps": [{"setwight": 5}]}))
    assert client.call(calls.rollout()).version == before


def test_a_plan_in_market_time_gets_the_sessions_of_the_exchange(
    hrm: Callable[..., Result], client: ServiceClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = BY_HAND | {"market": {"quiet": "20m"}}
    begun = last_object(hrm("start", "--challenger", "hrm/v5", "--plan", written(tmp_path / "p.yaml", plan), "--json"))
    frozen = client.call(calls.plan())
    assert frozen.sha256 == begun["plan_sha256"]
    assert frozen.market is not None and frozen.market.sessions
    assert frozen.market.sessions[0].close > time.time()


def test_who_waits_for_more_sessions_than_are_known_is_told(
    hrm: Callable[..., Result], client: ServiceClient, tmp_path: Path
) -> None:
    steps = [{"pause": {"sessions": 30}}, {"setWeight": 5}, {"pause": {"sessions": 30}}]
    plan = {"steps": steps, "market": {}, "progressDeadlineSeconds": "90d"}
    told = hrm("start", "--challenger", "hrm/v9", "--plan", written(tmp_path / "p.yaml", plan)).stderr
    assert "waits for 60 whole sessions" in told and "the rollout will pause" in told


def test_the_coming_sessions_are_whole_ordered_and_know_their_expiries() -> None:
    now = datetime(2025, 10, 1, 6, 0, tzinfo=UTC)  # Wednesday, in the session; the 2nd was a holiday
    found = coming_sessions(now)
    assert len(found) == 40
    assert [one.day.isoformat() for one in found[:3]] == ["2025-10-01", "2025-10-03", "2025-10-06"]
    assert all(one.open < one.close for one in found)
    assert [one.day.isoformat() for one in found if one.expiry] == ["2025-10-28", "2025-11-25"]
    after_the_close = coming_sessions(datetime(2025, 10, 1, 12, 0, tzinfo=UTC))
    assert after_the_close[0].day.isoformat() == "2025-10-03"


def test_sessions_that_a_plan_names_stay_and_those_nobody_knows_are_refused() -> None:
    named = plan_from("{steps: [setWeight: 5], market: {sessions: [{day: 2030-01-01, open: 1, close: 2}]}}")
    assert with_sessions(named, datetime.now(UTC)) is named
    with pytest.raises(DataError) as error:
        with_sessions(read_plan(CAREFUL), datetime(2099, 1, 1, tzinfo=UTC))
    assert error.value.code == "outside_calendar"


@pytest.fixture(scope="module")
def exported(service: ServiceProcess, tmp_path_factory: pytest.TempPathFactory) -> list[Event]:
    with ServiceClient(service.url, service.token) as client:
        client.call(calls.start("ppo/v1", "hrm/v6", reason="beats the incumbent"))
        client.abort("no, it does not")
        return list(rollout_log.from_service(client))


def test_an_exported_log_is_whole_whether_asked_for_or_read_from_the_database(
    hrm: Callable[..., Result], exported: list[Event], state: Path, tmp_path: Path
) -> None:
    asked, read = tmp_path / "asked.jsonl", tmp_path / "read.jsonl"
    told = last_object(hrm("export", str(asked), "--json"))
    hrm("export", str(read), "--database", str(state / "rollout.db"))
    assert asked.read_bytes() == read.read_bytes()
    checked = last_object(hrm("verify", str(asked), "--json"))
    assert (checked["whole"], checked["events"], checked["last_hash"]) == (True, told["events"], told["last_hash"])
    assert told["events"] >= len(exported)
    assert not list(tmp_path.glob(".*"))  # nothing half-written stays


def _altered(lines: list[str]) -> list[str]:
    return [line.replace("beats the incumbent", "is beaten") for line in lines]


TAMPERED: dict[str, Callable[[list[str]], list[str]]] = {
    "a reason": _altered,
    "an actor": lambda lines: [lines[0], lines[1].replace('"actor":"local"', '"actor":"anna"'), *lines[2:]],
    "a time": lambda lines: [lines[0], lines[1].replace('"at":1', '"at":2', 1), *lines[2:]],
    "one dropped": lambda lines: [lines[0], *lines[2:]],
    "the first one dropped": lambda lines: lines[1:],
    "one twice": lambda lines: [lines[0], lines[1], *lines[1:]],
    "two exchanged": lambda lines: [lines[0], lines[2], lines[1], *lines[3:]],
}


@pytest.mark.parametrize("how", TAMPERED)
def test_a_log_that_was_altered_is_named_with_the_place(
    hrm: Callable[..., Result], exported: list[Event], tmp_path: Path, how: str
) -> None:
    file = tmp_path / "log.jsonl"
    rollout_log.write(exported, file)
    before = file.read_text().splitlines()
    after = TAMPERED[how](before)
    assert after != before
    file.write_text("\n".join(after) + "\n")
    told = hrm("verify", str(file), code=1).stderr
    first = next(i for i, (one, other) in enumerate(zip(after, [*before, ""], strict=False)) if one != other)
    assert f"breaks at event {json.loads(after[first])['version']} " in told
    assert f"{first} events up to there are whole" in told


def test_an_altered_event_with_a_hash_of_its_own_breaks_the_chain_at_the_next(exported: list[Event]) -> None:
    from dataclasses import asdict, replace

    from delivery import store
    from delivery.chain import digest

    forged = store.Event(**exported[0].model_dump())
    forged = replace(forged, actor="anna")
    forged = replace(forged, hash=digest(asdict(forged)))  # who can write the file can compute a hash
    assert store.verify_chain([forged])
    with pytest.raises(DataError, match="breaks at event 2"):
        rollout_log.verified([Event(**vars(forged)), *exported[1:]])


@pytest.mark.parametrize("line", ["", "{}", "[]", "not json", '{"version": "1"}', "\ufeff{}"])
def test_a_line_that_is_no_event_is_named(
    hrm: Callable[..., Result], exported: list[Event], tmp_path: Path, line: str
) -> None:
    file = tmp_path / "log.jsonl"
    file.write_text(exported[0].model_dump_json() + "\n" + line + "\n")
    assert f"{file}:2: no event" in hrm("verify", str(file), code=1).stderr


def test_what_is_no_log_or_no_database_says_what_to_do(hrm: Callable[..., Result], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="hrm rollout export"):
        hrm("verify", str(tmp_path / "none.jsonl"))
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    assert "UTF-8" in hrm("verify", str(tmp_path / "binary"), code=1).stderr
    with pytest.raises(ConfigError, match=r"rollout\.db"):
        hrm("export", str(tmp_path / "out"), "--database", str(tmp_path / "none.db"))
    (tmp_path / "other.db").write_bytes(b"no database at all, but long enough to be looked at")
    with pytest.raises(ConfigError, match=r"not a service's rollout\.db"):
        hrm("export", str(tmp_path / "out"), "--database", str(tmp_path / "other.db"))
    assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigError, match="is a folder"):
        hrm("export", str(tmp_path))


def refused_too(hrm: Callable[..., Result], tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    """An export with two refusals, at least."""
    file = tmp_path / "with-refusals.jsonl"
    deadline = time.monotonic() + 60
    while True:
        told = last_object(hrm("export", str(file), "--json"))
        if told["refusals"] >= 2:
            return file, told
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


@pytest.fixture
def refusals(client: ServiceClient) -> None:
    for name in ("promote", "pause"):
        with pytest.raises(calls.ServiceError):
            client.call(calls.command(name, reason="too early", version=10**6))


@pytest.mark.usefixtures("refusals", "exported")
def test_what_was_refused_is_exported_too_on_a_chain_of_its_own(
    hrm: Callable[..., Result], state: Path, tmp_path: Path
) -> None:
    file, told = refused_too(hrm, tmp_path)
    checked = last_object(hrm("verify", str(file), "--json"))
    assert checked == told | {"whole": True}
    lines = file.read_text().splitlines()
    first = next(i for i, line in enumerate(lines) if '"seq":1,' in line)
    assert first == told["events"]
    file.write_text("\n".join([*lines[:first], *lines[first + 1 :]]) + "\n")
    assert "breaks at refusal 2 " in hrm("verify", str(file), code=1).stderr
    altered = lines[first].replace('"code":"', '"code":"x')
    file.write_text("\n".join([*lines[:first], altered, *lines[first + 1 :]]) + "\n")
    assert "breaks at refusal 1 " in hrm("verify", str(file), code=1).stderr


@pytest.mark.usefixtures("refusals", "exported")
@pytest.mark.parametrize(
    ("statement", "place"),
    [
        ("UPDATE event SET reason = 'is beaten' WHERE version = 2", "event 2 "),
        ("DELETE FROM refusal WHERE seq = 1", "refusal 2 "),
        ("UPDATE event SET at = 'noon' WHERE version = 1", "no service wrote"),
    ],
)
def test_an_export_of_a_database_that_was_altered_says_so(
    hrm: Callable[..., Result], state: Path, tmp_path: Path, statement: str, place: str
) -> None:
    refused_too(hrm, tmp_path)
    copy, file = tmp_path / "copy.db", tmp_path / "log.jsonl"
    with closing(sqlite3.connect(state / "rollout.db")) as found, closing(sqlite3.connect(copy)) as into:
        found.backup(into)
        into.execute(statement)
        into.commit()
    assert place in hrm("export", str(file), "--database", str(copy), code=1).stderr


def test_a_log_on_a_server_is_read_by_the_variable_that_the_settings_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = within(tmp_path)
    rollout = settings.rollout.model_copy(update={"database_url_env": "ROLLOUT_DATABASE_URL"})
    settings = settings.model_copy(update={"rollout": rollout})
    with postgres_server() as server:
        url = server.new_database()
        monkeypatch.setenv("ROLLOUT_DATABASE_URL", url.render_as_string(hide_password=False))
        place = rollout_log.place_named("ROLLOUT_DATABASE_URL", settings)
        store = RolloutStore(place, settings.rollout)
        store.apply(Change(Command.START, 1.0, champion="a/v1", challenger="b/v1"))
        RefusalLog(store.engine).append([Refused(1.0, "anna", "promote", "no", "paused", 1)])
        store.close()
        proof = rollout_log.write(rollout_log.from_database(place), tmp_path / "log.jsonl")
        proof.require_whole()
        assert (proof.events.count, proof.refusals.count) == (1, 1)
        assert url.password is None or url.password not in (tmp_path / "log.jsonl").read_text()
    assert rollout_log.place_named("rollout.db", settings) == Path("rollout.db")


def test_an_empty_log_is_whole(hrm: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text("")
    assert last_object(hrm("verify", str(tmp_path / "log.jsonl"), "--json"))["events"] == 0


def test_watch_once_shows_the_state_its_analyses_and_its_events(
    hrm: Callable[..., Result], client: ServiceClient
) -> None:
    client.call(calls.start("ppo/v1", "hrm/v7", plan=plan_from(json.dumps(WATCHED)), reason="to be watched"))
    until(lambda: bool(client.call(calls.analysis()).runs[0].metrics[0].measurements))
    shown = hrm("watch", "--once").stdout
    for part in ("shadow", "background: running", "memory_overflow", "✓", "to be watched", "start"):
        assert part in shown, part


def until(true: Callable[[], bool], limit_s: float = 30.0) -> None:
    deadline = time.monotonic() + limit_s
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_watch_of_a_rollout_that_has_ended_ends_with_its_outcome(
    hrm: Callable[..., Result], client: ServiceClient
) -> None:
    client.call(calls.start("ppo/v1", "hrm/v8"))
    client.abort("enough")
    assert "rolled back" in hrm("watch", code=5).stdout


class Screen:
    """A terminal that somebody watches, in a thread of its own."""

    def __init__(self, client: ServiceClient) -> None:
        self.drawn = io.StringIO()
        self.ended: Seen | None = None
        console = Console(file=self.drawn, force_terminal=True, width=140, height=60, color_system=None)
        self.thread = threading.Thread(target=self._watch, args=(client, console))
        self.thread.start()

    def _watch(self, client: ServiceClient, console: Console) -> None:
        self.ended = rollout_watch.follow(client, console=console)

    def shows(self, text: str) -> bool:
        return text in self.drawn.getvalue()


def test_watch_survives_a_restart_of_the_service_and_ends_with_the_rollout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rollout_watch, "LOOK_S", 0.1)
    settings, port = within(tmp_path), str(free_port())
    for name in ("ppo/v1", "hrm/v1"):
        publish_policy(tmp_path / "models", name)
    with service_process(settings, champion="ppo/v1", environ={"HRM_SERVING__PORT": port}) as process:
        client = ServiceClient(process.url, process.token)
        client.call(calls.start("ppo/v1", "hrm/v1", plan=plan_from(json.dumps(BY_HAND)), reason="watched"))
        screen = Screen(client)
        until(lambda: screen.shows("watched"))
        client.call(calls.command("promote"))
        until(lambda: screen.shows("5 %  shadow") or screen.shows("canary"))
        process.process.kill()
        until(lambda: screen.shows("no answer since"))
    with service_process(settings, environ={"HRM_SERVING__PORT": port}):
        client.abort("it has been seen")
        screen.thread.join(30)
    client.close()
    assert screen.ended is not None
    assert (screen.ended.rollout.phase, screen.ended.silence) == ("rolled_back", "")
    assert screen.shows("it has been seen")


def test_what_stays_as_it_is_is_drawn_once(client: ServiceClient, monkeypatch: pytest.MonkeyPatch) -> None:
    state = client.call(calls.rollout())
    seen = rollout_watch.look(client, None)
    going = Seen(state.model_copy(update={"phase": "shadow"}), seen.analysis, seen.events, ())
    ended = Seen(state, seen.analysis, seen.events, ())
    looks = iter([going, going, ended])
    monkeypatch.setattr(rollout_watch, "LOOK_S", 0.0)
    monkeypatch.setattr(rollout_watch, "look_again", lambda *_: next(looks))
    drawn: list[Seen] = []
    assert rollout_watch._follow(client, going, drawn.append) is ended
    assert drawn == [going, ended]
