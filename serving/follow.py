"""How a process learns what another one of this service has made durable.

    another process commits ──PRAGMA data_version, every 50 ms──> read ──newer──> takes effect here

Every worker follows rollout.db, so a rollback of one is a rollback of all; a worker that cannot read it any more is
`blind` and gives its challenger no traffic. Nothing here is asked when a decision is made.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import structlog

from core.errors import RolloutError

log = structlog.get_logger()

POLL_S = 0.05
BLIND_AFTER_S = 2.0


class Follower:
    """Looks at the database's version and calls `sync` whenever somebody has written."""

    def __init__(self, file: Path, sync: Callable[[], Awaitable[None]]) -> None:
        self._file = file
        self._sync = sync
        self._read_at = time.monotonic()

    @property
    def age_s(self) -> float:
        """Since it was last certain that nothing newer is on disk."""
        return time.monotonic() - self._read_at

    @property
    def blind(self) -> bool:
        return self.age_s > BLIND_AFTER_S

    async def run(self) -> None:
        """Follow until cancelled, and say once when the state cannot be read."""
        self._read_at = time.monotonic()
        seen, trouble = -1, ""
        address = f"{self._file.resolve().as_uri()}?mode=rw"  # never makes a new one
        connection = sqlite3.connect(address, timeout=0.0, isolation_level=None, uri=True)
        try:
            while True:
                try:
                    version = connection.execute("PRAGMA data_version").fetchone()[0]
                    if version != seen:
                        await self._sync()
                    seen, trouble, self._read_at = version, "", time.monotonic()
                except (sqlite3.Error, RolloutError) as error:
                    trouble = _warn(error, trouble)
                await asyncio.sleep(POLL_S)
        finally:
            connection.close()


def _warn(error: Exception, trouble: str) -> str:
    text = f"{type(error).__name__}: {error}"
    if text != trouble:
        log.warning(
            "rollout_state_unreadable", error=text, remedy="the challenger gets no traffic until it is; retrying"
        )
    return text
