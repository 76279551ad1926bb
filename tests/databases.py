"""Fixtures for tests that run on both databases: a file, and a real Postgres server that the tests start."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.postgres import PostgresServer, postgres_server
from delivery.state_database import Place


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """Where it cannot be started the tests fail: nothing says that the state works on it then."""
    with postgres_server(synced=False) as server:
        yield server


@pytest.fixture(params=["sqlite", "postgres"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """Where a state may be, with nothing there yet."""
    if request.param == "sqlite":
        yield tmp_path / "rollout.db"
        return
    server: PostgresServer = request.getfixturevalue("postgres")
    url = server.new_database()
    yield url
    server.drop(url)
