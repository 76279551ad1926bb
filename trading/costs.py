"""What an order costs: the dated charges of NSE index futures, and the flat rate of training and backtest.

Rates as brokers publish them (public pages, seen 2026-11); all are ratios of the order's value unless said:

    brokerage   the smaller of Rs 20 and 0.03 %, per order
    STT         sell side only, by date
    exchange    transaction charge and investor protection fund
    SEBI        turnover fee
    stamp duty  buy side only
    GST         18 % of brokerage + exchange + SEBI
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import astuple, dataclass
from datetime import date
from enum import IntEnum

import numpy as np
from numba import njit
from numpy.typing import NDArray


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
        return np.array(astuple(self))


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

BROKERAGE_RATIO = 0.0003
BROKERAGE_CAP_RUPEES = 20.0
EXCHANGE_RATIO = 0.0000183
SEBI_RATIO = 0.000001
STAMP_RATIO = 0.00002
GST_RATIO = 0.18
LOT_UNITS = 65.0  # NIFTY futures since January 2026
# First day of validity -> ratio; ascending.
STT_RATIOS = (
    (date.min, 0.0001),
    (date(2023, 4, 1), 0.000125),
    (date(2024, 10, 1), 0.0002),
    (date(2026, 4, 1), 0.0005),
)


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


def charges(side: Side, price: float, quantity: float, day: date) -> Charges:
    """Charges of one NSE index-future order: `quantity` units at `price` rupees, traded on `day`."""
    value = price * quantity
    brokerage = min(BROKERAGE_CAP_RUPEES, BROKERAGE_RATIO * value)
    exchange, sebi = EXCHANGE_RATIO * value, SEBI_RATIO * value
    return Charges(
        brokerage=brokerage,
        stt=stt_ratio(day) * value if side is Side.SELL else 0.0,
        exchange=exchange,
        sebi=sebi,
        stamp=STAMP_RATIO * value if side is Side.BUY else 0.0,
        gst=GST_RATIO * (brokerage + exchange + sebi),
    )


def stt_ratio(day: date) -> float:
    """Securities transaction tax on the sell side of an index future on `day`."""
    return STT_RATIOS[bisect_right(STT_RATIOS, day, key=lambda row: row[0]) - 1][1]


def round_trip_bps(price: float, quantity: float, day: date) -> float:
    """Charges of buying and selling `quantity` at `price`, in bps of the value of one side."""
    both = charges(Side.BUY, price, quantity, day).total + charges(Side.SELL, price, quantity, day).total
    return both / (price * quantity) * 1e4


def turnover_cost_bps(costs: OrderCosts, price: float) -> float:
    """What one unit of turnover costs: the mean of buying and selling one lot, in bps of its value."""
    both = costs.of(Side.BUY, price, LOT_UNITS) + costs.of(Side.SELL, price, LOT_UNITS)
    return both / 2 / (price * LOT_UNITS) * 1e4


def flat_costs(cost_bps: float) -> CostModel:
    """`cost_bps` of the order's value, charges and slippage together: what the models are trained on."""
    costs = OrderCosts(0.0, 0.0, cost_bps / 1e4, cost_bps / 1e4)
    return lambda _day: costs


def nse_index_future_costs(slippage_bps: float) -> CostModel:
    """The dated charges plus `slippage_bps` of the order's value."""
    both = (EXCHANGE_RATIO + SEBI_RATIO) * (1.0 + GST_RATIO) + slippage_bps / 1e4
    return lambda day: OrderCosts(
        brokerage_ratio=BROKERAGE_RATIO * (1.0 + GST_RATIO),
        brokerage_cap=BROKERAGE_CAP_RUPEES * (1.0 + GST_RATIO),
        buy_ratio=both + STAMP_RATIO,
        sell_ratio=both + stt_ratio(day),
    )
