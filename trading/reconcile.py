"""What a broker says against what the ledger says. Pure, but for `apply`.

    ours, told -> Findings -> apply -> ours'        and then reconcile(ours', told) finds nothing left to apply

`heard` takes what a stream tells and concludes nothing from what is missing. `reconcile` takes a whole snapshot; what
is missing in it counts once it should be there: after `settle_ns`. Whatever the order in which things are told, and
however often, the same facts lead to the same ledger, because facts only add up (a trade, a broker's id, an end).

    an order of ours        by its tag, or without one by the broker's id
    two with one tag        the trades of both are ours, and the newer one is cancelled
    open there, over here   (it came later than was waited for, or its owner lost the symbol) it is cancelled there
    in no snapshot          it is never sent again: after the settling time it never arrived
    made by hand            booked apart, or adopted (trading/gateway.py, `foreign`)
    positions               holdings are what all trades add up to; one that is missing is not flat
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from typing import Literal

from delivery.crash import crash_at
from trading.broker import OrderReport, Snapshot, Trade
from trading.gateway import OrderGateway
from trading.ledger import OrderState
from trading.market import day_of
from trading.standing import Ours
from trading.told import Told, age, sort_out

CLOSED_BEFORE = "if the broker closed it on a day before: `hrm trade closed`"
HELD_BEFORE = "what a person holds since a day before keeps it from being traded; close it before the next session"
ANOTHER_DESK = "another desk, or another ledger, trades on this account; end it, and close by hand what it holds"
Kind = Literal[
    "unknown_order",  # of our prefix, and not in this ledger: another one trades on this account
    "duplicate_order",  # two at the broker with one tag
    "altered",  # its units or its instrument are others there
    "order_missing",  # acknowledged today, and gone
    "overfill",  # more was traded than ordered
    "trades_behind",  # the order says that more is filled than there are trades
    "trade_missing",  # booked, and not there
    "conflict",  # what was told contradicts itself, or the order
    "position",  # the holding is not what the trades add up to
    "position_unknown",  # something should be held, and the snapshot does not mention it
]


@dataclass(frozen=True)
class Problem:
    kind: Kind
    symbol: str  # "": all of them
    detail: str
    blocks: bool = True  # nothing of the symbol is traded while it lasts


@dataclass(frozen=True)
class Findings:
    acknowledged: tuple[tuple[str, str], ...] = ()  # order id, the broker's id
    trades: tuple[tuple[str, Trade], ...] = ()  # order id
    cancelled: tuple[tuple[str, str], ...] = ()  # order id, why
    rejected: tuple[tuple[str, str], ...] = ()
    foreign: tuple[tuple[str | None, Trade], ...] = ()  # symbol, or None: of none of ours
    to_cancel: tuple[str, ...] = ()  # the broker's ids: may not stay open there
    problems: tuple[Problem, ...] = ()
    unsettled: tuple[str, ...] = ()  # symbols whose newest trades the snapshot may lack: positions were not judged

    @property
    def changes(self) -> bool:
        """Whether the ledger is another one once they are applied."""
        return bool(self.acknowledged or self.trades or self.cancelled or self.rejected or self.foreign)


def heard(ours: Ours, orders: Sequence[OrderReport] = (), trades: Sequence[Trade] = ()) -> Findings:
    """What follows from single reports."""
    return _merged(_from_what_is_told(ours, sort_out(ours, orders, trades)))


def reconcile(ours: Ours, snapshot: Snapshot, *, unknown: Mapping[str, int], settle_ns: int) -> Findings:
    """What follows from a whole snapshot.

    Args:
        unknown: since when the outcome of sending an order is unknown, by order id. An order that has no broker's id
            and is not among them is being sent: it is left alone.
        settle_ns: after that time what happened is in every answer of the broker.
    """
    told = sort_out(ours, snapshot.orders, snapshot.trades)
    so_far = _merged(_from_what_is_told(ours, told))
    since_ns = snapshot.at_ns - settle_ns
    unsettled = _unsettled(ours, told, since_ns)
    missing = [_missing(ours, state, unknown, since_ns) for state in ours.orders.values() if told.lacks(state)]
    problems = [
        *_trades_missing(ours, told, since_ns),
        *_trades_behind(ours, told),
        *_positions(ours, snapshot, so_far, unsettled),
    ]
    return _merged([so_far, *missing, Findings(problems=tuple(problems), unsettled=tuple(sorted(unsettled)))])


def apply(findings: Findings, gateway: OrderGateway, *, cost: Callable[[Trade], float], adopt: bool) -> None:
    """Put it on record; killed anywhere and repeated, it has the same effect. `cost`: of a trade, in rupees."""
    for order_id, broker_id in findings.acknowledged:
        gateway.acknowledge(order_id, broker_id)
    for order_id, trade in findings.trades:
        gateway.book_trade(order_id, trade, cost(trade))
        crash_at("trade_booked")
    for order_id, reason in findings.cancelled:
        gateway.cancel(order_id, reason)
    for order_id, reason in findings.rejected:
        gateway.reject(order_id, reason)
    for symbol, trade in findings.foreign:
        gateway.foreign(trade, symbol, adopt=adopt, cost=0.0 if symbol is None else cost(trade))


def blocked(before: frozenset[str], findings: Findings) -> frozenset[str]:
    """The symbols that may not be traded after a snapshot; "" among them: none may.

    What was blocked `before` stays so until a snapshot can judge it.
    """
    now = {problem.symbol for problem in findings.problems if problem.blocks}
    return frozenset(now) | before.intersection(findings.unsettled)


def _merged(parts: Iterable[Findings]) -> Findings:
    """All of them as one; problems sorted, each once."""
    parts = list(parts)
    joined = {each.name: sum((getattr(part, each.name) for part in parts), ()) for each in fields(Findings)}
    return Findings(**joined | {"problems": tuple(sorted(set(joined["problems"]), key=astuple))})


def _from_what_is_told(ours: Ours, told: Told) -> list[Findings]:
    orders = [_of_order(ours, state, told) for state in ours.orders.values()]
    by_hand = [trade for key, trade in told.foreign.items() if key not in ours.foreign]
    strange = [
        Problem("unknown_order", "", f"{broker_id} has our tag {tag}, and this ledger does not know it: {ANOTHER_DESK}")
        for broker_id, tag in told.strange
    ]
    conflicts = [
        Problem("conflict", symbol or "", _text(trade), symbol is not None) for symbol, trade in told.conflicts
    ]
    foreign = tuple((ours.symbols.get(trade.instrument), trade) for trade in by_hand)
    return [*orders, Findings(foreign=foreign, problems=(*strange, *conflicts))]


def _of_order(ours: Ours, state: OrderState, told: Told) -> Findings:
    order_id, reports = state.order.order_id, told.reports.get(state.order.order_id, [])
    own = told.own.get(order_id, {})
    ids = sorted({report.broker_id for report in reports} | {trade.broker_id for trade in own.values()}, key=age)
    if not ids:
        return Findings()
    kept = state.broker_id or ids[0]
    open_there = [report.broker_id for report in reports if report.status == "open"]
    stale = state.status == "filled" and len(ids) == 1  # it was asked for before it was filled
    wanted = kept if stale or state.status == "open" else None
    new = [trade for trade_id, trade in own.items() if (order_id, trade_id) not in ours.trades]
    filled = abs(state.filled_units + sum(trade.units for trade in new))
    end, why = _end_of(state, reports, kept, filled), "; ".join(filter(None, (each.message for each in reports)))
    return Findings(
        acknowledged=() if state.broker_id else ((order_id, kept),),
        trades=tuple((order_id, trade) for trade in new),
        cancelled=((order_id, why or "at the broker"),) if end == "cancelled" else (),
        rejected=((order_id, why or "at the broker"),) if end == "rejected" else (),
        to_cancel=tuple(each for each in open_there if each != wanted),
        problems=tuple(_of_order_problems(state, reports, [kept, *(each for each in ids if each != kept)], filled)),
    )


def _end_of(state: OrderState, reports: Sequence[OrderReport], kept: str, filled: float) -> str | None:
    """How an order ended at the broker; None while it may be filled there, or some of its trades are not here yet."""
    said = {report.broker_id: report.status for report in reports}
    told_filled = sum(abs(report.filled_units) for report in reports)
    if not state.is_open or kept not in said or {"open", "filled"}.intersection(said.values()):
        return None
    if not told_filled <= filled < abs(state.order.units):
        return None
    return "rejected" if set(said.values()) == {"rejected"} else "cancelled"


def _of_order_problems(
    state: OrderState, reports: Sequence[OrderReport], ids: Sequence[str], filled: float
) -> Iterator[Problem]:
    order, open_there = state.order, {report.broker_id for report in reports if report.status == "open"}
    if len(ids) > 1:
        detail = f"{order.order_id} is at the broker as {', '.join(ids)}"
        yield Problem("duplicate_order", order.symbol, detail, blocks=bool(open_there.intersection(ids[1:])))
    for report in reports:
        if (report.units, report.instrument) != (order.units, order.instrument):
            detail = f"{order.order_id} has {report.units} {report.instrument} at the broker, not {order.units}"
            yield Problem("altered", order.symbol, detail, blocks=report.broker_id in open_there)
    if filled > abs(order.units):
        detail = f"{filled} units of {order.order_id} were traded, {abs(order.units)} were ordered"
        yield Problem("overfill", order.symbol, detail, blocks=False)  # the gateway lets it only become smaller


def _missing(ours: Ours, state: OrderState, unknown: Mapping[str, int], since_ns: int) -> Findings:
    """An order that may still be filled, and that a snapshot does not mention."""
    order = state.order
    if state.broker_id is None:
        arrived_not = unknown.get(order.order_id, since_ns) < since_ns
        return Findings(cancelled=((order.order_id, "never_arrived"),) if arrived_not else ())
    if day_of(order.at_ns) < ours.day:
        return Findings(cancelled=((order.order_id, "its day is over"),))
    if order.at_ns >= since_ns:
        return Findings()
    detail = f"the broker had {order.order_id} as {state.broker_id}, and does not mention it any more"
    return Findings(problems=(Problem("order_missing", order.symbol, detail),))


def _trades_missing(ours: Ours, told: Told, since_ns: int) -> Iterator[Problem]:
    symbols = {state.order.order_id: state.order.symbol for state in ours.orders.values()}
    for (order_id, trade_id), at_ns in ours.trades.items():
        if trade_id not in told.own.get(order_id, {}) and at_ns < since_ns and day_of(at_ns) == ours.day:
            detail = f"trade {trade_id} of {order_id} is booked, and the broker does not mention it"
            yield Problem("trade_missing", symbols[order_id], detail)


def _trades_behind(ours: Ours, told: Told) -> Iterator[Problem]:
    for state in ours.orders.values():
        order, own = state.order, told.own.get(state.order.order_id, {})
        new = sum(trade.units for trade_id, trade in own.items() if (order.order_id, trade_id) not in ours.trades)
        said = sum(abs(report.filled_units) for report in told.reports.get(order.order_id, []))
        if said > abs(state.filled_units + new):
            detail = f"{said} units of {order.order_id} are filled, and trades tell of {abs(state.filled_units + new)}"
            yield Problem("trades_behind", order.symbol, detail)


def _unsettled(ours: Ours, told: Told, since_ns: int) -> set[str]:
    """Symbols whose newest trades may be in only a part of the snapshot, which is several answers."""
    symbols = {state.order.order_id: state.order.symbol for state in ours.orders.values()}
    own = {symbols[order_id] for (order_id, _), at_ns in ours.trades.items() if at_ns >= since_ns}
    by_hand = {where for where, at_ns in ours.foreign.values() if at_ns >= since_ns} | told.unclear
    trades = [*told.foreign.values(), *(trade for of_order in told.own.values() for trade in of_order.values())]
    traded = by_hand | {trade.instrument for trade in trades if trade.at_ns >= since_ns}
    return own | {ours.symbols[where] for where in traded if where in ours.symbols}


def _positions(ours: Ours, snapshot: Snapshot, so_far: Findings, unsettled: set[str]) -> Iterator[Problem]:
    expected = defaultdict(float, ours.units)
    for instrument, units in ours.apart.items():
        expected[instrument] += units
    for _, trade in (*so_far.trades, *so_far.foreign):
        expected[trade.instrument] += trade.units
    held: dict[str, set[int]] = defaultdict(set)
    for holding in snapshot.holdings:
        held[holding.instrument].add(holding.units)
    for instrument, symbol in ours.symbols.items():
        there, wanted = held[instrument], expected[instrument]
        if symbol in unsettled or there == {wanted}:
            continue
        if there:
            said = " and ".join(map(str, sorted(there)))
            yield Problem("position", symbol, f"{said} of {instrument} are held, trades make {wanted}; {HELD_BEFORE}")
        elif wanted:
            detail = f"nothing is said of {instrument}, trades make {wanted}; {CLOSED_BEFORE}"
            yield Problem("position_unknown", symbol, detail)


def _text(trade: Trade) -> str:
    return f"trade {trade.trade_id} of {trade.broker_id}: {trade.units} {trade.instrument} at {trade.price}"
