"""The core of live trading: events in, effects out, and the ledger between them.

Everything that happens is an event (trading/events.py); what the desk wants done are effects (trading/effects.py). It
touches nothing but its ledger and its memory: no clock (the time is the event's), no network, no thread, nothing
random. The same events over the same ledger give the same rows, so a replay of the log is the day again, and a desk
that is made anew after a crash reads the bars, handles the last event again and goes on: every step has an id that
follows from symbol and bar, and is on record before its effect is handed out.

Nothing is decided or sent before the switch and an agreed snapshot of the broker are known, nor for a symbol that has
an order at the broker or is not there what it is here. A bar that is not decided is a HOLD on record with its reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from functools import cache
from typing import Any

import structlog

from core.errors import DataError
from core.observation import ObservationSchema
from core.settings import Settings
from delivery.crash import crash_at
from trading import hands, manual, reconcile
from trading.broker import OrderReport, Snapshot, Trade
from trading.costs import CostModel, trade_rupees
from trading.effects import Alert, Ask, CancelOrder, Effect, Severity, TakeSnapshot
from trading.events import (
    Event,
    EventLog,
    answer_of,
    bars_of,
    quotes_of,
    report_of,
    snapshot_of,
    switch_of,
    trade_of,
)
from trading.execution import Execution
from trading.gateway import OrderGateway
from trading.instruments import instrument
from trading.ledger import Ledger
from trading.limits import Limits
from trading.market import SECOND_NS, day_of
from trading.reconcile import Findings, Problem
from trading.risk import Equity
from trading.standing import concerned, ours
from trading.stream import Bar
from trading.trader import Trader

log = structlog.get_logger(__name__)


class Desk:
    """All symbols over one ledger, which nobody else writes. `handle` an event that is in the log; `recover` first."""

    def __init__(
        self,
        ledger: Ledger,
        settings: Settings,
        costs: Mapping[str, CostModel],
        *,
        session_bars: int,
        observation: ObservationSchema | None = None,
    ) -> None:
        """`costs`: what orders of each symbol cost; its keys are the symbols, names of trading/instruments.py."""
        self.ledger, self.settings, self.costs = ledger, settings, costs
        self.found = ledger.rows()  # before anything was done: how far the process before came
        self.limits = Limits(ledger, settings, costs)
        self.gateway = OrderGateway(ledger, settings.trading, self.limits.judge)
        self.execution = Execution(self.gateway, self.limits, settings, self._agrees)
        self.counts: Counter[str] = self.execution.counts
        self.traders = {
            symbol: Trader(
                symbol,
                self.gateway,
                self.execution,
                settings=settings,
                cost=cost,
                session_bars=session_bars,
                observation=observation,
            )
            for symbol, cost in costs.items()
        }
        self._asked: dict[str, Bar] = {}  # by symbol: the bar whose answer is to come
        self._unasked: dict[str, Bar] = {}  # by symbol: the bar that a crash kept from being asked about
        self._over: dict[str, int] = {}  # by symbol: the session whose last bar was seen
        self._unknown: dict[str, int] = {}  # by order: since when its outcome is
        self._started = False
        self._disagreeing: frozenset[str] = frozenset({"", *costs})
        self._problems: frozenset[Problem] = frozenset()
        self._told: frozenset[Problem] = frozenset()
        self._snapshot: Snapshot | None = None
        self._handlers: dict[str, Callable[[Event], None]] = {
            "start": self._on_start,
            "history": self._on_history,
            "bar": self._on_bar,
            "answer": self._on_answer,
            "placed": self._on_placed,
            "declined": self._on_declined,
            "unknown": self._on_unknown,
            "unsent": self._on_unsent,
            "order": lambda event: self._on_heard(orders=[report_of(event)]),
            "trade": lambda event: self._on_heard(trades=[trade_of(event)]),
            "snapshot": self._on_snapshot,
            "state": self._on_state,
            "epoch": lambda event: self.gateway.raise_fence(event.body["epoch"]),
            "clock": self._on_clock,
            "command": self._on_command,
        }

    @property
    def equity(self) -> Equity:
        return self.limits.equity

    def blocked(self, symbol: str) -> str | None:
        """Why a bar of a symbol would not be decided now; None if it would."""
        if self.limits.switch is None or "" in self._disagreeing:
            return "not_reconciled"
        if symbol in self._disagreeing:
            return "disagrees"
        if symbol in self.execution.exits:
            return "exiting"
        return "open_order" if self.ledger.open_orders(symbol) else None

    def handle(self, event: Event) -> list[Effect]:
        """What is to be done after an event. A second time it changes nothing."""
        self.limits.now_ns = max(self.limits.now_ns, event.at_ns)
        self.limits.see(quotes_of(event))
        self._handlers[event.kind](event)
        if (engage := self.limits.look()) is not None:
            self._effect(engage)
            self._tell("critical", f"only exits from now on; {engage.reason}")
        self._close_what_should_be_flat()
        self.execution.advance(retry=event.kind == "clock")
        self._ask_what_was_not_asked()
        effects, self.execution.effects = self.execution.effects, []
        return effects

    def recover(self, log: EventLog) -> list[Effect]:
        """Once, on a new desk: take up what the log and the ledger say. An empty log says nothing."""
        last = log.last()
        if last is None:
            return []
        self.limits.now_ns = last.at_ns
        if (state := log.last_of("state", before=last.seq)) is not None:
            self.limits.switch = switch_of(state)
        for symbol, trader in self.traders.items():
            for event in log.features(symbol):
                if event.seq < last.seq:
                    self._feed(trader, event)
            self._take_up(trader, day_of(last.at_ns))
        return self.handle(last)

    def _on_start(self, event: Event) -> None:
        """Of a process: whatever was being sent when the last one ended may have arrived or not."""
        self._started, self._disagreeing = True, frozenset({"", *self.costs})
        self._unknown = {each.order.order_id: event.at_ns for each in self.ledger.unfinished() if not each.broker_id}
        self._effect(TakeSnapshot())

    def _on_history(self, event: Event) -> None:
        """Features start anew. Bars of today that nobody was told of in time are held."""
        trader, symbol, today = self.traders[event.symbol], event.symbol, day_of(event.at_ns)
        self._feed(trader, event)
        newest_ns = -1 if trader.previous is None else trader.previous.timestamp_ns
        waiting = self._asked.get(symbol) or self._unasked.get(symbol)
        if waiting is None or waiting.timestamp_ns != newest_ns:
            self._hold_what_was_not_answered(trader)
            known_ns = -1 if trader.last_intent is None else trader.last_intent.bar_ns
            for bar in bars_of(event):
                if bar.timestamp_ns > known_ns and day_of(bar.timestamp_ns) == today:
                    self._hold(trader, bar, "missed")

    def _on_bar(self, event: Event) -> None:
        trader, (bar,) = self.traders[event.symbol], bars_of(event)
        self._hold_what_was_not_answered(trader)
        self.counts["bars"] += 1
        if self._over.get(trader.symbol) == bar.session:
            self._feed(trader, event)
            return
        before = trader.previous
        try:
            question = trader.on_bar(bar)
        except DataError as error:
            self.counts["invalid_bar"] += 1
            self._tell("warning", f"{trader.symbol}: {error}")
            if before is None or bar.timestamp_ns > before.timestamp_ns:
                self._hold(trader, bar, "invalid_bar")
            return
        if bar.last_of_session:
            self._over[trader.symbol] = bar.session
            if trader.symbol not in self.execution.exits:
                self._hold(trader, bar, "session_over")
        elif question is None:
            self._hold(trader, bar, "warming_up")
        elif not self._started:
            self._unasked[trader.symbol] = bar
        elif (why := self.blocked(trader.symbol)) is not None:
            self._hold(trader, bar, why)
        else:
            self._ask(trader, bar, question)

    def _on_answer(self, event: Event) -> None:
        trader, answer = self.traders[event.symbol], answer_of(event)
        bar = self._asked.get(trader.symbol)
        if bar is None or bar.timestamp_ns != event.body["bar_ns"]:
            self.counts["late_answer"] += 1
            return
        del self._asked[trader.symbol]
        why = self.blocked(trader.symbol)
        if why is not None:
            self._hold(trader, bar, why)
            return
        held = trader.held
        trader.on_answer(bar, answer)
        legal = answer if trader.held == held else None
        self.counts["no_answer" if legal is None else "decided"] += 1
        self.limits.decided(trader.symbol, by_a_model=legal is not None and legal.role != "safe")

    def _on_placed(self, event: Event) -> None:
        order_id, broker_id = event.body["order_id"], event.body["broker_id"]
        self._unknown.pop(order_id, None)
        self.gateway.acknowledge(order_id, broker_id)
        state = self.ledger.order(order_id)
        if state is not None and state.status in ("cancelled", "rejected"):  # given up meanwhile
            self._effect(CancelOrder(broker_id))

    def _on_declined(self, event: Event) -> None:
        order_id, reason = event.body["order_id"], event.body["reason"]
        self._unknown.pop(order_id, None)
        self.counts["declined"] += 1
        if self.gateway.reject(order_id, reason):
            self._tell("warning", f"{order_id}: the broker does not take it, {reason}")

    def _on_unknown(self, event: Event) -> None:
        self.counts["unknown"] += 1
        self._unknown[event.body["order_id"]] = event.at_ns
        self._effect(TakeSnapshot())

    def _on_unsent(self, event: Event) -> None:
        self.counts["unsent"] += 1
        self.gateway.cancel(event.body["order_id"], event.body["reason"])

    def _on_heard(self, orders: Sequence[OrderReport] = (), trades: Sequence[Trade] = ()) -> None:
        """What the broker says by itself. What is over there and not here lacks trades: a snapshot has them."""
        standing = concerned(self.ledger, day_of(self.limits.now_ns), self._traded, [*orders, *trades])
        findings = reconcile.heard(standing, orders, trades)
        self._apply(findings)
        over = {each.tag for each in orders if each.status != "open"}
        if findings.problems or (over and over.intersection(each.tag for each in self.ledger.unfinished())):
            self._effect(TakeSnapshot())

    def _on_snapshot(self, event: Event) -> None:
        snapshot = snapshot_of(event, self._snapshot)
        if snapshot is None:
            self._effect(TakeSnapshot())
            return
        self._snapshot = snapshot
        self.limits.free_funds_rupees = snapshot.funds_rupees
        settle_ns = int(self.settings.live.unknown_settle_s * SECOND_NS)
        standing = ours(self.ledger, day_of(snapshot.at_ns), self._traded)
        findings = reconcile.reconcile(standing, snapshot, unknown=self._unknown, settle_ns=settle_ns)
        self._apply(findings)
        crash_at("snapshot_applied")
        if self._started:
            self._disagreeing = reconcile.blocked(self._disagreeing, findings)
        self._tell_problems(findings)

    def _on_state(self, event: Event) -> None:
        self.limits.switched(switch_of(event))
        self.execution.retry()

    def _on_clock(self, event: Event) -> None:
        self.limits.gate = event.body["gate"]
        if self._unknown or self._disagreeing:
            self._effect(TakeSnapshot())

    def _on_command(self, event: Event) -> None:
        """Of a person: an order, the release of a symbol, or that a position is gone."""
        if event.body["command"] == "trade":
            known = event.symbol in self.traders
            manual.traded(event, self.execution, self.blocked(event.symbol) if known else "unknown_symbol")
            return
        if event.body["command"] == "closed":
            if why := hands.closed(event, self.gateway, self.limits.money, self.costs[event.symbol]):
                self._tell("warning", why)
            return
        if event.body["command"] != "release":
            raise DataError(f"event {event.seq}: an unknown command, {event.body}", code="event_invalid")
        self.gateway.release(event.symbol, event.at_ns)
        self.execution.retry()

    def _apply(self, findings: Findings) -> None:
        orders = {trade: order_id for order_id, trade in findings.trades}
        by_hand = {trade: symbol for symbol, trade in findings.foreign if symbol is not None}

        def cost(trade: Trade) -> float:
            state = self.ledger.order(orders[trade]) if trade in orders else None
            symbol = by_hand[trade] if state is None else state.order.symbol
            filled = 0.0 if state is None else abs(state.filled_units)
            return trade_rupees(self.costs[symbol](day_of(trade.at_ns)), trade.units, trade.price, filled=filled)

        adopt = self.settings.live.manual_positions == "adopt"
        reconcile.apply(findings, self.gateway, cost=cost, adopt=adopt)
        self.limits.money.update()
        if self._unknown:
            looked_for = {each.order.order_id for each in self.ledger.unfinished() if not each.broker_id}
            self._unknown = {order_id: at_ns for order_id, at_ns in self._unknown.items() if order_id in looked_for}
        for broker_id in findings.to_cancel:
            self._effect(CancelOrder(broker_id))

    def _hold_what_was_not_answered(self, trader: Trader) -> None:
        """The next bar is there: the last one's time is over."""
        symbol = trader.symbol
        for bars, why in ((self._asked, "no_answer"), (self._unasked, "not_reconciled")):
            if symbol in bars:
                self.limits.decided(symbol, by_a_model=False)
                self._hold(trader, bars.pop(symbol), why)

    def _hold(self, trader: Trader, bar: Bar, why: str) -> None:
        """Unless the bar has its intent already, as after a crash."""
        if trader.is_new(bar):
            self.counts[f"held:{why}"] += 1
            trader.hold(bar, why)

    def _ask(self, trader: Trader, bar: Bar, question: dict[str, Any]) -> None:
        self._asked[trader.symbol] = bar
        self._effect(Ask(trader.symbol, bar, question))

    def _close_what_should_be_flat(self) -> None:
        """After its last bar, once that is overdue, or under a switch that flattens; what late trades bring as well."""
        flatten = self.limits.switch is not None and self.limits.switch.flatten
        for symbol, trader in self.traders.items():
            bar, held = trader.previous, self.limits.money.positions[symbol].units
            over = bar is not None and self._over.get(symbol) == bar.session
            if held and (over or flatten or self.limits.overdue(symbol)) and symbol not in self.execution.exits:
                trader.close(self.limits.now_ns if bar is None else bar.timestamp_ns, 0.0)

    def _ask_what_was_not_asked(self) -> None:
        for symbol in [each for each in self._unasked if self.blocked(each) is None]:
            bar, trader = self._unasked.pop(symbol), self.traders[symbol]
            self._ask(trader, bar, trader.question(bar))

    def _feed(self, trader: Trader, event: Event) -> None:
        if event.kind == "history":
            trader.start_over()
            self._over.pop(trader.symbol, None)
        for bar in bars_of(event):
            try:
                trader.feed(bar)
            except DataError as error:
                self.counts["invalid_bar"] += 1
                log.warning("bar_skipped", symbol=trader.symbol, error=str(error))
            if event.kind == "bar" and bar.last_of_session:
                self._over[trader.symbol] = bar.session

    def _take_up(self, trader: Trader, day: date) -> None:
        """An exit that has not come to its end, and a bar of today that was not decided."""
        symbol, bar = trader.symbol, trader.previous
        acting = self.ledger.last_acting(symbol)
        if acting is not None and acting.is_exit:
            self.execution.exits[symbol] = acting
        if bar is None or day_of(bar.timestamp_ns) != day or self._over.get(symbol) == bar.session:
            return
        undecided = trader.last_intent is None or trader.last_intent.bar_ns < bar.timestamp_ns
        if undecided and trader.features.ready:
            self._unasked[symbol] = bar

    def _agrees(self, symbol: str) -> bool:
        return self.limits.switch is not None and not self._disagreeing.intersection(("", symbol))

    @property
    def _traded(self) -> Mapping[str, str]:
        """Symbols by what is traded for them today."""
        return _traded_on(day_of(self.limits.now_ns), tuple(self.costs))

    def _tell_problems(self, findings: Findings) -> None:
        """What is new; a position that disagrees only once it does so twice: a snapshot is three questions."""
        now = frozenset(findings.problems)
        lasting = {each for each in now if each.kind != "position" or each in self._problems}
        for problem in sorted(lasting - self._told, key=lambda each: (each.kind, each.symbol, each.detail)):
            self._tell(
                "critical" if problem.blocks else "warning", f"{problem.symbol} {problem.kind}: {problem.detail}"
            )
        self._problems, self._told = now, frozenset(lasting)

    def _tell(self, severity: Severity, text: str) -> None:
        self._effect(Alert(severity, text))

    def _effect(self, effect: Effect) -> None:
        self.execution.effects.append(effect)


@cache
def _traded_on(day: date, symbols: tuple[str, ...]) -> Mapping[str, str]:
    return {instrument(symbol).traded_symbol(day): symbol for symbol in symbols}
