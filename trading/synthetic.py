"""The synthetic market: a slow hidden regime flips the sign of a fast observed signal.

    r[t+1] = sigma[t+1] * seasonality * (s[t] * A * x[t] + eps)      eps ~ N(0, 1)
    x[t]   = phi x[t-1] + sqrt(1 - phi^2) eta                        observed
    s[t]   in {+1, -1}, stays with probability `stay_probability`    hidden
    h[t+1] = omega + (alpha z[t]^2 + beta) h[t],  sigma = volatility * sqrt(h)

z is the observed standardised return, so the variance is known to an agent, and the Bayes filter of s is exact
(trading/oracle.py). Prices are continuous over night: a session's first bar opens at the last close.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit

from core.settings import SyntheticMarket
from trading.features import Floats
from trading.market import SECOND_NS, Bars

FIRST_DAY_NS = 1_388_979_900 * SECOND_NS  # Monday 2014-01-06 09:15 in Kolkata, as UTC
BAR_S = 300
DAY_S = 86_400
TICKS_IN_BAR = 6  # steps of the bridge that gives a bar its high and low


@dataclass(frozen=True)
class SyntheticPath:
    """Simulated bars and the latent quantities only the oracle may see, each [n]."""

    bars: Bars
    signal: Floats  # x[t], known at the close of t
    z: Floats  # observed standardised return of bar t
    variance_next: Floats  # h[t+1], known at the close of t


def seasonality(bars_per_session: int) -> Floats:
    """U shape of intraday volatility, mean square 1."""
    u = np.linspace(-1.0, 1.0, bars_per_session)
    shape = 0.8 + 0.6 * u**2
    return np.asarray(shape / np.sqrt(np.mean(shape**2)), dtype=np.float64)


def simulate(
    settings: SyntheticMarket,
    *,
    sessions: int,
    seed: int | list[int],
    name: str = "SYNTHETIC",
    interval_s: int = BAR_S,
) -> SyntheticPath:
    """Simulate `sessions` sessions; the same seed gives the same prices on every machine, whatever the interval."""
    rng = np.random.default_rng(seed)
    n = sessions * settings.bars_per_session
    noise = rng.standard_normal((n, 2))
    flips = rng.random(n) > settings.stay_probability
    signal, z, variance = _recursion(
        noise,
        flips,
        np.array([settings.signal_phi, settings.amplitude]),
        np.array([settings.garch_omega, settings.garch_alpha, settings.garch_beta]),
    )
    sigma = settings.volatility_bps / 1e4 * np.sqrt(variance[:-1])
    season = np.tile(seasonality(settings.bars_per_session), sessions)
    log_return = sigma * season * z
    close = settings.first_price * np.exp(np.cumsum(log_return))
    open_ = np.concatenate([[settings.first_price], close[:-1]])
    high, low = _extremes(open_, close, sigma * season, rng)
    day = np.repeat(np.arange(sessions, dtype=np.int64), settings.bars_per_session)
    bar = np.tile(np.arange(settings.bars_per_session, dtype=np.int64), sessions)
    days_long = -(-settings.bars_per_session * interval_s // DAY_S)  # one, but for bars of half an hour and more
    calendar_day = days_long * day + 2 * (day // 5)  # five sessions, then a weekend
    timestamps = FIRST_DAY_NS + (calendar_day * DAY_S + bar * interval_s) * SECOND_NS
    bars = Bars(name, timestamps, open_, high, low, close, day, signal)
    return SyntheticPath(bars, signal, z, variance[1:])


@njit(cache=True)
def _recursion(noise: Floats, flips: np.ndarray, signal_law: Floats, garch: Floats) -> tuple[Floats, Floats, Floats]:
    n = len(noise)
    phi, amplitude = signal_law
    omega, alpha, beta = garch
    signal, z, variance = np.empty(n), np.empty(n), np.empty(n + 1)
    variance[0] = 1.0
    regime = 1.0 if flips[0] else -1.0
    x = 0.0
    for t in range(n):
        z[t] = regime * amplitude * x + noise[t, 0]
        variance[t + 1] = omega + (alpha * z[t] * z[t] + beta) * variance[t]
        x = phi * x + np.sqrt(1.0 - phi * phi) * noise[t, 1]
        signal[t] = x
        if flips[t]:
            regime = -regime
    return signal, z, variance


def _extremes(open_: Floats, close: Floats, sigma: Floats, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """High and low from a short Brownian bridge between open and close."""
    steps = rng.standard_normal((len(open_), TICKS_IN_BAR)) * (sigma / np.sqrt(TICKS_IN_BAR))[:, None]
    walk = np.cumsum(steps, axis=1)
    share = np.arange(1, TICKS_IN_BAR + 1) / TICKS_IN_BAR
    bridge = walk - share * walk[:, -1:] + share * np.log(close / open_)[:, None]
    high = open_ * np.exp(np.maximum(bridge.max(axis=1), 0.0))
    low = open_ * np.exp(np.minimum(bridge.min(axis=1), 0.0))
    return np.maximum(high, np.maximum(open_, close)), np.minimum(low, np.minimum(open_, close))
