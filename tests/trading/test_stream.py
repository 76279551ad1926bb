"""The paper loop shows the service what a model of several timeframes and symbols looks at, or refuses to start."""

from __future__ import annotations

import numpy as np
import pytest
from decision_service import RuleService
from market_makers import observed

from core.errors import DataError
from core.observation import ObservationSchema
from core.settings import Settings
from trading.features import FeatureSettings, account_features
from trading.market import Bars, market_of
from trading.observations import observe
from trading.paper_replay import run_paper
from trading.service import DecisionClient

NAMES = ("OTHER", "SYNTHETIC")
SCHEMA = observed(day=4, m15=8).model_copy(update={"symbols": NAMES, "account_features": account_features(NAMES)})


def test_the_service_is_asked_what_the_backtest_would_ask(
    service: RuleService, client: DecisionClient, paper_bars: Bars, paper_settings: Settings
) -> None:
    run_paper(paper_bars, paper_settings, client, observation=SCHEMA)
    features = FeatureSettings.of(
        paper_settings.hierarchical_reasoning_model.complexity_detection,
        bars_per_session=30,
        capital=paper_settings.trading.initial_capital,
    )
    market = market_of(paper_bars, features, SCHEMA)
    positions = np.array([request["accounts"]["champion"]["position"] for request in service.requests])
    seen = observe(market, SCHEMA, market.decision_bars, positions)
    np.testing.assert_array_equal(np.float32([request["bars"] for request in service.requests]), seen.bars)
    account = [request["accounts"]["champion"]["features"] for request in service.requests]
    np.testing.assert_array_equal(np.float32(account), seen.account)


@pytest.mark.parametrize(
    ("other", "code"),
    [
        (SCHEMA.model_copy(update={"interval_s": 60}), "wrong_timeframe"),
        (
            SCHEMA.model_copy(update={"symbols": ("A", "B"), "account_features": account_features(("A", "B"))}),
            "unknown_symbol",
        ),
    ],
)
def test_bars_that_the_models_do_not_know_are_refused_before_anything_is_written(
    other: ObservationSchema, code: str, client: DecisionClient, paper_bars: Bars, paper_settings: Settings
) -> None:
    with pytest.raises(DataError) as caught:
        run_paper(paper_bars, paper_settings, client, observation=other)
    assert caught.value.code == code
    assert not (paper_settings.paths.state_dir / "paper.db").exists()
