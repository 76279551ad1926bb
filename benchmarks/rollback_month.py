"""A month of a rollout in which nothing is wrong: champion and challenger are alike, and one earns what the other does.

30 calendar days are 21 sessions of 75 bars of five minutes; 20 symbols decide at the close of each bar, together. What
a healthy desk still has to bear:

    errors     0.2 % of the runs, alone or in bursts: each is followed by another with probability `burst`
    latency    lognormal, p95 39 ms, all symbols of a bar at once; `load`: AR(1), bar to bar, of half its log variance
    pauses     of the machine, one a minute, median 80 ms, p95 300 ms; whatever is in flight ends that much later
    outcomes   t with 4 degrees of freedom, AR(1) `phi` within each symbol from bar to bar, correlation `paired` of the
               arms on the same tick and 0.3 of any two symbols; mean 0.3 bps, deviation 10 bps
               (settings.trading.target_volatility_bps)

T bars, K symbols, S = T K samples in the order in which the runs end.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import signal

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

SESSIONS, BARS, SYMBOLS = 21, 75, 20
BAR_S, DAY_S, TRADING_DAYS, WEEK = 300.0, 86_400.0, 5, 7
ERROR_RATIO = 0.002
MEDIAN_MS, SPREAD = 20.0, 0.4  # of the latency, and the standard deviation of its logarithm
PAUSE_EVERY_S, PAUSE_MS, PAUSE_SPREAD = 60.0, 80.0, 0.8
MEAN_BPS, DEVIATION_BPS, MARKET = 0.3, 10.0, 0.3
RESIDENT_GB = 0.6
FORGET = 50  # bars after which an AR(1) process has forgotten its start


@dataclass(frozen=True)
class World:
    name: str
    burst: float = 0.0
    load: float = 0.0
    phi: float = 0.0
    paired: float = 0.9


WORLDS = (
    World("independent_90"),
    World("independent_50", paired=0.5),
    World("dependent_90", burst=0.3, load=0.8, phi=0.5),
    World("dependent_50", burst=0.3, load=0.8, phi=0.5, paired=0.5),
)


@dataclass(frozen=True, eq=False)
class Month:
    at: Floats  # [T, K] s since the start, when a run of the challenger ended
    latency_ms: Floats  # [T, K]
    failed: Bools  # [T, K]
    outcomes_bps: Floats  # [2, T, K] champion's, challenger's


def month(world: World, rng: np.random.Generator, sessions: int = SESSIONS) -> Month:
    """Independent of every other month that `rng` draws."""
    bars = sessions * BARS
    latency_ms = np.sort(_latency_ms(world, rng, bars), axis=1)
    return Month(
        at=_closes(sessions)[:, None] + latency_ms / 1e3,
        latency_ms=latency_ms,
        failed=bursts(rng, ERROR_RATIO, world.burst, bars * SYMBOLS).reshape(bars, SYMBOLS),
        outcomes_bps=MEAN_BPS + DEVIATION_BPS * _outcomes(world, rng, bars),
    )


def bursts(rng: np.random.Generator, ratio: float, burst: float, samples: int) -> Bools:
    """Hits [S], a share `ratio` of all, and `burst` of those after a hit: a two-state Markov chain (Gilbert 1960)."""
    after_none = ratio * (1 - burst) / (1 - ratio)
    drawn = rng.random(samples)
    hits = drawn < after_none
    for at in np.flatnonzero(hits):  # each begins a burst, which lasts while the draws are below `burst`
        following = at + 1
        while following < samples and drawn[following] < burst:
            hits[following] = True
            following += 1
    return hits


def autocorrelated(rng: np.random.Generator, shape: tuple[int, ...], phi: float) -> Floats:
    """t with 4 degrees of freedom made AR(1) along the first axis, of mean 0 and variance 1."""
    shocks = rng.standard_t(4, (shape[0] + FORGET, *shape[1:])) / np.sqrt(2)
    found: Floats = signal.lfilter([np.sqrt(1 - phi * phi)], [1.0, -phi], shocks, axis=0)[FORGET:]
    return found


def _closes(sessions: int) -> Floats:
    """[T] s since the start at which the bars close: five sessions, two days without, and so on."""
    session = np.arange(sessions)
    days = session // TRADING_DAYS * WEEK + session % TRADING_DAYS
    closes: Floats = (days[:, None] * DAY_S + np.arange(1, BARS + 1) * BAR_S).ravel()
    return closes


def _latency_ms(world: World, rng: np.random.Generator, bars: int) -> Floats:
    """[T, K]"""
    own = rng.standard_normal((bars, SYMBOLS))
    if world.load:
        noise = rng.standard_normal(bars + FORGET) * np.sqrt(1 - world.load**2)
        common = signal.lfilter([1.0], [1.0, -world.load], noise)[FORGET:]
        own = (own + common[:, None]) / np.sqrt(2)
    thinking_ms = MEDIAN_MS * np.exp(SPREAD * own)
    begins_ms = rng.exponential(PAUSE_EVERY_S * 1e3, (bars, 1))
    lasts_ms = PAUSE_MS * np.exp(PAUSE_SPREAD * rng.standard_normal((bars, 1)))
    found: Floats = thinking_ms + np.where(thinking_ms > begins_ms, lasts_ms, 0.0)
    return found


def _outcomes(world: World, rng: np.random.Generator, bars: int) -> Floats:
    """[2, T, K] of mean 0 and variance 1."""
    common, *own = (_of_symbols(world, rng, bars) for _ in range(3))
    return np.stack([np.sqrt(world.paired) * common + np.sqrt(1 - world.paired) * each for each in own])


def _of_symbols(world: World, rng: np.random.Generator, bars: int) -> Floats:
    """[T, K] of mean 0 and variance 1."""
    market = autocorrelated(rng, (bars, 1), world.phi)
    found: Floats = np.sqrt(MARKET) * market + np.sqrt(1 - MARKET) * autocorrelated(rng, (bars, SYMBOLS), world.phi)
    return found
