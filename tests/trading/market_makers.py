"""Markets made for tests: sessions of any length, with bars missing and weeks without data."""

from __future__ import annotations

import numpy as np

from core.observation import ObservationSchema, Timeframe
from core.settings import Observation as ObservationSettings
from core.settings import load_settings
from trading.features import FeatureSettings, schema
from trading.market import SECOND_NS, Bars

SETTINGS = load_settings(preset="compact", environ={})
FEATURES = FeatureSettings.of(
    SETTINGS.hierarchical_reasoning_model.complexity_detection, bars_per_session=40, capital=1e6
)
DAY_S = 86_400


def observed(**timeframes: int) -> ObservationSchema:
    """20 base bars of five minutes, patches of 4, and timeframes such as `day=4` and `m15=8`."""
    named = [Timeframe(name=name if name == "day" else f"{name[1:]}min", bars=n) for name, n in timeframes.items()]
    return schema(ObservationSettings(window=20, patch=4, timeframes=tuple(named)))


def irregular_bars(
    rng: np.random.Generator, *, sessions: int = 16, name: str = "IRREGULAR", missing: float = 0.05
) -> Bars:
    """Sessions of 1 to 40 five-minute bars, some missing, on days with gaps of up to two weeks; every price moves."""
    lengths = np.where(rng.random(sessions) < 0.3, rng.integers(1, 40, sessions), 40)
    days = np.cumsum(rng.choice([1, 3, 15], sessions, p=[0.75, 0.2, 0.05]))
    bar = np.concatenate([np.arange(length) for length in lengths])
    session = np.repeat(np.arange(sessions), lengths)
    kept = (rng.random(len(bar)) >= missing) | (bar == 0)
    timestamps = (DAY_S * days[session] + 300 * bar)[kept] * SECOND_NS
    close = 100.0 * np.exp(np.cumsum(rng.normal(0, 1e-3, kept.sum())))
    opens = close * np.exp(rng.normal(0, 5e-4, len(close)))
    spread = np.exp(np.abs(rng.normal(0, 5e-4, len(close))))
    high, low = np.maximum(opens, close) * spread, np.minimum(opens, close) / spread
    return Bars(name, timestamps, opens, high, low, close, session[kept])
