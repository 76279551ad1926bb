"""An exchange in the plainest way: what happened and when. Any part of a snapshot is as of a time of its own."""

from __future__ import annotations

from dataclasses import dataclass, field

from trading.broker import Holding, OrderReport, OrderStatus, Snapshot, Trade


@dataclass
class There:
    """An order as the exchange has it."""

    broker_id: str
    tag: str
    instrument: str
    units: int
    at_ns: int
    ended: tuple[int, OrderStatus] | None = None  # when and how


@dataclass
class Exchange:
    orders: dict[str, There] = field(default_factory=dict)
    trades: list[Trade] = field(default_factory=list)
    tagged_trades: bool = True  # False: only the order says whose a trade is

    def place(self, tag: str, instrument: str, units: int, at_ns: int) -> str:
        broker_id = str(8 + len(self.orders))  # so that 10 comes after 9
        self.orders[broker_id] = There(broker_id, tag, instrument, units, at_ns)
        return broker_id

    def fill(self, broker_id: str, units: int, at_ns: int) -> None:
        """Up to `units` of what is left of an order, whatever its direction."""
        order = self.orders[broker_id]
        left = order.units - self.filled(broker_id)
        size = min(units, abs(left)) * (1 if left > 0 else -1)
        tag = order.tag if self.tagged_trades else ""
        self.trades.append(Trade(f"t{len(self.trades)}", broker_id, tag, order.instrument, size, 100.0, at_ns))
        if size == left:
            order.ended = (at_ns, "filled")

    def end(self, broker_id: str, status: OrderStatus, at_ns: int) -> None:
        if self.orders[broker_id].ended is None:
            self.orders[broker_id].ended = (at_ns, status)

    def filled(self, broker_id: str, as_of_ns: int = 1 << 62) -> int:
        return sum(each.units for each in self.trades if each.broker_id == broker_id and each.at_ns <= as_of_ns)

    def of_tag(self, tag: str) -> list[There]:
        return [order for order in self.orders.values() if order.tag == tag]

    def open_ids(self) -> list[str]:
        return [order.broker_id for order in self.orders.values() if order.ended is None]

    def reports(self, as_of_ns: int) -> list[OrderReport]:
        return [self._report(order, as_of_ns) for order in self.orders.values() if order.at_ns <= as_of_ns]

    def _report(self, order: There, as_of_ns: int) -> OrderReport:
        ended = order.ended is not None and order.ended[0] <= as_of_ns
        status = order.ended[1] if ended and order.ended else "open"
        filled = self.filled(order.broker_id, as_of_ns)
        return OrderReport(order.broker_id, order.tag, order.instrument, order.units, filled, status)

    def held(self, instrument: str, as_of_ns: int = 1 << 62) -> int:
        return sum(each.units for each in self.trades if each.instrument == instrument and each.at_ns <= as_of_ns)

    def snapshot(self, at_ns: int, lags_ns: tuple[int, int, int] = (0, 0, 0)) -> Snapshot:
        """Asked for at `at_ns`; orders, trades and holdings as they were so long before."""
        orders_ns, trades_ns, holdings_ns = (at_ns - lag_ns for lag_ns in lags_ns)
        trades = tuple(each for each in self.trades if each.at_ns <= trades_ns)
        touched = sorted({each.instrument for each in self.trades if each.at_ns <= holdings_ns})
        holdings = tuple(Holding(instrument, self.held(instrument, holdings_ns)) for instrument in touched)
        return Snapshot(at_ns, tuple(self.reports(orders_ns)), trades, holdings, 1e6)
