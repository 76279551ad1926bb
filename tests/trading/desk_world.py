"""A desk with a log, a little exchange and a clock, for tests: nothing happens before the test lets it."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict, dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from core.actions import ACTION_OF
from core.settings import Settings, load_settings
from trading import events
from trading.broker import Holding, OrderReport, Snapshot, Ticket, Trade
from trading.costs import nse_index_future_costs
from trading.desk import Desk
from trading.effects import Ask, CancelOrder, Effect, Send
from trading.events import EventLog
from trading.instruments import instrument
from trading.ledger import Ledger
from trading.market import SECOND_NS
from trading.opening import start_body
from trading.service import DecisionAnswer
from trading.stream import Bar
from trading.switch import State, Switch

DAY = date(2026, 3, 10)  # NIFTY: lots of 65, at most 1800 units an order
OPENED_NS = int(datetime(2026, 3, 10, 3, 45, tzinfo=UTC).timestamp()) * SECOND_NS
INTERVAL_NS = 300 * SECOND_NS
PRICES = {"NIFTY": 24_000.0, "BANKNIFTY": 52_000.0}
HISTORY = 220  # bars
CHAMPION = "champion:ppo/v1"


def desk_settings(folder: Path, **live: Any) -> Settings:
    settings = load_settings(preset="compact", environ={"HRM_PATHS__STATE_DIR": str(folder)})
    trading = settings.trading.model_copy(update={"orders_per_s": 1000, "initial_capital": 1e8})
    changed = settings.live.model_copy(update={"symbols": tuple(PRICES), **live})
    return settings.model_copy(update={"trading": trading, "live": changed})


def make_desk(ledger: Ledger, settings: Settings, _day: date) -> Desk:
    costs = {symbol: nse_index_future_costs(0.0, instrument(symbol)) for symbol in settings.live.symbols}
    return Desk(ledger, settings, costs, session_bars=75)


def a_bar(symbol: str, number: int, *, last: bool = False) -> Bar:
    """Bar `number` of today; below 0: of the day before."""
    day, at = (0, number) if number >= 0 else (1, number + HISTORY)
    start_ns = OPENED_NS - day * 24 * 3600 * SECOND_NS + at * INTERVAL_NS
    price = PRICES[symbol] * (1 + 1e-4 * (number % 7))
    return Bar(start_ns, price, price * 1.0004, price * 0.9998, price * 1.0002, float("nan"), 1 - day, last)


def answer(position: int, target: int, *, quantity: float = 65.0, epoch: int = 1, arm: str = "champion") -> Any:
    """Of the service: what takes an arm from one direction to another."""
    action = int(ACTION_OF[position + 1, target + 1])
    return DecisionAnswer.model_validate(
        {
            "role": arm,
            "account": arm,
            "action": action,
            "quantity": quantity,
            "model": {"champion": "ppo", "challenger": "hrm"}[arm],
            "model_version": "v1",
            "epoch": epoch,
            "decision_id": f"{position}{target}",
        }
    )


@dataclass
class ExchangeOrder:
    broker_id: str
    ticket: Ticket
    filled: int = 0
    status: Any = "open"

    @property
    def left(self) -> int:
        return self.ticket.units - self.filled


@dataclass
class Exchange:
    """Orders, trades and holdings as the broker has them."""

    orders: dict[str, ExchangeOrder] = field(default_factory=dict)
    trades: list[Trade] = field(default_factory=list)
    by_hand: list[OrderReport] = field(default_factory=list)

    def accept(self, ticket: Ticket) -> str:
        broker_id = f"b{len(self.orders) + 1}"
        self.orders[broker_id] = ExchangeOrder(broker_id, ticket)
        return broker_id

    def fill(self, broker_id: str, units: int, at_ns: int) -> Trade:
        order = self.orders[broker_id]
        order.filled += units
        order.status = order.status if order.left else "filled"
        ticket = order.ticket
        trade = Trade(
            f"t{len(self.trades)}", broker_id, ticket.tag, ticket.instrument, units, ticket.limit_price, at_ns
        )
        self.trades.append(trade)
        return trade

    def end(self, broker_id: str, status: str) -> None:
        if self.orders[broker_id].status == "open":
            self.orders[broker_id].status = status

    def trade_by_hand(self, name: str, units: int, at_ns: int) -> None:
        number = len(self.by_hand)
        self.by_hand.append(OrderReport(f"m{number}", "", name, units, units, "filled"))
        self.trades.append(Trade(f"h{number}", f"m{number}", "", name, units, 24_000.0, at_ns))

    def report(self, broker_id: str) -> OrderReport:
        order = self.orders[broker_id]
        ticket = order.ticket
        return OrderReport(broker_id, ticket.tag, ticket.instrument, ticket.units, order.filled, order.status)

    def units(self) -> dict[str, int]:
        held: defaultdict[str, int] = defaultdict(int)
        for trade in self.trades:
            held[trade.instrument] += trade.units
        return dict(held)

    def snapshot(self, at_ns: int) -> Snapshot:
        reports = (*(self.report(broker_id) for broker_id in self.orders), *self.by_hand)
        held = tuple(Holding(name, units) for name, units in self.units().items())
        return Snapshot(at_ns, reports, tuple(self.trades), held, 1e9)


class World:
    """The desk's process, and what it talks to. `asks`, `sends`, `cancels` wait until the test does them."""

    def __init__(self, folder: Path, *, settings: Settings | None = None, desk: str = "") -> None:
        """`desk`: the ledger's name."""
        self.settings = settings or desk_settings(folder)
        self.desk_name = desk
        self.path = folder / "live.db"
        self.exchange = Exchange()
        self.now_ns = OPENED_NS - 600 * SECOND_NS
        self.bars: defaultdict[str, int] = defaultdict(int)
        self.switch = Switch("active", "test", "test", 0)
        self.all_effects: list[Effect] = []
        self.ledger: Ledger | None = None
        self.begin()
        for symbol in self.settings.live.symbols:
            history = [a_bar(symbol, number) for number in range(-HISTORY, 0)]
            self.tell("history", events.history_body(history), symbol=symbol)

    def begin(self) -> None:
        """A process begins; the one before, if there was one, is gone with all that it was about to do."""
        if self.ledger is not None:
            self.ledger.close()
        self.ledger = Ledger(self.path)
        if self.desk_name:
            self.ledger.name_desk(self.desk_name)
        self.log = EventLog(self.ledger)
        self.asks: list[Ask] = []
        self.sends: list[Send] = []
        self.cancels: list[str] = []
        self.last_snapshot: Snapshot | None = None
        self.desk = make_desk(self.ledger, self.settings, DAY)
        self._take(self.desk.recover(self.log))
        self.tell("start", start_body(self.desk))
        self.tell("state", asdict(self.switch))
        self.tick(0)

    def ready(self) -> None:
        """A snapshot, so that trading may begin."""
        self.tick(10)
        self.snapshot()

    def tell(self, kind: events.Kind, body: Any, *, symbol: str = "") -> list[Effect]:
        event = self.log.append(kind, body, at_ns=self.now_ns, symbol=symbol)
        return self._take(self.desk.handle(event))

    def write_only(self, kind: events.Kind, body: Any, *, symbol: str = "") -> None:
        """An event that the process wrote, and did not live to handle."""
        self.log.append(kind, body, at_ns=self.now_ns, symbol=symbol)

    def _take(self, effects: list[Effect]) -> list[Effect]:
        self.all_effects += effects
        for effect in effects:
            if isinstance(effect, Ask):
                self.asks.append(effect)
            elif isinstance(effect, Send):
                self.sends.append(effect)
            elif isinstance(effect, CancelOrder):
                self.cancels.append(effect.broker_id)
        return effects

    def prices(self) -> dict[str, tuple[float, int]]:
        return {symbol: (price, self.now_ns) for symbol, price in PRICES.items()}

    def tick(self, seconds: float, *, gate: str | None = None) -> list[Effect]:
        self.now_ns += int(seconds * SECOND_NS)
        return self.tell("clock", events.clock_body(self.prices(), gate))

    def bar(self, symbol: str, *, last: bool = False) -> Bar:
        """The next bar of a symbol closes, and is told."""
        bar = a_bar(symbol, self.bars[symbol], last=last)
        self.bars[symbol] += 1
        self.now_ns = max(self.now_ns, bar.timestamp_ns + INTERVAL_NS)
        self.tell("bar", events.bar_body(bar, self.prices()), symbol=symbol)
        return bar

    def answer(self, ask: Ask, said: DecisionAnswer | None) -> list[Effect]:
        body = events.answer_body(
            ask.bar.timestamp_ns, said, asked=events.digest_of(ask.request), elapsed_ms=1.0, prices=self.prices()
        )
        return self.tell("answer", body, symbol=ask.symbol)

    def decide(self, symbol: str, target: int, **terms: Any) -> None:
        """A bar, and the service's answer to what follows."""
        self.bar(symbol)
        (ask,) = [each for each in self.asks if each.symbol == symbol]
        self.asks.remove(ask)
        position = ask.request["accounts"]["champion"]["position"]
        self.answer(ask, answer(position, target, **terms))

    def place(self, *, acknowledged: bool = True) -> str:
        """The oldest ticket goes out; its broker id."""
        send = self.sends.pop(0)
        broker_id = self.exchange.accept(send.ticket)
        if acknowledged:
            self.tell("placed", events.order_body(send.ticket.order_id, broker_id))
        return broker_id

    def fill(self, broker_id: str, units: int | None = None) -> Trade:
        """An order is filled, and the stream tells."""
        trade = self.exchange.fill(broker_id, units or self.exchange.orders[broker_id].left, self.now_ns)
        self.tell("trade", events.trade_body(trade))
        return trade

    def snapshot(self) -> list[Effect]:
        return self.hear(self.exchange.snapshot(self.now_ns))

    def hear(self, snapshot: Snapshot) -> list[Effect]:
        body = events.snapshot_body(snapshot, self.last_snapshot)
        self.last_snapshot = snapshot
        return self.tell("snapshot", body)

    def state(self, state: State, *, flatten: bool = False, until_ns: int | None = None) -> list[Effect]:
        self.switch = Switch(state, "test", "test", self.now_ns, until_ns, flatten)
        return self.tell("state", asdict(self.switch))

    def units(self, symbol: str) -> float:
        assert self.ledger is not None
        return self.ledger.units(symbol)

    def close(self) -> None:
        if self.ledger is not None:
            self.ledger.close()


def traded(symbol: str) -> str:
    return instrument(symbol).traded_symbol(DAY)
