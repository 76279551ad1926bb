"""The trading side of a rehearsed day: a paper trader for every symbol, over one gateway, one ledger and one wire.

What goes over the wire and through the gateway is noted with the time on the wall, which is the service's clock too.
The wire of some symbols is slow: what they earned and the answers to them arrive when every other symbol is done with
its bar, and the gateway's follower knows of whoever decides by then. That is how an order of an old epoch comes about.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from datetime import date
from typing import Any

from core.errors import BrokerError
from core.observation import ObservationSchema
from core.settings import Settings
from flows.service_process import ServiceProcess
from flows.trading_day_market import Day
from trading.gateway import Accepted, OrderGateway, Refused
from trading.ledger import Ledger, Order
from trading.ownership import Handover
from trading.paper import PaperBroker
from trading.paper_replay import PaperTrader
from trading.service import DecisionAnswer, DecisionClient
from trading.stream import Bar, replay

HELD_AT_MOST_S = 60.0  # then a late answer arrives all the same
FOLLOWER_LIMIT_S = 10.0


@dataclass(frozen=True)
class Decided:
    """An answer as it arrived. `mode`: of the hand-over that it asks for."""

    at: float  # Unix time, s
    bar: int
    symbol: str
    role: str  # champion, challenger, safe; none: no valid answer
    acting: str | None  # whose position the symbol held when it was asked about
    elapsed_ms: float
    epoch: int = -1
    mode: str | None = None


@dataclass(frozen=True)
class Earned:
    """What the decision at the bar before earned in each arm's own portfolio, on the ticks of this bar."""

    bar: int
    symbol: str
    champion_bps: float
    challenger_bps: float


@dataclass(frozen=True)
class Sent:
    """An order as the gateway answered it."""

    at: float  # Unix time, s
    bar: int
    order: Order
    known_epoch: int  # the highest that had reached the gateway before it was sent
    refused: str | None  # why

    @property
    def stale(self) -> bool:
        return self.order.epoch is not None and self.order.epoch < self.known_epoch


class Hold:
    """Of one bar: holds back what is late until it is let go."""

    def __init__(self) -> None:
        self.earned: list[tuple[str, date, float, float]] = []
        self._here, self._go = threading.Semaphore(0), threading.Event()

    def wait(self) -> None:
        """By a late answer: it is there, and waits."""
        self._here.release()
        self._go.wait(HELD_AT_MOST_S)

    def nothing_to_hold(self) -> None:
        self._here.release()

    def await_one(self) -> None:
        self._here.acquire()

    def let_go(self) -> None:
        self._go.set()


@dataclass
class Notes:
    """What was seen, in the order it was; written from several threads."""

    bar: int = -1
    decided: list[Decided] = field(default_factory=list)
    earned: list[Earned] = field(default_factory=list)
    sent: list[Sent] = field(default_factory=list)


class Wire(DecisionClient):
    """The calls that trading makes, noted; those of `late` symbols wait for the hold of their bar."""

    def __init__(self, service: ServiceProcess, notes: Notes, late: Collection[str]) -> None:
        super().__init__(service.url, service.token)
        self.notes, self.late, self.hold = notes, late, Hold()

    def decide(self, request: Mapping[str, Any]) -> DecisionAnswer | None:
        started = time.perf_counter()
        answer = super().decide(request)
        self._note(request, answer, 1e3 * (time.perf_counter() - started))
        if request["symbol"] in self.late:
            self.hold.wait()
        return answer

    def report(self, symbol: str, day: date, champion_bps: float, challenger_bps: float) -> bool:
        self.notes.earned.append(Earned(self.notes.bar, symbol, champion_bps, challenger_bps))
        if symbol in self.late:
            self.hold.earned.append((symbol, day, champion_bps, challenger_bps))
            return True
        return super().report(symbol, day, champion_bps, challenger_bps)

    def report_late(self) -> None:
        """What late symbols earned, at last."""
        for earned in self.hold.earned:
            super().report(*earned)

    def _note(self, request: Mapping[str, Any], answer: DecisionAnswer | None, elapsed_ms: float) -> None:
        symbol, acting, bar = request["symbol"], request["acting"], self.notes.bar
        seen = Decided(time.time(), bar, symbol, "none", acting, elapsed_ms=elapsed_ms)
        if answer is not None:
            mode = answer.handover.mode if answer.handover else None
            seen = replace(seen, role=answer.role, epoch=answer.epoch, mode=mode)
        self.notes.decided.append(seen)


