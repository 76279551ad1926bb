"""The exact optimum of the synthetic market by backward induction.

State at the close of bar u of a session: (L, x, h, p) with L the log-odds that the regime is +1, x the signal,
h the next bar's variance, p the position. With b = sigmoid(L), for a target q in {-1, 0, +1}

    G_u(L, x, h, q) = q sigma(h) season_{u+1} A x (2b - 1) + E[V_{u+1}(L', x', h', q)]
    V_u(L, x, h, p) = max_q G_u(L, x, h, q) - cost |q - p|,          G at the last decision ends with -cost |q|
    L' = mix(L + 2 A x z'),  z' ~ b N(A x, 1) + (1 - b) N(-A x, 1)

Values are in bps. The expectation is Gauss-Hermite over both mixture components and the signal's noise, with
cubic interpolation between grid points: linear interpolation of these convex values overstates the optimum by
15 % on the same grid (tests/trading/test_oracle.py compares the value with the simulated policy's).
"""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numba import njit
from numpy.typing import NDArray

from core.files import write_atomically
from core.settings import SyntheticMarket
from trading.features import Floats
from trading.synthetic import SyntheticPath, seasonality

Grid = NDArray[np.floating]  # [..., L, x, log h, 3]

BELIEF_POINTS, SIGNAL_POINTS, VARIANCE_POINTS = 41, 25, 9
Z_NODES, SIGNAL_NODES = 7, 5
SIGNAL_RANGE = 3.5
VARIANCE_RANGE = (0.42, 6.0)
SOLUTION_VERSION = 1  # part of the cache key: raise it when the equations change


