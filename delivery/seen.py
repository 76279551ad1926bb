"""What the workers of a service have seen of a rollout's candidate: each its own row, and what they come to together.

    a worker, every second ──its counts since the attempt began──> a row of its own
    a measurement          <──the sum over all rows, of the dead as well──

A test that may be looked at for ever needs counts that never fall, whoever looks: they are in the database before they
are judged, and stay when their worker is gone. After a promotion the counts begin anew, in the role `champion`.

Latencies are of the latest runs (serving/guard.py, `Window`), as counts of buckets that grow by 2.3 %, so that
percentiles of several workers can be had. Powers of ten are bounds: what lies above 100 ms is told as above 100 ms.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray
from sqlalchemy.dialects import postgresql, sqlite

from core.errors import DataError
from delivery import tables
from delivery.routing import Role
from delivery.state_database import database_time, writing

FRESH_S = 3.0  # a worker that has not told for so long does not live any more, nor take memory
PER_DECADE = 100
SHORTEST_MS, LONGEST_MS = 1e-3, 1e6
ROUNDING = 1e-9  # of a logarithm: a bound belongs to the bucket below it

_rows = tables.reading
_KEY = ("attempt", "role", "worker")

Buckets = Mapping[int, int]  # k: how many in (10^((k - 1) / 100), 10^(k / 100)] ms


@dataclass(frozen=True)
class Seen:
    """Of one candidate in one role, by one worker or by all.

    `rss_gb`: the larger of resident set and growth on devices; 0 where nobody lives to say.
    """

    runs: int = 0
    failed: int = 0
    slow: int = 0
    latencies: Buckets = field(default_factory=dict)
    rss_gb: float = 0.0


def buckets(latencies_ms: NDArray[np.float64]) -> dict[int, int]:
    """How many of [n] fall into each bucket; what is shorter or longer than all counts for the first or last."""
    exponents = PER_DECADE * np.log10(np.clip(latencies_ms, SHORTEST_MS, LONGEST_MS)) - ROUNDING
    numbers, counts = np.unique(np.ceil(exponents).astype(np.int64), return_counts=True)
    return dict(zip(numbers.tolist(), counts.tolist(), strict=True))


def percentile_ms(counted: Buckets, ratio: float) -> float | None:
    """The latency that `ratio` of all do not exceed, linear within its bucket; None of nothing."""
    wanted, below = ratio * sum(counted.values()), 0
    for number, count in sorted(counted.items()):
        if below + count >= wanted:
            low, high = _bound_ms(number - 1), _bound_ms(number)
            return low + (high - low) * (wanted - below) / count
        below += count
    return None


def together(seen: Iterable[tuple[float, Seen]], window_s: float) -> Seen:
    """Of pairs of a row's age in seconds and the row: counts of all, the rest of those that still say something."""
    rows = list(seen)
    latencies: Counter[int] = Counter()
    for age_s, one in rows:
        if abs(age_s) <= max(window_s, FRESH_S):  # a clock that was set back makes nobody young for ever
            latencies.update(one.latencies)
    return Seen(
        sum(one.runs for _, one in rows),
        sum(one.failed for _, one in rows),
        sum(one.slow for _, one in rows),
        dict(latencies),
        max((one.rss_gb for age_s, one in rows if abs(age_s) <= FRESH_S), default=0.0),
    )


class SeenStore:
    """The rows, in the state database. `worker` names this process, and no other that ever was."""

    def __init__(self, engine: sa.Engine, worker: str) -> None:
        self._engine, self._worker = engine, worker
        self._insert = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}[engine.dialect.name]

    def write(self, attempt: int, role: Role, seen: Seen) -> None:
        """What this worker has seen until now, in place of what it said before. Raises SQLAlchemyError."""
        row = {
            "runs": seen.runs,
            "failed": seen.failed,
            "slow": seen.slow,
            "latency_buckets": json.dumps(seen.latencies),
            "rss_gb": seen.rss_gb,
        }
        with writing(self._engine) as connection:
            told = row | {"at": database_time(connection)}
            key = {"attempt": attempt, "role": role, "worker": self._worker}
            insert: Any = self._insert(_rows).values(**key, **told)  # the dialects' types have no common one
            connection.execute(insert.on_conflict_do_update(index_elements=_KEY, set_=told))

    def read(self, attempt: int, role: Role, window_s: float) -> Seen:
        """All workers together. Raises SQLAlchemyError, and DataError where a row is not of this code's making."""
        mine = (_rows.c.attempt == attempt) & (_rows.c.role == role)
        with self._engine.connect() as connection:
            age_s = (database_time(connection) - _rows.c.at).label("age_s")
            found = connection.execute(sa.select(_rows, age_s).where(mine)).all()
        return together(((row.age_s, _seen(row)) for row in found), window_s)


def _seen(row: sa.Row[Any]) -> Seen:
    try:
        latencies = {int(number): int(count) for number, count in json.loads(row.latency_buckets).items()}
    except (ValueError, TypeError, AttributeError):
        raise DataError(f"the row of {row.worker} in table `reading` holds no buckets; delete it") from None
    return Seen(row.runs, row.failed, row.slow, latencies, row.rss_gb)


def _bound_ms(number: int) -> float:
    return float(10.0 ** (number / PER_DECADE))