class NotedGateway(OrderGateway):
    """The gateway, with what it answered, and the epochs that it was told: its fence is judged by those."""

    def __init__(self, ledger: Ledger, settings: Settings, notes: Notes) -> None:
        super().__init__(ledger, settings.trading)
        self._notes = notes
        self._followed = self._told_epoch = -1

    def submit_all(self, wanted: Sequence[Order]) -> list[Accepted | Refused]:
        known = self._told_epoch
        results = super().submit_all(wanted)
        for order, result in zip(wanted, results, strict=True):
            refused = result.reason if isinstance(result, Refused) else None
            self._notes.sent.append(Sent(time.time(), self._notes.bar, order, known, refused))
            self._told_epoch = max(self._told_epoch, order.epoch or 0)
        return results

    def hand_over(self, handover: Handover) -> bool:
        done = super().hand_over(handover)
        self._told_epoch = max(self._told_epoch, handover.epoch)
        return done

    def raise_fence(self, epoch: int) -> None:
        super().raise_fence(epoch)
        self._followed, self._told_epoch = epoch, max(self._told_epoch, epoch)

    def await_follower(self, epoch: int) -> None:
        """Return once the follower has told of `epoch`. Raises BrokerError if it never does."""
        deadline = time.monotonic() + FOLLOWER_LIMIT_S
        while self._followed < epoch:
            if time.monotonic() > deadline:
                raise BrokerError(f"the gateway was not told of epoch {epoch}", code="follower_lost")
            time.sleep(0.005)


class Desk:
    """All traders of the day, a bar at a time; the sessions before have fed their features already."""

    def __init__(
        self, day: Day, wire: Wire, gateway: NotedGateway, *, settings: Settings, observation: ObservationSchema
    ) -> None:
        self.day, self.wire, self.gateway = day, wire, gateway
        broker = PaperBroker(gateway, day.cost)
        self._traders: dict[str, PaperTrader] = {}
        self._bars: dict[str, list[Bar]] = {}
        for symbol, bars in day.bars.items():
            trader = PaperTrader(
                symbol,
                wire,
                broker,
                settings=settings,
                session_bars=day.session_bars,
                observation=observation,
                first_session=int(bars.session[-1]),
            )
            replayed = list(replay(bars))
            for bar in replayed[: -day.session_bars]:
                trader.on_bar(bar)
            self._traders[symbol], self._bars[symbol] = trader, replayed[-day.session_bars :]

    def take(self, number: int, pool: Executor) -> None:
        """One bar of every symbol, several at a time; returns when all of them are done with it."""
        self.wire.notes.bar = number
        self.wire.hold = Hold()
        late = [pool.submit(self._late, symbol, number) for symbol in self._traders if symbol in self.wire.late]
        for _ in late:
            self.wire.hold.await_one()
        try:
            list(pool.map(lambda symbol: self._one(symbol, number), self._others))
            self.wire.report_late()
            self.gateway.await_follower(self.wire.epoch() or 0)
        finally:
            self.wire.hold.let_go()
        for one in late:
            one.result()

    @property
    def _others(self) -> list[str]:
        return [symbol for symbol in self._traders if symbol not in self.wire.late]

    def _one(self, symbol: str, number: int) -> None:
        self._traders[symbol].on_bar(self._bars[symbol][number])

    def _late(self, symbol: str, number: int) -> None:
        try:
            self._one(symbol, number)
        finally:
            self.wire.hold.nothing_to_hold()  # at the day's last bar nothing is asked
