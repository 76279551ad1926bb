"""Features, one implementation: `advance` consumes one closed bar; the batch form loops over it.

So live and training values are bit-equal, and no feature can see a bar that has not closed. Returns never span
a session break: the first bar of a session is measured from its own open.

Per bar (the model's window), with z = return / volatility known before the bar:
    ret_z          z, clipped to +-6
    signal         the market's own signal column, else a 10-bar momentum of z scaled to unit variance
    signal_ret     previous signal * z: did the signal just work?
    vol_ratio      log(fast / slow volatility)
    range_z        (high - low) in units of volatility, less its mean under a random walk
    progress       position in the session, 0 to 1
Context (the position-independent part of `account`, at the last bar):
    signal, ic_8 ... ic_128 (exponential information coefficients of the signal), edge_k = ic_k * signal (what the
    signal promises now), log_vol (one-bar volatility in bps), progress, progress_sq (U shape of the day), log_units
    (capital / price), complexity
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

from core.observation import ObservationSchema
from core.settings import ComplexityDetection
from core.settings import Observation as ObservationSettings

Floats = NDArray[np.float64]

BAR_FEATURES = ("ret_z", "signal", "signal_ret", "vol_ratio", "range_z", "progress")
IC_SPANS = (8, 16, 32, 64, 128)
CONTEXT_FEATURES = (
    "signal",
    *(f"ic_{span}" for span in IC_SPANS),
    *(f"edge_{span}" for span in IC_SPANS),
    "log_vol",
    "progress",
    "progress_sq",
    "log_units",
    "complexity",
)
ACCOUNT_FEATURES = (*CONTEXT_FEATURES, "position")
WARM_UP_BARS = 200  # bars before the slowest average means something

_FAST, _SLOW = 0.06, 0.004  # EWMA weights of the two variances
_MOMENTUM = 2.0 / 11.0
_CLIP = 6.0
_MEAN_RANGE = 1.6  # E[high - low] of a random walk, in standard deviations
_VARIANCE_FLOOR = 1e-12
_UNITS_SCALE = 4.0
_LOG_BPS = float(np.log(1e4))
_RING = 64  # longest complexity window that the settings allow

# Layout of the state vector: scalars, then information coefficients, then the ring of returns.
_COUNT, _CLOSE, _VAR_FAST, _VAR_SLOW, _SIGNAL, _EMA, _BAR = range(7)
_IC = 7
_RETURNS = _IC + len(IC_SPANS)
STATE_SIZE = _RETURNS + _RING
_SPANS = np.array(IC_SPANS, dtype=np.float64)


@dataclass(frozen=True)
class FeatureSettings:
    """What the recursion needs to know besides bars. Windows are in bars, `capital` in rupees."""

    bars_per_session: int
    capital: float
    volatility_window: int
    trend_strength_window: int
    momentum_window: int

    @classmethod
    def of(cls, complexity: ComplexityDetection, *, bars_per_session: int, capital: float) -> FeatureSettings:
        return cls(
            bars_per_session,
            capital,
            complexity.volatility_window,
            complexity.trend_strength_window,
            complexity.momentum_window,
        )

    def vector(self) -> Floats:
        return np.array(
            [
                self.bars_per_session,
                self.capital,
                self.volatility_window,
                self.trend_strength_window,
                self.momentum_window,
            ],
            dtype=np.float64,
        )


def schema(settings: ObservationSettings) -> ObservationSchema:
    """The schema every model trained on these features carries."""
    return ObservationSchema(
        window=settings.window,
        patch=settings.patch,
        bar_features=BAR_FEATURES,
        account_features=ACCOUNT_FEATURES,
    )


def initial_state() -> Floats:
    """State before any bar; fill it by `advance`."""
    return np.zeros(STATE_SIZE)


@njit(cache=True)
def _windowed(state: Floats, window: int) -> tuple[float, float, float]:
    """Sum, sum of magnitudes and sum of squares of the last `window` returns."""
    count = int(state[_COUNT])
    total, magnitude, squares = 0.0, 0.0, 0.0
    for back in range(min(window, count)):
        value = state[_RETURNS + (count - 1 - back) % _RING]
        total += value
        magnitude += abs(value)
        squares += value * value
    return total, magnitude, squares


@njit(cache=True)
def _complexity(state: Floats, volatility_window: int, trend_window: int, momentum_window: int) -> float:
    """0.4 volatility + 0.3 trend strength + 0.3 momentum (seed 2.2.2), each score in [0, 1], causal."""
    slow = np.sqrt(state[_VAR_SLOW])
    _, _, squares = _windowed(state, volatility_window)
    volatility = min(1.0, np.sqrt(squares / volatility_window) / (2.0 * slow))
    total, magnitude, _ = _windowed(state, trend_window)
    trend = abs(total) / magnitude if magnitude > 0.0 else 0.0
    total, _, _ = _windowed(state, momentum_window)
    momentum = min(1.0, abs(total) / (3.0 * slow * np.sqrt(momentum_window)))
    return float(0.4 * volatility + 0.3 * trend + 0.3 * momentum)


@njit(cache=True)
def advance(
    state: Floats,
    bar: Floats,
    first_of_session: bool,
    parameters: Floats,
    bars_row: NDArray[np.float32],
    context_row: NDArray[np.float32],
) -> tuple[float, float]:
    """Consume one closed bar, write its features, return (one-bar volatility for the next bar, complexity).

    Args:
        state: [STATE_SIZE], updated in place.
        bar: open, high, low, close, signal; a NaN signal means the market has none.
        first_of_session: True for the first bar after any break.
        parameters: `FeatureSettings.vector()`.
        bars_row, context_row: float32 [len(BAR_FEATURES)] and [len(CONTEXT_FEATURES)], written.
    """
    open_, high, low, close = bar[0], bar[1], bar[2], bar[3]
    count = int(state[_COUNT])
    fresh = first_of_session or count == 0
    reference = open_ if fresh else state[_CLOSE]
    change = np.log(close / reference)
    if count == 0:
        first_variance = max(((high - low) / (_MEAN_RANGE * reference)) ** 2, _VARIANCE_FLOOR)
        state[_VAR_FAST] = first_variance
        state[_VAR_SLOW] = first_variance
    sigma = np.sqrt(state[_VAR_FAST])
    z = min(max(change / sigma, -_CLIP), _CLIP)

    state[_EMA] += _MOMENTUM * (z - state[_EMA])
    signal = bar[4]
    if np.isnan(signal):
        signal = state[_EMA] * np.sqrt((2.0 - _MOMENTUM) / _MOMENTUM)
    worked = state[_SIGNAL] * z
    for k in range(len(_SPANS)):
        state[_IC + k] += (worked - state[_IC + k]) / _SPANS[k]

    state[_VAR_FAST] = max(state[_VAR_FAST] + _FAST * (change * change - state[_VAR_FAST]), _VARIANCE_FLOOR)
    state[_VAR_SLOW] = max(state[_VAR_SLOW] + _SLOW * (change * change - state[_VAR_SLOW]), _VARIANCE_FLOOR)
    state[_RETURNS + count % _RING] = change
    state[_COUNT] = count + 1
    state[_CLOSE] = close
    state[_SIGNAL] = signal
    state[_BAR] = 0.0 if fresh else state[_BAR] + 1.0

    progress = min(1.0, state[_BAR] / max(1.0, parameters[0] - 1.0))
    log_fast = 0.5 * np.log(state[_VAR_FAST])
    complexity = _complexity(state, int(parameters[2]), int(parameters[3]), int(parameters[4]))

    bars_row[0] = z
    bars_row[1] = signal
    bars_row[2] = worked
    bars_row[3] = log_fast - 0.5 * np.log(state[_VAR_SLOW])
    bars_row[4] = min((high - low) / (reference * sigma) - _MEAN_RANGE, _CLIP)
    bars_row[5] = progress

    context_row[0] = signal
    for k in range(len(_SPANS)):
        context_row[1 + k] = state[_IC + k] * np.sqrt(_SPANS[k])
        context_row[1 + len(_SPANS) + k] = context_row[1 + k] * signal
    after = 1 + 2 * len(_SPANS)
    context_row[after] = log_fast + _LOG_BPS
    context_row[after + 1] = progress
    context_row[after + 2] = (2.0 * progress - 1.0) ** 2
    context_row[after + 3] = np.log(parameters[1] / close) / _UNITS_SCALE
    context_row[after + 4] = complexity
    return np.sqrt(state[_VAR_FAST]), complexity


@njit(cache=True)
def advance_all(
    state: Floats,
    bars: Floats,
    first_of_session: NDArray[np.bool_],
    parameters: Floats,
) -> tuple[NDArray[np.float32], NDArray[np.float32], Floats, NDArray[np.float32]]:
    """`advance` over bars [n, 5]. Returns bar features [n, F], context [n, C], volatility [n], complexity [n]."""
    n = len(bars)
    bar_features = np.empty((n, len(BAR_FEATURES)), dtype=np.float32)
    context = np.empty((n, len(CONTEXT_FEATURES)), dtype=np.float32)
    volatility = np.empty(n)
    complexity = np.empty(n, dtype=np.float32)
    for i in range(n):
        volatility[i], complexity[i] = advance(
            state, bars[i], first_of_session[i], parameters, bar_features[i], context[i]
        )
    return bar_features, context, volatility, complexity


class MarketComplexityDetector:
    """The seed's interface (2.2.2) to the complexity that `advance` computes."""

    def __init__(self, settings: ComplexityDetection) -> None:
        self.settings = settings

    def compute_complexity(self, market_data: Floats) -> float:
        """Complexity in [0, 1] after the last of `market_data`, past closes [n], n >= 2, oldest first."""
        closes = np.asarray(market_data, dtype=np.float64)
        if closes.ndim != 1 or len(closes) < 2 or not (np.isfinite(closes) & (closes > 0)).all():
            return 1.0  # what cannot be measured is treated as complex: more reasoning, never less
        opens = np.concatenate([closes[:1], closes[:-1]])
        signal = np.full(len(closes), np.nan)
        bars = np.stack([opens, np.maximum(opens, closes), np.minimum(opens, closes), closes, signal], axis=1)
        fixed = FeatureSettings.of(self.settings, bars_per_session=2, capital=1.0)
        breaks = np.zeros(len(closes), dtype=np.bool_)
        *_, complexity = advance_all(initial_state(), bars, breaks, fixed.vector())
        return float(np.clip(complexity[-1], 0.0, 1.0))


def sizing_log_quantity(
    volatility: Floats, close: Floats, *, capital: float, target_volatility_bps: float, max_quantity: float
) -> NDArray[np.float32]:
    """log of the units whose one-bar risk is `target_volatility_bps` of the capital, in [1, max_quantity]."""
    units = capital / close * (target_volatility_bps / 1e4) / volatility
    return np.log(np.clip(units, 1.0, max_quantity)).astype(np.float32)
