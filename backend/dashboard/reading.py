"""Reads what other processes write, and never holds them up: read-only connections, bounded queries, one at a time.

A panel's content is computed once however many pages ask for it, and asked for again after `FRESH_S`. It is computed
in threads of its own: whatever a database does, no command waits behind it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sa

FRESH_S = 1.0
THREADS = 2
LOCK_WAIT_S = 1.0
MOST_KEPT = 64  # contents: panels, by what was chosen in them


@contextmanager
def read_only(file: Path) -> Iterator[sa.Connection]:
    """A snapshot of an SQLite file that somebody else writes. Raises sqlalchemy's DatabaseError."""
    url = sa.URL.create("sqlite", database=file.absolute().as_uri(), query={"mode": "ro", "uri": "true"})
    engine = sa.create_engine(url, poolclass=sa.NullPool, connect_args={"timeout": LOCK_WAIT_S})
    with engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA query_only=ON")
        connection.exec_driver_sql("BEGIN")  # all that is read is of one instant
        yield connection


class Shared:
    """Contents by key: whoever asks while one is computed waits for that one."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="dashboard")
        self._kept: dict[str, tuple[float, asyncio.Future[bytes]]] = {}

    async def get(self, key: str, compute: Callable[[], bytes]) -> bytes:
        """Raises what `compute` raises; that is not kept."""
        now = time.monotonic()
        at, kept = self._kept.get(key, (-1.0, None))
        if kept is None or (kept.done() and (now - at > FRESH_S or kept.exception() is not None)):
            self._make_room()
            kept = asyncio.get_running_loop().run_in_executor(self._threads, compute)
            self._kept[key] = now, kept
        return await asyncio.shield(kept)  # of many who wait one may leave

    def _make_room(self) -> None:
        """The oldest that nobody waits for go."""
        done = [key for key, (_, kept) in self._kept.items() if kept.done()]
        for key in done[: max(0, len(self._kept) - MOST_KEPT + 1)]:
            del self._kept[key]
