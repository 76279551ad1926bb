"""Which process is the controller: a lease that runs out by the database's clock, and a token that fences.

    hold:  the lease is mine  -> it runs for another TTL_S
           it ran out         -> mine, and its token grows by one
           it is another's    -> False

A holder that was stopped and goes on later may still believe that it holds the lease. So it writes with its token, and
what has an old token is refused in the very transaction that would have written it: `require_token`. Clocks that jump
move the hour of a takeover, never what may be written.
"""

from __future__ import annotations

import os
import secrets
import socket

import sqlalchemy as sa

from core.errors import RolloutError
from delivery import tables
from delivery.crash import crash_at
from delivery.state_database import database_time, writing

TTL_S = 3.0  # a controller that was killed is replaced after so long, and one tick
NONE = 0  # no lease ever has this token

_lease = tables.lease
_ours = _lease.c.controller == tables.CONTROLLER


class Lease:
    """One process's claim; `token` is NONE while it has none. Used by one thread at a time."""

    def __init__(self, engine: sa.Engine, *, holder: str | None = None, ttl_s: float = TTL_S) -> None:
        self.holder = holder or f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        self.token = NONE
        self._engine = engine
        self._ttl_s = ttl_s

    def hold(self) -> bool:
        """Renew the lease, or take it if it is free; whether it is ours now. Raises sqlalchemy's errors."""
        if self.token == NONE and not self._free():
            return False
        with writing(self._engine) as connection:
            token = self._renewed(connection) or self._taken(connection)
            crash_at("lease_written")
        crash_at("lease_committed")
        self.token = token  # only now: another one may get a token that was not committed
        return token != NONE

    def release(self) -> None:
        """Let another one take it at once, if it is still ours."""
        if self.token == NONE:
            return
        with writing(self._engine) as connection:
            mine = sa.update(_lease).where(_ours, _lease.c.token == self.token)
            connection.execute(mine.values(expires_at=0.0))
        self.token = NONE

    def _free(self) -> bool:
        """Looked at without any lock, since all who wait do so all the time."""
        with self._engine.connect() as connection:
            free = sa.select(_lease.c.token).where(_ours, _out(connection, self._ttl_s))
            return connection.execute(free).scalar() is not None

    def _renewed(self, connection: sa.Connection) -> int:
        if self.token == NONE:
            return NONE
        mine = sa.update(_lease).where(_ours, _lease.c.token == self.token)
        renewed = connection.execute(mine.values(expires_at=database_time(connection) + self._ttl_s))
        return self.token if renewed.rowcount else NONE

    def _taken(self, connection: sa.Connection) -> int:
        free = sa.update(_lease).where(_ours, _out(connection, self._ttl_s))
        expires_at = database_time(connection) + self._ttl_s
        taken = free.values(holder=self.holder, token=_lease.c.token + 1, expires_at=expires_at)
        return connection.execute(taken.returning(_lease.c.token)).scalar() or NONE


def require_token(connection: sa.Connection, token: int | None) -> None:
    """In a transaction that is to write for the lease's holder, and for it only; None: for anybody.

    No other process takes the lease before the transaction ends. Raises RolloutError `lease_lost`.
    """
    if token is None:
        return
    current = sa.select(_lease.c.token).where(_ours).with_for_update(read=True)  # SQLite's write lock needs no more
    if connection.execute(current).scalar() != token:
        raise RolloutError("another process is the controller now; this one writes nothing more", code="lease_lost")


def _out(connection: sa.Connection, ttl_s: float) -> sa.ColumnElement[bool]:
    """It ran out, or the clock was set back since it was taken: nobody would ever wait longer than its time."""
    now = database_time(connection)
    return (_lease.c.expires_at <= now) | (_lease.c.expires_at > now + ttl_s)
