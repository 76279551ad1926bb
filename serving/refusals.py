"""Commands that were refused reach the record (delivery/refusals.py) beside everything else: nobody waits for it.

Best effort: the same caller, command and code is a row at most once a second, with how often it was; no more than
WAITING_MAX are told apart until they are written, and they are tried again while the database refuses. Whoever is not
known to the door is one caller, however many there are. So no flood of commands fills the disk: while one lasts, rows
come ever more slowly, down to one in PAUSE_MAX_S.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import structlog
from sqlalchemy.exc import SQLAlchemyError
from starlette.types import Scope

from core.errors import HrmSystemError
from delivery.refusals import Refusal, RefusalLog, Refused
from delivery.transitions import Change, Command
from serving.live import Live

log = structlog.get_logger()

ROUTES = "/v1/rollout/"
AT_THE_DOOR = frozenset({401, 403, 429})  # what is refused there for who asks, and how often
UNKNOWN = "unknown"
WAITING_MAX = 64
PAUSE_S, PAUSE_MAX_S = 1.0, 10.0

Key = tuple[str, str, str]


class Refusals:
    """Used from the event loop only."""

    def __init__(
        self,
        kept: RefusalLog,
        live: Callable[[], Live],
        spawn: Callable[[Coroutine[Any, Any, Any]], asyncio.Task[Any]],
    ) -> None:
        self._kept, self._live, self._spawn = kept, live, spawn
        self._waiting: dict[Key, Refused] = {}
        self._writer: asyncio.Task[None] | None = None
        self._trouble = ""

    @contextmanager
    def noted(self, change: Change) -> Iterator[None]:
        """What the block raises is why `change` was refused."""
        try:
            yield
        except HrmSystemError as error:
            self._note(change.actor, change.command, error.code, str(error))
            raise

    def at_the_door(self, command: Command, code: str, detail: str, scope: Scope) -> None:
        """A command that came no further than the door."""
        caller, client = scope.get("user"), scope.get("client")
        where = f" (from {client[0]})" if client else ""
        self._note(UNKNOWN if caller is None else caller.id, command, code, detail + where)

    def read(self, after: int) -> list[Refusal]:
        """Those that are written, oldest first. Raises SQLAlchemyError; safe in threads."""
        return self._kept.read(after)

    async def close(self) -> None:
        """A last chance for what waits."""
        if self._writer is not None:
            self._writer.cancel()
            await asyncio.gather(self._writer, return_exceptions=True)
        if self._waiting:
            await self._write()

    def _note(self, actor: str, command: Command, code: str, reason: str) -> None:
        version = self._live().state.version
        self._add(Refused(time.time(), actor, str(command), reason, code, version))
        if self._writer is None or self._writer.done():
            self._writer = self._spawn(self._write_all())

    def _add(self, one: Refused) -> None:
        key = (one.actor, one.command, one.code)
        before = self._waiting.get(key)
        if before is not None:
            self._waiting[key] = replace(before, times=before.times + one.times)
        elif len(self._waiting) < WAITING_MAX:
            self._waiting[key] = one

    async def _write_all(self) -> None:
        pause_s = PAUSE_S
        while self._waiting:
            await self._write()
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, PAUSE_MAX_S)

    async def _write(self) -> None:
        batch = list(self._waiting.values())
        self._waiting = {}
        writing = asyncio.ensure_future(asyncio.to_thread(self._kept.append, batch))
        try:
            await asyncio.shield(writing)
            self._trouble = ""
        except asyncio.CancelledError:  # at close; a thread cannot be stopped: it ends, and the rows are there or not
            await asyncio.gather(writing, return_exceptions=True)
            raise
        except SQLAlchemyError as error:
            if not self._trouble:
                log.error("refusals_not_recorded", error=str(error), remedy="mend the state database; retrying")
            self._trouble = str(error)
            later, self._waiting = self._waiting, {}
            for one in (*batch, *later.values()):
                self._add(one)


def command_of(scope: Scope) -> Command | None:
    """That a request is for, if any."""
    name = str(scope["path"]).removeprefix(ROUTES)
    asked = scope["method"] == "POST" and scope["path"] == ROUTES + name
    return Command(name) if asked and name in set(Command) else None
