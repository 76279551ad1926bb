"""Steps per second of the environments on one core, beside other people's in the same run; random legal actions.

index        1,024 portfolios in lock-step; an observation is its bar's index, no window is touched
window       the same, every row's window of 60 bars x 16 features copied out in every step
own_window   the same with the windows of our own schema
scalar       one portfolio behind Gymnasium's interface, its window copied

A lock-step includes the draw of actions and quantities (in blocks), all accounting, and new sessions for the rows
whose session ended, drawn by the environment that training uses. Rows stand at all stages of their sessions, as after
a long training, so that some end in every step. The other environments are single ones and see 60 x 16 too, or all
they can.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from benchmarks.machine import described, median_seconds
from benchmarks.peers import beside
from core.actions import ACTION_OF
from core.observation import ObservationSchema
from core.settings import Settings
from trading.env import EndlessEnv, SessionEnv
from trading.features import FeatureSettings, schema
from trading.gym_env import TradingEnv
from trading.market import Market, market_of
from trading.synthetic import simulate

BARS, ROWS, FEATURES = 50_000, 1024, 16
RUNS, BLOCK = 9, 64
INDEX_LOCK_STEPS, WINDOW_LOCK_STEPS, SINGLE_STEPS = 16 * BLOCK, 3 * BLOCK, 5_000
PEERS = ("gym_trading_env", "gym_anytrading")

LEGAL_ACTIONS = ACTION_OF.ravel()  # of position p: those at 3 p + 3, 4, 5


def run(settings: Settings) -> dict[str, Any]:
    """Rates of ours and of the peers, and the ratios; a peer that could not be installed is told as absent."""
    own = schema(settings.observation)
    market = _market(settings, own)
    wide, wide_schema = _widened(market, own)
    quantity_max, cost_bps = settings.trading.max_quantity, settings.trading.cost_bps
    index = _endless(market, own, cost_bps)
    rates = {
        "index": _rate(index, INDEX_LOCK_STEPS, quantity_max, observing=False),
        "window": _rate(_endless(wide, wide_schema, cost_bps), WINDOW_LOCK_STEPS, quantity_max, observing=True),
        "own_window": _rate(index, WINDOW_LOCK_STEPS, quantity_max, observing=True),
        "scalar": _scalar_rate(TradingEnv(wide, wide_schema, cost_bps), quantity_max),
    }
    theirs: dict[str, Any] = beside(
        PEERS, settings.paths.state_dir, _arrays(wide), window=own.window, steps=SINGLE_STEPS, runs=RUNS
    )
    found = (
        described(RUNS)
        | {"bars": len(market.bars), "rows": ROWS, "window": [own.window, FEATURES]}
        | {f"{name}_steps_per_s": rate for name, rate in rates.items()}
        | theirs
        | {
            f"{name}_over_{peer}": rate / found["steps_per_s"]
            for peer, found in theirs.items()
            if "steps_per_s" in found
            for name, rate in rates.items()
        }
    )
    return found | flat(found)


def flat(found: dict[str, Any]) -> dict[str, float | None]:
    """The peers' steps per second and the ratio to gym-trading-env with its own 60 x 16 windows; None if absent."""
    rates = {f"{peer}_steps_per_s": found[peer].get("steps_per_s") for peer in PEERS}
    return rates | {"ratio_vs_gym_trading_env": found.get("window_over_gym_trading_env")}


def _rate(env: EndlessEnv, lock_steps: int, quantity_max: float, *, observing: bool) -> float:
    rng = np.random.default_rng(0)
    rows, position = len(env.env), env.env.position  # which `step` advances in place

    def play() -> None:
        for _ in range(lock_steps // BLOCK):
            choice = rng.integers(3, 6, (BLOCK, rows))
            quantity = rng.uniform(1.0, quantity_max, (BLOCK, rows))
            for k in range(BLOCK):
                if observing:
                    env.observe()
                env.step(LEGAL_ACTIONS.take(3 * position + choice[k]), quantity[k])

    return lock_steps * rows / median_seconds(play, RUNS)


def _scalar_rate(env: TradingEnv, quantity_max: float) -> float:
    rng = np.random.default_rng(0)
    env.reset(seed=0)

    def play() -> None:
        actions = rng.integers(0, 5, SINGLE_STEPS).tolist()
        for action, quantity in zip(actions, rng.uniform(1.0, quantity_max, SINGLE_STEPS).tolist(), strict=True):
            _, _, terminated, _, _ = env.step((action, quantity))
            if terminated:
                env.reset()

    return SINGLE_STEPS / median_seconds(play, RUNS)


def _endless(market: Market, seen: ObservationSchema, cost_bps: float) -> EndlessEnv:
    rng = np.random.default_rng(0)
    env = SessionEnv(market, seen, rng.choice(market.sessions, ROWS), cost_bps)
    env.at[:] = rng.integers(env.at, env.last + 1)
    return EndlessEnv(env, np.zeros(len(market.bars), np.float32), seed=0)


def _market(settings: Settings, seen: ObservationSchema) -> Market:
    law = settings.synthetic_market
    features = FeatureSettings.of(
        settings.hierarchical_reasoning_model.complexity_detection,
        bars_per_session=law.bars_per_session,
        capital=settings.trading.initial_capital,
    )
    return market_of(simulate(law, sessions=BARS // law.bars_per_session, seed=0).bars, features, seen)


def _widened(market: Market, seen: ObservationSchema) -> tuple[Market, ObservationSchema]:
    """The market with its features repeated up to `FEATURES` columns: what is copied is what costs."""
    columns = np.arange(FEATURES) % market.bar_features.shape[1]
    names = tuple(f"{seen.bar_features[column]}_{place}" for place, column in enumerate(columns))
    wide = replace(market, bar_features=np.ascontiguousarray(market.bar_features[:, columns]))
    return wide, seen.model_copy(update={"bar_features": names})


def _arrays(market: Market) -> dict[str, np.ndarray[Any, Any]]:
    """What the peers' scripts read."""
    bars = market.bars
    prices = {"open": bars.open, "high": bars.high, "low": bars.low, "close": bars.close}
    return prices | {"timestamps": bars.timestamps, "features": market.bar_features}
