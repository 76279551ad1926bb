"""What an order costs: the dated charges of an instrument, and the flat rate of training and backtest.

The rates are those of `config/instruments.yaml` on the day; ratios are of the order's value:

    brokerage   the smaller of a fixed sum and a ratio, per order
    STT         sell side only
    exchange    transaction charge and investor protection fund
    SEBI        turnover fee
    stamp duty  buy side only
    GST         on brokerage + exchange + SEBI
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import astuple, dataclass
from datetime import date
from enum import IntEnum
from functools import cache

import numpy as np
from numba import njit
from numpy.typing import NDArray

from trading.instruments import ChargeRates, Instrument, instrument


class Side(IntEnum):
    """The sign of what an order adds to a position; also the broker's wire value."""

    SELL = -1
    BUY = 1


@dataclass(frozen=True)
class OrderCosts:
    """What orders of one day cost. Five numbers, so that a compiled loop can take them as a row (`vector`).

    rupees = sum over the order's slices of min(brokerage_cap, brokerage_ratio * value) + side's ratio * value
    """

    brokerage_ratio: float  # taxes on it included, as in all of these
    brokerage_cap: float  # rupees a slice
    buy_ratio: float  # of the order's value, slippage included
    sell_ratio: float
    slice_units: float = math.inf  # the exchange's freeze quantity: what is above it is several orders

    def of(self, side: Side, price: float, quantity: float) -> float:
        """Rupees for `quantity` units, above 0, at `price`."""
        full = math.floor(quantity / self.slice_units)
        rest = quantity - full * self.slice_units if full else quantity
        brokerage = min(self.brokerage_cap, self.brokerage_ratio * rest * price)
        if full:
            brokerage += full * min(self.brokerage_cap, self.brokerage_ratio * self.slice_units * price)
        return brokerage + (self.buy_ratio if side is Side.BUY else self.sell_ratio) * price * quantity

    def vector(self) -> NDArray[np.float64]:
        # By name: `astuple` copies deeply, and years of days are asked for theirs.
        return np.array((self.brokerage_ratio, self.brokerage_cap, self.buy_ratio, self.sell_ratio, self.slice_units))


@njit(cache=True)
def order_rupees(costs: NDArray[np.float64], units: float, price: float) -> float:
    """`OrderCosts.of` in compiled code: costs [5] as `vector` gives them, `units` signed and not 0."""
    quantity = abs(units)
    full = np.floor(quantity / costs[4])
    rest = quantity - full * costs[4] if full > 0.0 else quantity
    brokerage = min(costs[1], costs[0] * rest * price)
    if full > 0.0:
        brokerage += full * min(costs[1], costs[0] * costs[4] * price)
    return float(brokerage + (costs[2] if units > 0.0 else costs[3]) * price * quantity)


CostModel = Callable[[date], OrderCosts]  # what orders cost on a day


@dataclass(frozen=True)
class Charges:
    """Line items of one order, rupees."""

    brokerage: float
    stt: float
    exchange: float
    sebi: float
    stamp: float
    gst: float

    @property
    def total(self) -> float:
        return float(sum(astuple(self)))


def charges(side: Side, value: float, rates: ChargeRates) -> Charges:
    """Charges of one order of `value` rupees at the rates of its day (`Instrument.charge_rates`)."""
    brokerage = min(rates.brokerage_cap_rupees, rates.brokerage_ratio * value)
    exchange, sebi = rates.exchange_ratio * value, rates.sebi_ratio * value
    return Charges(
        brokerage=brokerage,
        stt=rates.stt_ratio * value if side is Side.SELL else 0.0,
        exchange=exchange,
        sebi=sebi,
        stamp=rates.stamp_ratio * value if side is Side.BUY else 0.0,
        gst=rates.gst_ratio * (brokerage + exchange + sebi),
    )


def trade_rupees(costs: OrderCosts, units: float, price: float, *, filled: float) -> float:
    """What one more trade of an order costs: brokerage is charged once an order, however many trades fill it.

    Args:
        units: of the trade, signed.
        filled: units of the order that were traded before, at least 0.
    """
    side = Side.BUY if units > 0 else Side.SELL
    already = costs.of(side, price, filled) if filled else 0.0
    return costs.of(side, price, filled + abs(units)) - already


def turnover_cost_bps(costs: OrderCosts, price: float, units: float) -> float:
    """What one unit of turnover costs: the mean of buying and selling `units`, such as a lot, in bps of their value."""
    both = costs.of(Side.BUY, price, units) + costs.of(Side.SELL, price, units)
    return both / 2 / (price * units) * 1e4


def flat_costs(cost_bps: float) -> CostModel:
    """`cost_bps` of the order's value, charges and slippage together: what the models are trained on."""
    costs = OrderCosts(0.0, 0.0, cost_bps / 1e4, cost_bps / 1e4)
    return lambda _day: costs


def nse_index_future_costs(slippage_bps: float, traded: Instrument | None = None) -> CostModel:
    """The dated charges of an instrument, by default of the NIFTY future, plus `slippage_bps` of the order's value.

    The model raises DataError (`not_known`) for a day before the instrument's tables.
    """
    future = traded or instrument("NIFTY")

    @cache
    def on(day: date) -> OrderCosts:
        rates = future.charge_rates(day)
        taxed = 1.0 + rates.gst_ratio
        both = (rates.exchange_ratio + rates.sebi_ratio) * taxed + slippage_bps / 1e4
        return OrderCosts(
            brokerage_ratio=rates.brokerage_ratio * taxed,
            brokerage_cap=rates.brokerage_cap_rupees * taxed,
            buy_ratio=both + rates.stamp_ratio,
            sell_ratio=both + rates.stt_ratio,
            slice_units=future.freeze_units(day),
        )

    return on
