import os
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from core.errors import ConfigError, RolloutError
from core.settings import Rollout
from serving.rollout import RolloutStore, verify_chain
from serving.transitions import Change, Command, Phase, RolloutState

ROLLOUT = Rollout(steps=(5, 100), salt="s", cool_down_s=0.0)
WRITER = Path(__file__).with_name("state_writer.py")
ROOT = Path(__file__).parent.parent.parent


def change(command: str, **fields: str) -> Change:
    return Change(Command(command), time.time(), **fields)


@pytest.fixture
def store(tmp_path: Path) -> RolloutStore:
    store = RolloutStore(tmp_path / "rollout.db", ROLLOUT)
    store.apply(change("install", champion="ppo/v1"))
    return store


def test_an_empty_file_has_no_champion(tmp_path: Path) -> None:
    assert RolloutStore(tmp_path / "new" / "rollout.db", ROLLOUT).read() == RolloutState()


def test_the_state_and_its_log_outlive_the_object(store: RolloutStore, tmp_path: Path) -> None:
    store.apply(change("start", challenger="hrm/v1"))
    after = store.apply(change("promote", reason="gate passed", actor="flows"))
    store.close()
    again = RolloutStore(tmp_path / "rollout.db", ROLLOUT)
    assert again.read() == after
    events = again.events()
    assert [event.command for event in events] == ["install", "start", "promote"]
    assert (events[-1].actor, events[-1].reason, events[-1].version) == ("flows", "gate passed", 3)
    assert again.events(after_version=2) == events[2:]


def test_the_disk_is_asked_to_keep_every_commit(store: RolloutStore, tmp_path: Path) -> None:
    with store._engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2  # FULL
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"


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
    first = store.apply(change("abort"))
    assert store.apply(change("rollback")) == first
    assert len(store.events()) == 2


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


def test_kill_9_at_any_instant_loses_and_doubles_nothing(tmp_path: Path) -> None:
    """Two writers race; one after the other is killed while it writes. State, log and chain must agree."""
    file = tmp_path / "rollout.db"
    command = [sys.executable, str(WRITER), str(file)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    acknowledged = 0
    for round_ in range(4):
        writers = [subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True) for _ in range(2)]
        try:
            for writer in writers:
                assert writer.stdout is not None
                for _ in range(12 + 7 * round_):
                    acknowledged = max(acknowledged, int(writer.stdout.readline()))
        finally:
            for writer in writers:
                writer.kill()
                rest = writer.communicate()[0].split()
                acknowledged = max([acknowledged, *(int(word) for word in rest)])
        store = RolloutStore(file, ROLLOUT)
        events, state = store.events(limit=100_000), store.read()
        store.close()
        assert state.version == len(events) == events[-1].version
        assert state.version >= acknowledged, "an acknowledged change was lost"
        assert verify_chain(events)
    with sqlite3.connect(file) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()


def test_all_rejected_versions_outlive_the_object(store: RolloutStore, tmp_path: Path) -> None:
    for challenger in ("hrm/v1", "hrm/v2"):
        store.apply(change("start", challenger=challenger))
        store.apply(change("abort"))
    store.close()
    again = RolloutStore(tmp_path / "rollout.db", ROLLOUT)
    assert again.read().rejected == ("hrm/v1", "hrm/v2")
    for challenger in ("hrm/v1", "hrm/v2"):
        with pytest.raises(RolloutError, match="rolled back before"):
            again.apply(change("start", challenger=challenger))


@pytest.mark.parametrize(("column", "rejected"), [(None, ()), ("hrm/v1", ("hrm/v1",))])
def test_a_file_from_when_only_the_last_rejected_version_was_kept_is_read(
    store: RolloutStore, tmp_path: Path, column: str | None, rejected: tuple[str, ...]
) -> None:
    with sqlite3.connect(tmp_path / "rollout.db") as connection:
        connection.execute("UPDATE rollout SET rejected = ?", (column,))
    connection.close()
    assert store.read().rejected == rejected


def test_a_file_that_is_no_database_is_named_with_a_remedy(tmp_path: Path) -> None:
    file = tmp_path / "rollout.db"
    file.write_bytes(b"this is no database" * 100)
    with pytest.raises(ConfigError, match=r"rollout\.db.*move it away"):
        RolloutStore(file, ROLLOUT)
