"""Steps per second of the environment, random legal actions, one thread.

index    1,024 portfolios in lock-step, no observation materialised (the bar index is the observation)
window   the same with every window copied out
scalar   one portfolio behind Gymnasium's interface, window included
"""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.machine import described, median_seconds
from core.actions import ACTION_OF
from core.settings import Settings
from trading.dataset import WARM_UP_SESSIONS
from trading.env import SessionEnv
from trading.features import FeatureSettings, schema
from trading.gym_env import TradingEnv
from trading.market import Market, prepare
from trading.synthetic import simulate

ROWS = 1024
RUNS = 5


def run(settings: Settings) -> dict[str, Any]:
    market = _market(settings)
    spec, cost = schema(settings.observation), settings.trading.cost_bps
    rng = np.random.default_rng(0)
    steps = int(ROWS * (settings.synthetic_market.bars_per_session - 1))

    def lock_step(observing: bool) -> None:
        env = SessionEnv(market, spec, rng.choice(market.sessions, ROWS), cost)
        while not env.done:
            if observing:
                env.observe()
            env.step(ACTION_OF[env.position + 1, rng.integers(0, 3, ROWS)])

    scalar_env = TradingEnv(market, spec, cost)

    def scalar() -> None:
        scalar_env.reset(seed=0)
        done = False
        while not done:
            *_, done, _truncated, _info = scalar_env.step((int(rng.integers(0, 5)), np.array([1.0])))

    return described(RUNS) | {
        "index_steps_per_s": steps / median_seconds(lambda: lock_step(False), RUNS),
        "window_steps_per_s": steps / median_seconds(lambda: lock_step(True), RUNS),
        "scalar_steps_per_s": (steps / ROWS) / median_seconds(scalar, RUNS),
    }


def _market(settings: Settings) -> Market:
    law = settings.synthetic_market
    path = simulate(law, sessions=200 + WARM_UP_SESSIONS, seed=0)
    complexity = settings.hierarchical_reasoning_model.complexity_detection
    features = FeatureSettings.of(
        complexity, bars_per_session=law.bars_per_session, capital=settings.trading.initial_capital
    )
    market = prepare(path.bars, features, window=settings.observation.window)
    return market.restricted_to(WARM_UP_SESSIONS, 199)
