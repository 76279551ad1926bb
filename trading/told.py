"""What a broker told, each thing once and by whose it is: the other side of a reconciliation (trading/reconcile.py)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from trading.broker import TAG_PREFIX, OrderReport, Trade
from trading.gateway import is_possible
from trading.ledger import OrderState
from trading.standing import Ours


@dataclass
class Told:
    reports: dict[str, list[OrderReport]] = field(default_factory=dict)  # by our order id, the oldest first
    own: dict[str, dict[str, Trade]] = field(default_factory=dict)  # by our order id and trade id, the oldest first
    foreign: dict[tuple[str, str], Trade] = field(default_factory=dict)  # by the broker's order id and trade id
    strange: set[tuple[str, str]] = field(default_factory=set)  # broker's id and tag: of our prefix, and not ours
    unclear: set[str] = field(default_factory=set)  # instruments with a trade that may be ours
    conflicts: list[tuple[str | None, Trade]] = field(default_factory=list)  # symbol, or None: of none of ours

    def lacks(self, state: OrderState) -> bool:
        """Whether an order that may still be filled was not mentioned."""
        return state.is_open and state.order.order_id not in self.reports and state.order.order_id not in self.own


def sort_out(ours: Ours, orders: Iterable[OrderReport], trades: Iterable[Trade]) -> Told:
    """The same for what is told in another order, or twice. Of two reports of one order the further one counts."""
    told, furthest = Told(), {report.broker_id: report for report in sorted(orders, key=_how_far)}
    for broker_id in sorted(furthest, key=age):
        _take_report(told, ours, furthest[broker_id])
    tags = {report.broker_id: report.tag for report in furthest.values()}  # "" as well: made by hand
    for trade in sorted(trades, key=lambda each: (each.at_ns, each.trade_id, repr(each))):
        _take_trade(told, ours, trade, trade.tag or tags.get(trade.broker_id))
    return told


def age(broker_id: str) -> tuple[int, str]:
    """A broker numbers orders as they come."""
    return len(broker_id), broker_id


def _how_far(report: OrderReport) -> tuple[bool, int, str]:
    return report.status != "open", abs(report.filled_units), repr(report)


def _take_report(told: Told, ours: Ours, report: OrderReport) -> None:
    state = ours.order_of(report.tag, report.broker_id, report.instrument)
    if state is not None:
        told.reports.setdefault(state.order.order_id, []).append(report)
    elif report.tag.startswith(TAG_PREFIX):
        told.strange.add((report.broker_id, report.tag))


def _take_trade(told: Told, ours: Ours, trade: Trade, tag: str | None) -> None:
    """`tag` is None where neither the trade nor its order tells it."""
    state = ours.order_of(tag or "", trade.broker_id, trade.instrument)
    if state is not None:
        of_order = told.own.setdefault(state.order.order_id, {})
        agrees = is_possible(trade, state.order) and _agree(of_order.setdefault(trade.trade_id, trade), trade)
        symbol: str | None = state.order.symbol
    elif tag is None:
        told.unclear.add(trade.instrument)  # until a snapshot has its order
        return
    elif tag.startswith(TAG_PREFIX):
        told.strange.add((trade.broker_id, tag))
        return
    else:
        key = (trade.broker_id, trade.trade_id)
        agrees = is_possible(trade) and _agree(told.foreign.setdefault(key, trade), trade)
        symbol = ours.symbols.get(trade.instrument)
    if not agrees:
        told.conflicts.append((symbol, trade))


def _agree(one: Trade, other: Trade) -> bool:
    return (one.units, one.price, one.instrument) == (other.units, other.price, other.instrument)
