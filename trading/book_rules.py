"""What a desk would do without a model: heuristics for a book, and the repair of an answer that breaks a limit.

Each takes a book and returns targets [B, K] that keep both limits (trading/book.py states the problem).
"""

from __future__ import annotations

import numpy as np
from numba import njit
from scipy.optimize import LinearConstraint, minimize

from trading.book import TARGETS, Book, Floats, Targets, alone, require_targets, utility

TIE = 1e-12  # a move must earn more than this


def greedy(book: Book) -> Targets:
    """The best single move after the other, until none pays; from the position or from flat, whichever ends better."""
    ends = [
        _climb(alone(book), book.loadings, book.limits, start)
        for start in (book.position, np.zeros_like(book.position))
    ]
    better = utility(book, ends[1]) > utility(book, ends[0])
    return np.where(better[:, None], ends[1], ends[0])


def each_alone(book: Book) -> Targets:
    """Every instrument at its own optimum as if it were alone, then repaired."""
    factor_risk = (book.loadings**2).sum(axis=2)[..., None] * TARGETS**2
    return project(book, TARGETS[(alone(book) - 0.5 * factor_risk).argmax(axis=2)])


def relax_and_round(book: Book) -> Targets:
    """The optimum over the continuous box [-1, 1]^K, rounded to whole units, then repaired."""
    relaxed = np.stack([_relaxed(book[b : b + 1]) for b in range(len(book))])
    return project(book, np.rint(relaxed).astype(np.int64))


def project(book: Book, targets: Targets) -> Targets:
    """A feasible answer near `targets` [B, K]; rows that keep the limits come back as they are.

    The others give up or turn one instrument at a time, the one that costs least, until both limits hold; where
    staying put is worth more than what is left, they stay put.
    """
    require_targets(book, targets)
    repaired = _repair(alone(book), book.loadings, book.limits, targets)
    changed = (repaired != targets).any(axis=1)
    stay = changed & (utility(book, repaired) < utility(book, book.position))
    return np.where(stay[:, None], book.position, repaired)


def _relaxed(one: Book) -> Floats:
    """The relaxation of a single instance, [K]. With p = u - v and u, v >= 0 every term is smooth on the box:

    |p| = u + v, and |p - position| is u + v, 1 - p or 1 + p as the position is 0, 1 or -1.
    """
    mu, cost, held = one.mu[0], one.cost[0], one.position[0]
    covariance = one.loadings[0] @ one.loadings[0].T + np.diag(one.variance[0])
    turnover = np.where(held == 0, cost, 0.0)
    slope = np.concatenate([mu + held * cost - turnover, -mu - held * cost - turnover])
    size = len(mu)

    def loss(x: Floats) -> tuple[float, Floats]:
        p = x[:size] - x[size:]
        risk = covariance @ p
        return float(0.5 * p @ risk - slope @ x), np.concatenate([risk, -risk]) - slope

    gross, net = float(one.gross[0]), float(one.net[0])
    rows = np.stack([np.ones(2 * size), np.repeat([1.0, -1.0], size)])
    limits = LinearConstraint(rows, [0.0, -net], [gross, net])
    start = np.concatenate([np.maximum(held, 0), np.maximum(-held, 0)]).astype(np.float64)
    found = minimize(loss, start, jac=True, bounds=[(0.0, 1.0)] * (2 * size), constraints=limits, method="SLSQP")
    relaxed: Floats = found.x[:size] - found.x[size:]
    return relaxed


@njit(cache=True)
def _change(alone: Floats, loadings: Floats, p: Targets) -> Floats:
    """What moving one instrument of p to each target would change the utility by, [K, 3]."""
    exposure = loadings.T @ p.astype(np.float64)
    table = np.empty_like(alone)
    for k in range(len(p)):
        along = np.sum(loadings[k] * exposure)
        square = np.sum(loadings[k] * loadings[k])
        for v in range(3):
            step = v - 1 - p[k]
            table[k, v] = alone[k, v] - alone[k, p[k] + 1] - step * along - 0.5 * step * step * square
    return table


@njit(cache=True)
def _excess(p: Targets, limits: Targets) -> int:
    """0 where both limits hold. Gross counts double, so that giving up a unit lowers it whatever net does."""
    return int(2 * max(np.sum(np.abs(p)) - limits[0], 0) + max(abs(np.sum(p)) - limits[1], 0))


@njit(cache=True)
def _best_move(change: Floats, p: Targets, limits: Targets) -> tuple[int, int, float]:
    """Instrument, target and gain of the best single move to less excess, or to none."""
    now = _excess(p, limits)
    best = (0, p[0], -np.inf)
    moved = p.copy()
    for k in range(len(p)):
        for v in range(-1, 2):
            moved[k] = v
            after = _excess(moved, limits)
            if v != p[k] and (after == 0 or after < now) and change[k, v + 1] > best[2]:
                best = (k, v, change[k, v + 1])
        moved[k] = p[k]
    return best


@njit(cache=True)
def _climb(alone: Floats, loadings: Floats, limits: Targets, start: Targets) -> Targets:
    p = start.copy()
    for b in range(len(p)):
        while True:
            k, v, gain = _best_move(_change(alone[b], loadings[b], p[b]), p[b], limits[b])
            if gain <= TIE:
                break
            p[b, k] = v
    return p


@njit(cache=True)
def _repair(alone: Floats, loadings: Floats, limits: Targets, start: Targets) -> Targets:
    p = start.copy()
    for b in range(len(p)):
        while _excess(p[b], limits[b]) > 0:
            k, v, _ = _best_move(_change(alone[b], loadings[b], p[b]), p[b], limits[b])
            p[b, k] = v
    return p
