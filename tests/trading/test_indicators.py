"""The indicators are TA-Lib's, on one uninterrupted session, once both have forgotten how they began."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import talib

from core.settings import load_settings
from trading.features import FeatureSettings
from trading.indicators import ADX_STATE_SIZE, advance_adx, momentum, realised_volatility
from trading.market import Bars, prepare
from trading.synthetic import simulate

SETTINGS = load_settings(preset="compact", environ={})
ONE_SESSION = SETTINGS.synthetic_market.model_copy(update={"bars_per_session": 3000})
BARS = simulate(ONE_SESSION, sessions=1, seed=4).bars
RETURNS = np.diff(np.log(BARS.close))
SETTLED = 1000  # bars: (13/14)^1000 is nothing


def adx_of(high: np.ndarray, low: np.ndarray, window: int = 14) -> np.ndarray:
    state = np.zeros(ADX_STATE_SIZE)
    return np.array([advance_adx(state, high[i], low[i], i == 0, window) for i in range(len(high))])


@pytest.mark.parametrize("scale", [np.log, np.asarray])
@pytest.mark.parametrize("window", [5, 14, 30])
def test_the_adx_is_ta_libs(scale: Callable[[np.ndarray], np.ndarray], window: int) -> None:
    high, low, close = (scale(column) for column in (BARS.high, BARS.low, BARS.close))
    expected = talib.ADX(high, low, close, window)
    np.testing.assert_allclose(adx_of(high, low, window)[SETTLED:], expected[SETTLED:], rtol=0, atol=1e-9)


@pytest.mark.parametrize("window", [2, 20, 64])
def test_realised_volatility_is_ta_libs_average_of_squares(window: int) -> None:
    expected = np.sqrt(talib.SMA(RETURNS**2, window))
    for count in (window, 100, 1000, len(RETURNS)):
        found = realised_volatility(ring_of(RETURNS[:count]), count, window)
        assert found == pytest.approx(expected[count - 1], rel=1e-9)


@pytest.mark.parametrize("window", [2, 10, 64])
def test_momentum_is_ta_libs_of_log_prices(window: int) -> None:
    expected = talib.MOM(np.log(BARS.close), window) / np.sqrt(window)
    for count in (window, 100, 1000, len(RETURNS)):
        assert momentum(ring_of(RETURNS[:count]), count, window) == pytest.approx(expected[count], abs=1e-9)


def test_the_signal_of_a_market_without_one_is_ta_libs_average_of_its_moves() -> None:
    bars = Bars(**{**BARS.__dict__, "signal": None})
    complexity = SETTINGS.hierarchical_reasoning_model.complexity_detection
    features = prepare(bars, FeatureSettings.of(complexity, bars_per_session=3000, capital=1e6), window=60).bar_features
    z, signal = features[:, 0].astype(np.float64), features[:, 1]
    expected = talib.EMA(z, 10) * np.sqrt((2 - 2 / 11) * 11 / 2)
    np.testing.assert_allclose(signal[SETTLED:], expected[SETTLED:], atol=1e-5)  # features are float32


def test_the_adx_of_a_market_that_never_moves_is_zero_and_of_one_that_only_rises_a_hundred() -> None:
    assert adx_of(np.ones(50), np.ones(50))[-1] == 0.0
    assert adx_of(np.arange(50.0), np.arange(50.0) - 1)[-1] == 100.0


def test_before_there_is_a_return_nothing_moves() -> None:
    assert realised_volatility(np.zeros(64), 0, 20) == momentum(np.zeros(64), 0, 10) == 0.0


def ring_of(returns: np.ndarray) -> np.ndarray:
    ring = np.zeros(64)
    for i, value in enumerate(returns):
        ring[i % 64] = value
    return ring
