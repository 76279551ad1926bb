"""An older release's state is brought up to date in place, once, and its log still verifies."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from crashing import ROLLOUT, dies_at, opens

import delivery.schema
from core.errors import ConfigError
from delivery import state_database
from delivery.analysis import Measurement, MeasurementPhase
from delivery.earned import Earned
from delivery.losses import BOOK, EVER, Ledger, LossStore, Outcome, Page
from delivery.migrations import config, upgrade
from delivery.schema import METADATA, VERSION_TABLE
from delivery.seen import Seen, SeenStore
from delivery.state_database import Place, open_engine, writing
from delivery.store import GENESIS, RolloutStore, verify_chain
from delivery.tables import HEAD
from delivery.transitions import Change, Command, Phase

ROOT = Path(__file__).resolve().parents[2]
BEFORE_MIGRATIONS = """
CREATE TABLE rollout (
    id INTEGER NOT NULL CHECK (id = 1), version INTEGER NOT NULL, epoch INTEGER NOT NULL, phase VARCHAR NOT NULL,
    champion VARCHAR, challenger VARCHAR, fallback VARCHAR, step INTEGER NOT NULL, weight INTEGER NOT NULL,
    paused BOOLEAN NOT NULL, reason VARCHAR NOT NULL, rejected VARCHAR, rolled_back_at FLOAT, PRIMARY KEY (id));
CREATE TABLE event (
    version INTEGER NOT NULL, at FLOAT NOT NULL, actor VARCHAR NOT NULL, command VARCHAR NOT NULL,
    reason VARCHAR NOT NULL, state VARCHAR NOT NULL, prev_hash VARCHAR NOT NULL, hash VARCHAR NOT NULL,
    PRIMARY KEY (version), UNIQUE (hash));
