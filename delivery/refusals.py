"""Commands of a rollout that were refused: who tried what, when, and why it was not done. Append-only, on a chain.

The log of changes (delivery/store.py) has nothing of them, for nothing changed. Writers queue for a lock of their own,
never for the rollout's row: on Postgres no abort waits for them, on SQLite for one short transaction at most.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import sqlalchemy as sa

from delivery import tables
from delivery.chain import GENESIS, digest, storable
from delivery.state_database import writing

ONE_AT_A_TIME = 7_604_132_882  # our advisory lock on Postgres: any number but schema.py's
REASON_MAX = 2000  # characters: an invalid plan tells all its problems

_rows = tables.refusal


@dataclass(frozen=True)
class Refused:
    """`times`: how often, by this caller and for this reason's code, since `at` (Unix seconds); `version` met then."""

    at: float
    actor: str
    command: str
    reason: str
    code: str
    version: int
    times: int = 1


@dataclass(frozen=True)
class Refusal(Refused):
    """One row: its number, from 1 on, and the hash that chains it to the one before."""

    seq: int = 0
    prev_hash: str = GENESIS
    hash: str = ""


class RefusalLog:
    """In the state database, SQLite or Postgres. Safe to use from several threads and processes."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def append(self, refused: Sequence[Refused]) -> None:
        """All of them, or none. Raises SQLAlchemyError."""
        with writing(self._engine) as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(ONE_AT_A_TIME)))
            latest = connection.execute(sa.select(_rows.c.seq, _rows.c.hash).order_by(_rows.c.seq.desc()).limit(1))
            seq, prev_hash = latest.tuples().first() or (0, GENESIS)
            for number, one in enumerate(refused, start=seq + 1):
                row = _chained(one, number, prev_hash)
                connection.execute(sa.insert(_rows).values(**row))
                prev_hash = row["hash"]

    def read(self, after: int = 0, limit: int = 1000) -> list[Refusal]:
        """Up to `limit`, oldest first, with numbers above `after`. Raises SQLAlchemyError."""
        query = sa.select(_rows).where(_rows.c.seq > after).order_by(_rows.c.seq).limit(limit)
        with self._engine.connect() as connection:
            return [Refusal(**row) for row in connection.execute(query).mappings()]


def _chained(one: Refused, seq: int, prev_hash: str) -> dict[str, object]:
    said = {"actor": storable(one.actor), "reason": storable(one.reason[:REASON_MAX])}
    row = asdict(one) | said | {"seq": seq, "prev_hash": prev_hash}
    return row | {"hash": digest(row)}
