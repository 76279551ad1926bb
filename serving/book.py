"""A book of K instruments decided jointly: the question, and what is answered if the model breaks a limit.

    model      the model's targets, where they keep both limits:  sum |p| <= gross,  |sum p| <= net
    held       else every position stays, if those held keep them
    reduced    else positions are closed until they do: of the larger side first, the cheapest to close first

Nothing is ever opened or turned but by the model, and what goes out is feasible. Instruments are sorted by symbol
before the model sees them, so the order in which they were asked for has no part in the answer.

Shapes: K instruments, F factors. trading/book.py states the problem: risk aversion is 1, positions are units of risk.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from core.actions import TARGET_OF
from core.observation import BookSchema

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
FeasibleBy = Literal["model", "held", "reduced"]


@dataclass(frozen=True, eq=False)
class BookObservation:
    """One row: instruments [K, 4 + F] (mu, loadings, variance, cost, position) and limits [2] (gross, net), float32."""

    instruments: NDArray[np.float32]
    limits: NDArray[np.float32]
    complexity: float = 0.0  # the market's; a book thinks as long as it itself sees fit

    @property
    def feeds(self) -> Mapping[str, NDArray[np.float32]]:
        return {"instruments": self.instruments, "limits": self.limits}

    @property
    def position(self) -> Ints:
        return np.rint(self.instruments[:, -1]).astype(np.int64)


@dataclass(frozen=True, eq=False)
class BookQuestion:
    """A book to decide, whatever wire format it came in. `deadline` is a time.perf_counter(), s."""

    book_id: str
    symbols: tuple[str, ...]  # [K], ascending
    row: BookObservation  # in the order of the symbols
    places: tuple[int, ...]  # [K], of the instruments as they were asked for
    model_id: str | None
    request_id: str
    deadline: float

    @property
    def schema(self) -> BookSchema:
        """Of the models that take it."""
        instruments, numbers = self.row.instruments.shape
        return BookSchema(instruments=instruments, factors=numbers - 4)


def feasible(targets: Ints, limits: NDArray[np.floating]) -> bool:
    """Whether targets [K] keep gross and net."""
    gross, net = limits
    return bool(np.abs(targets).sum() <= gross and abs(targets.sum()) <= net)


def utility(row: BookObservation, targets: Ints) -> float:
    """U(p) = mu'p - (|L'p|^2 + variance'p^2) / 2 - cost'|p - position|, in float64."""
    mu, loadings, rest = np.split(row.instruments.astype(np.float64), [1, -3], axis=1)
    variance, cost, position = rest.T
    exposure = targets @ loadings
    own = mu[:, 0] * targets - 0.5 * variance * targets**2 - cost * np.abs(targets - position)
    return float(own.sum() - 0.5 * exposure @ exposure)


def targets_of(row: BookObservation, action: Ints | None) -> tuple[Ints, FeasibleBy]:
    """Targets [K] that keep the limits, and whose they are: of a model's actions [K], or of None."""
    if action is not None:
        targets = TARGET_OF[row.position + 1, action]
        if feasible(targets, row.limits):
            return targets, "model"
    return safe_targets(row)


def safe_targets(row: BookObservation) -> tuple[Ints, FeasibleBy]:
    """What is done without a usable answer: hold where that keeps the limits, else reduce. Always feasible."""
    if feasible(row.position, row.limits):
        return row.position, "held"
    return _reduced(row), "reduced"


def _reduced(row: BookObservation) -> Ints:
    """Close one position after the other, of the larger side (long if both are alike), until both limits hold."""
    targets, cost = row.position.copy(), row.instruments[:, -2]
    while not feasible(targets, row.limits):
        side = 1 if targets.sum() >= 0 else -1
        held = np.flatnonzero(targets == side)
        targets[held[cost[held].argmin()]] = 0
    return targets
