"""From settings (and perhaps a file) to train, validation and test markets with labels, in time order.

Labels are values in bps of holding a target position (docs/architecture.md, "Market"):
    synthetic   the oracle's continuation values: exact
    file        the return of holding the target for LABEL_HORIZON bars or to the session's end, less the exit
                cost: unbiased for that plan, so that a model of its mean stays flat where nothing is to be earned
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from core.errors import DataError
from core.observation import ObservationSchema
from core.settings import Settings, Trading
from trading import oracle, synthetic
from trading.costs import nse_index_future_costs, turnover_cost_bps
from trading.env import EndlessEnv, SessionEnv
from trading.features import FeatureSettings, Floats, schema, sizing_log_quantity
from trading.files import load_market_bars
from trading.instruments import charged_lot
from trading.market import Bars, Market, day_of, market_of, session_days
from trading.observations import account_of
from trading.stream import usual_session_length
from trading.symbols import concatenate, require_distinct

LABEL_HORIZON = 24  # bars
# A file's labels charge this multiple of the real cost: a margin of safety without which a model trades on its own
# estimation noise (docs/experiments.md). Evaluation charges the real cost.
LABEL_COST_MULTIPLE = 4.0
MIN_SESSIONS = 60  # of a file: fewer cannot be split into train, validation and test
TRAIN_SHARE, VALIDATION_SHARE = 0.7, 0.1
WARM_UP_SESSIONS = 5  # simulated before each part, at least
TARGETS = np.array([-1.0, 0.0, 1.0])
_TEST, _RANDOM_WALK = 2, 3  # parts of a seed; train and validation are 0 and 1


@dataclass(frozen=True)
class Dataset:
    train: Market
    validation: Market
    test: Market
    source: Literal["synthetic", "file"]
    schema: ObservationSchema
    cost_bps: float  # per unit of turnover
    label_cost_bps: float  # the same, as the training labels charge it
    label_temperature_bps: float  # of softmax(values / temperature)
    digest: str

    @property
    def optimum_known(self) -> bool:
        return self.source == "synthetic"


def build_dataset(settings: Settings, data: Path | Sequence[Path] | None, seed: int) -> Dataset:
    """Markets for one migration: synthetic, of a file, or of several symbols, a file each, split at the same days.

    Raises DataError if a file is unusable or too short, or if the files are not of one timeframe.
    """
    if data is None:
        return synthetic_dataset(settings, seed)
    return _from_files(settings, [data] if isinstance(data, Path) else data)


def synthetic_dataset(
    settings: Settings, seed: int, *, interval_s: int = synthetic.BAR_S, symbols: tuple[str, ...] = ()
) -> Dataset:
    """The synthetic market, in bars of any length and as the first of `symbols`: any model can be tried on it."""
    law, cost = settings.synthetic_market, settings.trading.cost_bps
    solution = oracle.solve(law, cost, cache=settings.paths.state_dir / "cache")
    parts, begin = [], _warm_up_sessions(settings, interval_s)
    for part, sessions in enumerate((law.train_sessions, law.validation_sessions, law.test_sessions)):
        path = _simulated(settings, sessions, [seed, part], interval_s)
        bars = replace(path.bars, name=symbols[0]) if symbols else path.bars
        market = _prepared(settings, bars, symbols).restricted_to(begin, begin + sessions - 1)
        parts.append(market.with_values(solution.values(path)))
    train, validation, test = parts
    return Dataset(
        train=train,
        validation=validation,
        test=test,
        source="synthetic",
        schema=_schema(settings, test.bars, symbols),
        cost_bps=cost,
        label_cost_bps=cost,
        label_temperature_bps=settings.training_params.hrm.label_temperature * cost,
        digest=oracle.digest(law, cost),
    )


def _simulated(
    settings: Settings, sessions: int, seed: list[int], interval_s: int = synthetic.BAR_S
) -> synthetic.SyntheticPath:
    sessions += _warm_up_sessions(settings, interval_s)
    return synthetic.simulate(settings.synthetic_market, sessions=sessions, seed=seed, interval_s=interval_s)


def _warm_up_sessions(settings: Settings, interval_s: int = synthetic.BAR_S) -> int:
    """Sessions simulated before each part, so that every session of it has history in all timeframes."""
    session_s = settings.synthetic_market.bars_per_session * interval_s
    timeframes = settings.observation.timeframes
    needed = [math.ceil(each.bars / max(1, math.ceil(session_s / each.span_s))) for each in timeframes]
    return max(WARM_UP_SESSIONS, *needed, 0)


def window_values(settings: Settings, seed: int) -> Floats:
    """Continuation values [n, 3] of the synthetic test market to whom only the last `window` bars are known.

    Played, they are the ceiling of what a window without other memory can earn.
    """
    law, cost = settings.synthetic_market, settings.trading.cost_bps
    solution = oracle.solve(law, cost, cache=settings.paths.state_dir / "cache")
    return solution.values(_simulated(settings, law.test_sessions, [seed, _TEST]), settings.observation.window)


def random_walk(settings: Settings, seed: int) -> Dataset:
    """Markets in which nothing is to be earned: the synthetic law without drift, labelled as a file is."""
    law = settings.synthetic_market
    still = settings.model_copy(update={"synthetic_market": law.model_copy(update={"amplitude": 0.0})})
    sessions = law.train_sessions + law.validation_sessions + law.test_sessions
    bars = _simulated(still, sessions, [seed, _RANDOM_WALK]).bars
    market = _prepared(settings, bars).restricted_to(_warm_up_sessions(settings), int(bars.session[-1]))
    last = len(market.sessions) - np.array([law.validation_sessions + law.test_sessions, law.test_sessions, 0])
    return _labelled_in_hindsight(market, settings, settings.trading.cost_bps, last)


def walk_forward(settings: Settings, data: Path, folds: int) -> list[Dataset]:
    """Expanding folds over a file: each tests the sessions that follow its training and validation ones.

    Between the parts of a fold lies an embargo (trading/splits.py). The tests together are the second half of the
    file. Raises DataError if it is unusable, or too short for so many folds.
    """
    from trading import splits  # skfolio, of the research extra

    market = market_of_file(settings, data)
    sessions, embargo = _enough_sessions(market, data), _embargo(market, settings)
    cost = file_cost_bps(market.bars, settings.trading)
    found = splits.walk_forward(sessions, folds, validation_ratio=VALIDATION_SHARE, embargo=embargo)
    edges = [np.array([split.validation[0], split.test[0], split.test[-1] + 1]) for split in found]
    return [_labelled_in_hindsight(market, settings, cost, edge, embargo) for edge in edges]


def _embargo(market: Market, settings: Settings) -> int:
    """Sessions that an observation looks back over: its window, and what the first of a file has to wait for."""
    remembered = settings.observation.window + int(market.decision_bars[0])
    return max(settings.evaluation.embargo_sessions, len(np.unique(market.bars.session[:remembered])))


def _from_files(settings: Settings, data: Sequence[Path]) -> Dataset:
    bars = [load_market_bars(path) for path in data]
    require_distinct([each.name for each in bars])
    symbols = tuple(each.name for each in bars) if len(bars) > 1 else ()
    markets = [_prepared(settings, each, symbols) for each in bars]
    for market, path in zip(markets, data, strict=True):
        _enough_sessions(market, path)
    market = concatenate(markets) if symbols else markets[0]
    days = len(set(session_days(market)))
    edges = np.array([int(days * TRAIN_SHARE), int(days * (TRAIN_SHARE + VALIDATION_SHARE)), days])
    cost_bps = max(file_cost_bps(each, settings.trading) for each in bars)  # one cost for all: the dearest's
    return _labelled_in_hindsight(market, settings, cost_bps, edges)


def _enough_sessions(market: Market, data: Path) -> int:
    sessions = len(market.sessions)
    if sessions < MIN_SESSIONS:
        raise DataError(
            f"{data}: {sessions} usable sessions, at least {MIN_SESSIONS} are needed to train, validate and test; "
            f"bring more history",
            code="too_few_bars",
        )
    return sessions


def _labelled_in_hindsight(
    market: Market, settings: Settings, cost_bps: float, edges: NDArray[np.int64], embargo: int = 0
) -> Dataset:
    """Train, validation and test end before the days number `edges` [3], the first two `embargo` days earlier still.

    Labels are what became of each plan.
    """
    days = sorted(set(session_days(market)))
    values = horizon_values(market.bars, LABEL_COST_MULTIPLE * cost_bps)
    ends = [*(edges[:2] - embargo), edges[2]]
    train, validation, test = (
        market.between(days[start], days[end - 1]) for start, end in zip([0, *edges[:2]], ends, strict=True)
    )
    return Dataset(
        train=train.with_values(values),  # labels, not an optimum: nothing may be judged by them
        validation=validation,
        test=test,
        source="file",
        schema=_schema(settings, market.bars, tuple(name for name, _ in market.begins)),
        cost_bps=cost_bps,
        label_cost_bps=LABEL_COST_MULTIPLE * cost_bps,
        # Hindsight values are far noisier than their mean: at a temperature of their own size the softmax is close
        # to linear, so its average ranks targets as the average value does.
        label_temperature_bps=float(values[train.decision_bars].std()),
        digest=market.bars.digest,
    )


def market_of_file(settings: Settings, data: Path) -> Market:
    """A file's bars with features, without labels. Raises DataError naming what is wrong with it."""
    return _prepared(settings, load_market_bars(data))


