"""Rollbacks of the durable event log, told to Prefect: what starts the `rollback` flow (prefect.yaml).

    event log ──after the cursor──> POST <PREFECT_API_URL>/events ──> cursor, in <state_dir>/outbox.json

At least once and in order: the cursor moves when the server has accepted an event, and an event's id follows from its
hash in the log, so the server knows one that comes again. History from before the first activation is never told.
Nothing here is on the path of a decision or of a rollback: a server that is gone costs one warning and a later arrival.
Of several processes one tells, with a lock that it holds until it ends; the others wait for that, and go on from there.
What could not be told yet is `Outbox.untold`: hrm_outbox_pending and hrm_outbox_oldest_seconds.
"""

from __future__ import annotations

import asyncio
import base64
import fcntl
import json
import socket
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import structlog
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from sqlalchemy.exc import SQLAlchemyError

from core.files import write_json
from delivery.chain import GENESIS
from delivery.store import Event, RolloutStore
from delivery.transitions import Command

log = structlog.get_logger()

BREACH = "hrm.serving.slo-breach"
# A breach that was over (a new rollout had begun) before it could be told. It is recorded, but starts no rollback:
# that would hit the new challenger for the old one's fault.
SUPERSEDED = "hrm.serving.slo-breach-superseded"
NAMESPACE = uuid.uuid5(uuid.NAMESPACE_DNS, BREACH)

TIMEOUT_S = 5.0
FIRST_RETRY_S = 1.0
LONGEST_RETRY_S = 60.0
LOCK_RETRY_S = 1.0
TOLD = (Command.ABORT, Command.ROLLBACK)


@dataclass(frozen=True)
class PrefectApi:
    """Where events go, as Prefect's own client would be told."""

    url: str
    headers: Mapping[bytes, bytes] = field(repr=False)  # bytes: a password may hold any character


def prefect_api(environ: Mapping[str, str]) -> PrefectApi | None:
    """Prefect's server as the environment names it, or None: then there is nobody to tell.

    PREFECT_API_URL; PREFECT_API_AUTH_STRING ("user:password") wins over PREFECT_API_KEY, as in Prefect's client.
    """
    url = environ.get("PREFECT_API_URL", "").rstrip("/")
    if not url:
        return None
    auth, key = environ.get("PREFECT_API_AUTH_STRING"), environ.get("PREFECT_API_KEY")
    if auth:
        return PrefectApi(url, {b"Authorization": b"Basic " + base64.b64encode(auth.encode())})
    return PrefectApi(url, {b"Authorization": b"Bearer " + key.encode()} if key else {})


