"""Charges equal a contract note worked by hand, and follow the calendar."""

from __future__ import annotations

from dataclasses import replace
from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trading.costs import (
    OrderCosts,
    Side,
    charges,
    flat_costs,
    nse_index_future_costs,
    order_rupees,
    round_trip_bps,
    stt_ratio,
    turnover_cost_bps,
)

TODAY = date(2026, 11, 20)


def test_one_nifty_lot_at_26000_costs_what_the_worked_example_says() -> None:
    buy, sell = charges(Side.BUY, 26000.0, 65, TODAY), charges(Side.SELL, 26000.0, 65, TODAY)
    assert buy.brokerage + sell.brokerage == 40.0
    assert (buy.stt, sell.stt) == (0.0, pytest.approx(845.0))
    assert buy.exchange + sell.exchange == pytest.approx(61.85, abs=0.01)
    assert buy.sebi + sell.sebi == pytest.approx(3.38)
    assert (buy.stamp, sell.stamp) == (pytest.approx(33.80), 0.0)
    assert buy.gst + sell.gst == pytest.approx(18.94, abs=0.01)
    assert buy.total + sell.total == pytest.approx(1002.97, abs=0.01)
    assert round_trip_bps(26000.0, 65, TODAY) == pytest.approx(5.93, abs=0.01)


@pytest.mark.parametrize(
    ("day", "bps"),
    [
        (date(2015, 1, 1), 1.0),
        (date(2023, 3, 31), 1.0),
        (date(2023, 4, 1), 1.25),
        (date(2024, 9, 30), 1.25),
        (date(2024, 10, 1), 2.0),
        (date(2026, 3, 31), 2.0),
        (date(2026, 4, 1), 5.0),
    ],
)
def test_the_transaction_tax_changes_on_the_day_it_was_changed(day: date, bps: float) -> None:
    assert stt_ratio(day) * 1e4 == pytest.approx(bps)


def test_a_small_order_pays_brokerage_by_value() -> None:
    assert charges(Side.BUY, 100.0, 10, TODAY).brokerage == pytest.approx(0.3)


def test_a_unit_of_turnover_is_half_a_round_trip() -> None:
    assert turnover_cost_bps(flat_costs(1.5)(TODAY), 20000.0) == pytest.approx(1.5)
    table = turnover_cost_bps(nse_index_future_costs(0.4)(TODAY), 26000.0)
    assert table == pytest.approx(round_trip_bps(26000.0, 65, TODAY) / 2 + 0.4)


@given(price=st.floats(1, 1e5), quantity=st.floats(1, 1e5), side=st.sampled_from(Side))
def test_slippage_adds_exactly_its_bps_to_the_charges(price: float, quantity: float, side: Side) -> None:
    value, order = price * quantity, (side, price, quantity)
    bare = charges(*order, TODAY).total
    assert nse_index_future_costs(2.0)(TODAY).of(*order) == pytest.approx(bare + value * 2e-4)
    assert flat_costs(1.5)(TODAY).of(*order) == pytest.approx(value * 1.5e-4)


def test_an_order_above_the_freeze_quantity_pays_brokerage_for_each_of_its_slices() -> None:
    costs = OrderCosts(brokerage_ratio=0.0003, brokerage_cap=20.0, buy_ratio=0.0, sell_ratio=0.0, slice_units=1800)
    assert costs.of(Side.BUY, 26000.0, 1800) == 20.0
    assert costs.of(Side.BUY, 26000.0, 1801) == pytest.approx(20.0 + 0.0003 * 26000.0)
    assert costs.of(Side.SELL, 26000.0, 5400) == 60.0


@given(
    price=st.floats(1, 1e5),
    quantity=st.integers(1, 100_000),
    side=st.sampled_from(Side),
    slice_units=st.sampled_from([75.0, 1800.0, float("inf")]),
)
def test_compiled_code_charges_the_same_rupees(price: float, quantity: int, side: Side, slice_units: float) -> None:
    costs = replace(nse_index_future_costs(0.5)(TODAY), slice_units=slice_units)
    compiled = order_rupees(costs.vector(), float(side * quantity), price)
    assert compiled == pytest.approx(costs.of(side, price, quantity), rel=1e-15)