@dataclass(frozen=True)
class Oracle:
    """Solved continuation values G [bars - 1, L, x, log h, 3] in bps, float32, on uniform grids."""

    settings: SyntheticMarket
    cost_bps: float
    continuation: Grid

    def values(self, path: SyntheticPath, history: int | None = None) -> Floats:
        """Continuation values [n, 3] along a path; the last bar of each session has none (zeros).

        `history` limits the filter to the last so many bars (the ceiling of a memory-less window).
        """
        belief = filter_belief(path.signal, path.z, self.settings, history=history)
        bars = self.settings.bars_per_session
        bar = np.tile(np.arange(bars), len(belief) // bars)
        return _interpolate(
            self.continuation, bar, belief, path.signal, np.log(path.variance_next), _grids(self.settings)
        )


def filter_belief(signal: Floats, z: Floats, settings: SyntheticMarket, *, history: int | None = None) -> Floats:
    """Log-odds [n] of regime +1 at the close of each bar, from all bars or from the last `history`."""
    evidence = np.zeros(len(z))
    evidence[1:] = 2.0 * settings.amplitude * signal[:-1] * z[1:]
    return _filter(evidence, settings.stay_probability, -1 if history is None else history)


def solve(settings: SyntheticMarket, cost_bps: float, cache: Path | None = None) -> Oracle:
    """Solve by dynamic programming, in about a second, or read the solution from `cache` (a folder)."""
    file = None if cache is None else cache / f"oracle-{digest(settings, cost_bps)[:16]}.npy"
    if file is not None and file.exists():
        return Oracle(settings, cost_bps, np.load(file, allow_pickle=False))
    continuation = _solve(settings, cost_bps)
    if file is not None:
        buffer = io.BytesIO()
        np.save(buffer, continuation, allow_pickle=False)
        write_atomically(file, buffer.getvalue())
    return Oracle(settings, cost_bps, continuation)


def digest(settings: SyntheticMarket, cost_bps: float) -> str:
    """SHA-256 of everything the solution depends on."""
    law = settings.model_dump(
        include={
            "bars_per_session",
            "stay_probability",
            "signal_phi",
            "amplitude",
            "volatility_bps",
            "garch_omega",
            "garch_alpha",
            "garch_beta",
        }
    )
    text = json.dumps([SOLUTION_VERSION, law, cost_bps, _shape()], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _shape() -> list[int]:
    return [BELIEF_POINTS, SIGNAL_POINTS, VARIANCE_POINTS, Z_NODES, SIGNAL_NODES]


def _grids(settings: SyntheticMarket) -> Floats:
    """Low end and step of each uniform grid, [3, 2]: log-odds, signal, log variance."""
    stay = settings.stay_probability
    top = np.log(stay / (1.0 - stay))
    low_h, high_h = np.log(VARIANCE_RANGE[0]), np.log(VARIANCE_RANGE[1])
    return np.array(
        [
            [-top, 2 * top / (BELIEF_POINTS - 1)],
            [-SIGNAL_RANGE, 2 * SIGNAL_RANGE / (SIGNAL_POINTS - 1)],
            [low_h, (high_h - low_h) / (VARIANCE_POINTS - 1)],
        ]
    )


def _solve(settings: SyntheticMarket, cost_bps: float) -> Grid:
    z_nodes, z_weights = np.polynomial.hermite_e.hermegauss(Z_NODES)
    x_nodes, x_weights = np.polynomial.hermite_e.hermegauss(SIGNAL_NODES)
    law = np.array(
        [
            settings.stay_probability,
            settings.signal_phi,
            settings.amplitude,
            settings.volatility_bps,
            settings.garch_omega,
            settings.garch_alpha,
            settings.garch_beta,
            cost_bps,
        ]
    )
    return _backward(
        seasonality(settings.bars_per_session),
        law,
        _grids(settings),
        np.stack([z_nodes, z_weights / z_weights.sum()]),
        np.stack([x_nodes, x_weights / x_weights.sum()]),
    )


@njit(cache=True)
def _mix(log_odds: float, stay: float) -> float:
    """One step of the regime's Markov chain, on log-odds."""
    b = 1.0 / (1.0 + np.exp(-log_odds))
    b = stay * b + (1.0 - stay) * (1.0 - b)
    return float(np.log(b / (1.0 - b)))


@njit(cache=True)
def _filter(evidence: Floats, stay: float, history: int) -> Floats:
    n = len(evidence)
    belief = np.empty(n)
    if history < 0:
        log_odds = 0.0
        for t in range(n):
            log_odds = _mix(log_odds + evidence[t], stay)
            belief[t] = log_odds
        return belief
    for t in range(n):
        log_odds = 0.0
        for k in range(max(0, t - history + 1), t + 1):
            log_odds = _mix(log_odds + evidence[k], stay)
        belief[t] = log_odds
    return belief


@njit(cache=True)
def _place(value: float, low: float, step: float, points: int) -> tuple[int, float]:
    """Cell and fraction of `value` on a uniform grid, clamped to its ends."""
    position = min(max((value - low) / step, 0.0), points - 1.000001)
    cell = int(position)
    return cell, position - cell


@njit(cache=True)
def _cubic(fraction: float, weights: Floats) -> None:
    """Catmull-Rom weights of the points cell - 1 .. cell + 2. Linear ones would overvalue a convex function."""
    f = fraction
    weights[0] = ((-0.5 * f + 1.0) * f - 0.5) * f
    weights[1] = (1.5 * f - 2.5) * f * f + 1.0
    weights[2] = ((-1.5 * f + 2.0) * f + 0.5) * f
    weights[3] = (0.5 * f - 0.5) * f * f


@njit(cache=True)
def _over_signal(best: Grid, phi: float, grids: Floats, x_rule: Floats) -> Grid:
    """E over the signal's noise: out[L, x, h, q] = sum_j w_j best[L, x'(x, j), h, q]."""
    out = np.zeros_like(best)
    points = best.shape[1]
    weights = np.empty(4)
    for ix in range(points):
        x = grids[1, 0] + ix * grids[1, 1]
        for j in range(x_rule.shape[1]):
            x_next = phi * x + np.sqrt(1.0 - phi * phi) * x_rule[0, j]
            cell, fraction = _place(x_next, grids[1, 0], grids[1, 1], points)
            _cubic(fraction, weights)
            for k in range(4):
                at = min(max(cell - 1 + k, 0), points - 1)
                out[:, ix] += x_rule[1, j] * weights[k] * best[:, at]
    return out


@njit(cache=True)
def _bicubic(table: Grid, log_odds: float, ix: int, h: float, grids: Floats, out: Floats) -> None:
    """Add the interpolation of table [L, x, h, 3] at (log_odds, grid point ix, h) to out[:3], times out[3]."""
    il, fl = _place(log_odds, grids[0, 0], grids[0, 1], table.shape[0])
    ih, fh = _place(h, grids[2, 0], grids[2, 1], table.shape[2])
    wl, wh = np.empty(4), np.empty(4)
    _cubic(fl, wl)
    _cubic(fh, wh)
    for a in range(4):
        ia = min(max(il - 1 + a, 0), table.shape[0] - 1)
        for b in range(4):
            ib = min(max(ih - 1 + b, 0), table.shape[2] - 1)
            weight = out[3] * wl[a] * wh[b]
            for q in range(3):
                out[q] += weight * table[ia, ix, ib, q]


@njit(cache=True)
def _backward(season: Floats, law: Floats, grids: Floats, z_rule: Floats, x_rule: Floats) -> Grid:
    stay, phi, amplitude, volatility, omega, alpha, beta, cost = law
    bars = len(season)
    result = np.empty((bars - 1, BELIEF_POINTS, SIGNAL_POINTS, VARIANCE_POINTS, 3), dtype=np.float32)
    best = np.zeros((BELIEF_POINTS, SIGNAL_POINTS, VARIANCE_POINTS, 3))
    for q in range(3):
        best[:, :, :, q] = -cost * abs(q - 1)  # after the last bar: forced flat
    for u in range(bars - 2, -1, -1):
        now = np.empty_like(best)
        smooth = _over_signal(best, phi, grids, x_rule)
        for il in range(BELIEF_POINTS):
            log_odds = grids[0, 0] + il * grids[0, 1]
            b = 1.0 / (1.0 + np.exp(-log_odds))
            total = np.empty(4)
            for ix in range(SIGNAL_POINTS):
                x = grids[1, 0] + ix * grids[1, 1]
                for ih in range(VARIANCE_POINTS):
                    h = np.exp(grids[2, 0] + ih * grids[2, 1])
                    mean = volatility * np.sqrt(h) * season[u + 1] * amplitude * x * (2.0 * b - 1.0)
                    for q in range(3):
                        total[q] = (q - 1) * mean
                    for side in range(2):
                        share = b if side == 0 else 1.0 - b
                        drift = amplitude * x if side == 0 else -amplitude * x
                        for i in range(z_rule.shape[1]):
                            z = drift + z_rule[0, i]
                            l_next = _mix(log_odds + 2.0 * amplitude * x * z, stay)
                            h_next = np.log(omega + (alpha * z * z + beta) * h)
                            total[3] = share * z_rule[1, i]
                            _bicubic(smooth, l_next, ix, h_next, grids, total)
                    for q in range(3):
                        result[u, il, ix, ih, q] = total[q]
                    for p in range(3):
                        value = total[0] - cost * p
                        for q in range(1, 3):
                            value = max(value, total[q] - cost * abs(q - p))
                        now[il, ix, ih, p] = value
        best = now
    return result


@njit(cache=True)
def _interpolate(
    continuation: Grid, bar: NDArray[np.int64], belief: Floats, signal: Floats, log_h: Floats, grids: Floats
) -> Floats:
    """Continuation values [n, 3] at given states, tricubic; zeros where the session has no next bar."""
    values = np.zeros((len(belief), 3))
    wx, out = np.empty(4), np.empty(4)
    for t in range(len(belief)):
        if bar[t] >= continuation.shape[0]:
            continue
        cell, fraction = _place(signal[t], grids[1, 0], grids[1, 1], continuation.shape[2])
        _cubic(fraction, wx)
        out[:3] = 0.0
        for k in range(4):
            out[3] = wx[k]
            at = min(max(cell - 1 + k, 0), continuation.shape[2] - 1)
            _bicubic(continuation[bar[t]], belief[t], at, log_h[t], grids, out)
        values[t] = out[:3]
    return values
