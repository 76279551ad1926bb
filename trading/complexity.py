"""Market complexity in [0, 1] (seed 2.2.2) after each bar, from raw past bars and nothing else:

    complexity = 0.4 s(log RV) + 0.3 s(log ADX) + 0.3 s(sqrt |M|)

    RV   realised volatility of the last `volatility_window` returns
    ADX  Wilder's average directional index of log prices over `trend_strength_window` bars
    M    return of the last `momentum_window` bars, in units of RV over the same time
    s    the normal distribution function of the value's z-score in its own past: exponential averages over
         CALIBRATION_BARS, so that a score of 0.9 says "higher than nine times in ten, lately" in any market

Each s is close to uniform (docs/experiments.md), so the seed's thresholds 0.4 and 0.7 have a meaning: about two bars
in three are above the first and one in six above the second. No return or movement spans two sessions.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

from core.settings import LONGEST_COMPLEXITY_WINDOW, ComplexityDetection, load_settings
from trading.indicators import ADX_STATE_SIZE, advance_adx, momentum, realised_volatility

Floats = NDArray[np.float64]

CALIBRATION_BARS = 1500  # a month of five-minute bars
UNKNOWN = 1.0  # what cannot be measured is treated as complex: more reasoning, never less

_WEIGHTS = (0.4, 0.3, 0.3)
_SMALLEST_VOLATILITY, _SMALLEST_ADX = 1e-6, 0.1  # below them nothing happens: the logarithm's floor

# Layout of the state: bars seen, a mean and a variance for each of the three, the ADX, the ring of returns.
_COUNT = 0
_CALIBRATION = 1
_ADX = _CALIBRATION + 2 * len(_WEIGHTS)
_RETURNS = _ADX + ADX_STATE_SIZE
COMPLEXITY_STATE_SIZE = _RETURNS + LONGEST_COMPLEXITY_WINDOW


@njit(cache=True)
def _score(calibration: Floats, value: float, count: int) -> float:
    """Normal distribution function of the z-score of the `count`-th value among all so far, the recent ones above all.

    `calibration` [2] holds their exponential mean and variance, updated in place.
    """
    weight = max(1.0 / count, 1.0 / CALIBRATION_BARS)
    surprise = value - calibration[0]
    calibration[0] += weight * surprise
    calibration[1] = (1.0 - weight) * (calibration[1] + weight * surprise * surprise)
    if calibration[1] == 0.0:
        return 0.5
    return 0.5 * math.erfc((calibration[0] - value) / math.sqrt(2.0 * calibration[1]))


@njit(cache=True)
def advance_complexity(state: Floats, bar: Floats, change: float, first_of_session: bool, windows: Floats) -> float:
    """Complexity after one more closed bar, at least 2 of them; UNKNOWN before.

    Args:
        state: [COMPLEXITY_STATE_SIZE], zeros at first, updated in place.
        bar: open, high, low, close.
        change: log return of the bar from the last close of its session, from its own open if it is the first.
        windows: of volatility, trend strength and momentum, in bars.
    """
    count = int(state[_COUNT]) + 1
    state[_COUNT] = count
    returns = state[_RETURNS:]
    returns[(count - 1) % LONGEST_COMPLEXITY_WINDOW] = change
    volatility = max(realised_volatility(returns, count, int(windows[0])), _SMALLEST_VOLATILITY)
    trend = advance_adx(state[_ADX:_RETURNS], np.log(bar[1]), np.log(bar[2]), first_of_session, int(windows[1]))
    moved = abs(momentum(returns, count, int(windows[2]))) / volatility
    complexity = (
        _WEIGHTS[0] * _score(state[_CALIBRATION : _CALIBRATION + 2], np.log(volatility), count)
        + _WEIGHTS[1] * _score(state[_CALIBRATION + 2 : _CALIBRATION + 4], np.log(max(trend, _SMALLEST_ADX)), count)
        + _WEIGHTS[2] * _score(state[_CALIBRATION + 4 : _CALIBRATION + 6], np.sqrt(moved), count)
    )
    return complexity if count > 1 and 0.0 <= complexity <= 1.0 else UNKNOWN


@njit(cache=True)
def _last_complexity(bars: Floats, windows: Floats) -> float:
    """`advance_complexity` over uninterrupted bars [n, 4]."""
    state = np.zeros(COMPLEXITY_STATE_SIZE)
    complexity = UNKNOWN
    for i in range(len(bars)):
        reference = bars[i, 0] if i == 0 else bars[i - 1, 3]
        complexity = advance_complexity(state, bars[i], np.log(bars[i, 3] / reference), i == 0, windows)
    return complexity


class MarketComplexityDetector:
    """The seed's interface to the complexity that a market's bars carry."""

    def __init__(self, settings: ComplexityDetection | None = None) -> None:
        """By default the windows of the settings file. Raises ConfigError if that is wrong."""
        self.settings = settings or load_settings().hierarchical_reasoning_model.complexity_detection

    @property
    def volatility_window(self) -> int:
        """Bars."""
        return self.settings.volatility_window

    @property
    def trend_strength_window(self) -> int:
        """Bars."""
        return self.settings.trend_strength_window

    @property
    def windows(self) -> Floats:
        """Of volatility, trend strength and momentum, in bars."""
        found = self.settings
        windows = (found.volatility_window, found.trend_strength_window, found.momentum_window)
        return np.array(windows, dtype=np.float64)

    def compute_complexity(self, market_data: NDArray[np.floating]) -> float:
        """Complexity in [0, 1] after the last bar of an uninterrupted past, the oldest first.

        `market_data` is closes [n] or open, high, low, close [n, 4], n >= 2. Each score is relative to this past: the
        longer, up to CALIBRATION_BARS and more, the better. What cannot be measured (fewer bars, a price that is no
        positive number, a high below a close) is 1.0.
        """
        data = np.asarray(market_data, dtype=np.float64)
        if len(data.shape) == 0 or len(data) < 2 or not (np.isfinite(data) & (data > 0)).all():
            return UNKNOWN
        bars = _bars_between(data) if data.ndim == 1 else np.ascontiguousarray(data)
        if bars.ndim != 2 or bars.shape[1] != 4 or (bars[:, 1] < bars.max(1)).any() or (bars[:, 2] > bars.min(1)).any():
            return UNKNOWN
        return float(_last_complexity(bars, self.windows))


def _bars_between(closes: Floats) -> Floats:
    """Bars [n, 4] that open at the last close and move straight to the next."""
    opens = np.concatenate([closes[:1], closes[:-1]])
    return np.stack([opens, np.maximum(opens, closes), np.minimum(opens, closes), closes], axis=1)
