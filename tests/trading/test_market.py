"""Features one by one or all at once, where decisions may be taken, and what a market says of itself."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import DataError
from core.settings import load_settings
from trading.features import (
    BAR_FEATURES,
    CONTEXT_FEATURES,
    FeatureSettings,
    advance,
    advance_all,
    initial_state,
    schema,
)
from trading.market import Bars, market_of, prepare, require_fit, session_days
from trading.synthetic import simulate

SETTINGS = load_settings(preset="compact", environ={})
COMPLEXITY = SETTINGS.hierarchical_reasoning_model.complexity_detection
FEATURES = FeatureSettings.of(COMPLEXITY, bars_per_session=75, capital=1e6)
PATH = simulate(SETTINGS.synthetic_market, sessions=12, seed=3)


def raw(bars: Bars) -> np.ndarray:
    signal = np.full(len(bars), np.nan) if bars.signal is None else bars.signal
    return np.stack([bars.open, bars.high, bars.low, bars.close, signal], axis=1)


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


def test_the_same_seed_gives_the_same_market_and_another_seed_another() -> None:
    again = simulate(SETTINGS.synthetic_market, sessions=12, seed=3)
    other = simulate(SETTINGS.synthetic_market, sessions=12, seed=4)
    assert again.bars.digest == PATH.bars.digest != other.bars.digest


def test_simulated_bars_are_consistent_bars() -> None:
    bars = PATH.bars
    assert (bars.low <= np.minimum(bars.open, bars.close)).all()
    assert (bars.high >= np.maximum(bars.open, bars.close)).all()
    assert (np.diff(bars.timestamps) > 0).all()


def test_the_interval_of_bars_is_that_of_most_of_them() -> None:
    holes = np.delete(np.arange(len(PATH.bars)), [10, 11, 100])
    columns = {
        name: getattr(PATH.bars, name)[holes] for name in ("timestamps", "open", "high", "low", "close", "session")
    }
    assert Bars("HOLES", **columns).interval_s == PATH.bars.interval_s == 300


def test_bars_without_an_interval_are_refused() -> None:
    daily = np.arange(0, len(PATH.bars), 75)
    columns = {
        name: getattr(PATH.bars, name)[daily] for name in ("timestamps", "open", "high", "low", "close", "session")
    }
    with pytest.raises(DataError, match="intraday bars") as caught:
        _ = Bars("DAILY", **columns).interval_s
    assert caught.value.code == "wrong_timeframe"


def test_bars_of_another_timeframe_than_the_models_are_refused() -> None:
    fits = schema(SETTINGS.observation, interval_s=300)
    require_fit(PATH.bars, fits)
    with pytest.raises(DataError, match="bars of 300 s, the model looks at bars of 60 s") as caught:
        market_of(PATH.bars, FEATURES, fits.model_copy(update={"interval_s": 60}))
    assert caught.value.code == "wrong_timeframe"


def test_days_cut_a_market_as_session_numbers_do() -> None:
    market = prepare(PATH.bars, FEATURES, window=60)
    days = session_days(market)
    cut = market.between(days[2], days[4])
    np.testing.assert_array_equal(cut.sessions, market.sessions[2:5])
    np.testing.assert_array_equal(
        cut.decision_bars, market.restricted_to(*cut.sessions[[0, -1]].tolist()).decision_bars
    )
    assert len(market.between(days[-1], days[0]).decision_bars) == 0
