"""A published model over bars of a symbol: what `POST /api/backtest/run` and `hrm backtest` do.

Bars of a symbol are `<state_dir>/data/<symbol>.parquet` or `.csv`; SYNTHETIC is the simulated market and needs no
file. Dates choose the sessions traded; earlier bars stay visible as history. Real bars pay the dated charges of their
instrument, and where it is known every order is in whole lots.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

from core.errors import DataError, ModelError
from core.halting import HaltingRule
from core.manifest import ModelManifest
from core.observation import ObservationSchema
from core.settings import Observation, Settings
from serving.engine import Engine, load_engine
from serving.store import list_versions
from trading import backtest
from trading.backtest import BacktestResult
from trading.costs import CostModel, flat_costs, nse_index_future_costs
from trading.features import FeatureSettings, schema
from trading.files import load_market_bars
from trading.instruments import Instrument, instrument, named_after
from trading.journal import Watch
from trading.market import Bars, Market, market_of, session_days
from trading.stream import usual_session_length
from trading.synthetic import simulate

SYNTHETIC = "SYNTHETIC"
SYNTHETIC_SESSIONS = 252  # a trading year
SYNTHETIC_SEED = 2_000_003  # bars no model was trained on

Dates = tuple[date | None, date | None]


@dataclass(frozen=True)
class Tested:
    """A finished backtest and what it was of."""

    model: str  # name/version
    manifest: ModelManifest
    instrument: Instrument | None  # None: simulated, or bars of something not in the tables
    result: BacktestResult

    def answer(self) -> dict[str, Any]:
        """The seed's answer: total_return, hrm_metrics and what is needed to judge them."""
        from trading.performance import summary  # needs the extra `research`

        name = self.instrument and self.instrument.name
        return {"model": self.model, "instrument": name, "lots": self.lots} | summary(self.result, self.rule)

    @property
    def rule(self) -> HaltingRule | None:
        """None: a model of one pass."""
        return self.manifest.halting

    @property
    def lots(self) -> str | None:
        """How quantities were rounded, for people."""
        if self.instrument is None:
            return None
        name, days = self.instrument.name, self.result.days
        known = sorted({self.instrument.lot_units(day) for day in days if self.instrument.has_lots(day)})
        if not known:
            return f"the lots of {name} are not known for these days: single units are traded"
        first = next(day for day in days if self.instrument.has_lots(day))
        until = "" if first == days[0] else f", single units before {first}"
        return f"orders are whole lots of {name} ({' or '.join(map(str, known))} units), one at least{until}"


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
    usable = [row for row in list_versions(store) if row["problem"] is None and row["algorithm"] != "hrm_book"]
    if not usable:
        raise ModelError(f"{store}: no published model; run `hrm migrate` first", code="model_not_found")
    return str(max(usable, key=lambda row: (row["algorithm"] == "hrm", str(row["created_at"])))["id"])


@dataclass(frozen=True)
class Prepared:
    """A loaded model before bars that fit it: what can go wrong before the first decision has not."""

    engine: Engine
    market: Market
    cost: CostModel
    instrument: Instrument | None
    initial_capital: float

    def run(self, watch: Watch = lambda _: None) -> Tested:
        """Raises ModelError if the model fails, DataError for an answer that is none."""
        with ThreadPoolExecutor(cores()) as pool:
            result = backtest.run(
                partial(self.engine.decide, pool=pool),
                self.market,
                self.engine.manifest.market,
                cost=self.cost,
                initial_capital=self.initial_capital,
                lot_units=None if self.instrument is None else partial(_lot_units, self.instrument),
                watch=watch,
            )
        return Tested(self.engine.id, self.engine.manifest, self.instrument, result)


def prepared(
    settings: Settings,
    model_id: str,
    bars: Bars,
    *,
    initial_capital: float | None = None,
    dates: Dates = (None, None),
    symbol: str | None = None,
) -> Prepared:
    """A backtest of `model_id` (name/version) over the sessions of `bars` within `dates`, both inclusive.

    SYNTHETIC pays `trading.cost_bps`, real bars the dated charges of their instrument and `trading.slippage_bps`: of
    `symbol`, or of what the bars' name says, or else of the NIFTY future without its lots.

    Raises ModelError for a model that does not load or expects other features, DataError for bars that are not its
    own (timeframe, symbol), too few of them, dates without a session, or a symbol that is not known.
    """
    traded = instrument(symbol) if symbol is not None else named_after(bars.name)
    engine = load_engine(settings, model_id)
    capital = settings.trading.initial_capital if initial_capital is None else initial_capital
    market = _within(_market_for(engine.manifest, bars, settings, capital), dates)
    return Prepared(engine, market, _costs(bars, settings, traded), traded, capital)


def _market_for(manifest: ModelManifest, bars: Bars, settings: Settings, capital: float) -> Market:
    """The bars as the model looks at them: window, patches, timeframes and symbols are its own, features are ours."""
    seen, model_id = manifest.market, f"{manifest.name}/{manifest.version}"
    _todays(seen).require(seen, f"model {model_id}")
    features = FeatureSettings.of(
        settings.hierarchical_reasoning_model.complexity_detection,
        bars_per_session=usual_session_length(bars),
        capital=capital,
    )
    return market_of(bars, features, seen)


def _todays(seen: ObservationSchema) -> ObservationSchema:
    """What today's features make of the sizes of a schema."""
    sizes = Observation(window=seen.base_window, patch=seen.patch, timeframes=seen.timeframes)
    return schema(sizes, interval_s=seen.interval_s, symbols=seen.symbols)


def _costs(bars: Bars, settings: Settings, traded: Instrument | None) -> CostModel:
    if bars.name == SYNTHETIC:
        return flat_costs(settings.trading.cost_bps)
    return nse_index_future_costs(settings.trading.slippage_bps, traded)


def _lot_units(traded: Instrument, day: date) -> float:
    return float(traded.lot_units(day)) if traded.has_lots(day) else 1.0


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _within(market: Market, dates: Dates) -> Market:
    start, end = dates[0] or date.min, dates[1] or date.max
    found = market.between(start, end)
    if not len(found.decision_bars):
        days = session_days(market)
        raise DataError(
            f"{market.name}: no session to trade between {start} and {end}; choose dates within "
            f"{min(days)}..{max(days)}",
            code="no_sessions",
        )
    return found
