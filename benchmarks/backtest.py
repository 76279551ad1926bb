"""Bars per second of the backtest on one core, beside other people's in the same run, and their equity against ours.

crossover   a simple moving average of 20 bars over one of 50, reversed at the next open, flat at each session's end,
            with fees: from bars to final equity. vectorbt's final equity must be ours
overhead    the backtest of decisions that are there already, over one year and ten
year        a year with a model of the preset, random weights: time does not depend on what was learned, but on how
            long it thinks. It stops as soon as the complexity of the market allows, as trained models mostly do
"""

from __future__ import annotations

import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backend.backtests import cores
from benchmarks.machine import described, median_seconds
from benchmarks.peers import beside
from core.settings import Settings
from trading import backtest
from trading.backtest import BacktestResult
from trading.costs import flat_costs
from trading.features import FeatureSettings, Floats, schema
from trading.journal import Plan
from trading.market import Bars, Market, market_of
from trading.synthetic import simulate

CROSSOVER_BARS = (50_000, 250_000)
YEARS = (250, 2500)  # sessions
FAST, SLOW = 20, 50  # bars
UNITS, FEE_RATIO, CAPITAL = 10.0, 1.5e-4, 4e6
RUNS, OVERHEAD_RUNS = 3, 51  # the latter take milliseconds
PEERS = ("vectorbt", "backtesting", "nautilus_trader")
EQUITY_TOLERANCE = 1e-6  # relative
STOPS = 5.0  # of the halting head's bias: above every threshold


def run(settings: Settings, *, peers: tuple[str, ...] = PEERS) -> dict[str, Any]:
    """`equity_agrees` is None where vectorbt could not be installed, which its entry then says."""
    crossovers = {str(bars): _beside_peers(settings, bars, peers) for bars in CROSSOVER_BARS}
    found = {
        "crossover": crossovers,
        "overhead_bars_per_s": {str(sessions): _overhead(settings, sessions) for sessions in YEARS},
        "year": year_with_model(settings),
    }
    figures = flat(found)
    difference = figures["equity_difference_vs_vectorbt"]
    agrees = None if difference is None else difference <= EQUITY_TOLERANCE
    return described(RUNS) | found | {"equity_agrees": agrees} | figures


def flat(found: dict[str, Any]) -> dict[str, float | None]:
    """Bars per second of the longest crossover, ours and the peers'; the largest relative difference to vectorbt's
    final equity in any of them; seconds of the year with a model. None for a peer that is absent.
    """
    crossovers = found["crossover"]
    longest = crossovers[max(crossovers, key=int)]
    rates = {peer: longest.get(peer, {}).get("bars_per_s") for peer in PEERS}
    differences = [each.get("vectorbt", {}).get("equity_difference") for each in crossovers.values()]
    return {
        "bars_per_s": longest["ours"]["bars_per_s"],
        **{f"{peer.removesuffix('_trader')}_bars_per_s": rate for peer, rate in rates.items()},
        "equity_difference_vs_vectorbt": max((each for each in differences if each is not None), default=None),
        "year_with_model_s": found["year"]["seconds"],
    }


def crossover(market: Market) -> Plan:
    """Long where the fast average of closes is above the slow one, else short."""
    close = market.bars.close
    target = np.where(_average(close, FAST) > _average(close, SLOW), 1, -1).astype(np.int8)
    return Plan(np.repeat(target[:, None], 3, axis=1), np.full(len(close), UNITS))


def _average(prices: Floats, bars: int) -> Floats:
    """Of the last `bars` prices at each bar, NaN before there are so many."""
    sums = np.cumsum(prices - prices[0])  # small numbers: a long sum of prices would lose the last digits
    moving = sums - np.concatenate([np.zeros(bars), sums[:-bars]])
    return np.where(np.arange(len(prices)) < bars - 1, np.nan, prices[0] + moving / bars)


def run_crossover(market: Market, settings: Settings) -> BacktestResult:
    observed = schema(settings.observation)
    return backtest.run(crossover(market), market, observed, cost=flat_costs(1e4 * FEE_RATIO), initial_capital=CAPITAL)


