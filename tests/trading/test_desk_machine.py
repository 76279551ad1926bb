"""The desk between a service, an exchange and crashes, in every order: what must hold at every moment, and in the end.

The exchange is a plain model. It loses acknowledgements, fills in parts, tells twice, late or not at all; snapshots are
told late; the process ends before or after an event was handled. What is certain at every moment: no two live orders of
a symbol, no tag twice at the exchange, books that add up. In the end the ledger is what the exchange has, every bar has
its intent, and the log replayed over an empty ledger comes to the same rows.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from desk_world import DAY, World, a_bar, answer, make_desk, traded
from hypothesis import HealthCheck
from hypothesis import settings as effort
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from trading import events
from trading.broker import Snapshot
from trading.effects import Ask
from trading.event_replay import replay
from trading.market import SECOND_NS

SYMBOLS = st.sampled_from(["NIFTY", "BANKNIFTY"])
LOT = {"NIFTY": 65, "BANKNIFTY": 30}
LAG_NS = 2 * SECOND_NS  # of a snapshot, below `unknown_settle_s`


class DeskMachine(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.world = World(Path(self.folder.name))
        self.world.ready()
        self.taken: Snapshot | None = None  # and not told yet
        self.answered: list[tuple[Ask, Any]] = []
        self.over: set[str] = set()

    @rule(seconds=st.sampled_from([1, 1, 4, 25]))
    def time_goes_on(self, seconds: int) -> None:
        self.world.tick(seconds)

    @rule(symbol=SYMBOLS, last=st.sampled_from([False] * 7 + [True]))
    def a_bar_closes(self, symbol: str, last: bool) -> None:
        self.world.bar(symbol, last=last and symbol not in self.over)
        if last:
            self.over.add(symbol)

    @precondition(lambda self: self.world.asks)
    @rule(direction=st.sampled_from([-1, 0, 1, 1, -1]), lots=st.sampled_from([1, 2]), valid=st.integers(0, 9))
    def an_answer_comes(self, direction: int, lots: int, valid: int) -> None:
        ask = self.world.asks.pop(0)
        position = ask.request["accounts"]["champion"]["position"]
        said = answer(position, direction, quantity=float(lots * LOT[ask.symbol]))
        said = None if valid == 0 else answer(1, 0) if valid == 1 else said
        self.answered.append((ask, said))
        self.world.answer(ask, said)

    @precondition(lambda self: self.answered)
    @rule(data=st.data())
    def an_answer_comes_again(self, data: Any) -> None:
        self.world.answer(*data.draw(st.sampled_from(self.answered)))

    @precondition(lambda self: self.world.sends)
    @rule(fate=st.sampled_from(["placed", "placed", "placed", "ack lost", "lost", "declined", "unsent"]))
    def a_ticket_goes_out(self, fate: str) -> None:
        world = self.world
        order_id = world.sends[0].ticket.order_id
        if fate in ("placed", "ack lost"):
            world.place(acknowledged=fate == "placed")
        else:
            world.sends.pop(0)
        if fate in ("ack lost", "lost"):
            world.tell("unknown", events.reason_body(order_id, "timeout"))
        elif fate in ("declined", "unsent"):
            world.tell(fate, events.reason_body(order_id, fate))  # type: ignore[arg-type] # both are kinds

    def _open(self) -> list[str]:
        return [key for key, order in self.world.exchange.orders.items() if order.status == "open"]

    @precondition(lambda self: self._open())
    @rule(data=st.data(), part=st.booleans(), times=st.integers(0, 2))
    def the_exchange_fills(self, data: Any, part: bool, times: int) -> None:
        broker_id = data.draw(st.sampled_from(self._open()))
        left = self.world.exchange.orders[broker_id].left
        trade = self.world.exchange.fill(broker_id, left // 5 if part and left % 5 == 0 else left, self.world.now_ns)
        for _ in range(times):
            self.world.tell("trade", events.trade_body(trade))

    @precondition(lambda self: self._open())
    @rule(data=st.data(), status=st.sampled_from(["cancelled", "rejected"]), told=st.booleans())
    def the_exchange_ends_an_order(self, data: Any, status: str, told: bool) -> None:
        broker_id = data.draw(st.sampled_from(self._open()))
        self.world.exchange.end(broker_id, status)
        if told:
            self.world.tell("order", events.report_body(self.world.exchange.report(broker_id)))

    @precondition(lambda self: self.world.exchange.orders)
    @rule(data=st.data(), trade=st.booleans())
    def the_stream_repeats_itself(self, data: Any, trade: bool) -> None:
        exchange = self.world.exchange
        if trade and exchange.trades:
            self.world.tell("trade", events.trade_body(data.draw(st.sampled_from(exchange.trades))))
        else:
            broker_id = data.draw(st.sampled_from(sorted(exchange.orders)))
            self.world.tell("order", events.report_body(exchange.report(broker_id)))

    @rule()
    def cancels_arrive(self) -> None:
        self._cancel()

    def _cancel(self) -> None:
        for broker_id in self.world.cancels:
            self.world.exchange.end(broker_id, "cancelled")
        self.world.cancels.clear()

    @rule()
    def a_snapshot_is_told(self) -> None:
        self.world.snapshot()

    @rule()
    def a_snapshot_is_taken_and_lags(self) -> None:
        self.taken = self.world.exchange.snapshot(self.world.now_ns)

    @precondition(lambda self: self.taken is not None)
    @rule()
    def a_snapshot_is_told_late(self) -> None:
        taken, self.taken = self.taken, None
        at_ns = min(self.world.now_ns, taken.at_ns + LAG_NS)
        self.world.hear(Snapshot(at_ns, taken.orders, taken.trades, taken.holdings, taken.funds_rupees))

    @rule(state=st.sampled_from(["active", "active", "reducing", "halted"]), flatten=st.booleans())
    def the_switch_changes(self, state: Any, flatten: bool) -> None:
        self.world.state(state, flatten=flatten and state == "reducing")

    @rule()
    def the_process_ends(self) -> None:
        self.taken = None
        self.world.begin()

    @precondition(lambda self: self.world.exchange.trades)
    @rule(data=st.data())
    def the_process_ends_before_it_handles_a_trade(self, data: Any) -> None:
        trade = data.draw(st.sampled_from(self.world.exchange.trades))
        self.world.write_only("trade", events.trade_body(trade))
        self.the_process_ends()

    @precondition(lambda self: self.world.asks)
    @rule()
    def the_process_ends_before_it_handles_an_answer(self) -> None:
        ask = self.world.asks.pop(0)
        body = events.answer_body(
            ask.bar.timestamp_ns, None, asked=events.digest_of(ask.request), elapsed_ms=1.0, prices={}
        )
        self.world.write_only("answer", body, symbol=ask.symbol)
        self.the_process_ends()

    @rule(symbol=SYMBOLS)
    def the_process_ends_before_it_handles_a_bar(self, symbol: str) -> None:
        bar = a_bar(symbol, self.world.bars[symbol])
        self.world.bars[symbol] += 1
        self.world.now_ns = max(self.world.now_ns, bar.timestamp_ns + 300 * SECOND_NS)
        self.world.write_only("bar", events.bar_body(bar, self.world.prices()), symbol=symbol)
        self.the_process_ends()

    @invariant()
    def no_order_is_at_the_exchange_twice(self) -> None:
        if hasattr(self, "world"):
            orders = self.world.exchange.orders.values()
            assert max(Counter(order.ticket.tag for order in orders).values(), default=0) <= 1
            live = Counter(order.ticket.instrument for order in orders if order.status == "open")
            assert max(live.values(), default=0) <= 1

    @invariant()
    def the_books_add_up(self) -> None:
        if hasattr(self, "world"):
            assert self.world.ledger.discrepancies() == []

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        try:
            self._let_everything_end()
            self._compare_with_the_exchange()
            self._replay()
        finally:
            self.world.close()
            self.folder.cleanup()

    def _let_everything_end(self) -> None:
        world = self.world
        world.state("reducing")
        for _ in range(40):
            for symbol in LOT:
                world.asks.clear()
                if symbol not in self.over:
                    self.over.add(symbol)
                    world.bar(symbol, last=True)
            while world.sends:
                world.fill(world.place())
            self._cancel()
            world.tick(5)
            world.snapshot()
            if not world.sends and not world.ledger.unfinished() and not any(world.desk.blocked(each) for each in LOT):
                return
        raise AssertionError([(symbol, world.desk.blocked(symbol)) for symbol in LOT])

    def _compare_with_the_exchange(self) -> None:
        world = self.world
        there = world.exchange.units()
        for symbol in LOT:
            assert world.units(symbol) == there.get(traded(symbol), 0) == 0
            for number in range(world.bars[symbol]):
                bar_ns = a_bar(symbol, number).timestamp_ns
                decided = world.ledger.intent(f"{symbol}:{bar_ns}") or world.ledger.intent(
                    f"{symbol}:{bar_ns}:square_off"
                )
                assert decided is not None or number > self._last_bar(symbol), (symbol, number)
        assert len(world.exchange.trades) == sum(len(world.ledger.fills(symbol)) for symbol in LOT)

    def _last_bar(self, symbol: str) -> int:
        """The number of the bar at which the session ended for the desk."""
        found = [
            each for event in self.world.log.features(symbol) if event.kind == "bar" for each in events.bars_of(event)
        ]
        return next(at for at, bar in enumerate(found) if bar.last_of_session)

    def _replay(self) -> None:
        replayed = replay(self.world.ledger, DAY, self.world.settings, make_desk)
        assert replayed.differences == ()
        assert replayed.rows["fills"] == len(self.world.exchange.trades)


TestDesk = DeskMachine.TestCase
TestDesk.settings = effort(
    max_examples=12, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
