"""What both arms earned, one outcome after the other: what paired tests are made of, and made of again.

Pages (delivery/losses.py) say how much was lost; whether one arm is better needs the pairs. They are numbered in the
order of their commits, so that the first n of an attempt are the same n whoever reads them, now or in a year.
"""

from __future__ import annotations

import threading
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray

from delivery import tables

if TYPE_CHECKING:
    from delivery.losses import Outcome

Floats = NDArray[np.float64]
Arms = tuple[Floats, Floats]  # champion's and challenger's, bps [S]; row i of both is of the same tick

_rows = tables.outcome


@dataclass(frozen=True)
class Earned:
    """An outcome, the attempt that it is of, and when it came: Unix seconds."""

    attempt: int
    at: float
    outcome: Outcome


def append(connection: sa.Connection, earned: Sequence[Earned], counts: Mapping[int, int]) -> None:
    """Within a transaction that has counted these outcomes, and holds the lock of their attempts' counts until its end.

    `counts`: outcomes of each attempt, with these. They have the last of so many numbers.
    """
    left = Counter(one.attempt for one in earned)
    rows = []
    for one in earned:
        left[one.attempt] -= 1
        number = counts[one.attempt] - left[one.attempt]
        rows.append({"attempt": one.attempt, "id": number, "at": one.at, **asdict(one.outcome)})
    if rows:
        connection.execute(sa.insert(_rows), rows)


class Pairs:
    """Both arms of one attempt since a moment (Unix seconds). Of each row a process reads once; safe in threads."""

    def __init__(self, engine: sa.Engine, attempt: int, since: float = 0.0) -> None:
        self.attempt, self.since = attempt, since
        self._engine = engine
        self._lock = threading.Lock()
        self._read_id = 0
        self._champion, self._challenger = array("d"), array("d")

    def read(self) -> Arms:
        """All there are by now, in their order. Raises SQLAlchemyError."""
        row = _rows.c
        with self._lock:
            new = (row.attempt == self.attempt) & (row.id > self._read_id) & (row.at >= self.since)
            query = sa.select(row.id, row.champion_bps, row.challenger_bps).where(new).order_by(row.id)
            with self._engine.connect() as connection:
                for self._read_id, champion_bps, challenger_bps in connection.execute(query):
                    self._champion.append(champion_bps)
                    self._challenger.append(challenger_bps)
            return np.array(self._champion), np.array(self._challenger)
