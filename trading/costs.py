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

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import astuple, dataclass
from datetime import date
from enum import IntEnum


class Side(IntEnum):
    """The sign of what an order adds to a position; also the broker's wire value."""

    SELL = -1
    BUY = 1


CostModel = Callable[[Side, float, float, date], float]  # side, price, quantity, day -> rupees of one order

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


def turnover_cost_bps(cost: CostModel, price: float, day: date) -> float:
    """What one unit of turnover costs under `cost`: the mean of buying and selling one lot, in bps of its value."""
    both = cost(Side.BUY, price, LOT_UNITS, day) + cost(Side.SELL, price, LOT_UNITS, day)
    return both / 2 / (price * LOT_UNITS) * 1e4


def flat_costs(cost_bps: float) -> CostModel:
    """`cost_bps` of the order's value, charges and slippage together: what the models are trained on."""
    return lambda _side, price, quantity, _day: price * quantity * cost_bps / 1e4


def nse_index_future_costs(slippage_bps: float) -> CostModel:
    """The dated charges plus `slippage_bps` of the order's value."""
    return lambda side, price, quantity, day: (
        charges(side, price, quantity, day).total + price * quantity * slippage_bps / 1e4
    )
