"""What becomes of intents at a broker: orders of whole slices, one at a time, and exits until nothing is held.

A decision is sent once: its next slice (freeze quantity) when the one before is wholly filled, and what the broker
does not take ends it. An exit is sent again until the symbol is flat, with a bounded number of orders that came to
nothing; then a person is called. Every order is accepted by the gateway, durably, before its ticket is handed out, and
an order that is on record is never handed out again: whether it arrived is found out by its tag (trading/reconcile.py).

Order ids: the intent's own, then with /2, /3 ... at the end.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from typing import get_args

from core.errors import DataError
from core.settings import Settings
from delivery.crash import crash_at
from trading import tickets
from trading.broker import Ticket
from trading.effects import Alert, CancelOrder, Effect, Report, Send, Severity
from trading.gateway import OrderGateway, Reason, Refused
from trading.instruments import instrument
from trading.intents import order_of
from trading.ledger import Intent, Order, OrderState
from trading.limits import Limits
from trading.market import SECOND_NS, day_of
from trading.ownership import Book
from trading.risk import closing_part
from trading.stream import Bar

MOST_FAILED_EXITS = 10  # orders of one exit that came to nothing
EXIT_WAIT_MAX_S = 30.0  # from one that came to nothing to the next; the first comes a second later, then twice as long
OF_THE_GATEWAY = frozenset(get_args(Reason))  # reasons for which a decision does not count at all


class Execution:
    """The venue of a desk's traders. `effects` are what it wants done; whoever takes them empties the list."""

    def __init__(
        self, gateway: OrderGateway, limits: Limits, settings: Settings, agrees: Callable[[str], bool]
    ) -> None:
        """`agrees`: whether a symbol is known to be with the broker what it is here."""
        self.gateway, self.ledger, self.limits, self.settings = gateway, gateway.ledger, limits, settings
        self.agrees = agrees
        self.effects: list[Effect] = []
        self.counts: Counter[str] = Counter()
        self.exits: dict[str, Intent] = {}  # by symbol: until it is flat
        self._decisions: dict[str, Intent] = {}  # by symbol: whose slices are not all sent
        self._asked_ns: dict[str, int] = {}  # when an order's cancellation was last asked for
        self._refused: set[str] = set()  # symbols whose exit is not taken, until something changes
        self._told: set[str] = set()
        self._latest_ns = 0  # when the newest order goes out: the order rate may make it later than now

    def opened(self, symbol: str, bar: Bar) -> None:
        """A decision is over when its bar is."""
        self._decisions.pop(symbol, None)
        self._refused.discard(symbol)

    def report(self, symbol: str, day: date, champion_bps: float, challenger_bps: float) -> None:
        self.effects.append(Report(symbol, day, champion_bps, challenger_bps))

    def cancel(self, order: Order) -> None:
        state = self.ledger.order(order.order_id)
        if state is not None:
            self._cancel(state)

    def send(self, intent: Intent) -> None:
        """Nothing, while it is not known what the broker has."""
        if intent.is_exit:
            self.close(intent, 0.0)
        elif self.agrees(intent.symbol) and not self.ledger.orders_of(intent.intent_id):
            self._decisions[intent.symbol] = intent
            self._decide(intent.symbol)

    def order(self, intent: Intent, order_id: str) -> str | None:
        """Hand out an order of a person's, whole or not at all; why it is refused. None: it was accepted."""
        try:
            pieces = tickets.slices(intent.order_units, instrument(intent.symbol), day_of(self.limits.now_ns))
        except DataError as error:
            return f"{error.code}: {error}"
        if len(pieces) > 1:
            return f"above_freeze: the exchange takes {abs(pieces[0])} units at once"
        return self._submit(intent, order_id, self.gateway.book(intent.symbol))

    def close(self, intent: Intent, price: float) -> None:
        self._decisions.pop(intent.symbol, None)
        self.exits[intent.symbol] = intent

    def retry(self) -> None:
        """Something changed: what the gateway refused may be asked for again."""
        self._refused.clear()

    def advance(self, *, retry: bool) -> None:
        """Cancel what is over, and send what is next. `retry`: it is time for exits that came to nothing."""
        busy = set()
        for state in self.ledger.unfinished():
            busy.add(state.order.symbol)
            if self._is_over(state):
                self._cancel(state)
        for symbol in [each for each in self.exits if each not in busy and self.agrees(each)]:
            self._exit(symbol, retry=retry)
        for symbol in [each for each in self._decisions if each not in busy and self.agrees(each)]:
            self._decide(symbol)

    def _is_over(self, state: OrderState) -> bool:
        order, exit_ = state.order, self.exits.get(state.order.symbol)
        if state.status == "cancelling" or self.limits.state == "halted":
            return True
        if exit_ is not None and order.order_id.split("/")[0] != exit_.intent_id:
            return True
        if self.limits.state == "reducing" and not self.gateway.book(order.symbol).reduces(state.open_units, 0.0):
            return True
        return self.limits.now_ns - order.at_ns > self.settings.live.order_lifetime_s * SECOND_NS

    def _cancel(self, state: OrderState) -> None:
        """Ask for it, now and then; what the broker has not acknowledged cannot be named to it."""
        order_id, now_ns = state.order.order_id, self.limits.now_ns
        again_ns = self._asked_ns.get(order_id, -1) + self.settings.live.snapshot_s * SECOND_NS
        if state.broker_id is not None and (order_id not in self._asked_ns or now_ns >= again_ns):
            self._asked_ns[order_id] = now_ns
            self.effects.append(CancelOrder(state.broker_id))

    def _exit(self, symbol: str, *, retry: bool) -> None:
        intent, book = self.exits[symbol], self.gateway.book(symbol)
        if not book.units:
            del self.exits[symbol]
            return
        orders = self.ledger.orders_of(intent.intent_id)
        failed = sum(each.status != "filled" for each in orders)
        if failed >= MOST_FAILED_EXITS:
            self._tell("critical", f"{symbol}: {book.units:g} units are left after {failed} orders; close them by hand")
        elif symbol not in self._refused and self._may_exit(orders, failed, retry=retry):
            closing = replace(intent, reason="square_off", order_units=-book.units, owner=str(book.owner))
            refusal = self._submit(closing, _order_id(intent, orders), book)
            if refusal is not None:
                self._tell("critical", f"{symbol}: {book.units:g} units are to be closed, and {refusal}")
                if not refusal.startswith("no_price"):
                    self._refused.add(symbol)

    def _may_exit(self, orders: list[OrderState], failed: int, *, retry: bool) -> bool:
        """Later each time: ten orders that come to nothing outlast a minute for which the broker has shut us out."""
        if not orders or orders[-1].status == "filled":
            return True
        wait_s = min(2.0 ** (failed - 1), EXIT_WAIT_MAX_S)
        return retry and self.limits.now_ns - orders[-1].order.at_ns >= wait_s * SECOND_NS

    def _decide(self, symbol: str) -> None:
        """The next slice of a decision."""
        intent = self._decisions[symbol]
        orders, book = self.ledger.orders_of(intent.intent_id), self.gateway.book(symbol)
        rest = intent.order_units - sum(each.filled_units for each in orders)
        if any(each.status != "filled" for each in orders) or rest * intent.order_units <= 0:
            del self._decisions[symbol]
            return
        refusal = self._submit(replace(intent, order_units=rest), _order_id(intent, orders), book)
        if refusal is None:
            return
        del self._decisions[symbol]
        self._tell("warning", f"{intent.intent_id}: {rest:g} units are not ordered, {refusal}")
        if not orders and refusal.split(":")[0] not in OF_THE_GATEWAY and closing_part(rest, book.units) != rest:
            self.exits[symbol] = intent  # the other side of zero is refused: what is held goes all the same
            self._exit(symbol, retry=False)

    def _submit(self, intent: Intent, order_id: str, book: Book) -> str | None:
        """Hand out the ticket of the first slice of an intent, once the gateway has accepted it; else why not."""
        try:
            ticket = self._ticket(intent, order_id, book)
        except DataError as error:
            self.counts[f"refused:{error.code}"] += 1
            return f"{error.code}: {error}"
        order = replace(
            order_of(replace(intent, order_units=float(ticket.units)), max(self.limits.now_ns, self._latest_ns)),
            order_id=order_id,
            instrument=ticket.instrument,
            limit_price=ticket.limit_price,
        )
        self.limits.orders = self.ledger.unfinished()
        while isinstance(result := self.gateway.submit(order), Refused):
            if result.retry_at_ns is None:
                self.counts[f"refused:{result.reason}"] += 1
                return f"{result.reason}: {result.detail}"
            order = replace(order, at_ns=result.retry_at_ns)
        crash_at("order_accepted")
        self.counts["orders"] += 1
        self._latest_ns = order.at_ns
        self.effects.append(Send(ticket, order.at_ns))
        return None

    def _ticket(self, intent: Intent, order_id: str, book: Book) -> Ticket:
        """Raises DataError where there is no price, or what is held is of a contract that is not traded any more."""
        symbol, day = intent.symbol, day_of(self.limits.now_ns)
        price, held = self.limits.prices.get(symbol), self.limits.money.instruments.get(symbol)
        if price is None:
            raise DataError(f"no price of {symbol} yet", code="no_price")
        traded = instrument(symbol)
        units = tickets.slices(intent.order_units, traded, day)[0]
        collar_bps = self.settings.risk.collar_bps
        ticket = tickets.ticket(order_id, units, price.rupees, traded=traded, day=day, collar_bps=collar_bps)
        if book.units and held != ticket.instrument:
            raise DataError(f"{held} is held, and {ticket.instrument} traded; close it by hand", code="other_contract")
        return replace(ticket, desk=self.ledger.desk)

    def _tell(self, severity: Severity, text: str) -> None:
        """Once each."""
        if text not in self._told:
            self._told.add(text)
            self.effects.append(Alert(severity, text))


def _order_id(intent: Intent, orders: list[OrderState]) -> str:
    return intent.intent_id if not orders else f"{intent.intent_id}/{len(orders) + 1}"
