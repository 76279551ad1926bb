"""Charges equal a contract note worked by hand, and follow the tables."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import DataError
from trading.costs import (
    OrderCosts,
    Side,
    charges,
    flat_costs,
    nse_index_future_costs,
    order_rupees,
    turnover_cost_bps,
)
from trading.instruments import instrument

TODAY = date(2026, 11, 20)
NIFTY, FUND = instrument("NIFTY"), instrument("NIFTYBEES")
LOT = 65


def test_one_nifty_lot_at_26000_costs_what_the_worked_example_says() -> None:
    rates = NIFTY.charge_rates(TODAY)
    buy, sell = charges(Side.BUY, 26000.0 * LOT, rates), charges(Side.SELL, 26000.0 * LOT, rates)
    assert buy.brokerage + sell.brokerage == 40.0
    assert (buy.stt, sell.stt) == (0.0, pytest.approx(845.0))
    assert buy.exchange + sell.exchange == pytest.approx(61.85, abs=0.01)
    assert buy.sebi + sell.sebi == pytest.approx(3.38)
    assert (buy.stamp, sell.stamp) == (pytest.approx(33.80), 0.0)
    assert buy.gst + sell.gst == pytest.approx(18.94, abs=0.01)
    assert buy.total + sell.total == pytest.approx(1002.97, abs=0.01)
    costs = nse_index_future_costs(0.0)(TODAY)
    assert 2 * turnover_cost_bps(costs, 26000.0, LOT) == pytest.approx(5.93, abs=0.01)  # there and back


@pytest.mark.parametrize(
    ("day", "bps"),
    [
        (date(2013, 5, 31), 1.7),
        (date(2013, 6, 1), 1.0),
        (date(2023, 3, 31), 1.0),
        (date(2023, 4, 1), 1.25),
        (date(2024, 9, 30), 1.25),
        (date(2024, 10, 1), 2.0),
        (date(2026, 3, 31), 2.0),
        (date(2026, 4, 1), 5.0),
    ],
)
def test_the_transaction_tax_changes_on_the_day_it_was_changed(day: date, bps: float) -> None:
    costs = nse_index_future_costs(0.0)(day)
    assert (costs.sell_ratio - costs.buy_ratio) * 1e4 == pytest.approx(bps - 0.2)  # the buyer pays stamp duty


def test_a_small_order_pays_brokerage_by_value() -> None:
    assert charges(Side.BUY, 1000.0, NIFTY.charge_rates(TODAY)).brokerage == pytest.approx(0.3)


def test_a_fund_is_charged_as_a_share_traded_within_the_day() -> None:
    sell = charges(Side.SELL, 100_000.0, FUND.charge_rates(TODAY))
    assert (sell.brokerage, sell.stt, sell.exchange) == (20.0, pytest.approx(25.0), pytest.approx(3.07))
    assert nse_index_future_costs(0.0, FUND)(TODAY).of(Side.SELL, 250.0, 400.0) == pytest.approx(sell.total)


def test_a_unit_of_turnover_is_half_a_round_trip() -> None:
    assert turnover_cost_bps(flat_costs(1.5)(TODAY), 20000.0, LOT) == pytest.approx(1.5)
    table = turnover_cost_bps(nse_index_future_costs(0.4)(TODAY), 26000.0, LOT)
    bare = turnover_cost_bps(nse_index_future_costs(0.0)(TODAY), 26000.0, LOT)
    assert table == pytest.approx(bare + 0.4)


@given(price=st.floats(1, 1e5), quantity=st.floats(1, 1800), side=st.sampled_from(Side))
def test_slippage_adds_exactly_its_bps_to_the_charges(price: float, quantity: float, side: Side) -> None:
    value = price * quantity
    bare = charges(side, value, NIFTY.charge_rates(TODAY)).total
    assert nse_index_future_costs(2.0)(TODAY).of(side, price, quantity) == pytest.approx(bare + value * 2e-4)
    assert flat_costs(1.5)(TODAY).of(side, price, quantity) == pytest.approx(value * 1.5e-4)


def test_an_order_above_the_freeze_quantity_of_the_day_pays_brokerage_for_each_of_its_slices() -> None:
    costs = OrderCosts(brokerage_ratio=0.0003, brokerage_cap=20.0, buy_ratio=0.0, sell_ratio=0.0, slice_units=1800)
    assert costs.of(Side.BUY, 26000.0, 1800) == 20.0
    assert costs.of(Side.BUY, 26000.0, 1801) == pytest.approx(20.0 + 0.0003 * 26000.0)
    assert costs.of(Side.SELL, 26000.0, 5400) == 60.0
    banknifty = nse_index_future_costs(0.0, instrument("BANKNIFTY"))
    assert [banknifty(date(2025, month, 20)).slice_units for month in (8, 9, 11)] == [600.0, 900.0, 600.0]
    assert nse_index_future_costs(0.0)(date(2015, 1, 1)).slice_units == math.inf


def test_a_day_before_the_tables_has_no_costs() -> None:
    with pytest.raises(DataError, match="nothing is known for 1999-01-04") as refused:
        nse_index_future_costs(0.4)(date(1999, 1, 4))
    assert refused.value.code == "not_known"


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
