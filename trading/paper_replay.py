"""The paper loop: the bars of a file, decisions over HTTP, fills at the bars' own prices, outcomes back.

At each bar: fill what was ordered at the one before (at this one's open), then what trading/trader.py says. The same
bars give the same fills and the same money as trading/backtest.py. A restarted loop reads all bars again and goes on
where its ledger ends.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import date
from typing import Any

import structlog

from core.errors import BrokerError, DataError
from core.observation import ObservationSchema
from core.settings import Settings
from trading.costs import CostModel, flat_costs
from trading.events import EventLog, bar_body, bars_of
from trading.features import schema
from trading.gateway import OrderGateway, Refused
from trading.intents import order_of
from trading.ledger import Intent, Ledger, Order, Position, position_of
from trading.market import Bars, require_fit
from trading.paper import PaperBroker
from trading.service import DecisionAnswer, DecisionClient, following
from trading.stream import Bar, replay, usual_session_length
from trading.trader import Trader

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class TradeReport:
    """Counts of this run; `position` and `equity` (rupees) are of the whole ledger."""

    bars: int
    decisions: int
    held_without_answer: int
    slow_decisions: int
    skipped_bars: int
    position: Position
    equity: float


class PaperTrader:
    """One symbol's loop, and the venue of its trader; `on_bar` is the whole of it."""

    def __init__(
        self,
        symbol: str,
        service: DecisionClient,
        broker: PaperBroker,
        *,
        settings: Settings,
        session_bars: int,
        observation: ObservationSchema | None = None,
        first_session: int = 0,
    ) -> None:
        self.symbol, self.service, self.broker, self.settings = symbol, service, broker, settings
        self.trader = Trader(
            symbol,
            broker.gateway,
            self,
            settings=settings,
            cost=broker.cost,
            session_bars=session_bars,
            observation=observation,
        )
        self.events = EventLog(self.trader.ledger)
        noted = self.events.last_of("bar", symbol)
        self._noted_ns = -1 if noted is None else bars_of(noted)[0].timestamp_ns
        self.first_session = first_session
        self.last_price = 0.0
        self.bars = self.decisions = self.slow = self.skipped = 0

    def on_bar(self, bar: Bar) -> bool:
        """Take one closed bar; False if it lies before the last intent or the first session and only feeds features."""
        self.bars += 1
        new = bar.session >= self.first_session and self.trader.is_new(bar)
        try:
            question = self._take(bar, new=new)
        except DataError as error:
            self.skipped += 1
            log.warning("bar_skipped", symbol=self.symbol, error=str(error))
            return True
        if new:
            self._note(bar)
        if question is not None:
            self.decisions += 1
            self.trader.on_answer(bar, self._ask(question))
        self.last_price = bar.close
        return new

    def _take(self, bar: Bar, *, new: bool) -> dict[str, Any] | None:
        if new:
            return self.trader.on_bar(bar)
        self.trader.feed(bar)
        return None

    def _note(self, bar: Bar) -> None:
        """Put a bar on record, as the live desk does: for who looks, or trades by hand, beside this loop."""
        if bar.timestamp_ns > self._noted_ns:
            body = bar_body(bar, {self.symbol: (bar.close, bar.timestamp_ns)})
            self.events.append("bar", body, at_ns=bar.timestamp_ns, symbol=self.symbol)
            self._noted_ns = bar.timestamp_ns

    def opened(self, symbol: str, bar: Bar) -> None:
        self.broker.fill_open_orders(symbol, bar.open, bar.timestamp_ns)

    def cancel(self, order: Order) -> None:
        self.broker.gateway.cancel(order.order_id)

    def send(self, intent: Intent) -> None:
        self._submit(intent)

    def close(self, intent: Intent, price: float) -> None:
        order = self._submit(intent)
        if order is not None:
            self.broker.fill(order, price, order.bar_ns)

    def report(self, symbol: str, day: date, champion_bps: float, challenger_bps: float) -> None:
        self.service.report(symbol, day, champion_bps, challenger_bps)

    def _submit(self, intent: Intent) -> Order | None:
        """The order of an intent, once the gateway has accepted it; None if it refuses.

        On paper the market waits until the exchange takes another order.
        """
        order = order_of(intent, intent.bar_ns + self.trader.interval_ns)
        while isinstance(result := self.broker.gateway.submit(order), Refused):
            if result.retry_at_ns is None:
                log.warning("order_refused", order_id=order.order_id, reason=result.reason, detail=result.detail)
                return None
            order = replace(order, at_ns=result.retry_at_ns)
        return order

    def _ask(self, question: Mapping[str, Any]) -> DecisionAnswer | None:
        """The service's answer; slow ones (NFR1.1) are counted and warned about."""
        started = time.perf_counter()
        answer = self.service.decide(question)
        elapsed_ms = 1e3 * (time.perf_counter() - started)
        if elapsed_ms > self.settings.performance.inference_timeout_ms:
            self.slow += 1
            log.warning("slow_decision", symbol=self.symbol, elapsed_ms=round(elapsed_ms, 2))
        return answer

    def summary(self) -> TradeReport:
        position = position_of(self.symbol, self.trader.ledger.fills(self.symbol))
        open_profit = position.units * (self.last_price - position.average_price)
        equity = self.settings.trading.initial_capital + position.realised + open_profit
        held = self.trader.held
        return TradeReport(self.bars, self.decisions, held, self.slow, self.skipped, position, equity)


def run_paper(
    bars: Bars,
    settings: Settings,
    service: DecisionClient,
    *,
    cost: CostModel | None = None,
    bars_per_s: float | None = None,
    first_session: int = 0,
    observation: ObservationSchema | None = None,
) -> TradeReport:
    """Trade a replay of `bars` on paper, from where the ledger `<state_dir>/paper.db` left off.

    Args:
        cost: of orders by day; by default `trading.cost_bps` of its value.
        bars_per_s: speed of the bars that are new; None for as fast as the service answers.
        first_session: of `bars` to act in; the ones before only feed the features.
        observation: what the service's models look at; by default what the settings say, of bars of this length.

    Raises DataError if the bars are of another timeframe than the models', or of a symbol that they do not know, and
    BrokerError if the ledger does not add up.
    """
    observation = observation or schema(settings.observation, interval_s=bars.interval_s)
    require_fit(bars, observation)
    ledger = Ledger(settings.paths.state_dir / "paper.db")
    try:
        _require_reconciled(ledger)
        gateway = OrderGateway(ledger, settings.trading)
        broker = PaperBroker(gateway, cost or flat_costs(settings.trading.cost_bps))
        trader = PaperTrader(
            bars.name,
            service,
            broker,
            settings=settings,
            session_bars=usual_session_length(bars),
            observation=observation,
            first_session=first_session,
        )
        with following(service, gateway.raise_fence):
            _drive(trader, replay(bars), 0.0 if bars_per_s is None else 1.0 / bars_per_s)
        return trader.summary()
    finally:
        ledger.close()


def _require_reconciled(ledger: Ledger) -> None:
    """Raises BrokerError where owners hold anything but what the broker does."""
    problems = ledger.discrepancies()
    if problems:
        raise BrokerError(
            f"{ledger.path} does not add up: {'; '.join(problems)}; nothing was traded: find out why before you go on",
            code="not_reconciled",
        )


def _drive(trader: PaperTrader, feed: Iterable[Bar], interval_s: float) -> None:
    due = time.monotonic()
    for bar in feed:
        if trader.on_bar(bar):
            due = max(due + interval_s, time.monotonic())
            time.sleep(max(0.0, due - time.monotonic()))
