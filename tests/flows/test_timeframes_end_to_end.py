"""A model of several timeframes and symbols, from training to the decisions of the served model, live and replayed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_migration import TINY

from core.errors import DataError, ModelError
from core.settings import Settings, load_settings
from flows.variants import publish_variant
from hrm.agent import HRMAgent
from hrm.batch import MarketSampler, MarketTable
from serving.engine import Engine, load_engine
from trading import backtest
from trading.costs import flat_costs
from trading.dataset import Dataset, build_dataset, training_table
from trading.features import FeatureSettings
from trading.files import to_frame, write_bars
from trading.market import Market, market_of
from trading.observations import observe
from trading.stream import FeatureWindow, replay
from trading.synthetic import simulate

SMALL = TINY | {
    "HRM_OBSERVATION__WINDOW": "12",
    "HRM_OBSERVATION__PATCH": "4",
    "HRM_OBSERVATION__TIMEFRAMES": "[{name: 15min, bars: 8}, {name: day, bars: 4}]",
}
STEPS = 5


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    torch.set_num_threads(1)
    return load_settings(environ=SMALL | {"HRM_PATHS__STATE_DIR": str(tmp_path_factory.mktemp("state"))})


def trained_and_served(settings: Settings, data: Dataset, version: str) -> Engine:
    agent = HRMAgent(data.schema, settings, data.label_cost_bps)
    sampler = MarketSampler(MarketTable(**training_table(data, settings)), data.schema.window, seed=0)
    for _ in range(STEPS):
        agent.trainer.train_step(sampler.batch(64))
    publish_variant(
        agent.model,
        settings,
        store=settings.paths.state_dir / "models",
        name="hrm",
        version=version,
        metrics={},
        dataset_digest=data.digest,
        storage="fp32",
    )
    return load_engine(settings, f"hrm/{version}")


@pytest.fixture(scope="module")
def data(settings: Settings) -> Dataset:
    return build_dataset(settings, None, 0)


@pytest.fixture(scope="module")
def engine(settings: Settings, data: Dataset) -> Engine:
    return trained_and_served(settings, data, "timeframes")


def features_of(settings: Settings) -> FeatureSettings:
    return FeatureSettings.of(
        settings.hierarchical_reasoning_model.complexity_detection,
        bars_per_session=settings.synthetic_market.bars_per_session,
        capital=settings.trading.initial_capital,
    )


def test_the_sampler_shows_what_the_environment_shows(settings: Settings, data: Dataset) -> None:
    table = training_table(data, settings)
    batch = MarketSampler(MarketTable(**table), data.schema.window, seed=1).batch(64)
    at = data.train.decision_bars
    seen = observe(data.train, data.schema, at, np.zeros(len(at), np.int64)).bars
    known = {row.tobytes() for row in seen}
    assert {row.tobytes() for row in batch["bars"].numpy()} <= known


def test_the_served_model_backtests_and_decides_live_as_it_does_there(
    settings: Settings, data: Dataset, engine: Engine
) -> None:
    schema = engine.manifest.observation
    assert [timeframe.name for timeframe in schema.timeframes] == ["day", "15min"]
    assert schema.window == 4 + 8 + 12
    result = backtest.run(engine.decide, data.test, schema, cost=flat_costs(1.5), initial_capital=1e6)
    assert result.action_counts.sum() == len(data.test.decision_bars) > 400
    window, at = FeatureWindow(features_of(settings), schema, "SYNTHETIC"), data.test.decision_bars[:20]
    for t, bar in enumerate(replay(data.test.bars.part(0, int(at[-1]) + 1))):
        window.push(bar)
        if t in at:
            flat = np.zeros(1, np.int64)
            seen = observe(data.test, schema, np.array([t]), flat)
            account, complexity = np.append(window.context, np.float32(0))[None], np.float32([window.complexity])
            live = engine.decide(window.bars[None], account, complexity, flat)
            batch = engine.decide(*seen)
            assert (live.action, live.quantity) == (batch.action, batch.quantity)


def test_a_model_of_five_minute_bars_is_refused_on_bars_of_one_minute(settings: Settings, engine: Engine) -> None:
    bars = simulate(settings.synthetic_market, sessions=30, seed=0).bars
    begin = bars.timestamps[np.searchsorted(bars.session, bars.session)]
    fast = bars.__class__(**{**bars.__dict__, "timestamps": begin + (bars.timestamps - begin) // 5})
    with pytest.raises(DataError, match="bars of 60 s, the model looks at bars of 300 s") as caught:
        market_of(fast, features_of(settings), engine.manifest.observation)
    assert caught.value.code == "wrong_timeframe"


def test_a_model_of_several_symbols_is_trained_served_and_backtested(settings: Settings, tmp_path: Path) -> None:
    law = settings.synthetic_market.model_copy(update={"bars_per_session": 30})
    paths = [tmp_path / "alpha.parquet", tmp_path / "beta.parquet"]
    for seed, path in enumerate(paths):
        write_bars(to_frame(simulate(law, sessions=80, seed=seed).bars), path)
    data = build_dataset(settings, paths, 0)
    engine = trained_and_served(settings, data, "symbols")
    schema = engine.manifest.observation
    assert schema.symbols == ("ALPHA", "BETA")
    mixed = _decisions(engine, data.test)
    assert mixed == len(data.test.decision_bars)
    beta = simulate(law, sessions=80, seed=1, name="BETA").bars
    alone = market_of(beta, features_of(settings), schema)
    assert _decisions(engine, alone) == len(alone.decision_bars)


def _decisions(engine: Engine, market: Market) -> int:
    schema = engine.manifest.observation
    return backtest.run(engine.decide, market, schema, cost=flat_costs(1.5), initial_capital=1e6).action_counts.sum()


def test_a_model_of_one_timeframe_is_no_model_of_several(engine: Engine, settings: Settings, data: Dataset) -> None:
    plain = engine.manifest.observation.model_copy(update={"timeframes": (), "window": 12})
    with pytest.raises(ModelError, match="another observation schema"):
        plain.require(engine.manifest.observation, "the model")
    with pytest.raises(DataError, match="prepared for other timeframes"):
        observe(data.test, plain, data.test.decision_bars[:1], np.zeros(1, np.int64))
