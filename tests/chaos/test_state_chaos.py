"""`hrm bench rollback` in small: what it counts must be right here too; how fast it is depends on the machine."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from benchmarks.postgres import PostgresServer, postgres_server
from benchmarks.rollback import run
from benchmarks.rollback_kills import ROLLOUT, kills, verdict
from benchmarks.rollback_seen import blind, seen
from core.errors import ConfigError
from delivery import tables
from delivery.state_database import Place
from delivery.store import RolloutStore
from delivery.transitions import Change, Command


def test_kill_9_at_any_instant_loses_and_doubles_nothing(place: Place) -> None:
    found = kills(place, 8)
    assert found["kills"] == 8
    assert found["acknowledged"] >= 8  # nobody is killed before a commit
    assert (found["lost"], found["duplicated"]) == (0, 0)
    assert found["chain_verifies"]
    assert found["consistent"]


@pytest.fixture
def written(tmp_path: Path) -> Iterator[RolloutStore]:
    """Two changes, `first` and `second`."""
    store = RolloutStore(tmp_path / "rollout.db", ROLLOUT)
    store.apply(Change(Command.START, 1.0, "first", champion="ppo/v1", challenger="hrm/v1"))
    store.apply(Change(Command.PAUSE, 2.0, "second"))
    yield store
    store.close()


def test_the_verdict_finds_what_is_lost_twice_there_or_altered(written: RolloutStore, tmp_path: Path) -> None:
    file, acknowledged = tmp_path / "rollout.db", {"first": 1, "second": 2}
    healthy = verdict(file, acknowledged)
    assert (healthy["lost"], healthy["duplicated"], healthy["consistent"]) == (0, 0, True)
    assert verdict(file, acknowledged | {"third": 3})["lost"] == 1
    assert verdict(file, acknowledged | {"second": 3})["lost"] == 1  # it became another version than was said
    with written.engine.begin() as connection:
        connection.execute(sa.update(tables.event).where(tables.event.c.version == 2).values(reason="first"))
        connection.execute(sa.update(tables.rollout).values(weight=7))
    damaged = verdict(file, acknowledged)
    assert (damaged["lost"], damaged["duplicated"]) == (2, 1)
    assert not damaged["chain_verifies"]
    assert not damaged["consistent"]


def test_every_worker_sees_every_rollback(place: Place) -> None:
    found = seen(place, 3, workers=3)
    assert (found["workers"], found["rollbacks"]) == (3, 3)
    assert 0 < found["latency_ms"]["p50"] <= found["latency_ms"]["p99"] <= found["latency_ms"]["max"]


def test_a_file_that_is_gone_makes_every_worker_blind(tmp_path: Path) -> None:
    file = tmp_path / "rollout.db"
    assert blind(file, lambda: _moved(file), workers=2)["most_s"] > 0


def test_a_server_that_is_gone_makes_every_worker_blind() -> None:
    with postgres_server(synced=False) as server:
        assert blind(server.new_database(), lambda: _killed(server), workers=2)["most_s"] > 0


def test_a_part_that_there_is_not_is_named() -> None:
    with pytest.raises(ConfigError, match="seeing: unknown; choose from kills, seen"):
        run(kills=1, rollbacks=1, orders=1, only="seeing")


def _moved(file: Path) -> None:
    file.rename(file.with_suffix(".away"))


def _killed(server: PostgresServer) -> None:
    assert server.process is not None
    server.process.send_signal(signal.SIGQUIT)
