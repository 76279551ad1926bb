"""Whatever happens at the exchange, however it is told: the ledger ends where the exchange is, and stays there.

Orders are acknowledged, lost on the way, late, or at the exchange twice; filled in parts, cancelled, rejected; streams
tell a part of it in any order and twice; parts of a snapshot are as of different times; a symbol changes hands; people
trade by hand; the process is killed.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from hypothesis import settings as effort
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from plain_exchange import Exchange

from core.settings import load_settings
from trading.gateway import SECOND_NS, Accepted, OrderGateway
from trading.ledger import Ledger, Order
from trading.market import day_of
from trading.ownership import Handover, Owner
from trading.reconcile import Findings, apply, blocked, heard, reconcile
from trading.standing import Ours, ours

RULES = load_settings(preset="compact", environ={}).trading.model_copy(update={"orders_per_s": 1_000_000})
NIFTY, BANK, OTHER = "NSE:NIFTY26NOVFUT", "NSE:BANKNIFTY26NOVFUT", "NSE:SBIN-EQ"
SYMBOLS = {NIFTY: "NIFTY", BANK: "BANKNIFTY"}
OWNERS = ("champion:ppo/v1", "challenger:hrm/v1")
START_NS = 1_795_000_000 * SECOND_NS
SETTLE_NS = 3 * SECOND_NS
INSTRUMENTS = st.sampled_from(sorted(SYMBOLS))
LAGS = st.tuples(*[st.sampled_from([0, 0, 1, 2]) for _ in range(3)])
SIZES = st.sampled_from([-130, -65, 65, 130])


class ReconciliationMachine(RuleBasedStateMachine):
    @initialize(adopt=st.booleans(), tagged=st.booleans())
    def begin(self, adopt: bool, tagged: bool) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.exchange = Exchange(tagged_trades=tagged)
        self.adopt, self.now_ns, self.sent, self.epoch = adopt, START_NS, 0, 1
        self.in_flight: dict[str, Order] = {}  # being sent: neither there nor given up
        self.on_the_way: dict[str, Order] = {}  # given up, and perhaps there later
        self.unknown: dict[str, int] = {}
        self.blocked = frozenset(SYMBOLS.values())
        self._open()

    def _open(self) -> None:
        self.ledger = Ledger(Path(self.folder.name) / "live.db")
        self.gateway = OrderGateway(self.ledger, RULES)

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            try:
                self.come_to_rest()
            finally:
                self.ledger.close()
                self.folder.cleanup()

    def _ours(self) -> Ours:
        return ours(self.ledger, day_of(self.now_ns), SYMBOLS)

    def _apply(self, findings: Findings) -> None:
        apply(findings, self.gateway, cost=lambda trade: abs(trade.units) / 10, adopt=self.adopt)

    def _place(self, order: Order) -> str:
        return self.exchange.place(self._tag(order.order_id), order.instrument, int(order.units), self.now_ns)

    def _tag(self, order_id: str) -> str:
        state = self.ledger.order(order_id)
        assert state is not None
        return state.tag

    @rule(seconds=st.sampled_from([1, 1, 4, 60]))
    def wait(self, seconds: int) -> None:
        self.now_ns += seconds * SECOND_NS

    @rule(
        instrument=INSTRUMENTS,
        units=SIZES,
        outcome=st.sampled_from(["acknowledged", "acknowledged", "answer lost", "lost", "in flight"]),
    )
    def send(self, instrument: str, units: int, outcome: str) -> None:
        self.sent += 1
        symbol = SYMBOLS[instrument]
        owner = str(self.gateway.book(symbol).owner or OWNERS[0])
        order_id = f"{symbol}:{self.sent}"
        order = Order(
            order_id, symbol, float(units), owner, self.epoch, self.now_ns, self.now_ns, instrument=instrument
        )
        if not isinstance(self.gateway.submit(order), Accepted):
            return
        if outcome in ("acknowledged", "answer lost"):
            broker_id = self._place(order)
        if outcome == "acknowledged":
            self.gateway.acknowledge(order_id, broker_id)
        elif outcome == "in flight":
            self.in_flight[order_id] = order
        else:
            self.unknown[order_id] = self.now_ns
            if outcome == "lost":
                self.on_the_way[order_id] = order

    @precondition(lambda self: self.in_flight)
    @rule(data=st.data(), there=st.booleans())
    def what_was_in_flight_arrives_or_is_given_up(self, data: Any, there: bool) -> None:
        order_id = data.draw(st.sampled_from(sorted(self.in_flight)))
        order = self.in_flight.pop(order_id)
        if there:
            self.gateway.acknowledge(order_id, self._place(order))
        else:
            self.unknown[order_id], self.on_the_way[order_id] = self.now_ns, order

    @precondition(lambda self: self.on_the_way)
    @rule(data=st.data())
    def what_was_given_up_arrives_after_all(self, data: Any) -> None:
        self._place(self.on_the_way.pop(data.draw(st.sampled_from(sorted(self.on_the_way)))))

    @precondition(lambda self: any(order.tag.startswith("HRM") for order in self.exchange.orders.values()))
    @rule(data=st.data())
    def an_order_is_there_twice(self, data: Any) -> None:
        ours = sorted(key for key, order in self.exchange.orders.items() if order.tag.startswith("HRM"))
        order = self.exchange.orders[data.draw(st.sampled_from(ours))]
        self.exchange.place(order.tag, order.instrument, order.units, self.now_ns)

    @precondition(lambda self: self.exchange.open_ids())
    @rule(data=st.data(), units=st.sampled_from([30, 65, 130]))
    def fill(self, data: Any, units: int) -> None:
        self.exchange.fill(data.draw(st.sampled_from(self.exchange.open_ids())), units, self.now_ns)

    @precondition(lambda self: self.exchange.open_ids())
    @rule(data=st.data(), status=st.sampled_from(["cancelled", "rejected"]))
    def end(self, data: Any, status: Any) -> None:
        self.exchange.end(data.draw(st.sampled_from(self.exchange.open_ids())), status, self.now_ns)

    @rule(
        instrument=st.sampled_from([NIFTY, BANK, OTHER]),
        units=SIZES,
        tag=st.sampled_from(["", "mine"]),
    )
    def trade_by_hand(self, instrument: str, units: int, tag: str) -> None:
        broker_id = self.exchange.place(tag, instrument, units, self.now_ns)
        self.exchange.fill(broker_id, abs(units), self.now_ns)

    @rule(data=st.data(), late_s=st.sampled_from([0, 0, 5]))
    def a_stream_tells_a_part_of_it(self, data: Any, late_s: int) -> None:
        all_orders = self.exchange.reports(self.now_ns - late_s * SECOND_NS)
        all_trades = self.exchange.trades
        orders = data.draw(st.lists(st.sampled_from(all_orders), max_size=3)) if all_orders else []
        trades = data.draw(st.lists(st.sampled_from(all_trades), max_size=3)) if all_trades else []
        for _ in range(2):
            self._apply(heard(self._ours(), orders, trades))
        assert not heard(self._ours(), orders, trades).changes

    @rule(lags=LAGS, shuffled=st.randoms(use_true_random=False))
    def a_snapshot_is_asked_for(self, lags: tuple[int, int, int], shuffled: Any) -> None:
        orders_s, trades_s, holdings_s = lags
        snapshot = self.exchange.snapshot(
            self.now_ns, (orders_s * SECOND_NS, trades_s * SECOND_NS, holdings_s * SECOND_NS)
        )
        parts = {name: [*getattr(snapshot, name)] * 2 for name in ("orders", "trades", "holdings")}
        for part in parts.values():
            shuffled.shuffle(part)
        disordered = snapshot.__class__(snapshot.at_ns, *(tuple(part) for part in parts.values()), 1e6)
        terms = {"unknown": dict(self.unknown), "settle_ns": SETTLE_NS}
        before = self._ours()
        findings = reconcile(before, snapshot, **terms)
        assert findings == reconcile(before, disordered, **terms)
        for order_id, reason in findings.cancelled:
            given_up_ns = self.unknown.get(order_id, 0)
            early = [each for each in self.exchange.of_tag(self._tag(order_id)) if each.at_ns <= given_up_ns]
            assert reason != "never_arrived" or not early
        self._apply(findings)
        again = reconcile(self._ours(), snapshot, **terms)
        assert not again.changes
        assert again.problems == findings.problems
        self.blocked = blocked(self.blocked, findings)
        for broker_id in findings.to_cancel:
            self.exchange.end(broker_id, "cancelled", self.now_ns)

    @rule(
        symbol=st.sampled_from(sorted(SYMBOLS.values())),
        to=st.sampled_from(OWNERS),
        mode=st.sampled_from(["adopt", "flatten"]),
    )
    def a_symbol_changes_hands(self, symbol: str, to: str, mode: Any) -> None:
        self.epoch += 1
        self.gateway.hand_over(Handover(symbol, Owner.parse(to), mode, self.epoch, self.now_ns))

    @rule()
    def the_process_is_killed(self) -> None:
        self.ledger.close()
        self._open()
        self.on_the_way |= self.in_flight
        self.in_flight = {}
        self.blocked = frozenset(SYMBOLS.values())
        self.unknown = {
            state.order.order_id: self.now_ns for state in self.ledger.unfinished() if state.broker_id is None
        }

    @invariant()
    def the_ledger_adds_up(self) -> None:
        if hasattr(self, "ledger"):
            assert self.ledger.discrepancies() == []

    def come_to_rest(self) -> None:
        """Nothing more happens: after some snapshots the ledger is where the exchange is."""
        self.on_the_way = {}
        for order_id in list(self.in_flight):
            self.unknown[order_id] = self.now_ns
        for _ in range(4):
            self.now_ns += 2 * SETTLE_NS
            self.a_snapshot_is_asked_for((0, 0, 0), _Still())
        assert self.blocked == frozenset()
        for instrument, symbol in SYMBOLS.items():
            apart = self._ours().apart.get(instrument, 0.0)
            assert self.ledger.units(symbol) + apart == self.exchange.held(instrument)
        for state in self._ours().orders.values():
            self._is_as_it_is_there(state.order.order_id)

    def _is_as_it_is_there(self, order_id: str) -> None:
        state = self.ledger.order(order_id)
        assert state is not None
        there = self.exchange.of_tag(state.tag)
        assert state.filled_units == sum(self.exchange.filled(each.broker_id) for each in there)
        still_open = [each.broker_id for each in there if each.ended is None]
        assert len(still_open) <= 1
        assert state.is_open == bool(still_open)
        if state.is_open:
            assert (state.status, state.broker_id) == ("open", still_open[0])
        elif abs(state.filled_units) >= abs(state.order.units):
            assert state.status == "filled"
        elif not there:
            assert (state.status, state.reason) == ("cancelled", "never_arrived")
        else:
            assert state.status in ("cancelled", "rejected")


class _Still:
    def shuffle(self, _rows: list[Any]) -> None:
        pass


TestReconciliation = ReconciliationMachine.TestCase
TestReconciliation.settings = effort(max_examples=25, stateful_step_count=30, deadline=None)
