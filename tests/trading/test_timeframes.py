"""Coarse bars: what they are made of, when they are seen, and the same bits live as in a batch."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from market_makers import FEATURES, SETTINGS, irregular_bars, observed

from core.errors import DataError
from core.settings import Observation as ObservationSettings
from trading.dataset import build_dataset
from trading.features import WARM_UP_BARS, advance_all, initial_state, schema
from trading.market import MAX_BREAK_NS, Bars, Market, market_of, prepare
from trading.observations import observe, windows
from trading.stream import FeatureWindow, replay
from trading.synthetic import simulate

SCHEMA = observed(day=4, m15=8)
REGULAR = simulate(SETTINGS.synthetic_market.model_copy(update={"bars_per_session": 40}), sessions=12, seed=1).bars
MARKET = market_of(REGULAR, FEATURES, SCHEMA)


def merged(bars: Bars, *groups: range) -> np.ndarray:
    """Open, high, low, close and signal of each group of bars."""
    signal = np.full(len(bars), np.nan) if bars.signal is None else bars.signal
    rows = [
        [bars.open[g[0]], bars.high[list(g)].max(), bars.low[list(g)].min(), bars.close[g[-1]], signal[g[-1]]]
        for g in groups
    ]
    return np.array(rows)


def assert_live_equals_batch(bars: Bars, spec_of: dict[str, int]) -> None:
    spec = observed(**spec_of)
    try:
        market = market_of(bars, FEATURES, spec)
    except DataError as error:
        assert error.code == "too_few_bars"
        market = None
    decided = set() if market is None else set(market.decision_bars.tolist())
    ahead = np.append(~bars.first_of_session[1:], False)
    window = FeatureWindow(FEATURES, spec, bars.name)
    for t, bar in enumerate(replay(bars)):
        window.push(bar)
        assert (window.ready and ahead[t]) == (t in decided)
        if market is not None and t in decided:
            seen = observe(market, spec, np.array([t]), np.zeros(1, np.int64))
            np.testing.assert_array_equal(window.bars, seen.bars[0])
            np.testing.assert_array_equal([*window.context, 0.0], seen.account[0])
            assert window.complexity == seen.complexity[0]


@hypothesis_settings(max_examples=30)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([{"day": 4, "m15": 8}, {"day": 4}, {"m10": 4, "m60": 4}, {"m30": 12, "day": 8, "m15": 4}, {}]),
)
def test_live_observations_equal_the_batch_bit_for_bit(seed: int, timeframes: dict[str, int]) -> None:
    assert_live_equals_batch(irregular_bars(np.random.default_rng(seed), sessions=20), timeframes)


def test_stamps_that_wander_are_the_same_live_and_in_a_batch() -> None:
    bars = irregular_bars(np.random.default_rng(7), sessions=20)
    rng = np.random.default_rng(8)
    jitter = np.where(rng.random(len(bars)) < 0.3, rng.integers(-140, 140, len(bars)), 0) * 10**9
    assert_live_equals_batch(Bars(**{**bars.__dict__, "timestamps": bars.timestamps + jitter}), {"m15": 8, "day": 4})


@pytest.mark.parametrize("hole_ns", [MAX_BREAK_NS, MAX_BREAK_NS + 1], ids=["a week", "more"])
def test_a_hole_inside_a_session_is_the_same_live_and_in_a_batch(hole_ns: int) -> None:
    timestamps, after = REGULAR.timestamps.copy(), 40 * 5 + 16
    timestamps[after:] += hole_ns - (timestamps[after] - timestamps[after - 1])
    assert_live_equals_batch(Bars(**{**REGULAR.__dict__, "timestamps": timestamps}), {"m15": 8, "day": 4})


def test_a_quarter_is_three_bars_and_seen_with_the_third() -> None:
    quarters = MARKET.coarse[1]
    groups = [range(40 * s + 3 * q, min(40 * s + 3 * q + 3, 40 * s + 40)) for s in range(12) for q in range(14)]
    first = np.tile(np.arange(14) == 0, 12)
    parameters = FEATURES.coarser(quarters.timeframe, 300).vector()
    expected, *_ = advance_all(initial_state(), merged(REGULAR, *groups), first, parameters)
    np.testing.assert_array_equal(quarters.bar_features, expected)
    assert quarters.closed[:7].tolist() == [0, 0, 1, 1, 1, 2, 2]
    assert quarters.closed[38:43].tolist() == [13, 13, 14, 14, 15]  # the fourteenth, of one bar, with the next session


def test_the_day_is_seen_on_the_next_day_only() -> None:
    days = MARKET.coarse[0]
    np.testing.assert_array_equal(days.closed, np.repeat(np.arange(12), 40))
    groups = [range(40 * s, 40 * s + 40) for s in range(12)]
    parameters = FEATURES.coarser(days.timeframe, 300).vector()
    expected, *_ = advance_all(initial_state(), merged(REGULAR, *groups), np.ones(12, np.bool_), parameters)
    np.testing.assert_array_equal(days.bar_features, expected)
    assert (days.bar_features[:, 5] == 0.0).all()  # progress: a day is a session of one bar


def test_a_quarter_whose_last_bar_is_missing_is_seen_with_the_first_bar_after_it() -> None:
    kept = np.delete(np.arange(len(REGULAR)), [41 * 5, 2])
    columns = {name: getattr(REGULAR, name)[kept] for name in ("timestamps", "open", "high", "low", "close", "session")}
    quarters = prepare(Bars("HOLES", **columns), FEATURES, window=20, timeframes=SCHEMA.timeframes).coarse[1]
    assert quarters.closed[:4].tolist() == [0, 0, 1, 1]


def test_an_observation_is_its_blocks_the_coarsest_first() -> None:
    t = int(MARKET.decision_bars[50])
    [seen] = observe(MARKET, SCHEMA, np.array([t]), np.zeros(1, np.int64)).bars
    days, quarters = MARKET.coarse
    np.testing.assert_array_equal(seen[:4], days.bar_features[days.closed[t] - 4 : days.closed[t]])
    np.testing.assert_array_equal(seen[4:12], quarters.bar_features[quarters.closed[t] - 8 : quarters.closed[t]])
    np.testing.assert_array_equal(seen[12:], MARKET.bar_features[t - 19 : t + 1])


def test_a_decision_needs_every_block_filled() -> None:
    long_days = observed(day=8)
    assert MARKET.decision_bars[0] == WARM_UP_BARS  # 199 is the last bar of its session
    assert market_of(REGULAR, FEATURES, long_days).decision_bars[0] == 8 * 40
    with pytest.raises(DataError, match="20 complete day bars") as caught:
        market_of(REGULAR, FEATURES, observed(day=20))
    assert caught.value.code == "too_few_bars"


def test_coarse_history_starts_again_after_a_hole_of_more_than_a_week() -> None:
    timestamps = REGULAR.timestamps.copy()
    timestamps[40 * 6 :] += 30 * 86_400 * 10**9
    market = market_of(Bars(**{**REGULAR.__dict__, "timestamps": timestamps}), FEATURES, SCHEMA)
    fresh = market_of(REGULAR.part(40 * 6, 40 * 12), FEATURES, SCHEMA)
    for joined, alone in zip(market.coarse, fresh.coarse, strict=True):
        np.testing.assert_array_equal(joined.bar_features[-len(alone.bar_features) :], alone.bar_features)
        np.testing.assert_array_equal(joined.behind[40 * 6 :], alone.behind)
    np.testing.assert_array_equal(market.decision_bars[market.decision_bars >= 240] - 240, fresh.decision_bars)


def test_without_timeframes_every_window_is_a_view_of_the_markets_memory() -> None:
    spec = observed()
    market = market_of(REGULAR, FEATURES, spec)
    views, at = windows(market, spec), market.decision_bars
    assert views.shape == (len(REGULAR) - 19, 20, 6)
    assert np.shares_memory(views, market.bar_features)
    assert not views.flags.writeable
    seen = observe(market, spec, at, np.zeros(len(at), np.int64))
    np.testing.assert_array_equal(views[at - 19], seen.bars)
    assert seen.bars.flags.c_contiguous


def test_windows_of_several_timeframes_are_no_view() -> None:
    with pytest.raises(DataError, match="observe"):
        windows(MARKET, SCHEMA)


@pytest.mark.parametrize("spec", [observed(), observed(day=4), observed(day=4, m15=4)])
def test_a_market_prepared_for_another_schema_is_refused(spec) -> None:
    with pytest.raises(DataError, match="prepared for other timeframes") as caught:
        observe(MARKET, spec, MARKET.decision_bars[:1], np.zeros(1, np.int64))
    assert caught.value.code == "schema_mismatch"


@pytest.mark.parametrize("market", [MARKET, market_of(REGULAR, FEATURES, observed())])
def test_a_bar_without_enough_history_is_refused(market: Market) -> None:
    spec = SCHEMA if market.coarse else observed()
    with pytest.raises(DataError, match="decision bars only"):
        observe(market, spec, np.array([250, 3]), np.zeros(2, np.int64))
    with pytest.raises(IndexError):
        observe(market, spec, np.array([len(REGULAR)]), np.zeros(1, np.int64))


def test_a_timeframe_that_the_bars_cannot_make_is_refused() -> None:
    with pytest.raises(DataError, match="15min is not made of whole bars of 420 s") as caught:
        schema(ObservationSettings(window=20, patch=4, timeframes=SCHEMA.timeframes), interval_s=420)
    assert caught.value.code == "wrong_timeframe"


def test_synthetic_parts_have_history_in_all_timeframes(tmp_path) -> None:
    law = {"train_sessions": 3, "validation_sessions": 2, "test_sessions": 4, "bars_per_session": 40}
    small = SETTINGS.model_copy(
        update={
            "observation": ObservationSettings(window=20, patch=4, timeframes=observed(day=12).timeframes),
            "synthetic_market": SETTINGS.synthetic_market.model_copy(update=law),
            "paths": SETTINGS.paths.model_copy(update={"state_dir": tmp_path}),
        }
    )
    data = build_dataset(small, None, 0)
    assert [len(part.sessions) for part in (data.train, data.validation, data.test)] == [3, 2, 4]
    assert len(data.test.decision_bars) == 4 * 39
