"""The exact optimum of a book, and of the book with any one instrument fixed, by Lagrangian branch and bound.

For any w [F], gamma >= 0 and nu, since |x|^2 / 2 >= w'x - |w|^2 / 2, every feasible p has

    U(p) <= g - sum_k r[k, p_k],        r[k, v] = max_v' s[k, v'] - s[k, v] >= 0   (reduced cost)
    g = |w|^2 / 2 + gamma gross + |nu| net + sum_k max_v s[k, v]
    s[k, v] = (mu_k - w'L_k - nu) v - gamma |v| - D_k v^2 / 2 - cost_k |v - position_k|

so an answer can beat an incumbent only if its reduced costs sum to less than the gap between g and the incumbent. The
search walks the tree of targets depth first, the most decided instrument first, and cuts where that sum or a limit
says no. The multipliers come from a subgradient method; they decide the time it takes, never the answer.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numba import njit

from trading.book import Book, Floats, Mask, Optimum, Targets, alone, utility

TIE = 1e-12  # utilities closer than this are the same


def solve(book: Book) -> Optimum:
    """The optimum and the max-marginals of every instance."""
    targets, marginals = _solve(alone(book), book.loadings, book.limits)
    return Optimum(targets, utility(book, targets), marginals)


def binding_limits(book: Book) -> Targets:
    """How many of the two limits the optimum without limits would break, [B] in {0, 1, 2}.

    0: the limits cost nothing. It says what binds, not how hard the choice is: under BookLaw greedy loses as much
    where nothing binds, since more is held and weighed; the spread of the max-marginals tells hard from easy better.
    """
    unlimited = np.full(len(book), book.instruments)
    wanted = solve(replace(book, gross=unlimited, net=unlimited)).targets
    used = np.stack([np.abs(wanted).sum(axis=1), np.abs(wanted.sum(axis=1))], axis=1)
    return np.asarray((used > book.limits).sum(axis=1), dtype=np.int64)


@njit(cache=True)
def _solve(alone: Floats, loadings: Floats, limits: Targets) -> tuple[Targets, Floats]:
    rows, instruments, _ = alone.shape
    targets = np.zeros((rows, instruments), dtype=np.int64)
    marginals = np.full((rows, instruments, 3), -np.inf)
    for b in range(rows):
        free = np.ones((instruments, 3), dtype=np.bool_)
        targets[b] = _branch_and_bound(alone[b], loadings[b], limits[b], free, marginals[b])
        for k in range(instruments):
            for v in range(3):
                if v != targets[b, k] + 1:
                    fixed = free.copy()
                    fixed[k] = False
                    fixed[k, v] = True
                    _branch_and_bound(alone[b], loadings[b], limits[b], fixed, marginals[b])
    return targets, marginals


@njit(cache=True)
def _branch_and_bound(alone: Floats, loadings: Floats, limits: Targets, allowed: Mask, marginals: Floats) -> Targets:
    """The best feasible targets within `allowed` [K, 3]; every answer met on the way raises `marginals`.

    Returns zeros where nothing beats what `marginals` already holds.
    """
    incumbent = np.inf
    for k in range(len(alone)):
        known = -np.inf
        for v in range(3):
            if allowed[k, v]:
                known = max(known, marginals[k, v])
        incumbent = min(incumbent, known)
    table = np.where(allowed, alone, -np.inf)
    bound, priced = _minimise_dual(table, loadings, limits, incumbent)
    return _search(table, loadings, limits, (bound, incumbent), priced, marginals)


@njit(cache=True)
def _price(table: Floats, loadings: Floats, multipliers: Floats, priced: Floats) -> None:
    """s[k, v] at the multipliers (w, gamma, nu), into `priced`."""
    factors = loadings.shape[1]
    for k in range(len(table)):
        slope = multipliers[factors + 1]
        for f in range(factors):
            slope += multipliers[f] * loadings[k, f]
        priced[k, 0] = table[k, 0] + slope - multipliers[factors]
        priced[k, 1] = table[k, 1]
        priced[k, 2] = table[k, 2] - slope - multipliers[factors]


@njit(cache=True)
def _minimise_dual(table: Floats, loadings: Floats, limits: Targets, goal: float) -> tuple[float, Floats]:
    """Bound g and s[k, v] at the best multipliers a subgradient method with Polyak steps finds."""
    instruments, factors = loadings.shape
    multipliers, slope = np.zeros(factors + 2), np.empty(factors + 2)
    best_multipliers, best = multipliers.copy(), np.inf
    priced = np.empty((instruments, 3))
    relaxation = 1.0
    for _ in range(1 + instruments**2 // 8):  # about where a tighter bound stops paying for itself
        _price(table, loadings, multipliers, priced)
        bound = _dual(priced, loadings, limits, multipliers, slope)
        if bound < best - TIE:
            best = bound
            best_multipliers[:] = multipliers
        else:
            relaxation *= 0.8
        size = np.sum(slope * slope)
        if size < TIE or best - goal < TIE:
            break
        gap = bound - goal if goal > -np.inf else 1.0
        multipliers -= relaxation * gap / size * slope
        multipliers[factors] = max(multipliers[factors], 0.0)
    _price(table, loadings, best_multipliers, priced)
    return best, priced


@njit(cache=True)
def _dual(priced: Floats, loadings: Floats, limits: Targets, multipliers: Floats, slope: Floats) -> float:
    """g at the multipliers; its subgradient goes into `slope`."""
    factors = loadings.shape[1]
    gross, net = limits
    w, gamma, nu = multipliers[:factors], multipliers[factors], multipliers[factors + 1]
    bound = 0.5 * np.sum(w * w) + gamma * gross + abs(nu) * net
    slope[:factors] = w
    used, held = 0, 0
    for k in range(len(priced)):
        target = int(np.argmax(priced[k])) - 1
        bound += priced[k, target + 1]
        used += abs(target)
        held += target
        slope[:factors] -= target * loadings[k]
    slope[factors] = gross - used
    slope[factors + 1] = min(max(held, -net), net) - held if nu == 0.0 else np.sign(nu) * net - held
    return float(bound)


@njit(cache=True)
def _search(
    table: Floats, loadings: Floats, limits: Targets, ends: tuple[float, float], priced: Floats, marginals: Floats
) -> Targets:
    """Depth first over the targets whose reduced costs fit between the bound and the incumbent."""
    bound, incumbent = ends
    instruments, factors = loadings.shape
    gross, net = limits
    reduced, ranked, order = _decided_first(priced)
    best, p = np.zeros(instruments, dtype=np.int64), np.zeros(instruments, dtype=np.int64)
    chosen = np.zeros(instruments, dtype=np.int64)  # rank of the target tried at a depth
    spent = np.zeros(instruments + 1)  # sum of reduced costs above a depth, and so on
    value = np.zeros(instruments + 1)
    exposure = np.zeros((instruments + 1, factors))
    used = np.zeros(instruments + 1, dtype=np.int64)
    held = np.zeros(instruments + 1, dtype=np.int64)
    depth = 0
    chosen[0] = -1
    while depth >= 0:
        chosen[depth] += 1
        if chosen[depth] == 3:
            depth -= 1
            continue
        k = order[depth]
        v = ranked[k, chosen[depth]]
        below = depth + 1
        spent[below] = spent[depth] + reduced[k, v]
        if bound - spent[below] <= incumbent + TIE:
            depth -= 1  # the targets after this one cost more
            continue
        used[below] = used[depth] + abs(v - 1)
        held[below] = held[depth] + v - 1
        reach = min(instruments - below, gross - used[below])
        if reach < 0 or abs(held[below]) > net + reach:
            continue
        value[below] = value[depth] + table[k, v]
        for f in range(factors):
            exposure[below, f] = exposure[depth, f] + (v - 1) * loadings[k, f]
        if below < instruments:
            depth = below
            chosen[depth] = -1
            continue
        total = value[below] - 0.5 * np.sum(exposure[below] * exposure[below])
        for at in range(instruments):
            p[order[at]] = ranked[order[at], chosen[at]] - 1
        for j in range(instruments):
            marginals[j, p[j] + 1] = max(marginals[j, p[j] + 1], total)
        if total > incumbent:
            incumbent = total
            best[:] = p
    return best


@njit(cache=True)
def _decided_first(priced: Floats) -> tuple[Floats, Targets, Targets]:
    """Reduced costs [K, 3], targets of each instrument by reduced cost, instruments by the cost of their second."""
    instruments = len(priced)
    reduced = np.empty((instruments, 3))
    ranked = np.empty((instruments, 3), dtype=np.int64)
    second = np.empty(instruments)
    for k in range(instruments):
        reduced[k] = np.max(priced[k]) - priced[k]
        ranked[k] = np.argsort(reduced[k])
        second[k] = reduced[k, ranked[k, 1]]
    return reduced, ranked, np.argsort(-second)
