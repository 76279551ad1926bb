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

import math
from dataclasses import dataclass, replace

import numpy as np
from numba import njit
from numpy.typing import NDArray

from core.errors import DataError
from core.observation import ObservationSchema, Timeframe, coarsest_first
from core.settings import ComplexityDetection
from core.settings import Observation as ObservationSettings
from trading.complexity import COMPLEXITY_STATE_SIZE, advance_complexity

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

# Layout of the state vector: scalars, then information coefficients, then the complexity's own.
_COUNT, _CLOSE, _VAR_FAST, _VAR_SLOW, _SIGNAL, _EMA, _BAR = range(7)
_IC = 7
_COMPLEXITY = _IC + len(IC_SPANS)
STATE_SIZE = _COMPLEXITY + COMPLEXITY_STATE_SIZE
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

    def coarser(self, timeframe: Timeframe, interval_s: int) -> FeatureSettings:
        """The same for a timeframe over base bars of `interval_s`."""
        bars = math.ceil(self.bars_per_session * interval_s / timeframe.span_s)  # an infinite span leaves one
        return replace(self, bars_per_session=max(1, bars))

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


def schema(settings: ObservationSettings, *, interval_s: int = 300, symbols: tuple[str, ...] = ()) -> ObservationSchema:
    """The schema that models trained on these features carry: base bars of `interval_s`, two or more symbols or none.

    Raises DataError if a timeframe of the settings is not made of such bars.
    """
    timeframes = coarsest_first(settings.timeframes)
    for timeframe in timeframes:
        if not timeframe.is_made_of(interval_s):
            raise DataError(
                f"observation.timeframes: {timeframe.name} is not made of whole bars of {interval_s} s; choose "
                f"another timeframe, or finer bars",
                code="wrong_timeframe",
            )
    return ObservationSchema(
        window=settings.window + sum(timeframe.bars for timeframe in timeframes),
        patch=settings.patch,
        bar_features=BAR_FEATURES,
        account_features=account_features(symbols),
        interval_s=interval_s,
        timeframes=timeframes,
        symbols=symbols,
    )


def account_features(symbols: tuple[str, ...]) -> tuple[str, ...]:
    """Names of the account's features where `symbols` are told apart."""
    return (*CONTEXT_FEATURES, *(f"symbol_{symbol}" for symbol in symbols), "position")


def one_hot(symbol: str, symbols: tuple[str, ...]) -> NDArray[np.float32]:
    """Which of `symbols` it is, float32 [S], the end of the context. Raises DataError if it is none of them."""
    if symbols and symbol not in symbols:
        raise DataError(
            f"symbol '{symbol}' is none of those the model was trained on ({', '.join(symbols)}); name the bars' file "
            f"after one of them, or train a model with it",
            code="unknown_symbol",
        )
    return np.array([symbol == each for each in symbols], dtype=np.float32)


def initial_state() -> Floats:
    """State before any bar; fill it by `advance`."""
    return np.zeros(STATE_SIZE)


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
    state[_COUNT] = count + 1
    state[_CLOSE] = close
    state[_SIGNAL] = signal
    state[_BAR] = 0.0 if fresh else state[_BAR] + 1.0

    progress = min(1.0, state[_BAR] / max(1.0, parameters[0] - 1.0))
    log_fast = 0.5 * np.log(state[_VAR_FAST])
    complexity = advance_complexity(state[_COMPLEXITY:], bar, change, fresh, parameters[2:])

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


def sizing_log_quantity(
    volatility: Floats, close: Floats, *, capital: float, target_volatility_bps: float, max_quantity: float
) -> NDArray[np.float32]:
    """log of the units whose one-bar risk is `target_volatility_bps` of the capital, in [1, max_quantity]."""
    units = capital / close * (target_volatility_bps / 1e4) / volatility
    return np.log(np.clip(units, 1.0, max_quantity)).astype(np.float32)
