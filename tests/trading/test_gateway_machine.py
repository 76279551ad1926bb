"""The real gateway against a plain model of it, under orders, trades, hand-overs and crashes in every order."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from gateway_model import Model
from hypothesis import settings as effort
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from core.settings import load_settings
from trading.broker import Trade
from trading.gateway import OrderGateway, Refused
from trading.ledger import Ledger, Order
from trading.ownership import Book, Handover, Owner

RULES = load_settings(preset="compact", environ={}).trading.model_copy(update={"orders_per_s": 1_000_000})
SYMBOLS = st.sampled_from(["NIFTY", "BANKNIFTY"])
OWNERS = st.sampled_from(["champion:ppo/v1", "challenger:hrm/v1", "champion:hrm/v1"])
UNITS = st.sampled_from([-4, -2, -1, 1, 2, 4])
AGES = st.sampled_from([0, 0, 0, 1, 2, -1, None])  # of an order's epoch; negative: newer than any before; None: an exit
MODES = st.sampled_from(["adopt", "reduce_only", "flatten", "freeze"])
HIGH = 1e6  # a limit price that the judge forbids


class Crash(BaseException):
    """The process ends before a commit."""


def judge(order: Order, _book: Book) -> tuple[str, str] | None:
    return ("forbidden", "too high") if order.limit_price == HIGH else None


class GatewayMachine(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.model = Model()
        self.sent = 0
        self._open()

    def _open(self) -> None:
        self.ledger = Ledger(Path(self.folder.name) / "paper.db")
        self.gateway = OrderGateway(self.ledger, RULES, judge)

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            self.ledger.close()
            self.folder.cleanup()

    def _order(self, symbol: str, owner: str, units: int, age: int | None, *, live: bool, price: float = 1.0) -> Order:
        self.sent += 1
        epoch = None if age is None else self.model.fence - age
        where = {"instrument": symbol if live else "", "limit_price": price}
        return Order(f"o{self.sent}", symbol, float(units), owner, epoch, self.sent, 0, f"d{self.sent}", **where)

    @rule(symbol=SYMBOLS, owner=OWNERS, units=UNITS, age=AGES, live=st.booleans(), price=st.sampled_from([1.0, HIGH]))
    def submit(self, symbol: str, owner: str, units: int, age: int | None, live: bool, price: float) -> None:
        self._submit(self._order(symbol, owner, units, age, live=live, price=price))

    @rule(symbol=SYMBOLS, units=UNITS, age=AGES, closing=st.booleans(), live=st.booleans())
    def submit_for_the_owner(self, symbol: str, units: int, age: int | None, closing: bool, live: bool) -> None:
        held = self.model.held.get(symbol)
        if held and closing and held.units:
            units = abs(units) * (-1 if held.units > 0 else 1)
        self._submit(self._order(symbol, held.owner if held else "champion:ppo/v1", units, age, live=live))

    def _submit(self, order: Order) -> None:
        result = self.gateway.submit(order)
        expected = self.model.submit(order, forbidden=order.limit_price == HIGH)
        assert (result.reason if isinstance(result, Refused) else result.status) == expected

    def _some(self, data: Any) -> str:
        return str(data.draw(st.sampled_from(sorted(self.model.sent))))

    @precondition(lambda self: self.model.sent)
    @rule(data=st.data(), other=st.booleans())
    def submit_again(self, data: Any, other: bool) -> None:
        order = self.model.sent[self._some(data)].order
        units = 2 * order.units if other else order.units
        self._submit(Order(order.order_id, order.symbol, units, order.owner, order.epoch, self.sent, 0))

    @precondition(lambda self: self.model.sent)
    @rule(data=st.data(), late=st.booleans())
    def fill_soon_late_or_twice(self, data: Any, late: bool) -> None:
        """Whatever the gateway accepted, cancelled or not: the broker may have been faster."""
        cancelled = sorted(order_id for order_id, s in self.model.sent.items() if s.status == "cancelled")
        order_id = data.draw(st.sampled_from(cancelled)) if late and cancelled else self._some(data)
        assert self.gateway.fill(order_id, 100.0, 0.0, self.sent) == self.model.fill(order_id)

    @precondition(lambda self: self.model.sent)
    @rule(data=st.data(), trade_id=st.sampled_from(["t1", "t2", "t3"]), units=st.integers(1, 3))
    def trade_a_part_again_or_too_much(self, data: Any, trade_id: str, units: int) -> None:
        order_id = self._some(data)
        order = self.model.sent[order_id].order
        trade = Trade(trade_id, "b", "", order.instrument, units if order.units > 0 else -units, 100.0, self.sent)
        expected = self.model.trade(order_id, trade_id, trade.units)
        assert self.gateway.book_trade(order_id, trade, 0.5) == expected

    @rule(symbol=SYMBOLS, trade_id=st.sampled_from(["h1", "h2", "h3", "h4"]), units=UNITS, adopt=st.booleans())
    def trade_by_hand(self, symbol: str, trade_id: str, units: int, adopt: bool) -> None:
        trade = Trade(trade_id, "by hand", "", symbol, units, 100.0, 0)
        assert self.gateway.foreign(trade, symbol, adopt=adopt) == self.model.foreign(symbol, trade_id, units, adopt)

    @precondition(lambda self: self.model.sent)
    @rule(data=st.data(), broker_id=st.sampled_from(["b1", "b2"]))
    def acknowledge(self, data: Any, broker_id: str) -> None:
        order_id = self._some(data)
        assert self.gateway.acknowledge(order_id, broker_id) == self.model.acknowledge(order_id, broker_id)

    @precondition(lambda self: self.model.sent)
    @rule(data=st.data(), rejected=st.booleans())
    def end(self, data: Any, rejected: bool) -> None:
        order_id = self._some(data)
        if rejected:
            assert self.gateway.reject(order_id, "no funds") == self.model.end(order_id, "rejected")
        else:
            assert self.gateway.cancel(order_id, "too old") == self.model.end(order_id, "cancelled")

    @rule(symbol=SYMBOLS, to=OWNERS, mode=MODES, age=st.sampled_from([-1, -1, 0, 1]), again=st.booleans())
    def hand_over(self, symbol: str, to: str, mode: Any, age: int, again: bool) -> None:
        handover = Handover(symbol, Owner.parse(to), mode, self.model.fence - age, self.sent, self.sent + 100)
        for _ in range(1 + again):
            expected = self.model.hand_over(symbol, to, mode, handover.epoch)
            assert self.gateway.hand_over(handover) == expected

    @rule(ahead=st.integers(-2, 2))
    def see_an_epoch(self, ahead: int) -> None:
        self.gateway.raise_fence(self.model.fence + ahead)
        self.model.fence = max(self.model.fence, self.model.fence + ahead)

    @rule(symbol=SYMBOLS)
    def release(self, symbol: str) -> None:
        held = self.model.held.get(symbol)
        assert self.gateway.release(symbol, self.sent) == (held is not None and held.mode != "normal")
        if held is not None:
            held.mode = "normal"

    @rule(symbol=SYMBOLS, owner=OWNERS, units=UNITS, mode=MODES, data=st.data())
    def crash_before_the_commit(self, symbol: str, owner: str, units: int, mode: Any, data: Any) -> None:
        """Nothing has happened, and the next process goes on from there."""
        epoch = self.model.fence + 1
        lost = Trade("lost", "lost", "", symbol, units, 1.0, 0)
        steps = [
            lambda: self.gateway.submit(Order("lost", symbol, float(units), owner, epoch, self.sent, 0)),
            lambda: self.gateway.hand_over(Handover(symbol, Owner.parse(owner), mode, epoch, self.sent)),
            lambda: self.gateway.foreign(lost, symbol, adopt=True),
            *(lambda each=each: self.gateway.fill(each, 1.0, 0.0, 0) for each in sorted(self.model.sent)),
            *(lambda each=each: self.gateway.acknowledge(each, "lost") for each in sorted(self.model.sent)),
        ]
        step = steps[data.draw(st.integers(0, len(steps) - 1))]
        sa.event.listen(self.ledger.engine, "commit", _crash)
        try:
            step()
            raise AssertionError("the crash was handled")
        except Crash:
            self.ledger.engine.dispose()
        self._open()

    @rule()
    def reopen(self) -> None:
        self.ledger.close()
        self._open()

    @invariant()
    def owners_hold_what_the_broker_does(self) -> None:
        if not hasattr(self, "ledger"):
            return
        model, ledger = self.model, self.ledger
        assert ledger.discrepancies() == []
        assert ledger.holdings() == {key: units for key, units in model.booked.items() if units}
        for symbol, held in model.held.items():
            book = self.gateway.book(symbol)
            assert (str(book.owner), book.units, book.mode) == (held.owner, held.units, held.mode)
            assert ledger.units(symbol) == model.broker.get(symbol, 0) == held.units
            open_orders = {order.order_id for order in ledger.open_orders(symbol)}
            assert open_orders == {
                order_id for order_id, s in model.sent.items() if s.is_open and s.order.symbol == symbol
            }

    @invariant()
    def orders_are_as_they_were_left(self) -> None:
        if not hasattr(self, "ledger"):
            return
        for order_id, sent in self.model.sent.items():
            state = self.ledger.order(order_id)
            assert state is not None
            assert (state.status, state.filled_units, state.broker_id) == (sent.status, sent.filled, sent.broker_id)
            assert state.open_units == (sent.left if sent.is_open else 0)
            if sent.status == "open":
                assert sent.order.owner == self.model.held[sent.order.symbol].owner

    @invariant()
    def fills_keep_their_decisions(self) -> None:
        if hasattr(self, "ledger"):
            fills = [fill for symbol in self.model.held for fill in self.ledger.fills(symbol)]
            own = [fill for fill in fills if fill.order_id]
            assert all(fill.decision_id == self.model.sent[fill.order_id].order.decision_id for fill in own)
            assert max(Counter((fill.order_id, fill.trade_id) for fill in own).values(), default=0) <= 1


def _crash(_connection: object) -> None:
    raise Crash


TestGateway = GatewayMachine.TestCase
TestGateway.settings = effort(max_examples=30, stateful_step_count=30, deadline=None)
