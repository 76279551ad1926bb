"""The emulated broker as a whole: exchange, clock, prices, logins, faults, and whoever is connected.

Everything here runs on one event loop, so that a call is carried out and told of as one step.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime, time
from typing import Any

from tests.fyers_emulator import shapes
from tests.fyers_emulator.books import NewOrder, Order, Trade
from tests.fyers_emulator.clock import Clock, day_of
from tests.fyers_emulator.contracts import Contract, listed
from tests.fyers_emulator.data_socket import DataLine
from tests.fyers_emulator.exchange import Change, Exchange, Fate, Refused
from tests.fyers_emulator.faults import Fault, Faults, Passing, Socket
from tests.fyers_emulator.limits import RateLimits
from tests.fyers_emulator.logins import Logins
from tests.fyers_emulator.order_socket import OrderLine
from tests.fyers_emulator.tape import Tape
from trading.calendar import KOLKATA, next_session

LOGGED_CALLS = 1000
HIGHEST_PRICE = 10_000_000.0  # rupees; what the data socket can tell, and twice that
CLOSES = time(15, 30)  # whatever is squared off over night is so then
MORNING = time(8, 45)  # when the clock of a new day starts


class Venue:
    def __init__(self) -> None:
        self.logins = Logins()
        self.data_lines: set[DataLine] = set()
        self.order_lines: set[OrderLine] = set()
        self.faults = Faults()
        self.reset()

    def reset(self) -> None:
        """As just started; logins stay."""
        self.faults.heal()
        self.cut(("data", "orders"))
        self.faults = Faults()
        self.clock = Clock()
        self.tape = Tape()
        self.limits = RateLimits()
        self.exchange = Exchange(listed(self.clock.day()), self.clock.day())
        self.calls: deque[dict[str, Any]] = deque(maxlen=LOGGED_CALLS)
        self.statuses = {10: "OPEN", 11: "OPEN", 12: "CLOSED"}  # by segment
        self._listed: dict[str, Contract] = {}
        self._held: list[tuple[str, dict[str, Any]]] = []

    # the market

    def tick(self, symbol: str, price: float, at: float | None = None, volume: int = 0) -> int:
        """A price of `symbol` and of what follows it is told, then traded at. How many orders' trades that made."""
        if symbol not in self.exchange.contracts:
            raise Refused(-300, f"{symbol} is not listed; POST /emulator/instruments")
        if not 0 < price < HIGHEST_PRICE:
            raise Refused(-50, f"{symbol}: {price} is no price; ask for the fault malformed_tick")
        if at is not None:
            self.clock.advance_to(at)
        self._turn_day()
        at = self.clock.now() if at is None else at
        followers = [c for c in self.exchange.contracts.values() if c.follows == symbol]
        traded = 0
        for name, own in [(symbol, price), *((c.symbol, price + c.basis) for c in followers)]:
            traded += self._print(name, round(own, 2), at, volume)
        return traded

    def _print(self, symbol: str, price: float, at: float, volume: int) -> int:
        quote = self.tape.print(symbol, price, at, volume)
        lines = [line for line in self.data_lines if line.follows(symbol)]
        if lines and self.faults.take(Passing(symbol), "stalled_feed") is None:
            bad = self.faults.take(Passing(symbol, where="socket"), "malformed_tick")
            for line in lines:
                line.tick(symbol, quote, bad.spec.how if bad else None)
        traded = self.exchange.price(symbol, price, at)
        self.publish()
        return traded

    def set_status(self, status: str, segment: int | None) -> None:
        for each in (10, 11) if segment is None else (segment,):
            self.statuses[each] = status
        self.exchange.closed = {each for each, said in self.statuses.items() if said != "OPEN"}

    def follow(self, symbol: str, index: str, basis: float) -> None:
        contract = self.exchange.contracts.get(symbol)
        if contract is None or index not in self.exchange.contracts:
            raise Refused(-300, f"{symbol} or {index} is not listed; POST /emulator/instruments")
        self.list(replace(contract, follows=index, basis=basis))

    # orders

    def place(self, new: NewOrder) -> Order:
        """Raises Refused."""
        self._turn_day()
        passing = self.passing(new)
        rejected = self.faults.take(passing, "rejected")
        part = self.faults.take(passing, "partial_cancel")
        fate = Fate(rejected.spec.message if rejected else None, part.spec.ratio if part else None)
        order = self.exchange.place(new, self.clock.now(), fate)
        cut = self.faults.take(passing, "disconnect_on_order") if self.exchange.changes else None
        if cut:
            self.cut(cut.spec.sockets)
        self.publish()
        return order

    def passing(self, new: NewOrder, route: str | None = None) -> Passing:
        return Passing(new.symbol, route, self.exchange.makes_smaller(new))

    # what the order socket tells

    def publish(self) -> None:
        """Tell what has happened at the exchange since it was last told."""
        changes, self.exchange.changes = self.exchange.changes, []
        for change in changes:
            topic, content = self._update(change)
            self._pass_on(topic, content, change.symbol)

    def _update(self, change: Change) -> tuple[str, dict[str, Any]]:
        contract = self.exchange.contracts[change.symbol]
        if isinstance(change, Order):
            return "orders", shapes.order_update(change, contract)
        if isinstance(change, Trade):
            return "trades", shapes.trade_update(change, contract)
        price = self.exchange.last.get(change.symbol, change.average)
        return "positions", shapes.position_update(change, contract, price)

    def _pass_on(self, topic: str, content: dict[str, Any], symbol: str) -> None:
        passing = Passing(symbol, of=topic)
        if self.faults.take(passing, "drop_update"):
            return
        late = self.faults.take(passing, "reorder_update")
        if late:
            self._hold_back(topic, content, late)
            return
        again = self.faults.take(passing, "duplicate_update")
        for _ in range(2 if again else 1):
            self._tell(topic, content)
        self._let_go()

    def _hold_back(self, topic: str, content: dict[str, Any], fault: Fault) -> None:
        """Behind the next update, or after a while if there is none."""
        self._held.append((topic, content))
        asyncio.get_running_loop().call_later(fault.spec.delay_s, self._let_go)

    def _let_go(self) -> None:
        held, self._held = self._held, []
        for topic, content in held:
            self._tell(topic, content)

    def _tell(self, topic: str, content: dict[str, Any]) -> None:
        for line in self.order_lines:
            line.update(topic, content)

    # connections

    def cut(self, sockets: Iterable[Socket]) -> None:
        if "data" in sockets:
            _cut(self.data_lines)
        if "orders" in sockets:
            _cut(self.order_lines)

    def expire_tokens(self) -> None:
        self.logins.expire_all()
        self.cut(("data", "orders"))

    def followed(self) -> list[str]:
        return sorted({topic.contract.symbol for line in self.data_lines for topic in line.topics.values()})

    def note(self, what: str, **facts: Any) -> None:
        self.calls.append({"at": self.clock.now(), "note": what, **facts})

    # days

    def set_clock(self, now: float, speed: float) -> None:
        """Raises Refused where there are books of a later day."""
        today = self.exchange.today
        if day_of(now) < today.day and (today.orders or self.exchange.past):
            raise Refused(-50, f"there are books of {today.day}; POST /emulator/reset before the clock goes back")
        self.clock.set(now, speed)
        self._turn_day()

    def nightly_reset(self) -> None:
        """The broker's night: the day ends, everyone is logged out, the next session's morning comes."""
        following = next_session(self.exchange.today.day)
        self.set_clock(datetime.combine(following, MORNING, KOLKATA).timestamp(), self.clock.speed)
        self.expire_tokens()

    def list(self, contract: Contract) -> None:
        """A symbol that config/instruments.yaml has not, or has otherwise; it stays."""
        self._listed[contract.symbol] = contract
        self.exchange.contracts[contract.symbol] = contract

    def _turn_day(self) -> None:
        day = self.clock.day()
        if day == self.exchange.today.day:
            return
        if self.exchange.today.orders or self.exchange.past:
            self.exchange.begin(day, datetime.combine(self.exchange.today.day, CLOSES, KOLKATA).timestamp())
            self.publish()
        else:
            self.exchange.today.day = day
        current = listed(day) | self._listed
        gone = {symbol: replace(it, tradable=False) for symbol, it in self.exchange.contracts.items()}
        self.exchange.contracts = gone | current


def _cut(lines: set[Any]) -> None:
    for line in list(lines):
        lines.discard(line)
        line.cut()