def _prepared(settings: Settings, bars: Bars, symbols: tuple[str, ...] = ()) -> Market:
    features = _features(settings, usual_session_length(bars))
    return market_of(bars, features, _schema(settings, bars, symbols))


def _schema(settings: Settings, bars: Bars, symbols: tuple[str, ...] = ()) -> ObservationSchema:
    return schema(settings.observation, interval_s=bars.interval_s, symbols=symbols)


def _features(settings: Settings, bars_per_session: int) -> FeatureSettings:
    return FeatureSettings.of(
        settings.hierarchical_reasoning_model.complexity_detection,
        bars_per_session=bars_per_session,
        capital=settings.trading.initial_capital,
    )


def file_cost_bps(bars: Bars, trading: Trading) -> float:
    """Cost of one unit of turnover in real bars: a lot of what they are of on their last day, and slippage."""
    last_day = day_of(int(bars.timestamps[-1]))
    costs = nse_index_future_costs(trading.slippage_bps)(last_day)
    return turnover_cost_bps(costs, float(bars.close[-1]), charged_lot(bars.name, last_day))


def horizon_values(bars: Bars, cost_bps: float, horizon: int = LABEL_HORIZON) -> Floats:
    """Label values [n, 3] in bps of entering a target at the next open and leaving after `horizon` bars.

    Leaves at the session's last close at the latest; the exit costs, the entry is charged by whoever asks.
    """
    n = len(bars)
    last = np.append(np.flatnonzero(bars.first_of_session)[1:] - 1, n - 1)
    end_of_session = last[np.searchsorted(last, np.arange(n))]
    leave = np.minimum(np.arange(n) + horizon, end_of_session)
    enter = np.minimum(np.arange(n) + 1, n - 1)
    move = 1e4 * (bars.close[leave] - bars.open[enter]) / bars.close
    move[leave == np.arange(n)] = 0.0
    values: Floats = move[:, None] * TARGETS - cost_bps * np.abs(TARGETS)
    return values


