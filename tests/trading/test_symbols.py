"""Several symbols in one market: nothing leaks between them, days cut all of them, and models know which is which."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from market_makers import FEATURES, SETTINGS, irregular_bars, observed

from baselines import rules
from core.errors import DataError
from core.observation import ObservationSchema
from trading.dataset import build_dataset, file_cost_bps, horizon_values, training_table
from trading.env import SessionEnv, run_policy
from trading.files import to_frame, write_bars
from trading.market import Bars, Market, market_of, require_fit, session_days
from trading.observations import observe
from trading.stream import FeatureWindow, replay
from trading.symbols import concatenate
from trading.synthetic import simulate

NAMES = ("NIFTY", "BANKNIFTY", "SENSEX")


def two_or_more(**timeframes: int) -> ObservationSchema:
    one = observed(**timeframes)
    hot = tuple(f"symbol_{name}" for name in NAMES)
    return one.model_copy(update={"symbols": NAMES, "account_features": (*one.account_features[:-1], *hot, "position")})


SCHEMA = two_or_more(day=4, m15=8)
PARTS = [
    market_of(irregular_bars(np.random.default_rng(seed), sessions=24, name=name, missing=0.0), FEATURES, SCHEMA)
    for seed, name in enumerate(NAMES)
]
MIXED = concatenate(PARTS)
BEGINS = np.cumsum([0, *(len(part.bars) for part in PARTS)])


def test_every_symbol_decides_where_and_on_what_it_does_alone() -> None:
    alone = np.concatenate([part.decision_bars + begin for part, begin in zip(PARTS, BEGINS, strict=False)])
    np.testing.assert_array_equal(MIXED.decision_bars, alone)
    for part, begin in zip(PARTS, BEGINS, strict=False):
        position = np.ones(len(part.decision_bars), np.int64)
        seen = observe(part, SCHEMA, part.decision_bars, position)
        mixed = observe(MIXED, SCHEMA, part.decision_bars + begin, position)
        for one, other in zip(seen, mixed, strict=True):
            np.testing.assert_array_equal(one, other)


def test_every_symbol_earns_what_it_earns_alone() -> None:
    policy = rules.momentum(0, 0.2)
    assert rewards(MIXED, policy) == pytest.approx([reward for part in PARTS for reward in rewards(part, policy)])


def rewards(market: Market, policy: rules.Rule) -> list[float]:
    env = SessionEnv(market, SCHEMA, market.sessions, 1.5)
    total = np.zeros(len(env))
    for _, _, step in run_policy(policy, env):
        total += step.reward_bps
    return list(total)


def test_labels_end_with_their_symbol() -> None:
    alone = np.concatenate([horizon_values(part.bars, 2.0) for part in PARTS])
    np.testing.assert_array_equal(horizon_values(MIXED.bars, 2.0), alone)


def test_sessions_know_their_symbol_and_their_day() -> None:
    expected = [name for part, name in zip(PARTS, NAMES, strict=True) for _ in part.sessions]
    assert MIXED.symbols == expected
    assert session_days(MIXED) == [day for part in PARTS for day in session_days(part)]
    assert PARTS[1].symbols == ["BANKNIFTY"] * len(PARTS[1].sessions)
    assert (np.diff(MIXED.bars.session) >= 0).all()


def test_days_cut_all_symbols_at_once() -> None:
    days = sorted(set(session_days(MIXED)))
    middle = days[len(days) // 2]
    before, after = MIXED.between(days[0], middle), MIXED.between(middle, days[-1])
    assert max(session_days(before)) == middle == min(session_days(after))
    assert set(before.symbols) == set(after.symbols) == set(NAMES)
    assert before.symbols[0] == NAMES[0]  # still right when sessions are left out


def test_the_account_says_which_symbol_it_is() -> None:
    columns = [SCHEMA.account_features.index(f"symbol_{name}") for name in NAMES]
    for k, (part, begin) in enumerate(zip(PARTS, BEGINS, strict=False)):
        at = part.decision_bars[:1] + begin
        account = observe(MIXED, SCHEMA, at, np.zeros(1, np.int64)).account[0]
        assert account[columns].tolist() == np.eye(3)[k].tolist()
        assert len(account) == len(SCHEMA.account_features)


def test_live_observations_name_the_symbol_too() -> None:
    window = FeatureWindow(FEATURES, SCHEMA, "BANKNIFTY")
    for bar in replay(PARTS[1].bars.part(0, int(PARTS[1].decision_bars[0]) + 1)):
        window.push(bar)
    seen = observe(PARTS[1], SCHEMA, PARTS[1].decision_bars[:1], np.zeros(1, np.int64))
    np.testing.assert_array_equal(np.append(window.context, np.float32(0)), seen.account[0])
    np.testing.assert_array_equal(window.bars, seen.bars[0])


def test_an_unknown_symbol_is_refused_live_and_in_a_backtest() -> None:
    stranger = Bars(**{**PARTS[0].bars.__dict__, "name": "DAX"})
    for attempt in (
        lambda: require_fit(stranger, SCHEMA),
        lambda: market_of(stranger, FEATURES, SCHEMA),
        lambda: FeatureWindow(FEATURES, SCHEMA, "DAX"),
    ):
        with pytest.raises(DataError, match="'DAX' is none of those the model was trained on") as caught:
            attempt()
        assert caught.value.code == "unknown_symbol"


def test_the_same_symbol_twice_is_refused() -> None:
    for markets in ([PARTS[0], PARTS[0]], []):
        with pytest.raises(DataError, match="each symbol once") as caught:
            concatenate(markets)
        assert caught.value.code == "duplicate_symbol"


def test_bars_of_different_lengths_are_refused() -> None:
    slow = PARTS[1].bars
    slow = Bars(**{**slow.__dict__, "timestamps": slow.timestamps + 300 * 10**9 * np.arange(len(slow))})
    with pytest.raises(DataError, match="NIFTY 300 s, BANKNIFTY 600 s") as caught:
        concatenate([PARTS[0], market_of(slow, FEATURES, two_or_more().model_copy(update={"interval_s": 600}))])
    assert caught.value.code == "wrong_timeframe"


def test_markets_that_were_not_prepared_alike_are_refused() -> None:
    for other in (two_or_more(day=4), observed(day=4, m15=8)):
        with pytest.raises(DataError, match="prepare them alike"):
            concatenate([PARTS[0], market_of(PARTS[1].bars, FEATURES, other)])
    with pytest.raises(DataError, match="prepare them alike"):
        concatenate([PARTS[0].with_values(np.zeros((len(PARTS[0].bars), 3))), PARTS[1]])


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Two symbols over 80 sessions; the second began ten sessions later."""
    paths = [tmp_path / "a.parquet", tmp_path / "b.parquet"]
    for seed, path in enumerate(paths):
        bars = simulate(SETTINGS.synthetic_market, sessions=80, seed=seed).bars
        write_bars(to_frame(bars.part(75 * 10 * seed, len(bars))), path)
    return paths