INSERT INTO rollout VALUES (1, 0, 0, 'idle', NULL, NULL, NULL, 0, 0, 0, '', '', NULL);
"""
IDLE = {
    "version": 0, "epoch": 0, "phase": "idle", "champion": None, "challenger": None, "fallback": None, "step": 0,
    "weight": 0, "paused": False, "reason": "", "rejected": [], "rolled_back_at": None,
}  # fmt: skip
STORY = (
    ("install", "service", {"champion": "ppo/v1"}),
    ("start", "alice", {"phase": "shadow", "challenger": "hrm/v1", "reason": "quarterly"}),
    ("abort", "bob", {"phase": "rolled_back", "challenger": None, "rejected": ["hrm/v1"], "rolled_back_at": 12.5}),
    ("start", "carol", {"phase": "shadow", "challenger": "hrm/v2", "reason": ""}),
    ("promote", "carol", {"phase": "canary", "step": 1, "weight": 5, "epoch": 1}),
)


def write_old_file(file: Path, story: tuple[tuple[str, str, dict[str, object]], ...] = STORY) -> None:
    """As the release before migrations left it: its layout, its state after the last event, and its chained log."""
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.executescript(BEFORE_MIGRATIONS)
        state, prev_hash = dict(IDLE), GENESIS
        for version, (command, actor, changes) in enumerate(story, 1):
            state |= changes | {"version": version}
            event = {
                "version": version,
                "at": 1000.25 + version,
                "actor": actor,
                "command": command,
                "reason": str(state["reason"]),
                "state": json.dumps(state, sort_keys=True),
                "prev_hash": prev_hash,
            }
            prev_hash = hashlib.sha256(json.dumps(event, sort_keys=True).encode()).hexdigest()
            row = [*event.values(), prev_hash]
            connection.execute("INSERT INTO event VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)
        values = [" ".join(state["rejected"]) if name == "rejected" else state[name] for name in IDLE]  # type: ignore[arg-type]
        connection.execute(f"UPDATE rollout SET ({', '.join(IDLE)}) = ({', '.join('?' * len(IDLE))})", values)


@contextmanager
def opened(place: Place) -> Iterator[RolloutStore]:
    store = RolloutStore(place, ROLLOUT)
    yield store
    store.close()


def differences(engine: sa.Engine) -> list[object]:
    with engine.connect() as connection:
        found = MigrationContext.configure(connection, opts={"compare_type": True, "version_table": VERSION_TABLE})
        return list(compare_metadata(found, list(METADATA)))


def revision(engine: sa.Engine) -> str:
    with engine.connect() as connection:
        return str(connection.execute(sa.text(f"SELECT version_num FROM {VERSION_TABLE}")).scalar_one())


@pytest.fixture
def old(tmp_path: Path) -> Path:
    file = tmp_path / "rollout.db"
    write_old_file(file)
    return file


def test_the_tables_of_a_new_database_are_those_that_all_migrations_lead_to(place: Place) -> None:
    with opened(place) as store:
        assert differences(store.engine) == []
        assert revision(store.engine) == HEAD == ScriptDirectory.from_config(config()).get_current_head()


def test_the_migrations_from_the_first_on_lead_there_too(place: Place) -> None:
    engine = open_engine(place)
    with writing(engine) as connection:
        upgrade(connection, "")
    assert differences(engine) == []
    assert revision(engine) == HEAD
    engine.dispose()


def test_an_old_file_is_upgraded_in_place_and_a_rollout_in_it_goes_on(old: Path) -> None:
    before = time.time()
    with opened(old) as store:
        state, events = store.read(), store.events()
        assert (state.phase, state.champion, state.challenger) == (Phase.CANARY, "ppo/v1", "hrm/v2")
        assert (state.step, state.weight, state.version, state.epoch) == (1, 5, 5, 1)
        assert (state.rejected, state.rolled_back_at) == (("hrm/v1",), 12.5)
        assert (state.attempt, state.started_by, state.approved_by) == (4, "carol", ())
        assert before <= state.stage_at == state.gate_at == state.watched_since <= time.time()
        assert [event.command for event in events] == [command for command, _, _ in STORY]
        assert verify_chain(events)
        assert differences(store.engine) == []
        assert store.plan(state).stages[1].weight == 5
        promoted = [store.apply(Change(Command.PROMOTE, time.time(), actor="carol")) for _ in range(2)]
        assert [(state.phase, state.weight) for state in promoted] == [(Phase.CANARY, 100), (Phase.PROMOTED, 0)]
        assert verify_chain(store.events())
        assert store.measurements(state.attempt) == {}
        assert LossStore(store.engine).read(state.attempt) == {}
    with opened(old) as again:
        assert again.read().phase is Phase.PROMOTED


def test_an_old_file_in_which_nothing_was_ever_started_is_upgraded(tmp_path: Path) -> None:
    write_old_file(tmp_path / "rollout.db", STORY[:1])
    with opened(tmp_path / "rollout.db") as store:
        state = store.read()
        assert (state.champion, state.attempt, state.stage_at, state.started_by) == ("ppo/v1", 0, 0.0, "")
        assert store.apply(Change(Command.START, time.time(), challenger="hrm/v1")).attempt == 2


def test_of_several_that_open_an_old_file_at_once_one_upgrades_it(old: Path) -> None:
    with ThreadPoolExecutor(6) as pool:
        stores = list(pool.map(lambda _: RolloutStore(old, ROLLOUT), range(6)))
    assert {store.read().attempt for store in stores} == {4}
    assert differences(stores[0].engine) == []
    for store in stores:
        store.close()


def test_several_processes_may_open_a_new_database_at_once(place: Place) -> None:
    with ThreadPoolExecutor(4) as pool:
        killed = list(pool.map(lambda _: dies_at("nowhere", opens, place), range(4)))
    assert killed == [False] * 4
    with opened(place) as store:
        assert (store.events(), revision(store.engine)) == ([], HEAD)


def test_who_dies_in_the_middle_of_a_migration_leaves_the_old_file(old: Path) -> None:
    assert dies_at("schema_ready", opens, old)
    with closing(sqlite3.connect(old)) as connection:
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    assert tables == {"rollout", "event"}
    with opened(old) as store:
        assert verify_chain(store.events())
        assert revision(store.engine) == HEAD


def test_a_newer_releases_state_is_refused_and_left_alone(place: Place) -> None:
    with opened(place) as store, store.engine.begin() as connection:
        connection.execute(sa.text(f"UPDATE {VERSION_TABLE} SET version_num = '9999'"))
    with pytest.raises(ConfigError, match=r"of another release .*9999.*run that one"):
        RolloutStore(place, ROLLOUT)


def test_a_table_of_nobodys_release_is_refused(place: Place) -> None:
    engine = open_engine(place)
    with writing(engine) as connection:
        connection.execute(sa.text("CREATE TABLE rollout (id INTEGER, anything VARCHAR)"))
    engine.dispose()
    with pytest.raises(ConfigError, match="of no release"):
        RolloutStore(place, ROLLOUT)


def test_a_start_that_has_nothing_to_migrate_loads_no_migration_tool(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from core.settings import Rollout; from delivery.store import "
        "RolloutStore; RolloutStore(Path(sys.argv[1]), Rollout(steps=(100,), salt='s', cool_down_s=0.0)).close(); "
        "print([name for name in ('alembic', 'mako', 'psycopg') if name in sys.modules])"
    )
    for _ in range(2):  # a new file, and one that is there
        command = [sys.executable, "-c", program, str(tmp_path / "rollout.db")]
        answer = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
        assert answer.stdout.strip() == "[]"


def test_who_waits_for_another_ones_migration_waits_longer_than_for_a_change(
    old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery.schema, "MIGRATION_WAIT_MS", 60_000)
    monkeypatch.setattr(state_database, "LOCK_WAIT_MS", 1)
    with closing(sqlite3.connect(old, isolation_level=None)) as slow, ThreadPoolExecutor(1) as pool:
        slow.execute("BEGIN IMMEDIATE")
        opening = pool.submit(RolloutStore, old, ROLLOUT)
        with pytest.raises(TimeoutError):
            opening.result(timeout=0.5)
        slow.execute("ROLLBACK")
        store = opening.result(timeout=60)
    assert revision(store.engine) == HEAD
    store.close()


ONE_ROLLOUT = (
    "INSERT INTO rollout (id, version, epoch, phase, champion, challenger, step, weight, paused, reason, rejected,"
    " attempt, gate, stage_at, gate_at, watched_since, started_by, approved_by, trigger)"
    " VALUES (1, 7, 2, 'canary', 'ppo/v1', 'hrm/v1', 1, 5, {no}, '', '', 3, 0, 10.5, 10.5, 5.5, 'anna', '[]', '')"
)
OF_0005 = (
    "INSERT INTO measurement (attempt, run, metric, at, phase, value, detail)"
    " VALUES (3, 'background', 'errors', 12.5, 'failed', 0.25, '0.25 > 0.05')",
    "INSERT INTO equity VALUES (3, '', '', 40, 1.5, 2.5, -3.5, 4.5)",
)


def test_measurements_and_money_of_0005_are_carried_over_and_what_they_do_not_say_stays_unknown(place: Place) -> None:
    engine = open_engine(place)
    no = "false" if engine.dialect.name == "postgresql" else "0"
    with writing(engine) as connection:
        command.upgrade(config(connection), "0005")
        for statement in (ONE_ROLLOUT.format(no=no), *OF_0005):
            connection.execute(sa.text(statement))
    engine.dispose()
    with opened(place) as store:
        assert revision(store.engine) == HEAD
        assert differences(store.engine) == []
        assert store.read().attempt == 3
        before = Measurement(12.5, MeasurementPhase.FAILED, 0.25, "0.25 > 0.05", samples=None, hits=None)
        assert store.measurements(3) == {("background", "errors"): [before]}
        now = Measurement(13.5, MeasurementPhase.SUCCESSFUL, 0.0, "fine", samples=200, hits=3)
        store.record_measurement(3, "background", "errors", now)
        assert store.measurements(3)["background", "errors"] == [before, now]
        losses, outcome = LossStore(store.engine), Outcome("A", "2026-03-02", 1.0, -1.0)
        pages = Ledger(3).add(outcome)
        assert losses.write(pages, [Earned(3, 14.5, outcome)])[0][Page(3, EVER, BOOK)].outcomes == 41
        with store.engine.connect() as connection:  # numbered after those that were only counted
            assert connection.execute(sa.text("SELECT id FROM outcome")).scalars().all() == [41]
        SeenStore(store.engine, "one").write(3, "challenger", Seen(runs=1))
        assert SeenStore(store.engine, "other").read(3, "challenger", 30.0).runs == 1
