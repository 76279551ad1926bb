"""Technical indicators, compiled, one closed bar at a time: TA-Lib's definitions, without its arrays.

All of them see ratios only when they are given log prices, and no move from one session to the next: the first bar
of a session is where its moves are measured from.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# Layout of the state of ADX: bars averaged, the previous bar, Wilder's averages of the two movements and of DX.
_COUNT, _HIGH, _LOW, _PLUS, _MINUS, _ADX = range(6)
ADX_STATE_SIZE = 6


@njit(cache=True)
def wilder(average: float, value: float, count: int, window: int) -> float:
    """Wilder's average after its `count`-th value: their mean up to `window` values, then a weight of 1 / window."""
    return average + (value - average) / min(count, window)


@njit(cache=True)
def advance_adx(state: Floats, high: float, low: float, first_of_session: bool, window: int) -> float:
    """Wilder's average directional index after one more bar, 0 to 100; 0 before there is a movement.

    DX = 100 |DM+ - DM-| / (DM+ + DM-) of the averaged movements; the true range of the textbook cancels in it.
    `state` is [ADX_STATE_SIZE], zeros at first, updated in place.
    """
    if not first_of_session:
        up, down = high - state[_HIGH], state[_LOW] - low
        count = int(state[_COUNT]) + 1
        state[_COUNT] = count
        state[_PLUS] = wilder(state[_PLUS], up if up > max(down, 0.0) else 0.0, count, window)
        state[_MINUS] = wilder(state[_MINUS], down if down > max(up, 0.0) else 0.0, count, window)
        moved = state[_PLUS] + state[_MINUS]
        if moved > 0.0:
            state[_ADX] = wilder(state[_ADX], 100.0 * abs(state[_PLUS] - state[_MINUS]) / moved, count, window)
    state[_HIGH], state[_LOW] = high, low
    return float(state[_ADX])


@njit(cache=True)
def realised_volatility(returns: Floats, count: int, window: int) -> float:
    """Root mean square of the last `window` of the `count` returns in a ring, about zero; 0 before there is one."""
    known, squares, at = min(window, count), 0.0, count % len(returns)
    for _ in range(known):
        at = (at if at > 0 else len(returns)) - 1
        squares += returns[at] * returns[at]
    return float(np.sqrt(squares / max(1, known)))


@njit(cache=True)
def momentum(returns: Floats, count: int, window: int) -> float:
    """Sum of the last `window` of the `count` returns in a ring, per square root of their number."""
    known, total, at = min(window, count), 0.0, count % len(returns)
    for _ in range(known):
        at = (at if at > 0 else len(returns)) - 1
        total += returns[at]
    return float(total / np.sqrt(max(1, known)))
