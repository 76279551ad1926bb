"""Fixtures of the trading tests: bars made here, no file and no market data needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from decision_service import RuleService
from fyers_account import access, emulator, running_emulator

from core.settings import Settings, load_settings
from trading.features import FeatureSettings
from trading.market import Bars, Market, prepare
from trading.service import DecisionClient
from trading.synthetic import simulate

__all__ = ["access", "emulator", "running_emulator"]  # fixtures


def _make_bars(sessions: int = 5, bars: int = 20, seed: int = 0) -> pd.DataFrame:
    """Clean 5-minute bars from 09:15 India time on weekdays from 2023-01-02."""
    days = pd.bdate_range("2023-01-02", periods=sessions, tz="Asia/Kolkata") + pd.Timedelta(hours=9, minutes=15)
    times = [day + pd.Timedelta(minutes=5 * bar) for day in days for bar in range(bars)]
    close = 18000 * np.exp(np.cumsum(np.random.default_rng(seed).normal(0, 5e-4, len(times))))
    opens = np.concatenate([[18000.0], close[:-1]])
    return pd.DataFrame(
        {
            "timestamp": times,
            "open": opens,
            "high": np.maximum(opens, close) * 1.0002,
            "low": np.minimum(opens, close) * 0.9998,
            "close": close,
            "volume": 0,
        }
    )


@pytest.fixture(scope="session")
def make_bars() -> Callable[..., pd.DataFrame]:
    return _make_bars


@pytest.fixture
def paper_settings(tmp_path: Path) -> Settings:
    """Compact settings with a small window and a state folder of the test's own."""
    return load_settings(
        preset="compact",
        environ={"HRM_PATHS__STATE_DIR": str(tmp_path / "state"), "HRM_SYNTHETIC_MARKET__BARS_PER_SESSION": "30"},
    )


@pytest.fixture(scope="session")
def paper_bars() -> Bars:
    """10 synthetic sessions of 30 bars: about 100 decisions after the warm-up."""
    law = load_settings(preset="compact", environ={}).synthetic_market
    return simulate(law.model_copy(update={"bars_per_session": 30}), sessions=10, seed=3).bars


@pytest.fixture
def paper_market(paper_bars: Bars, paper_settings: Settings) -> Market:
    features = FeatureSettings.of(
        paper_settings.hierarchical_reasoning_model.complexity_detection,
        bars_per_session=30,
        capital=paper_settings.trading.initial_capital,
    )
    return prepare(paper_bars, features, window=paper_settings.observation.window)


@pytest.fixture
def service() -> Iterator[RuleService]:
    with RuleService() as service:
        yield service


@pytest.fixture
def client(service: RuleService) -> Iterator[DecisionClient]:
    with DecisionClient(service.url, "token") as client:
        yield client
