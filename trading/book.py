"""A book of K instruments decided jointly: the problem, the law instances are drawn from, and the score of an answer.

    maximise  U(p) = mu'p - p'(LL' + D)p / 2 - cost'|p - position|      over p in {-1, 0, +1}^K
    subject to  sum_k |p_k| <= gross,   |sum_k p_k| <= net

The unit is risk: the risk aversion is 1 by choice of the unit in which mu and cost are measured. The position held
is feasible, so staying put is an answer too, and K = 1 is the single instrument of the rest of the system.
Exact optimum: trading/book_exact.py. Heuristics and the repair of infeasible answers: trading/book_rules.py.

Shapes: B instances, K instruments, F factors.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from core.errors import DataError

Floats = NDArray[np.float64]
Targets = NDArray[np.int64]  # [B, K] in {-1, 0, +1}
Mask = NDArray[np.bool_]

N_FLOATS = 4  # the first fields of a Book are float64, the others int64
TARGETS: Targets = np.array([-1, 0, 1])


@dataclass(frozen=True, eq=False)
class Book:
    """B instances. Raises DataError where shapes disagree, a value is not finite or the position breaks a limit."""

    mu: Floats  # [B, K] expected return of a unit
    loadings: Floats  # [B, K, F] on unit-variance factors
    variance: Floats  # [B, K] specific to the instrument
    cost: Floats  # [B, K] per unit of turnover
    position: Targets  # [B, K] held now, in {-1, 0, +1}
    gross: Targets  # [B] limit on sum |p|
    net: Targets  # [B] limit on |sum p|

    def __post_init__(self) -> None:
        rows, each = self.mu.shape[:1], self.mu.shape
        wanted = (each, (*each, self.loadings.shape[-1]), each, each, each, rows, rows)
        for index, (field, shape) in enumerate(zip(fields(self), wanted, strict=True)):
            value, dtype = getattr(self, field.name), np.float64 if index < N_FLOATS else np.int64
            if value.shape != shape or value.dtype != dtype:
                raise DataError(f"book: {field.name} is {value.dtype} {value.shape}, needs {dtype.__name__} {shape}")
            if not np.isfinite(value).all():
                raise DataError(f"book: {field.name} holds a value that is not finite; drop the instance")
        if (self.variance < 0).any() or (self.cost < 0).any():
            raise DataError("book: a variance or a cost is negative; both are magnitudes")
        if not (_are_targets(self.position).all() and feasible(self, self.position).all()):
            raise DataError("book: a position is not in {-1, 0, +1} or breaks a limit; staying put must be an answer")

    def __len__(self) -> int:
        return len(self.mu)

    @property
    def instruments(self) -> int:
        return int(self.mu.shape[1])

    @property
    def limits(self) -> Targets:
        """Gross and net, [B, 2]."""
        return np.stack([self.gross, self.net], axis=1)

    def __getitem__(self, rows: slice | NDArray[np.integer] | Mask) -> Book:
        """The instances of some rows."""
        return Book(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})


@dataclass(frozen=True)
class BookLaw:
    """The distribution of instances. With independent standard normals e, f, z and uniforms u on [0, 1):

        loadings[k, j] = loading * e[k, j]                    [K, F]
        mu[k]          = signal * (z[k] + loadings[k] . f)    [K]    f [F]: a view on the factors
        variance[k]    = variance_low + (variance_high - variance_low) * u[k]
        cost[k]        = cost_high * u[k]
        gross          = uniform integer in [low, K - K // 4],  low = max(1, K // 4), both ends included
        net            = uniform integer in [1, low]
        position[k]    = uniform on {-1, 0, +1}, kept for k = 0, 1, ... while the limits hold, else 0

    A view on the factors makes what looks best alone the same bet taken twice, so instruments must be weighed
    against each other; limits scale with K, so that they bind about as often in a book of any size.
    """

    instruments: int = 8
    factors: int = 3
    signal: float = 1.0
    loading: float = 1.0
    variance_low: float = 0.1
    variance_high: float = 0.5
    cost_high: float = 0.4

    @property
    def gross_range(self) -> tuple[int, int]:
        """Smallest and largest gross limit, both included."""
        quarter = self.instruments // 4
        return max(1, quarter), self.instruments - quarter

    def draw(self, rows: int, rng: np.random.Generator) -> Book:
        """Draw `rows` independent instances."""
        shape = (rows, self.instruments)
        loadings = self.loading * rng.standard_normal((*shape, self.factors))
        view = rng.standard_normal((rows, self.factors))
        low, high = self.gross_range
        gross = rng.integers(low, high, rows, endpoint=True)
        net = rng.integers(1, low, rows, endpoint=True)
        return Book(
            mu=self.signal * (rng.standard_normal(shape) + np.einsum("bkf,bf->bk", loadings, view)),
            loadings=loadings,
            variance=rng.uniform(self.variance_low, self.variance_high, shape),
            cost=rng.uniform(0.0, self.cost_high, shape),
            position=_kept_within_limits(rng.integers(-1, 1, shape, endpoint=True), gross, net),
            gross=gross,
            net=net,
        )


@dataclass(frozen=True, eq=False)
class Optimum:
    """The exact answer to B instances.

    `max_marginals[b, k, v + 1]` is the best feasible utility with instrument k at target v, -inf where there is none:
    its argmax over v is the optimum, its softmax over v / temperature a soft label.
    """

    targets: Targets  # [B, K]
    utility: Floats  # [B]
    max_marginals: Floats  # [B, K, 3]


def alone(book: Book) -> Floats:
    """What each target of each instrument is worth but for the factors, [B, K, 3]:

    U(p) = sum_k alone[k, p_k + 1] - |L'p|^2 / 2, the form in which the searches compute.
    """
    turnover = np.abs(TARGETS - book.position[..., None])
    worth: Floats = (
        book.mu[..., None] * TARGETS - 0.5 * book.variance[..., None] * TARGETS**2 - book.cost[..., None] * turnover
    )
    return worth


def utility(book: Book, targets: Targets) -> Floats:
    """U(targets) [B], whether feasible or not."""
    exposure = np.einsum("bkf,bk->bf", book.loadings, targets)
    risk = (exposure**2).sum(axis=1) + (book.variance * targets**2).sum(axis=1)
    turnover = (book.cost * np.abs(targets - book.position)).sum(axis=1)
    total: Floats = (book.mu * targets).sum(axis=1) - 0.5 * risk - turnover
    return total


def feasible(book: Book, targets: Targets) -> Mask:
    """Whether both limits hold, [B]."""
    within: Mask = (np.abs(targets).sum(axis=1) <= book.gross) & (np.abs(targets.sum(axis=1)) <= book.net)
    return within


def require_targets(book: Book, targets: Targets) -> None:
    """Raise DataError unless `targets` is one value in {-1, 0, +1} per instrument of the book."""
    wanted = book.position.shape
    if targets.shape != wanted or targets.dtype != np.int64 or not _are_targets(targets).all():
        raise DataError(f"book: targets must be int64 {wanted} in {{-1, 0, +1}}, got {targets.dtype} {targets.shape}")


def gains(book: Book, targets: Targets) -> Floats:
    """What an answer earns over staying put, [B]; an infeasible answer is not executed and earns 0."""
    require_targets(book, targets)
    gain = utility(book, targets) - utility(book, book.position)
    return np.where(feasible(book, targets), gain, 0.0)


def score(book: Book, optimum: Optimum, targets: Targets) -> float:
    """Share of the attainable gain: sum gains(targets) / sum gains(optimum). 1 is optimal, 0 staying put."""
    return float(gains(book, targets).sum() / gains(book, optimum.targets).sum())


def _are_targets(targets: Targets) -> Mask:
    return np.isin(targets, TARGETS)


def _kept_within_limits(wanted: Targets, gross: Targets, net: Targets) -> Targets:
    """Take the wanted positions one instrument after the other, each only if the limits still hold."""
    kept = np.zeros_like(wanted)
    for k in range(wanted.shape[1]):
        kept[:, k] = wanted[:, k]
        breaks = (np.abs(kept).sum(axis=1) > gross) | (np.abs(kept.sum(axis=1)) > net)
        kept[breaks, k] = 0
    return kept
