"""A session through the real service, the real SDK and the emulated broker: the same as its backtest and its replay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from benchmarks import live_market, live_session
from core.errors import DataError
from trading.calendar import sessions
from trading.tables import SHIPPED, section


def test_made_up_instruments_stand_beside_the_shipped_ones_with_their_rules(tmp_path: Path) -> None:
    from trading.instruments import _Instruments

    file = live_market.write_tables(tmp_path, live_market.names(2))
    known = section("instruments", _Instruments, file).root
    shipped = section("instruments", _Instruments, SHIPPED).root
    assert known.keys() == {*shipped, "SYNA", "SYNB"}
    nifty, made_up = known["NIFTY"], known["SYNB"]
    assert made_up.index == "NSE:SYNB-INDEX"
    assert made_up.traded_symbol(live_market.DAY) == "NSE:SYNB26NOVFUT"
    assert made_up.lot_units(live_market.DAY) == nifty.lot_units(live_market.DAY)


def test_a_bar_is_told_as_the_prices_that_make_it() -> None:
    market = live_market.synthetic(["SYNA"])
    assert market.days[-1] == live_market.DAY
    assert len(market.candles("SYNA")) == live_market.HISTORY_SESSIONS * live_market.BARS
    for bar in range(live_market.BARS):
        path = market.path("SYNA", bar)
        assert (path[0], max(path), min(path), path[-1]) == tuple(market.prices["SYNA"][-1, bar])
        assert path == [round(price, 2) for price in path]


def bars_of(days: int, bars: int = live_market.BARS) -> pd.DataFrame:
    times = [
        pd.Timestamp(f"{day} 09:15", tz="Asia/Kolkata") + pd.Timedelta(minutes=5 * bar)
        for day in sessions(live_market.DAY.replace(year=2025), live_market.DAY)[:days]
        for bar in range(bars)
    ]
    close = 24_000.0 + np.arange(len(times))
    return pd.DataFrame(
        {"timestamp": times, "open": close, "high": close + 1, "low": close - 1, "close": close, "volume": 0}
    )


def test_each_symbol_is_another_day_of_a_file_with_the_days_before_it(tmp_path: Path) -> None:
    file = tmp_path / "bars.parquet"
    bars = bars_of(live_market.HISTORY_SESSIONS + 2)
    bars.to_parquet(file)
    market = live_market.of_file(file, ["SYNA", "SYNB"])
    closes = bars["close"].to_numpy().reshape(-1, live_market.BARS)
    assert np.array_equal(market.prices["SYNA"][-1, :, 3], closes[-1])
    assert np.array_equal(market.prices["SYNB"][-1, :, 3], closes[-2])
    assert np.array_equal(market.prices["SYNB"][0, :, 3], closes[0])
    with pytest.raises(DataError, match="11 symbols need 19"):
        live_market.of_file(file, live_market.names(11))


def test_more_symbols_than_there_are_names_are_refused() -> None:
    with pytest.raises(DataError, match="choose 1 to 20"):
        live_market.names(21)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Two symbols and their whole day."""
    folder = tmp_path_factory.mktemp("session")
    from benchmarks.serving_model import publish_model

    settings = live_session.small_settings(folder)
    manifest = publish_model(settings, folder / "models", None)
    market = live_market.synthetic(live_market.names(2))
    return live_session.session(folder, settings, market, f"{manifest.name}/{manifest.version}")


@pytest.mark.slow
def test_every_bar_is_told_and_decided(found: dict[str, Any]) -> None:
    assert found["told"] == found["bars"] == 2 * live_market.BARS
    assert found["undecided_bars"] == 0
    assert found["decided"] == 2 * live_session.LAST
    assert set(found["not_decided"]) <= {"held:session_over"}
    assert found["left"] == {"orders": {}, "positions": {}}


@pytest.mark.slow
def test_it_trades_what_its_backtest_trades_at_the_same_prices(found: dict[str, Any]) -> None:
    parity = found["parity"]
    assert parity["same"]
    assert parity["trades"] == parity["same_units"] > live_session.LAST  # something was traded
    assert parity["same_price"] == parity["decided"]
    assert found["duplicate_orders"] == 0
    assert found["trades_at_the_exchange"] >= parity["trades"]


@pytest.mark.slow
def test_its_log_gives_every_decision_and_every_row_again(found: dict[str, Any]) -> None:
    assert found["replay"]["same"]
    assert found["replay"]["differences"] == 0
    assert found["replay"]["decisions"] == {"same": 2 * live_session.LAST}


@pytest.mark.slow
def test_the_time_from_a_decision_to_its_order_is_measured_for_each(found: dict[str, Any]) -> None:
    assert 0 < found["own_ms"]["count"] == found["decision_to_order_ms"]["count"] <= found["orders"]
    assert 0 < found["own_ms"]["p50_ms"] <= found["decision_to_order_ms"]["p50_ms"]
    assert found["decision_to_order_p99_ms"] == found["own_ms"]["p99_ms"]