def test_files_of_several_symbols_are_split_at_the_same_days(files: list[Path]) -> None:
    data = build_dataset(SETTINGS, files, 0)
    assert data.schema.symbols == ("A", "B")
    assert data.schema.account_features[-3:] == ("symbol_A", "symbol_B", "position")
    days = [sorted(set(session_days(part))) for part in (data.train, data.validation, data.test)]
    assert days[0][-1] < days[1][0] <= days[1][-1] < days[2][0]
    for part in (data.train, data.validation, data.test):
        assert set(part.symbols) == {"A", "B"}
    costs = [file_cost_bps(bars, SETTINGS.trading) for bars in (data.train.bars.part(0, 6000), data.train.bars)]
    assert data.cost_bps == max(costs)
    table = training_table(data, SETTINGS)
    assert table["account"].shape[2] == len(data.schema.account_features)


def test_one_file_in_a_list_is_that_file(files: list[Path]) -> None:
    alone, listed = build_dataset(SETTINGS, files[0], 0), build_dataset(SETTINGS, files[:1], 0)
    assert alone.schema == listed.schema
    assert alone.schema.symbols == ()
    np.testing.assert_array_equal(alone.test.decision_bars, listed.test.decision_bars)
    assert alone.digest == listed.digest


def test_files_of_different_timeframes_are_refused(files: list[Path], tmp_path: Path) -> None:
    frame = pd.read_parquet(files[1])
    every_third = frame.groupby(frame["timestamp"].dt.date).nth(slice(0, None, 3)).reset_index(drop=True)
    write_bars(every_third, tmp_path / "slow.parquet")
    with pytest.raises(DataError, match="A 300 s, SLOW 900 s") as caught:
        build_dataset(SETTINGS, [files[0], tmp_path / "slow.parquet"], 0)
    assert caught.value.code == "wrong_timeframe"


def test_two_files_of_one_name_are_refused(files: list[Path], tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    same = tmp_path / "other" / "a.parquet"
    same.write_bytes(files[1].read_bytes())
    with pytest.raises(DataError, match="symbol") as caught:
        build_dataset(SETTINGS, [files[0], same], 0)
    assert caught.value.code == "duplicate_symbol"
