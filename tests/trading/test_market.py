"""Features see only the past, sessions stay apart, and the complexity is the seed's."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import DataError
from core.settings import load_settings
from trading.complexity import MarketComplexityDetector
from trading.features import (
    BAR_FEATURES,
    CONTEXT_FEATURES,
    FeatureSettings,
    advance,
    advance_all,
    initial_state,
)
from trading.market import Bars, prepare
from trading.synthetic import simulate

SETTINGS = load_settings(preset="compact", environ={})
COMPLEXITY = SETTINGS.hierarchical_reasoning_model.complexity_detection
FEATURES = FeatureSettings.of(COMPLEXITY, bars_per_session=75, capital=1e6)
PATH = simulate(SETTINGS.synthetic_market, sessions=12, seed=3)


def raw(bars: Bars) -> np.ndarray:
    signal = np.full(len(bars), np.nan) if bars.signal is None else bars.signal
    return np.stack([bars.open, bars.high, bars.low, bars.close, signal], axis=1)


def test_features_of_a_truncated_history_equal_those_of_the_whole() -> None:
    whole = prepare(PATH.bars, FEATURES, window=60)
    for stop in (400, 613, 777):
        part = prepare(PATH.bars.part(0, stop), FEATURES, window=60)
        np.testing.assert_array_equal(part.bar_features, whole.bar_features[:stop])
        np.testing.assert_array_equal(part.context, whole.context[:stop])
        np.testing.assert_array_equal(part.complexity, whole.complexity[:stop])


def test_a_poisoned_future_changes_no_feature_of_the_past() -> None:
    clean = prepare(PATH.bars, FEATURES, window=60)
    spoiled = PATH.bars.close.copy()
    spoiled[500:] *= 7.0
    bars = Bars(**{**PATH.bars.__dict__, "close": spoiled})
    np.testing.assert_array_equal(prepare(bars, FEATURES, window=60).context[:500], clean.context[:500])


@given(st.integers(1, 200))
def test_one_bar_at_a_time_gives_the_same_bits_as_all_at_once(bars: int) -> None:
    block = raw(PATH.bars)[:bars]
    first = PATH.bars.first_of_session[:bars]
    batch_bars, batch_context, batch_volatility, _ = advance_all(initial_state(), block, first, FEATURES.vector())
    state = initial_state()
    row, context = np.empty(len(BAR_FEATURES), np.float32), np.empty(len(CONTEXT_FEATURES), np.float32)
    for i in range(bars):
        volatility, _ = advance(state, block[i], bool(first[i]), FEATURES.vector(), row, context)
    np.testing.assert_array_equal(row, batch_bars[-1])
    np.testing.assert_array_equal(context, batch_context[-1])
    assert volatility == batch_volatility[-1]


def test_an_overnight_gap_enters_no_return() -> None:
    jumped = {name: getattr(PATH.bars, name).copy() for name in ("open", "high", "low", "close")}
    for prices in jumped.values():
        prices[75 * 5 :] *= 1.1  # ten percent up between the fifth and the sixth session
    bars = Bars(**{**PATH.bars.__dict__, **jumped})
    np.testing.assert_allclose(
        prepare(bars, FEATURES, window=60).bar_features, prepare(PATH.bars, FEATURES, window=60).bar_features, atol=1e-6
    )


def test_history_starts_again_after_a_hole_of_more_than_a_week() -> None:
    timestamps = PATH.bars.timestamps.copy()
    timestamps[75 * 6 :] += 30 * 86_400 * 10**9
    market = prepare(Bars(**{**PATH.bars.__dict__, "timestamps": timestamps}), FEATURES, window=60)
    after = market.decision_bars[market.decision_bars >= 75 * 6]
    assert after[0] >= 75 * 6 + 199
    fresh = prepare(PATH.bars.part(75 * 6, 75 * 12), FEATURES, window=60)
    np.testing.assert_array_equal(market.context[75 * 6 :], fresh.context)


def test_no_decision_is_taken_at_the_last_bar_of_a_session() -> None:
    market = prepare(PATH.bars, FEATURES, window=60)
    assert not np.isin(np.arange(74, 75 * 12, 75), market.decision_bars).any()
    assert np.isin(np.arange(75 * 4, 75 * 5 - 1), market.decision_bars).all()


def test_too_few_bars_are_refused_with_the_remedy() -> None:
    with pytest.raises(DataError, match="bring more history"):
        prepare(PATH.bars.part(0, 100), FEATURES, window=60)


def test_a_market_without_a_signal_gets_one_from_its_own_momentum() -> None:
    bars = Bars(**{**PATH.bars.__dict__, "signal": None})
    signal = prepare(bars, FEATURES, window=60).bar_features[300:, 1]
    assert np.isfinite(signal).all()
    assert 0.5 < signal.std() < 2.0


def test_complexity_is_higher_when_markets_move_more() -> None:
    detector = MarketComplexityDetector(COMPLEXITY)
    rng = np.random.default_rng(0)
    calm = np.exp(np.cumsum(rng.normal(0, 1e-4, 300)))
    wild = np.concatenate([calm, calm[-1] * np.exp(np.cumsum(rng.normal(2e-3, 2e-3, 20)))])
    assert 0.0 <= detector.compute_complexity(calm) < detector.compute_complexity(wild) <= 1.0


@pytest.mark.parametrize("closes", [[], [1.0], [1.0, np.nan], [1.0, -2.0], [1.0, np.inf]])
def test_complexity_that_cannot_be_measured_asks_for_more_reasoning(closes: list[float]) -> None:
    assert MarketComplexityDetector(COMPLEXITY).compute_complexity(np.array(closes)) == 1.0


def test_the_same_seed_gives_the_same_market_and_another_seed_another() -> None:
    again = simulate(SETTINGS.synthetic_market, sessions=12, seed=3)
    other = simulate(SETTINGS.synthetic_market, sessions=12, seed=4)
    assert again.bars.digest == PATH.bars.digest != other.bars.digest


def test_simulated_bars_are_consistent_bars() -> None:
    bars = PATH.bars
    assert (bars.low <= np.minimum(bars.open, bars.close)).all()
    assert (bars.high >= np.maximum(bars.open, bars.close)).all()
    assert (np.diff(bars.timestamps) > 0).all()
