"""The rollout's state and its log, on a file and on a server: the same tests, and a few of each one's own."""

import json
import sqlite3
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import sqlalchemy as sa

from benchmarks.postgres import PostgresServer
from core.errors import ConfigError, RolloutError
from core.settings import Rollout, load_settings
from delivery.state_database import Place, named, place_of, writing
from delivery.store import RolloutStore, verify_chain
from delivery.transitions import Change, Command, Phase, RolloutState

ROLLOUT = Rollout(steps=(5, 100), salt="s", cool_down_s=0.0)


def change(command: str, **fields: str) -> Change:
    return Change(Command(command), time.time(), **fields)


@contextmanager
def opened(place: Place) -> Iterator[RolloutStore]:
    store = RolloutStore(place, ROLLOUT)
    yield store
    store.close()


@pytest.fixture
def store(place: Place) -> Iterator[RolloutStore]:
    with opened(place) as store:
        store.apply(change("install", champion="ppo/v1"))
        yield store


@pytest.fixture
def on_sqlite(tmp_path: Path) -> Iterator[RolloutStore]:
    with opened(tmp_path / "rollout.db") as store:
        store.apply(change("install", champion="ppo/v1"))
        yield store


def test_an_empty_database_has_no_champion(place: Place) -> None:
    with opened(place) as store:
        assert store.read() == RolloutState()


def test_the_folder_of_a_new_file_is_made(tmp_path: Path) -> None:
    with opened(tmp_path / "new" / "rollout.db") as store:
        assert store.events() == []


def test_the_state_and_its_log_outlive_the_object(store: RolloutStore, place: Place) -> None:
    store.apply(change("start", challenger="hrm/v1"))
    after = store.apply(change("promote", reason="gate passed", actor="flows"))
    store.close()
    with opened(place) as again:
        assert again.read() == after
        events = again.events()
        assert [event.command for event in events] == ["install", "start", "promote"]
        assert (events[-1].actor, events[-1].reason, events[-1].version) == ("flows", "gate passed", 3)
        assert again.events(after_version=2) == events[2:]
        assert verify_chain(events)


def test_every_field_of_the_state_is_read_as_it_was_written(store: RolloutStore, place: Place) -> None:
    store.apply(change("start", challenger="hrm/v1", actor='a "quoted" actor'))
    store.apply(change("approve", actor="one\ntwo"))
    store.apply(Change(Command.PAUSE, 1795374225.9644763))
    store.apply(change("rollback", reason="ü, 株", actor="guard"))
    expected = json.loads(store.events()[-1].state)
    assert json.loads(json.dumps(asdict(store.read()))) == expected


@pytest.mark.parametrize("reason", ["nul \0 inside", "half a pair \ud800", "🙂"])
def test_no_rollback_fails_for_its_reason(store: RolloutStore, reason: str) -> None:
    store.apply(change("start", challenger="hrm/v1"))
    assert store.apply(change("rollback", reason=reason, actor=reason)).latched
    assert verify_chain(store.events())


def test_the_disk_is_asked_to_keep_every_commit(on_sqlite: RolloutStore) -> None:
    with on_sqlite.engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2  # FULL
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"


def test_a_server_that_does_not_wait_for_its_disk_does_so_for_us(postgres: PostgresServer) -> None:
    url = postgres.new_database()
    with opened(url) as store, store.engine.begin() as connection:
        connection.exec_driver_sql(f"ALTER DATABASE {url.database} SET synchronous_commit = off")
    with opened(url) as store:
        with store.engine.connect() as connection:
            assert connection.exec_driver_sql("SHOW synchronous_commit").scalar() == "off"
        with writing(store.engine) as connection:
            assert connection.exec_driver_sql("SHOW synchronous_commit").scalar() == "on"


def test_a_command_on_a_version_that_is_gone_is_refused(store: RolloutStore) -> None:
    store.apply(change("start", challenger="hrm/v1"), expected_version=1)
    with pytest.raises(RolloutError) as error:
        store.apply(change("promote"), expected_version=1)
    assert error.value.code == "stale_version"
    assert error.value.retryable
    assert store.read().phase is Phase.SHADOW


def test_an_abort_does_not_care_which_version_it_finds(store: RolloutStore) -> None:
    store.apply(change("start", challenger="hrm/v1"))
    assert store.apply(change("abort"), expected_version=0).latched


def test_a_refused_command_leaves_no_event(store: RolloutStore) -> None:
    with pytest.raises(RolloutError):
        store.apply(change("promote"))
    assert len(store.events()) == 1


def test_a_repeated_abort_changes_nothing(store: RolloutStore) -> None:
    store.apply(change("start", challenger="hrm/v1"))
    first = store.apply(change("abort"))
    assert store.apply(change("rollback")) == first
    assert len(store.events()) == 3


def test_of_many_promotions_at_once_each_step_is_taken_once(store: RolloutStore) -> None:
    store.apply(change("start", challenger="hrm/v1"))

    def promote(_: int) -> bool:
        try:
            store.apply(change("promote"), expected_version=2)
        except RolloutError as error:
            assert error.code == "stale_version"
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(promote, range(16))) == 1
    assert store.read().weight == 5
    assert verify_chain(store.events())


def test_an_abort_beats_writers_that_never_stop(store: RolloutStore) -> None:
    store.apply(change("start", challenger="hrm/v1"))

    def toggle(number: int) -> None:
        for _ in range(15):
            try:
                store.apply(change("pause" if number % 2 else "resume"))
            except RolloutError as error:
                assert error.code in ("stale_version", "invalid_transition")

    with ThreadPoolExecutor(6) as pool:
        writers = [pool.submit(toggle, number) for number in range(5)]
        aborted = pool.submit(store.apply, change("abort"))
        assert aborted.result(timeout=30).latched
        for writer in writers:
            writer.result(timeout=30)
    assert store.read().latched
    assert verify_chain(store.events())


