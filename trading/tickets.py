"""From an order to what is sent: the symbol traded on the day, slices the exchange takes, a limit on the price grid.

    limit = last price (1 +- collar), rounded to the tick into the collar: a purchase never above it, a sale never below

Prices are calculated in fractions of what their floats say in decimal: the same last price gives the same limit
everywhere, and the grid is met exactly. Units are signed (positive: bought), prices in rupees.
"""

from __future__ import annotations

import math
from datetime import date
from fractions import Fraction

from core.errors import DataError
from trading.broker import Ticket
from trading.instruments import Instrument, instrument

BPS = 10_000


def slices(units: float, traded: Instrument, day: date) -> list[int]:
    """The orders that `units` are sent as, one after the other: they add up to it.

    Each has as many whole lots as the exchange takes at once; what is no whole lot, such as units that somebody bought
    by hand, comes last. Raises DataError for no whole number of units, and where the exchange takes not even a lot.
    """
    if not (math.isfinite(units) and units and units % 1 == 0):
        raise DataError(f"{traded.name}: {units} units cannot be sent; an order has whole units", code="order_invalid")
    side, whole, freeze = (1 if units > 0 else -1), abs(int(units)), traded.freeze_units(day)
    if whole <= freeze:
        return [side * whole]
    most = traded.whole_lots(freeze, day)
    if not most:
        lot = traded.lot_units(day)
        raise DataError(f"{traded.name}: on {day} the exchange takes {freeze:g} units, less than a lot of {lot}")
    full, rest = divmod(whole, most)
    return [side * most] * full + ([side * rest] if rest else [])


def ticket(
    order_id: str, units: float, last_price: float, *, traded: Instrument, day: date, collar_bps: float
) -> Ticket:
    """One slice as it is sent. `last_price` is that of what is traded, not of its index.

    Raises DataError where there is no price, no tick is known (`not_known`) or no price above 0 is within the collar.
    """
    if not (math.isfinite(last_price) and last_price > 0):
        raise DataError(f"{traded.name}: {last_price} is no price; nothing is ordered without one", code="no_price")
    furthest = furthest_price(last_price, units, collar_bps)
    # The grid is coarser at higher prices, and the coarser one lies on the finer: of both prices the higher decides.
    tick = traded.tick_rupees(max(last_price, float(furthest)), day)
    limit = on_grid(furthest, units, tick)
    if limit <= 0:
        problem = f"no price above 0 is within {collar_bps:g} bps of {last_price}, in steps of {tick}"
        raise DataError(f"{traded.name}: {problem}", code="no_price")
    return Ticket(order_id, traded.traded_symbol(day), int(units), limit)


def furthest_price(last_price: float, units: float, collar_bps: float) -> Fraction:
    """The worst price that an order may be filled at."""
    collar = exact(collar_bps) / BPS
    return exact(last_price) * (1 + collar if units > 0 else 1 - collar)


def on_grid(furthest: Fraction, units: float, tick_rupees: float) -> float:
    """The nearest price on the grid that is no worse."""
    tick = exact(tick_rupees)
    return float((math.floor(furthest / tick) if units > 0 else math.ceil(furthest / tick)) * tick)


def exact(number: float) -> Fraction:
    """What a float says in decimal: 0.1 is a tenth."""
    return Fraction(repr(float(number)))


def require_tradable(name: str, day: date) -> Instrument:
    """What live orders for `name` are made of on `day`. Raises DataError saying what is not known, or not done.

    The signal is an index: a fund would be its own, told under one name by the broker where the desk listens for two.
    """
    traded = instrument(name)
    if traded.index is None:
        told = f"{traded.name} is not traded live: it has no index to take its bars from; trade the index's future"
        raise DataError(told, code="no_index")
    traded.traded_symbol(day)
    for table in ("lots", "freeze", "ticks"):
        try:
            getattr(traded, table).on(day)
        except DataError as error:
            raise DataError(f"{traded.name} is not traded live: its {table}: {error}", code=error.code) from None
    return traded
