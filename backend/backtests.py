"""A published model over bars of a symbol: what `POST /api/backtest/run` and `hrm backtest` do.

Bars of a symbol are `<state_dir>/data/<symbol>.parquet` or `.csv`; SYNTHETIC is the simulated market and needs no
file. Dates choose the sessions traded; earlier bars stay visible as history.
"""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Any

from core.errors import DataError, ModelError
from core.settings import Settings
from serving.engine import load_engine
from serving.store import list_versions
from trading import backtest
from trading.backtest import BacktestResult
from trading.costs import CostModel, flat_costs, nse_index_future_costs
from trading.features import FeatureSettings, schema
from trading.files import load_market_bars
from trading.market import Bars, Market, prepare, session_days
from trading.stream import usual_session_length
from trading.synthetic import simulate

SYNTHETIC = "SYNTHETIC"
SYNTHETIC_SESSIONS = 252  # a trading year
SYNTHETIC_SEED = 2_000_003  # bars no model was trained on


def bars_of(symbol: str, settings: Settings) -> Bars:
    """The bars of a symbol. Raises DataError if there are none or they cannot be trusted."""
    if symbol == SYNTHETIC:
        return simulate(settings.synthetic_market, sessions=SYNTHETIC_SESSIONS, seed=SYNTHETIC_SEED).bars
    folder = settings.paths.state_dir / "data"
    for file in (folder / f"{symbol}.parquet", folder / f"{symbol}.csv"):
        if file.is_file():
            return load_market_bars(file)
    raise DataError(
        f"symbol '{symbol}': neither .parquet nor .csv of that name in {folder}; put its bars there, "
        f"or ask for {SYNTHETIC}",
        code="unknown_symbol",
    )


def newest_model(store: Path) -> str:
    """The HRM published last, as name/version; any model if there is no HRM. Raises ModelError if there is none."""
    usable = [row for row in list_versions(store) if row["problem"] is None]
    if not usable:
        raise ModelError(f"{store}: no published model; run `hrm migrate` first", code="model_not_found")
    return str(max(usable, key=lambda row: (row["algorithm"] == "hrm", str(row["created_at"])))["id"])


def run_backtest(
    settings: Settings,
    model_id: str,
    bars: Bars,
    *,
    initial_capital: float | None = None,
    dates: tuple[date | None, date | None] = (None, None),
) -> BacktestResult:
    """Backtest `model_id` (name/version) over the sessions of `bars` within `dates`, both inclusive.

    SYNTHETIC pays `trading.cost_bps`, real bars the dated charges of an index future and `trading.slippage_bps`.

    Raises ModelError for a model that does not load or expects other features, DataError for too few bars.
    """
    engine = load_engine(settings, model_id)
    observed = schema(settings.observation)
    observed.require(engine.manifest.observation, f"model {model_id}")
    capital = settings.trading.initial_capital if initial_capital is None else initial_capital
    features = FeatureSettings.of(
        settings.hierarchical_reasoning_model.complexity_detection,
        bars_per_session=usual_session_length(bars),
        capital=capital,
    )
    halting = engine.manifest.halting
    return backtest.run(
        engine.decide,
        _within(prepare(bars, features, window=settings.observation.window), dates),
        observed,
        cost=_costs(bars, settings),
        initial_capital=capital,
        max_segments=1 if halting is None else halting.max_segments,
    )


def _costs(bars: Bars, settings: Settings) -> CostModel:
    if bars.name == SYNTHETIC:
        return flat_costs(settings.trading.cost_bps)
    return nse_index_future_costs(settings.trading.slippage_bps)


def answer(result: BacktestResult, model_id: str) -> dict[str, Any]:
    """The seed's answer: total_return, hrm_metrics and what is needed to judge them."""
    return {"model": model_id} | result.summary()


def _within(market: Market, dates: tuple[date | None, date | None]) -> Market:
    start, end = dates[0] or date.min, dates[1] or date.max
    days = session_days(market)
    inside = [int(id_) for id_, day in zip(market.sessions, days, strict=True) if start <= day <= end]
    if not inside:
        raise DataError(
            f"{market.name}: no session to trade between {start} and {end}; choose dates within {days[0]}..{days[-1]}",
            code="no_sessions",
        )
    return market.restricted_to(inside[0], inside[-1])
