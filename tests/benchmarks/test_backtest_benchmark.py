"""The crossover's money is that of an independent computation: numpy here, vectorbt in the slow test."""

from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import pytest

from benchmarks import backtest, peers
from core.settings import Settings, load_settings
from tests.benchmarks.fixed_keys import measured
from trading.market import Market


def settings(state_dir: object, preset: str = "compact") -> Settings:
    return load_settings(preset=preset, environ={"HRM_PATHS__STATE_DIR": str(state_dir)})


def equity_by_numpy(market: Market) -> tuple[float, int]:
    """Cash and fees, order by order, written without the engine."""
    bars, decide = market.bars, np.zeros(len(market.bars), dtype=bool)
    decide[market.decision_bars] = True
    close = pd.Series(bars.close)
    fast, slow = close.rolling(backtest.FAST).mean(), close.rolling(backtest.SLOW).mean()
    wanted = np.where(fast > slow, backtest.UNITS, -backtest.UNITS)
    cash, held, orders = backtest.CAPITAL, 0.0, 0
    for t in range(len(bars)):
        if t and decide[t - 1] and wanted[t - 1] != held:
            order = wanted[t - 1] - held
            cash -= order * bars.open[t] + abs(order) * bars.open[t] * backtest.FEE_RATIO
            held, orders = wanted[t - 1], orders + 1
        if held and (t + 1 == len(bars) or bars.session[t + 1] != bars.session[t]):
            cash += held * bars.close[t] - abs(held) * bars.close[t] * backtest.FEE_RATIO
            held, orders = 0.0, orders + 1
    return cash, orders


def test_the_crossover_earns_what_numpy_says(tmp_path) -> None:
    market = backtest.market_of_sessions(settings(tmp_path), 60)
    result = backtest.run_crossover(market, settings(tmp_path))
    equity, orders = equity_by_numpy(market)
    assert result.trades.sum() == orders > 100
    assert result.equity[-1] == pytest.approx(equity, rel=1e-12)
    assert equity != pytest.approx(backtest.CAPITAL, rel=1e-4)


def test_the_average_is_the_moving_one() -> None:
    prices = 20_000.0 + np.random.default_rng(0).normal(0, 10, 5000).cumsum()
    expected = pd.Series(prices).rolling(20).mean().to_numpy()
    np.testing.assert_allclose(backtest._average(prices, 20), expected, rtol=1e-13)
    assert math.isnan(backtest._average(prices, 20)[18])


def test_the_year_s_model_stops_as_soon_as_the_market_allows(tmp_path) -> None:
    year = backtest.year_with_model(settings(tmp_path), sessions=6)
    assert year["decisions"] == 6 * 74 - 199 + 2  # warm-up of 200 bars; two closes in it decide nothing
    assert 1.0 < year["mean_depth"] < 3.0
    assert year["segments_per_s"] > 0


def test_without_peers_the_benchmark_says_so(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backtest, "CROSSOVER_BARS", (1500,))
    monkeypatch.setattr(backtest, "YEARS", (6,))
    nowhere = (tmp_path / "nowhere-1.0-py3-none-any.whl").as_uri()
    monkeypatch.setitem(peers.PEERS, "vectorbt", peers.Peer("vectorbt", (nowhere,)))
    monkeypatch.setattr(backtest, "year_with_model", lambda _settings: {"seconds": 1.0})
    found = backtest.run(settings(tmp_path), peers=("vectorbt",))
    assert found["equity_agrees"] is None
    assert measured("backtest", found) == {"bars_per_s", "year_with_model_s"}
    assert "nowhere" in found["crossover"]["1500"]["vectorbt"]["absent"]
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize(("theirs", "agrees"), [(1.0, True), (1.0 + 1e-7, True), (1.00001, False)])
def test_another_equity_than_vectorbt_s_fails_the_benchmark(
    tmp_path, monkeypatch: pytest.MonkeyPatch, theirs: float, agrees: bool
) -> None:
    monkeypatch.setattr(backtest, "CROSSOVER_BARS", (1500,))
    monkeypatch.setattr(backtest, "YEARS", (6,))
    monkeypatch.setattr(backtest, "year_with_model", lambda _settings: {"seconds": 1.0})
    ours = float(
        backtest.run_crossover(backtest.market_of_sessions(settings(tmp_path), 20), settings(tmp_path)).equity[-1]
    )
    monkeypatch.setattr(backtest, "beside", lambda *_args, **_kwargs: {"vectorbt": {"final_equity": ours * theirs}})
    found = backtest.run(settings(tmp_path), peers=("vectorbt",))
    assert found["equity_agrees"] is agrees
    assert found["equity_difference_vs_vectorbt"] == pytest.approx(theirs - 1.0, rel=1e-6, abs=1e-15)


def test_every_peer_has_its_script() -> None:
    assert {file.stem for file in peers.SCRIPTS.glob("*.py")} == set(peers.PEERS)


@pytest.mark.slow
def test_vectorbt_s_final_equity_is_ours(tmp_path_factory: pytest.TempPathFactory) -> None:
    made = settings(tmp_path_factory.mktemp("peers"))
    found = backtest._beside_peers(made, 50_000, ("vectorbt",))
    assert found["vectorbt"]["orders"] == found["ours"]["orders"]
    assert found["vectorbt"]["equity_difference"] < 1e-12
