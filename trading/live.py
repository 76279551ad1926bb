"""The live process: one thread that handles events in order, and ports around it that may take as long as they like.

    feed, order stream, timers, answers, what became of orders -> inbox -> event, durable -> desk -> effects -> threads

What a port tells is put into the inbox (trading/threads.py) and handled by the core's thread, which alone touches the
log and the desk. A failure of the ledger, or of any thread, ends the process: there is no other way to end than to be
started again, and a start is a recovery (trading/desk.py). Orders that are at the broker stay there; the next process
finds them by their tags.

A process trades one session and ends after it. Times are UTC nanoseconds of `ports.clock`; waits are the machine's.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import structlog
from sqlalchemy.exc import DatabaseError

from core.errors import BrokerError, DataError
from core.settings import Settings
from delivery.crash import crash_at
from trading import events, hands, manual, switch
from trading.bar_builder import BarBuilder
from trading.broker import Declined, OrderReport, Placed, Snapshot, Ticket, Trade, Unknown
from trading.desk import Desk
from trading.effects import Alert, Ask, CancelOrder, Effect, Engage, Report, Send, Severity, TakeSnapshot
from trading.events import EventLog
from trading.instruments import instrument
from trading.latency import Histogram
from trading.live_bars import LiveBars
from trading.live_ports import Ports
from trading.live_prices import LivePrices
from trading.market import SECOND_NS
from trading.opening import start_body
from trading.sender import Outcome, Sender
from trading.service import DecisionAnswer, following
from trading.session_grid import Grid
from trading.stream import Bar
from trading.switch import Switch
from trading.threads import Threads

TURN_S = 0.1  # between two looks at the switch, at bars that are due and at the feed
CLOCK_S = 1.0  # between two clock events
SNAPSHOT_GAP_S = 0.25  # before one that is wanted at once, and twice as long each time, up to:
SNAPSHOT_GAP_MAX_S = 2.0  # one is four calls, and the broker takes 200 a minute
SQUARE_OFF_WAIT_S = 15.0  # for the bar that squares off; then everything is closed without it
END_AFTER_S = 60.0  # the session: time for the last reports
ENDING_S = 5.0  # for calls that are under way when the process is to end
MOST_ASKS = 32  # questions at once
START_AGAIN = "Make room on its disk and start again: what is at the broker is found by its tags"

log = structlog.get_logger(__name__)


class Answered(NamedTuple):
    answer: DecisionAnswer | None
    asked: str  # digest of the question
    elapsed_ms: float
    came: float  # when, of the performance counter


class Live:
    """The process around a desk. `run` returns after the session, or once `stop` was called."""

    def __init__(self, desk: Desk, ports: Ports, grids: Mapping[str, Grid], settings: Settings) -> None:
        """`grids`: of the desk's symbols, all of one day."""
        self.desk, self.ports, self.grids, self.settings = desk, ports, grids, settings
        self.state_dir = settings.paths.state_dir
        self.log = EventLog(desk.ledger)
        self.inbox = manual.Inbox(self.state_dir, desk.ledger)
        self.day = next(iter(grids.values())).day
        self.closes_ns = max(grid.closes_ns for grid in grids.values())
        pools = {"ask": min(len(grids), MOST_ASKS), "send": settings.trading.orders_per_s}
        self.threads = Threads(pools | {"cancel": 2, "snapshot": 1, "history": 2, "aside": 4}, first=["ask"])
        traded = {symbol: instrument(symbol).traded_symbol(self.day) for symbol in grids}
        builder = BarBuilder(grids, traded, lambda symbol: getattr(desk.traders[symbol].previous, "close", None))
        bars = LiveBars(grids, builder, ports, threads=self.threads, event_log=self.log, tell=self._tell_bars)
        self.prices = LivePrices(bars, traded, ports, settings.live, threads=self.threads, alert=self._alert)
        self.sender = Sender(ports.broker, desk.gateway, self.state_dir, self.threads.ending)
        self.counts: Counter[str] = Counter()
        self.answer_ms, self.order_ms, self.own_ms = Histogram(), Histogram(), Histogram()
        self._began = time.monotonic()
        self._ready_s: float | None = None
        self._why = ""  # it ends
        self._clock_due = self._snapshot_asked = 0.0
        self._snapshots_wanted = 0  # in a row, beside those that are due
        self._snapshot_wanted = False
        self._logged: Snapshot | None = None  # the newest snapshot that this process has written
        self._switch: Switch | None = None  # as the desk was told
        self._answer_came: float | None = None  # of the answer that is being handled
        # By order: when the answer came that it follows from, and when the order rate lets it go out.
        self._decided: dict[str, tuple[float, float]] = {}
        self._cancelling: set[str] = set()  # by the broker's ids: calls that are under way
        self._squared_off = False
        self._gate: str | None = None  # as the desk was told

    def stop(self, why: str) -> None:
        """End after the event that is being handled; from any thread or signal handler."""
        self._why = self._why or why
        self.threads.put(self.threads.ending.set)

    def run(self) -> dict[str, Any]:
        """Trade until the session is over or `stop`. Returns the summary; raises whatever else ends the process."""
        try:
            self._trade()
        except DatabaseError as error:
            self._tell_what_stays()
            told = f"{self.desk.ledger.path}: cannot be written ({error.orig}); nothing more is sent. {START_AGAIN}"
            raise BrokerError(told, code="ledger_unwritable") from error
        except BaseException:  # whatever ends it, a person has to know what it leaves at the broker
            self._tell_what_stays()
            raise
        finally:
            self.threads.close()  # what is not sent by now never is
            self.ports.close()
        return self.summary()

    def _trade(self) -> None:
        self._start()
        with following(self.ports.service, self._hear_epoch):
            self._handle_until_the_end()
        self.threads.finish("send", "cancel", wait_s=ENDING_S)

    def _tell_what_stays(self) -> None:
        then = "start it again, or close by hand what is held"
        log.error("desk_ends", held=self._held(), broker=self.settings.live.broker, then=then)

    def summary(self) -> dict[str, Any]:
        """What this process did, and what it leaves at the broker."""
        ledger, equity = self.desk.ledger, self.desk.equity.now
        counts = self.counts + self.desk.counts + self.prices.counts
        return {
            "ended": self._why,
            "day": self.day.isoformat(),
            "broker": self.settings.live.broker,
            "ready_s": self._ready_s,
            "counts": dict(sorted(counts.items())),
            "answer_ms": self.answer_ms.summary(),
            "decision_to_order_ms": self.order_ms.summary(),
            "own_ms": self.own_ms.summary(),  # of it: from when the exchange's order rate allowed the order
            "positions": {each.symbol: each.units for each in ledger.positions() if each.units},
            "open_orders": {each.order.order_id: each.open_units for each in ledger.unfinished()},
            "equity_rupees": None if math.isnan(equity) else equity,  # None: something is held that has no price
        }

    def _start(self) -> None:
        self._execute(self.desk.recover(self.log))
        self._tell("start", start_body(self.desk))
        self._look_at_switch()
        self.ports.stream.start(self._hear_report, lambda: self.threads.put(self._want_snapshot))
        self.prices.begin()

    def _handle_until_the_end(self) -> None:
        turn_due = 0.0
        while not self.threads.ending.is_set():
            self.threads.handle(turn_due - time.monotonic())
            if time.monotonic() >= turn_due:
                self._turn()
                turn_due = time.monotonic() + TURN_S

    def _turn(self) -> None:
        """What is due because time has passed."""
        now_ns, at_s = self.ports.clock(), time.monotonic()
        self._look_at_switch()
        self._hear_person()
        self.prices.look(now_ns, at_s)
        if at_s >= self._clock_due:
            self._tell_clock(at_s)
        self._ask_snapshot(at_s)
        self._square_off_without_bars(now_ns)
        if not self._why and now_ns > self.closes_ns + int(END_AFTER_S * SECOND_NS):
            self._end_session()

    def _end_session(self) -> None:
        self.stop("the session is over")
        if held := self._held():
            self._alert("critical", f"the session is over, and still held are {held}; close them by hand")

    def _held(self) -> dict[str, float]:
        """Units by symbol, from memory: the ledger may be what is broken."""
        return {each.symbol: each.units for each in self.desk.limits.money.positions.values() if each.units}

    def _tell_clock(self, at_s: float) -> None:
        self._clock_due = at_s + CLOCK_S
        self._gate = self.prices.gate()
        self._tell("clock", events.clock_body(self.prices.newest(), self._gate))

    def _tell_gate(self) -> None:
        """An order is judged by what is true when it is wanted."""
        if self.prices.gate() != self._gate:
            self._tell_clock(time.monotonic())

    def _tell(self, kind: events.Kind, body: events.Body, symbol: str = "") -> None:
        """Write an event, let the desk handle it, and begin what it wants."""
        event = self.log.append(kind, body, at_ns=self.ports.clock(), symbol=symbol)
        crash_at(f"appended:{kind}")
        effects = self.desk.handle(event)
        crash_at(f"handled:{kind}")
        self._execute(effects)

    def _execute(self, effects: list[Effect]) -> None:
        service = self.ports.service
        for effect in effects:
            match effect:
                case Ask():
                    self.threads.do("ask", partial(self._ask, effect), partial(self._answered, effect))
                case Send(ticket, not_before_ns):
                    self._send(ticket, not_before_ns)
                case CancelOrder(broker_id):
                    self._cancel(broker_id)
                case TakeSnapshot():
                    self._want_snapshot()
                case Report(symbol, day, champion_bps, challenger_bps):
                    self.threads.do("aside", partial(service.report, symbol, day, champion_bps, challenger_bps))
                case Alert(severity, text):
                    self._alert(severity, text)
                case Engage():
                    self._engage(effect)

    def _ask(self, ask: Ask) -> Answered:
        """In a thread."""
        asked = events.digest_of(ask.request)
        began = time.perf_counter()
        answer = self.ports.service.decide(ask.request)
        came = time.perf_counter()
        return Answered(answer, asked, 1e3 * (came - began), came)

    def _answered(self, ask: Ask, came: Answered) -> None:
        answer, asked, elapsed_ms, self._answer_came = came
        self.answer_ms.add(elapsed_ms)
        if elapsed_ms > self.settings.performance.inference_timeout_ms:
            self.counts["slow_answer"] += 1
            log.warning("slow_decision", symbol=ask.symbol, elapsed_ms=round(elapsed_ms, 2))
        self._tell_gate()
        bar_ns, prices = ask.bar.timestamp_ns, self.prices.newest()
        body = events.answer_body(bar_ns, answer, asked=asked, elapsed_ms=elapsed_ms, prices=prices)
        self._tell("answer", body, ask.symbol)
        self._answer_came = None

    def _send(self, ticket: Ticket, not_before_ns: int) -> None:
        now_ns = max(self.ports.clock(), self.log.now_ns)  # a log whose last process had a later time stands still
        wait_s = max(0, not_before_ns - now_ns) / SECOND_NS
        due_s = time.monotonic() + wait_s
        if self._answer_came is not None:
            allowed = time.perf_counter() + wait_s if wait_s else self._answer_came
            self._decided[ticket.order_id] = (self._answer_came, allowed)

        def send() -> tuple[Outcome, float]:
            return self.sender.send(ticket, due_s), time.perf_counter()

        self.threads.do("send", send, partial(self._sent, ticket.order_id))

    def _sent(self, order_id: str, came: tuple[Outcome, float]) -> None:
        outcome, at = came
        decided = self._decided.pop(order_id, None)
        match outcome:
            case Placed(broker_id):
                if decided is not None:
                    answered, allowed = decided
                    self.order_ms.add(1e3 * (at - answered))
                    self.own_ms.add(1e3 * (at - allowed))
                self._tell("placed", events.order_body(order_id, broker_id))
            case Declined(reason):
                self._tell("declined", events.reason_body(order_id, reason))
            case Unknown(reason):
                self._tell("unknown", events.reason_body(order_id, reason))
            case _:
                self._tell("unsent", events.reason_body(order_id, outcome.reason))

    def _cancel(self, broker_id: str) -> None:
        """One call at a time: while one hangs, those that are asked for again would wait, and then go out at once."""
        if broker_id not in self._cancelling:
            self._cancelling.add(broker_id)
            self.threads.do(
                "cancel",
                partial(self.ports.broker.cancel, broker_id),
                lambda _: self._cancelling.discard(broker_id),
            )

    def _want_snapshot(self) -> None:
        self._snapshot_wanted = True

    def _ask_snapshot(self, at_s: float) -> None:
        """If one is due, or wanted and not too soon."""
        gap_s = min(SNAPSHOT_GAP_S * 2.0**self._snapshots_wanted, SNAPSHOT_GAP_MAX_S)
        wait_s = min(gap_s, self.settings.live.snapshot_s) if self._snapshot_wanted else self.settings.live.snapshot_s
        if at_s >= self._snapshot_asked + wait_s and not self.threads.under_way["snapshot"]:
            self._snapshots_wanted = min(self._snapshots_wanted + 1, 10) if self._snapshot_wanted else 0
            self._snapshot_wanted, self._snapshot_asked = False, at_s
            self.threads.do("snapshot", self._snapshot, self._snapshot_came)

    def _snapshot(self) -> Snapshot | BrokerError | DataError:
        """In a thread. A login that is over ends the process: it needs a person."""
        asked_ns = self.ports.clock()
        try:
            return replace(self.ports.broker.snapshot(), at_ns=asked_ns)
        except (BrokerError, DataError) as error:
            return error

    def _snapshot_came(self, came: Snapshot | BrokerError | DataError) -> None:
        if not isinstance(came, Snapshot):
            self.counts["no_snapshot"] += 1
            log.warning("no_snapshot", error=str(came))
            return
        self._tell("snapshot", events.snapshot_body(came, self._logged))
        self._logged = came
        if self._ready_s is None and all(self.desk.blocked(each) != "not_reconciled" for each in self.grids):
            self._ready_s = time.monotonic() - self._began
            log.info("trading", symbols=list(self.grids), broker=self.settings.live.broker, ready_s=self._ready_s)

    def _hear_report(self, what: OrderReport | Trade) -> None:
        """From the stream's thread."""
        if isinstance(what, Trade):
            self.threads.put(partial(self._tell, "trade", events.trade_body(what)))
        else:
            self.threads.put(partial(self._tell, "order", events.report_body(what)))

    def _hear_epoch(self, epoch: int) -> None:
        """From its own thread."""
        self.threads.put(partial(self._tell, "epoch", {"epoch": epoch}))

    def _tell_bars(self, symbol: str, bars: Bar | list[Bar]) -> None:
        if isinstance(bars, list):
            self._tell("history", events.history_body(bars), symbol)
        else:
            self._tell("bar", events.bar_body(bars, self.prices.newest()), symbol)

    def _look_at_switch(self) -> None:
        now = switch.read(self.state_dir)
        if now != self._switch:
            self._switch = now
            log.info("switch", **switch.facts(now))
            self._tell("state", events.state_body(now))

    def _hear_person(self) -> None:
        """Orders that somebody asked for (trading/manual.py), and what is said of the ledger (trading/hands.py)."""
        for symbol, body, done in hands.new(self.desk.ledger.path, self.grids):
            self._tell("command", body, symbol)
            done()
        for trade in self.inbox.new():
            self._tell_gate()
            body = manual.command(trade) | {"prices": events.prices_body(self.prices.newest())}
            self._tell("command", body, trade.symbol)

    def _square_off_without_bars(self, now_ns: int) -> None:
        """The bar that squares off has not come, and its time is over: close what is held all the same."""
        late = [
            symbol
            for symbol, grid in self.grids.items()
            if now_ns > grid.last_ns + grid.interval_ns + int(SQUARE_OFF_WAIT_S * SECOND_NS)
            and self.desk.gateway.book(symbol).units
            and symbol not in self.desk.execution.exits
        ]
        if late and not self._squared_off:
            self._squared_off = True
            reason = f"no bar squares off {', '.join(late)}"
            self._alert("critical", f"{reason}; everything is closed now")
            switch.engage(self.state_dir, "reducing", "live", reason, until_ns=self.closes_ns, flatten=True)
            self._look_at_switch()

    def _engage(self, wanted: Engage) -> None:
        if wanted.state != "active":
            switch.engage(self.state_dir, wanted.state, "risk", wanted.reason, until_ns=wanted.until_ns)
            self._look_at_switch()

    def _alert(self, severity: Severity, text: str) -> None:
        self.counts[f"alert:{severity}"] += 1
        {"info": log.info, "warning": log.warning, "critical": log.error}[severity]("alert", text=text)