def test_an_altered_or_dropped_event_breaks_the_chain(store: RolloutStore) -> None:
    store.apply(change("start", challenger="hrm/v1"))
    store.apply(change("abort", reason="because"))
    events = store.events()
    assert verify_chain(events)
    assert not verify_chain(events[1:])
    assert not verify_chain([events[0], events[2]])
    assert not verify_chain([*events[:2], replace(events[2], reason="something else")])


def test_all_rejected_versions_outlive_the_object(store: RolloutStore, place: Place) -> None:
    for challenger in ("hrm/v1", "hrm/v2"):
        store.apply(change("start", challenger=challenger))
        store.apply(change("abort"))
    store.close()
    with opened(place) as again:
        assert again.read().rejected == ("hrm/v1", "hrm/v2")
        for challenger in ("hrm/v1", "hrm/v2"):
            with pytest.raises(RolloutError, match="rolled back before"):
                again.apply(change("start", challenger=challenger))


@pytest.mark.parametrize(("column", "rejected"), [(None, ()), ("hrm/v1", ("hrm/v1",))])
def test_a_file_from_when_only_the_last_rejected_version_was_kept_is_read(
    on_sqlite: RolloutStore, tmp_path: Path, column: str | None, rejected: tuple[str, ...]
) -> None:
    with closing(sqlite3.connect(tmp_path / "rollout.db")) as connection, connection:
        connection.execute("UPDATE rollout SET rejected = ?", (column,))
    assert on_sqlite.read().rejected == rejected


def test_a_file_that_is_no_database_is_named_with_a_remedy(tmp_path: Path) -> None:
    file = tmp_path / "rollout.db"
    file.write_bytes(b"this is no database" * 100)
    with pytest.raises(ConfigError, match=r"rollout\.db.*move it away"):
        RolloutStore(file, ROLLOUT)


def test_a_server_that_is_gone_is_named_without_its_password() -> None:
    url = sa.make_url("postgresql+psycopg://desk:hunter2@127.0.0.1:1/rollout")
    with pytest.raises(
        ConfigError, match=r"postgresql://127.0.0.1/rollout: not usable.*refused.*; mend its address"
    ) as error:
        RolloutStore(url, ROLLOUT)
    assert "hunter2" not in str(error.value)


def test_a_writer_that_stopped_within_its_transaction_is_not_waited_for(postgres: PostgresServer) -> None:
    """As a machine that lost its network: nobody tells the server that the transaction is over."""
    url = postgres.new_database()
    with opened(url) as store, opened(url) as other:
        store.apply(change("start", champion="ppo/v1", challenger="hrm/v1"))
        with suppress(sa.exc.DBAPIError), writing(other.engine) as stopped:
            stopped.exec_driver_sql("SELECT set_config('idle_in_transaction_session_timeout', '200ms', true)")
            stopped.exec_driver_sql("UPDATE rollout SET reason = 'half a change'")
            assert store.apply(change("rollback")).latched
        assert store.read().reason == ""


def test_a_lock_that_is_never_given_back_is_an_error_and_no_wait_without_end(place: Place) -> None:
    with opened(place) as store, opened(place) as other:
        store.apply(change("start", champion="ppo/v1", challenger="hrm/v1"))
        with writing(other.engine) as holder:
            holder.exec_driver_sql("UPDATE rollout SET reason = 'not committed yet'")
            with pytest.raises(sa.exc.OperationalError, match="lock"):
                store.apply(change("rollback"))
            assert store.read().reason == ""
        assert store.apply(change("rollback")).latched


def place_from(environ: dict[str, str], name: str | None = "ROLLOUT_DATABASE_URL") -> Place:
    settings = load_settings(environ={})
    rollout = settings.rollout.model_copy(update={"database_url_env": name})
    return place_of(settings.model_copy(update={"rollout": rollout}), environ)


def test_without_a_setting_the_state_is_a_file_of_the_state_directory() -> None:
    assert place_from({"ROLLOUT_DATABASE_URL": "postgresql://somewhere/else"}, None) == Path(".hrm/rollout.db")


def test_the_address_comes_from_the_environment_or_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text("postgresql://desk:hunter2@db.example/rollout\n")
    for environ in ({"ROLLOUT_DATABASE_URL": file.read_text()}, {"ROLLOUT_DATABASE_URL_FILE": str(file)}):
        url = place_from(environ)
        assert isinstance(url, sa.URL)
        assert (url.drivername, url.password, url.host) == ("postgresql+psycopg", "hunter2", "db.example")
        assert "hunter2" not in f"{url!r} {url} {named(url)}"


@pytest.mark.parametrize(
    ("environ", "why"),
    [
        ({}, "ROLLOUT_DATABASE_URL is not set"),
        ({"ROLLOUT_DATABASE_URL": "hunter2"}, "no SQLAlchemy URL"),
        ({"ROLLOUT_DATABASE_URL": "postgresql://desk:hunter2@host:port/rollout"}, "no SQLAlchemy URL"),
        ({"ROLLOUT_DATABASE_URL": "mysql://desk:hunter2@host/rollout"}, "only postgresql"),
        ({"ROLLOUT_DATABASE_URL_FILE": "/nowhere"}, "not readable"),
    ],
)
def test_a_state_that_is_to_be_on_a_server_is_never_looked_for_elsewhere(environ: dict[str, str], why: str) -> None:
    with pytest.raises(ConfigError, match=why) as error:
        place_from(environ)
    assert "hunter2" not in str(error.value)
