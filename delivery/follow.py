"""How a process learns what another one of this service has made durable.

    another process commits ──SQLite: PRAGMA data_version, every 50 ms────────> read ──newer──> takes effect here
                            ──Postgres: NOTIFY, and a look every 250 ms───────>

Every worker follows the state, so a rollback of one is a rollback of all. The look is the guarantee and NOTIFY only
makes it sooner: a notification is lost with its connection, so whoever connects again reads again. A worker that
cannot look any more is `blind` and gives its challenger no traffic. Nothing here is asked when a decision is made.

A full disk can still be read: a rollback that cannot be written there would be one worker's alone. So beside the file
there is another one, empty, as long as all is written; whoever rolls back removes it first, for which a disk has always
room, and who finds it gone is blind at once.
"""

from __future__ import annotations

import asyncio
import math
import sqlite3
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, closing, suppress
from pathlib import Path

import sqlalchemy as sa
import structlog

from core.errors import RolloutError
from delivery.state_database import CHANNEL, Place, libpq_arguments, named

log = structlog.get_logger()

POLL_S = 0.05
SERVER_POLL_S = 0.25
BLIND_AFTER_S = 1.75  # the goal is 2

Look = tuple[float, int]  # when it began, monotonic; what is there then: a number that changes with every commit


class Follower:
    """Looks at what is there and calls `sync` whenever somebody has written."""

    def __init__(self, place: Place, sync: Callable[[], Awaitable[None]]) -> None:
        self._place = place
        self._sync = sync
        self._certain_at = time.monotonic()
        self._identity: tuple[int, int] | None = None
        self._steady = place.with_name(f"{place.name}.steady") if isinstance(place, Path) else None
        self._was_steady = False

    def steady(self) -> None:
        """Say to the other processes on this host that all is written. Where it cannot be said they look as ever."""
        if self._steady is not None:
            with suppress(OSError):
                self._steady.touch()

    def unsteady(self) -> None:
        """Say that something is true that is not written yet."""
        if self._steady is not None:
            with suppress(OSError):
                self._steady.unlink(missing_ok=True)

    @property
    def age_s(self) -> float:
        """Since it was last certain that nothing newer is in the database."""
        return time.monotonic() - self._certain_at

    @property
    def blind(self) -> bool:
        return self.age_s > BLIND_AFTER_S

    async def run(self) -> None:
        """Follow until cancelled, and say once when the state cannot be read."""
        self._certain_at = time.monotonic()
        trouble = ""
        while True:
            try:
                async with aclosing(self._looks()) as looks:
                    seen = None  # whatever was missed without a connection is read now
                    async for began_at, there in looks:
                        if there != seen:
                            await self._sync()
                        seen, trouble, self._certain_at = there, "", began_at
            except Exception as error:  # whatever it is: who does not look any more must be blind, and look again
                trouble = _warn(error, trouble)
            await asyncio.sleep(POLL_S)

    def _looks(self) -> AsyncGenerator[Look, None]:
        return self._at_file(self._place) if isinstance(self._place, Path) else _at_server(self._place)

    async def _at_file(self, file: Path) -> AsyncGenerator[Look, None]:
        address = f"{file.resolve().as_uri()}?mode=rw"  # never makes a new one
        with closing(sqlite3.connect(address, timeout=0.0, isolation_level=None, uri=True)) as connection:
            while True:
                began_at = time.monotonic()
                self._require_same(file)
                if self._is_steady():
                    yield began_at, connection.execute("PRAGMA data_version").fetchone()[0]
                else:
                    self._certain_at = -math.inf
                await asyncio.sleep(POLL_S)

    def _is_steady(self) -> bool:
        there = self._steady is not None and self._steady.exists()
        self._was_steady = self._was_steady or there
        return there or not self._was_steady

    def _require_same(self, file: Path) -> None:
        """A file that is open is still read and written when it was moved away; what others do is not in it."""
        found = file.stat()
        identity = found.st_dev, found.st_ino
        self._identity = self._identity or identity
        if identity != self._identity:
            raise RolloutError(f"{file} was replaced under the running service; restart it", code="state_replaced")


async def _at_server(url: sa.URL) -> AsyncGenerator[Look, None]:
    import psycopg

    try:
        async with await psycopg.AsyncConnection.connect(autocommit=True, **libpq_arguments(url)) as connection:
            await connection.execute(f"LISTEN {CHANNEL}")
            while True:
                began_at = time.monotonic()
                async with asyncio.timeout(BLIND_AFTER_S):
                    row = await (await connection.execute("SELECT version FROM rollout")).fetchone()
                if row is None:
                    raise RolloutError(f"{named(url)}: the state is not there any more", code="state_replaced")
                yield began_at, row[0]
                async for _ in connection.notifies(timeout=SERVER_POLL_S, stop_after=1):
                    pass
    except psycopg.Error as error:
        raise RolloutError(f"{named(url)}: {error}", code="state_not_readable") from error


def _warn(error: Exception, trouble: str) -> str:
    text = f"{type(error).__name__}: {error}"
    if text != trouble:
        log.warning(
            "rollout_state_unreadable", error=text, remedy="the challenger gets no traffic until it is; retrying"
        )
    return text