def training_table(dataset: Dataset, settings: Settings) -> dict[str, Any]:
    """Everything the training market can teach: observations and labels at its n bars in all three positions.

    `bar_features` [n, F], `decision_bars` [m], `complexity` [n] and `log_quantity` [n]; by position index p + 1:
    `account` [n, 3, A] and `q_values` [n, 3, 3] (docs/architecture.md, "Training rows"). `coarse`: of each coarser
    timeframe its bar features [m, F], the row [n] before which they are known, and how many of them are shown.
    """
    market = dataset.train
    assert market.values is not None  # noqa: S101 - build_dataset labels every market
    n = len(market.bars)
    turnover = np.abs(TARGETS - TARGETS[:, None])
    return {
        "bar_features": market.bar_features,
        "decision_bars": market.decision_bars,
        "complexity": market.complexity,
        "log_quantity": sizing(market, settings.trading),
        "account": np.stack([account_of(market, np.arange(n), np.full(n, p)) for p in (-1, 0, 1)], axis=1),
        "q_values": (market.values[:, None] - dataset.label_cost_bps * turnover).astype(np.float32),
        "coarse": tuple((each.bar_features, each.closed, each.timeframe.bars) for each in market.coarse),
    }


def sizing(market: Market, trading: Trading) -> NDArray[np.float32]:
    """Log of the quantity every model is taught to answer, [n]."""
    return sizing_log_quantity(
        market.volatility,
        market.bars.close,
        capital=trading.initial_capital,
        target_volatility_bps=trading.target_volatility_bps,
        max_quantity=trading.max_quantity,
    )


def training_env(dataset: Dataset, settings: Settings, seed: int) -> EndlessEnv:
    """An endless environment over the training sessions, `n_envs` portfolios at once."""
    market = dataset.train
    sessions = np.random.default_rng(seed).choice(market.sessions, size=settings.training_params.ppo.n_envs)
    env = SessionEnv(market, dataset.schema, sessions, dataset.cost_bps)
    return EndlessEnv(env, sizing(market, settings.trading), seed)
