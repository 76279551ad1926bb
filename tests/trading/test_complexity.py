"""The complexity is the seed's: past bars only, calibrated by its own past, never a number outside [0, 1]."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.settings import load_settings
from trading.complexity import MarketComplexityDetector
from trading.features import FeatureSettings
from trading.market import Bars, prepare
from trading.synthetic import simulate

SETTINGS = load_settings(preset="compact", environ={})
COMPLEXITY = SETTINGS.hierarchical_reasoning_model.complexity_detection
FEATURES = FeatureSettings.of(COMPLEXITY, bars_per_session=75, capital=1e6)
DETECTOR = MarketComplexityDetector(COMPLEXITY)


def walk(bars: int, seed: int = 0, sigma: float = 5e-4) -> np.ndarray:
    return 100.0 * np.exp(np.cumsum(np.random.default_rng(seed).normal(0, sigma, bars)))


def test_complexity_is_higher_when_markets_move_more() -> None:
    calm = walk(300, sigma=1e-4)
    wild = np.concatenate([calm, calm[-1] * np.exp(np.cumsum(np.random.default_rng(1).normal(2e-3, 2e-3, 20)))])
    assert 0.0 <= DETECTOR.compute_complexity(calm) < 0.8 < DETECTOR.compute_complexity(wild) <= 1.0


def test_volatility_is_judged_by_the_markets_own_past() -> None:
    quiet, loud = walk(2000, sigma=1e-4), walk(2000, sigma=1e-2)
    assert DETECTOR.compute_complexity(quiet) == pytest.approx(DETECTOR.compute_complexity(loud), abs=0.05)


def test_the_detector_says_what_the_market_carries() -> None:
    law = SETTINGS.synthetic_market.model_copy(update={"bars_per_session": 900})
    bars = simulate(law, sessions=1, seed=2).bars
    market = prepare(bars, FEATURES, window=60)
    ohlc = np.stack([bars.open, bars.high, bars.low, bars.close], axis=1)
    for t in (1, 19, 20, 63, 64, 65, 500, 899):
        assert np.float32(DETECTOR.compute_complexity(ohlc[: t + 1])) == market.complexity[t]


def test_closes_alone_will_do() -> None:
    closes = walk(400)
    opens = np.concatenate([closes[:1], closes[:-1]])
    bars = np.stack([opens, np.maximum(opens, closes), np.minimum(opens, closes), closes], axis=1)
    assert DETECTOR.compute_complexity(closes) == DETECTOR.compute_complexity(bars)
    assert DETECTOR.compute_complexity(closes.tolist()) == DETECTOR.compute_complexity(closes)  # type: ignore[arg-type] # the seed's callers pass lists


def bars_with(row: list[float]) -> np.ndarray:
    return np.array([[1.0, 1.0, 1.0, 1.0], row])


@pytest.mark.parametrize(
    "data",
    [
        5.0,
        [],
        [1.0],
        [1.0, np.nan],
        [1.0, -2.0],
        [1.0, 0.0],
        [1.0, np.inf],
        np.ones((1, 4)),
        np.ones((5, 3)),
        np.ones((5, 4, 2)),
        bars_with([1.0, np.nan, 1.0, 1.0]),
        bars_with([1.0, 0.9, 0.8, 1.0]),
        bars_with([1.0, 1.0, 1.1, 1.0]),
    ],
)
def test_complexity_that_cannot_be_measured_asks_for_more_reasoning(data: object) -> None:
    assert DETECTOR.compute_complexity(np.array(data)) == 1.0


@given(st.lists(st.floats(1e-3, 1e6), min_size=2, max_size=120))
def test_complexity_is_a_ratio_whatever_the_prices(closes: list[float]) -> None:
    assert 0.0 <= DETECTOR.compute_complexity(np.array(closes)) <= 1.0


def test_a_market_that_never_moves_is_neither_simple_nor_complex() -> None:
    assert DETECTOR.compute_complexity(np.ones(300)) == pytest.approx(0.5)


def test_the_seeds_thresholds_separate_a_sixth_and_two_thirds_of_the_bars() -> None:
    complexity = prepare(simulate(SETTINGS.synthetic_market, sessions=400, seed=5).bars, FEATURES, window=60).complexity
    assert 0.60 < (complexity[1500:] > 0.4).mean() < 0.75
    assert 0.12 < (complexity[1500:] > 0.7).mean() < 0.20


@pytest.mark.parametrize("name", ["volatility_window", "trend_strength_window", "momentum_window"])
def test_every_window_of_the_settings_matters(name: str) -> None:
    other = MarketComplexityDetector(COMPLEXITY.model_copy(update={name: 64}))
    assert other.compute_complexity(walk(500)) != DETECTOR.compute_complexity(walk(500))


def test_prices_that_are_not_numbers_leave_complexity_at_its_most_careful() -> None:
    bars = simulate(SETTINGS.synthetic_market, sessions=6, seed=1).bars
    close = bars.close.copy()
    close[300] = np.nan
    complexity = prepare(Bars(**{**bars.__dict__, "close": close}), FEATURES, window=60).complexity
    assert (complexity[300:] == 1.0).all()
    assert (complexity[1:300] < 1.0).all()
