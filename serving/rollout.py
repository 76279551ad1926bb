"""Durable rollout state: SQLite in WAL mode, synced to disk at every change.

A change is one transaction: compare-and-set on `version` and one row in an append-only, hash-chained event log.
After a crash at any instant the state and its log are both before or both after the change.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from core.errors import ConfigError, RolloutError
from core.settings import Rollout
from serving.transitions import Change, Command, Phase, RolloutState, transition

GENESIS = "0" * 64
BUSY_TIMEOUT_MS = 2000
BEGIN = "BEGIN IMMEDIATE"  # take the write lock first: no upgrade, so no deadlock

_metadata = sa.MetaData()
_rollout = sa.Table(
    "rollout",
    _metadata,
    sa.Column("id", sa.Integer, sa.CheckConstraint("id = 1"), primary_key=True),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("epoch", sa.Integer, nullable=False),
    sa.Column("phase", sa.String, nullable=False),
    sa.Column("champion", sa.String),
    sa.Column("challenger", sa.String),
    sa.Column("fallback", sa.String),
    sa.Column("step", sa.Integer, nullable=False),
    sa.Column("weight", sa.Integer, nullable=False),
    sa.Column("paused", sa.Boolean, nullable=False),
    sa.Column("reason", sa.String, nullable=False),
    sa.Column("rejected", sa.String),  # model ids with spaces between; they hold none
    sa.Column("rolled_back_at", sa.Float),
)
_event = sa.Table(
    "event",
    _metadata,
    sa.Column("version", sa.Integer, primary_key=True),
    sa.Column("at", sa.Float, nullable=False),
    sa.Column("actor", sa.String, nullable=False),
    sa.Column("command", sa.String, nullable=False),
    sa.Column("reason", sa.String, nullable=False),
    sa.Column("state", sa.String, nullable=False),
    sa.Column("prev_hash", sa.String, nullable=False),
    sa.Column("hash", sa.String, nullable=False, unique=True),
)


@dataclass(frozen=True)
class Event:
    """One change: the state it led to (canonical JSON) and the hash that chains it to the one before."""

    version: int
    at: float  # Unix time, s
    actor: str
    command: str
    reason: str
    state: str
    prev_hash: str
    hash: str


class RolloutStore:
    """The state and its log in one SQLite file. Safe to use from several threads and processes."""

    def __init__(self, file: Path, rollout: Rollout) -> None:
        """Open or create. Raises ConfigError when the file cannot be used."""
        self._rollout = rollout
        file.parent.mkdir(parents=True, exist_ok=True)
        self._engine = sa.create_engine(f"sqlite:///{file}", connect_args={"timeout": BUSY_TIMEOUT_MS / 1000})
        sa.event.listen(self._engine, "connect", _configure_connection)
        try:
            with self._engine.begin() as connection:
                connection.exec_driver_sql(BEGIN)
                _metadata.create_all(connection)
                first = sa.insert(_rollout).prefix_with("OR IGNORE").values(id=1, **_row(RolloutState()))
                connection.execute(first)
        except sa.exc.DatabaseError as error:
            self._engine.dispose()
            raise ConfigError(
                f"{file}: not usable as rollout state: {error.orig}; restore it, or move it away to start anew"
            ) from None

    def read(self) -> RolloutState:
        with self._engine.connect() as connection:
            row = connection.execute(sa.select(_rollout)).mappings().one()
        fields = {name: row[name] for name in RolloutState.__dataclass_fields__}
        rejected = tuple((row["rejected"] or "").split())
        return RolloutState(**fields | {"phase": Phase(row["phase"]), "rejected": rejected})

    def apply(self, change: Change, expected_version: int | None = None) -> RolloutState:
        """Carry out a command durably and return the new state.

        Raises RolloutError `invalid_transition` or `stale_version` (somebody else was faster; read and decide
        again). Abort and rollback never lose a race: they re-read and try again, and so does the first champion's
        installation, which several processes attempt at once. Raises sqlalchemy's OperationalError when the disk
        refuses.
        """
        while True:
            before = self.read()
            after = transition(before, change, self._rollout)
            unstoppable = change.command in (Command.ABORT, Command.ROLLBACK, Command.INSTALL)
            stale = expected_version is not None and expected_version != before.version
            if stale and not unstoppable:
                raise _stale(before.version)
            if after is before or self._commit(before.version, after, change):
                return after
            if not unstoppable:
                raise _stale(self.read().version)

    def events(self, after_version: int = 0, limit: int = 1000) -> list[Event]:
        """Up to `limit` events, oldest first, with versions above `after_version`."""
        query = sa.select(_event).where(_event.c.version > after_version).order_by(_event.c.version).limit(limit)
        with self._engine.connect() as connection:
            return [Event(**row) for row in connection.execute(query).mappings()]

    def close(self) -> None:
        self._engine.dispose()

    def _commit(self, before_version: int, after: RolloutState, change: Change) -> bool:
        """False when another writer changed the state in between; nothing is written then."""
        with self._engine.begin() as connection:
            connection.exec_driver_sql(BEGIN)
            swap = sa.update(_rollout).where(_rollout.c.version == before_version).values(**_row(after))
            if connection.execute(swap).rowcount == 0:
                return False
            latest = sa.select(_event.c.hash).order_by(_event.c.version.desc()).limit(1)
            prev_hash = connection.execute(latest).scalar() or GENESIS
            connection.execute(sa.insert(_event).values(**asdict(_chained(after, change, prev_hash))))
        return True


def verify_chain(events: Iterable[Event]) -> bool:
    """Whether no event was altered, dropped or inserted since the first one."""
    prev_hash, version = GENESIS, 0
    for event in events:
        if event.version != version + 1 or event.prev_hash != prev_hash or event.hash != _digest(event):
            return False
        prev_hash, version = event.hash, event.version
    return True


def _row(state: RolloutState) -> dict[str, object]:
    return asdict(state) | {"rejected": " ".join(state.rejected)}


def _chained(after: RolloutState, change: Change, prev_hash: str) -> Event:
    state = json.dumps(asdict(after), sort_keys=True, allow_nan=False)
    event = Event(after.version, change.now, change.actor, str(change.command), change.reason, state, prev_hash, "")
    return Event(**asdict(event) | {"hash": _digest(event)})


def _digest(event: Event) -> str:
    fields = {name: value for name, value in asdict(event).items() if name != "hash"}
    return hashlib.sha256(json.dumps(fields, sort_keys=True, allow_nan=False).encode()).hexdigest()


def _stale(version: int) -> RolloutError:
    return RolloutError(
        f"the rollout changed meanwhile (now version {version}); read it and decide again",
        code="stale_version",
        retryable=True,
    )


def _configure_connection(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # transactions are begun by us, as IMMEDIATE
    for pragma in (f"busy_timeout={BUSY_TIMEOUT_MS}", "journal_mode=WAL", "synchronous=FULL"):
        connection.execute(f"PRAGMA {pragma}").close()