def _beside_peers(settings: Settings, bars: int, peers: tuple[str, ...]) -> dict[str, Any]:
    market = market_of_sessions(settings, bars // settings.synthetic_market.bars_per_session)
    seconds = median_seconds(lambda: run_crossover(market, settings), RUNS)
    result = run_crossover(market, settings)
    equity = float(result.equity[-1])
    parameters = {"units": UNITS, "fee": FEE_RATIO, "capital": CAPITAL, "runs": RUNS}
    theirs: dict[str, Any] = beside(peers, settings.paths.state_dir, arrays_of(market), **parameters)
    for name, found in theirs.items():
        if name == "vectorbt" and "final_equity" in found:
            found["equity_difference"] = abs(found["final_equity"] - equity) / equity
    ours = {"bars_per_s": len(market.bars) / seconds, "final_equity": equity, "orders": int(result.trades.sum())}
    return {"ours": ours} | theirs


def arrays_of(market: Market) -> dict[str, NDArray[Any]]:
    """What the peers' scripts read: bars, and where a decision is taken."""
    bars = market.bars
    decide = np.zeros(len(bars), dtype=np.bool_)
    decide[market.decision_bars] = True
    names = ("open", "high", "low", "close", "session", "timestamps")
    return {name: getattr(bars, name) for name in names} | {"decide": decide}


def _overhead(settings: Settings, sessions: int) -> float:
    """Bars per second of the whole `trading.backtest.run` of a plan."""
    market = market_of_sessions(settings, sessions)
    plan, observed, cost = crossover(market), schema(settings.observation), flat_costs(1e4 * FEE_RATIO)
    work = partial(backtest.run, plan, market, observed, cost=cost, initial_capital=CAPITAL)
    return len(market.bars) / median_seconds(work, OVERHEAD_RUNS)


def year_with_model(settings: Settings, sessions: int = YEARS[0]) -> dict[str, Any]:
    """A backtest of the preset's model over `sessions`, all of them in lock-step."""
    from serving.engine import Engine
    from serving.store import load_version

    market = market_of_sessions(settings, sessions)
    with tempfile.TemporaryDirectory() as folder:
        _export_ready_to_stop(settings, Path(folder) / "models")
        engine = Engine(load_version(Path(folder) / "models", "hrm/bench", size_limit_mb=1000), settings.serving)
    with ThreadPoolExecutor(cores()) as pool:
        started = time.perf_counter()
        result = backtest.run(
            partial(engine.decide, pool=pool),
            market,
            engine.manifest.market,
            cost=flat_costs(1e4 * FEE_RATIO),
            initial_capital=1e12,  # random weights lose: nobody is to be ruined by them
        )
        seconds = time.perf_counter() - started
    depth = result.journal.segments
    return {
        "preset": settings.preset,
        "provider": engine.provider,
        "cores": cores(),
        "seconds": seconds,
        "decisions": len(depth),
        "mean_depth": float(depth.mean()),
        "segments_per_s": float(depth.sum()) / seconds,
    }


def _export_ready_to_stop(settings: Settings, store: Path) -> None:
    import torch

    from hrm.export import export_model
    from hrm.model import HierarchicalReasoningModel

    seen = schema(settings.observation)
    model = HierarchicalReasoningModel(
        settings.hierarchical_reasoning_model, seen, settings.trading.max_quantity, seed=0
    )
    with torch.no_grad():
        model.q_head.bias[0] = STOPS
    published = {"name": "hrm", "version": "bench", "metrics": {}, "dataset_digest": "none"}
    export_model(model, store=store, settings=settings, **published)  # type: ignore[arg-type] # names and values differ


def market_of_sessions(settings: Settings, sessions: int) -> Market:
    bars: Bars = simulate(settings.synthetic_market, sessions=sessions, seed=0).bars
    features = FeatureSettings.of(
        settings.hierarchical_reasoning_model.complexity_detection,
        bars_per_session=settings.synthetic_market.bars_per_session,
        capital=settings.trading.initial_capital,
    )
    return market_of(bars, features, schema(settings.observation))