class Cursor(BaseModel):
    """The last event of the log that needs no more telling; the hash says of which log."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int = Field(ge=0)
    hash: str = Field(pattern=r"^[0-9a-f]{64}$")


@dataclass(frozen=True)
class Untold:
    """Rollbacks that Prefect has not accepted yet, and when the oldest of them happened (Unix s)."""

    count: int = 0
    since: float | None = None

    def oldest_s(self, now: float) -> float:
        return 0.0 if self.since is None else max(0.0, now - self.since)


class Outbox:
    """Tells Prefect about rollbacks. `run` is the background task, `wake` says that the log has grown.

    `untold` is of the last try, LONGEST_RETRY_S ago at most; nothing in a process whose turn it is not.
    """

    def __init__(self, api: PrefectApi, store: RolloutStore, file: Path) -> None:
        """Find the place in the log, before anything new happens. `file` keeps the cursor; it may not exist yet."""
        self._api = api
        self._store = store
        self._file = file
        self._lock = file.with_suffix(".lock").open("ab")
        self.untold = Untold()
        self._find_place()
        self._http = httpx.AsyncClient(headers=api.headers, timeout=TIMEOUT_S)
        self._grown = asyncio.Event()
        self.wake()  # something may be left from before a restart

    def wake(self) -> None:
        self._grown.set()

    async def run(self) -> None:
        """Ship until cancelled, again and again while the server is gone, and warn once for each kind of trouble."""
        with self._lock:
            await self._wait_for_turn()
            async with self._http:
                await self._save()  # from now on it is activated
                await self._tell()

    async def _tell(self) -> None:
        trouble, retry_s = "", FIRST_RETRY_S
        while True:
            await self._grown.wait()
            self._grown.clear()
            try:
                await self._ship()
                trouble, retry_s = "", FIRST_RETRY_S
            except Exception as error:  # whatever it is: a task that ended would tell no rollback after this one
                trouble = _warn(error, trouble)
                self._grown.set()
                await asyncio.sleep(retry_s)
                retry_s = min(2 * retry_s, LONGEST_RETRY_S)

    async def _wait_for_turn(self) -> None:
        waited, trouble = False, ""
        while not self._is_ours():
            waited = True
            await asyncio.sleep(LOCK_RETRY_S)
        while waited:
            try:
                await asyncio.to_thread(self._find_place)  # whoever told until now has moved it
                waited = False
            except SQLAlchemyError as error:
                trouble = _warn(error, trouble)
                await asyncio.sleep(LOCK_RETRY_S)

    def _is_ours(self) -> bool:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _find_place(self) -> None:
        self._saved = _read_cursor(self._file, self._store)
        self._cursor = self._saved or _end_of(self._store)

    async def _ship(self) -> None:
        while events := await asyncio.to_thread(self._store.events, self._cursor.version):
            for at, event in enumerate(events):
                told = event.command in TOLD
                if told:
                    self.untold = _untold(events[at:])
                    await self._post(event)
                self._cursor = Cursor(version=event.version, hash=event.hash)
                if told:
                    await self._save()
            self.untold = Untold()

    async def _post(self, event: Event) -> None:
        first, *_ = await asyncio.to_thread(self._store.events, 0, 1)
        later = await asyncio.to_thread(self._store.events, event.version, 1)
        message = as_prefect_event(event, log_hash=first.hash, superseded=bool(later))
        answer = await self._http.post(f"{self._api.url}/events", json=[message])
        if not answer.is_success:
            text = f"HTTP {answer.status_code}: {answer.text[:200]}"
            raise httpx.HTTPStatusError(text, request=answer.request, response=answer)
        log.info("rollback_told", version=event.version, event_id=message["id"], superseded=bool(later))

    async def _save(self) -> None:
        """Keep the cursor, if the disk lets us: without it a restart tells again what the server knows by its id."""
        if self._saved == self._cursor:
            return
        cursor = self._cursor
        try:
            await asyncio.to_thread(write_json, self._file, cursor.model_dump())
            self._saved = cursor
        except OSError as error:
            log.warning("outbox_cursor_not_saved", file=str(self._file), error=str(error), remedy="free the disk")


def _untold(events: list[Event]) -> Untold:
    waiting = [event for event in events if event.command in TOLD]
    return Untold(len(waiting), waiting[0].at)


def as_prefect_event(event: Event, *, log_hash: str, superseded: bool) -> dict[str, Any]:
    """One element of the body of `POST /events`. `log_hash` is that of the log's first event.

    The resource is the log and not the host or the port: it stays the same wherever the service runs next, and
    two services never share one, of which Prefect would drop the older events.
    """
    state = json.loads(event.state)
    return {
        "id": str(uuid.uuid5(NAMESPACE, event.hash)),
        "event": SUPERSEDED if superseded else BREACH,
        "occurred": datetime.fromtimestamp(event.at, UTC).isoformat(),
        "resource": {
            "prefect.resource.id": f"hrm.serving.{log_hash[:12]}",
            "prefect.resource.name": f"HRM service on {socket.gethostname()}",
        },
        "payload": {
            "reason": event.reason,
            "actor": event.actor,
            "command": event.command,
            "rejected": _latest(state["rejected"]),
            **{name: state[name] for name in ("champion", "epoch", "version")},
        },
    }


def _latest(rejected: list[str] | str | None) -> str | None:
    """The model this rollback took away. Events of older logs name only that one."""
    if isinstance(rejected, list):
        return rejected[-1] if rejected else None
    return rejected


def _read_cursor(file: Path, store: RolloutStore) -> Cursor | None:
    """The saved cursor if it points into this very log, else None: that is a first activation."""
    try:
        cursor = Cursor.model_validate_json(file.read_bytes())
    except FileNotFoundError:
        return None
    except (ValidationError, OSError) as error:
        log.warning("outbox_cursor_unreadable", file=str(file), error=str(error), remedy="starting at the log's end")
        return None
    known = store.events(cursor.version - 1, 1) if cursor.version else []
    if cursor.hash == (known[0].hash if known else GENESIS):
        return cursor
    log.warning("outbox_cursor_of_another_log", file=str(file), remedy="starting at the log's end")
    return None


def _end_of(store: RolloutStore) -> Cursor:
    version = store.read().version
    last = store.events(version - 1, 1) if version else []
    return Cursor(version=version, hash=last[0].hash if last else GENESIS)


def _warn(error: Exception, trouble: str) -> str:
    """Log what is new about the trouble; the text to compare the next one with."""
    text = f"{type(error).__name__}: {error}"
    if text != trouble:
        remedy = "rollbacks work without it; check PREFECT_API_URL and its credentials; retrying"
        log.warning("rollback_not_told", error=text, remedy=remedy)
    return text
