"""Splits in time order, labels that are what they say, and nothing judged by a label."""

from pathlib import Path

import numpy as np
import pytest

from core.errors import DataError
from core.settings import Settings, load_settings
from trading.dataset import (
    LABEL_COST_MULTIPLE,
    LABEL_HORIZON,
    build_dataset,
    file_cost_bps,
    horizon_values,
    training_env,
    training_table,
)
from trading.files import to_frame, write_bars
from trading.observations import observe
from trading.synthetic import simulate


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    small = {"TRAIN_SESSIONS": "30", "VALIDATION_SESSIONS": "5", "TEST_SESSIONS": "10"}
    environ = {f"HRM_SYNTHETIC_MARKET__{name}": value for name, value in small.items()}
    return load_settings(preset="compact", environ=environ | {"HRM_PATHS__STATE_DIR": str(tmp_path)})


@pytest.fixture
def file(settings: Settings, tmp_path: Path) -> Path:
    path = tmp_path / "bars.parquet"
    write_bars(to_frame(simulate(settings.synthetic_market, sessions=80, seed=1).bars), path)
    return path


def test_a_files_parts_follow_each_other_in_time(settings, file) -> None:
    data = build_dataset(settings, file, 0)
    assert data.train.sessions[-1] < data.validation.sessions[0]
    assert data.validation.sessions[-1] < data.test.sessions[0]
    assert len(data.train.sessions) > len(data.test.sessions) > len(data.validation.sessions)


def test_a_file_is_never_judged_by_its_labels(settings, file) -> None:
    data = build_dataset(settings, file, 0)
    assert data.train.values is not None
    assert data.validation.values is None
    assert data.test.values is None
    assert not data.optimum_known


def test_a_files_labels_charge_a_margin_of_safety_and_its_evaluation_the_real_cost(settings, file) -> None:
    data = build_dataset(settings, file, 0)
    assert data.cost_bps == file_cost_bps(data.test.bars, settings.trading)
    assert data.label_cost_bps == LABEL_COST_MULTIPLE * data.cost_bps
    gain = training_table(data, settings)["q_values"][data.train.decision_bars, 1]  # from flat
    np.testing.assert_allclose(gain[:, 0] + gain[:, 2], -4 * data.label_cost_bps, rtol=1e-4)  # in and out, both sides


def test_the_labels_of_a_plan_are_its_returns(settings) -> None:
    bars = simulate(settings.synthetic_market, sessions=3, seed=1).bars
    values = horizon_values(bars, cost_bps=2.0)
    for t in (0, 10, 60, 73, 100):
        end = 75 * (t // 75) + 74
        leave = min(t + LABEL_HORIZON, end)
        move = 1e4 * (bars.close[leave] - bars.open[t + 1]) / bars.close[t]
        np.testing.assert_allclose(values[t], [-move - 2.0, 0.0, move - 2.0])
    assert (values[74] == [-2.0, 0.0, -2.0]).all()  # nothing can be earned after the last bar


def test_synthetic_parts_are_different_markets_with_an_optimum(settings) -> None:
    data = build_dataset(settings, None, 0)
    assert data.optimum_known
    assert len({part.bars.digest for part in (data.train, data.validation, data.test)}) == 3
    assert len(data.test.sessions) == 10
    assert data.label_cost_bps == data.cost_bps


def test_the_training_table_is_what_the_environment_shows_and_the_oracle_says(settings) -> None:
    data = build_dataset(settings, None, 0)
    table, market, at = training_table(data, settings), data.train, data.train.decision_bars
    assert market.values is not None
    for p in (-1, 0, 1):
        seen = observe(market, data.schema, at, np.full(len(at), p))
        np.testing.assert_array_equal(table["account"][at, p + 1], seen.account)
        for target in (-1, 0, 1):
            expected = market.values[at, target + 1] - data.cost_bps * abs(target - p)
            np.testing.assert_allclose(table["q_values"][at, p + 1, target + 1], expected, rtol=1e-5)
    np.testing.assert_array_equal(table["complexity"][at], seen.complexity)


def test_the_training_environment_shows_training_sessions_only(settings, file) -> None:
    data = build_dataset(settings, file, 0)
    env = training_env(data, settings, seed=0)
    for _ in range(150):
        assert np.isin(env.env.sessions, data.train.sessions).all()
        _, _, position, _ = env.observe()
        env.step(np.full(len(position), 4))


def test_a_file_that_is_too_short_to_split_is_refused(settings, tmp_path) -> None:
    path = tmp_path / "short.parquet"
    write_bars(to_frame(simulate(settings.synthetic_market, sessions=20, seed=1).bars), path)
    with pytest.raises(DataError, match="bring more history"):
        build_dataset(settings, path, 0)
