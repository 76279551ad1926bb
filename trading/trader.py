"""One symbol, from closed bars and answers to intents: the same on a replay, on paper and in earnest.

At the close of bar t:  what the decision of t-1 earned is told, everything is closed if t is the session's last bar,
else the service is to be asked. Its answer, whenever it comes, becomes the intent of t; without a valid one: HOLD.

Each arm, champion and challenger, decides on its own virtual portfolio; the real position follows the arm that
acts, and stays with it until it is flat or handed over (trading/ownership.py). The owner's account is the real one.

What becomes of an intent in the market is the venue's: trading/paper_replay.py fills it at the bars it is shown,
trading/desk.py sends orders to a broker. A trader that is made anew reads the bars again for the features and acts
only from its last intent on, which says all that follows from it.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import date
from typing import Any, Protocol

import numpy as np

from core.observation import ObservationSchema
from core.settings import Settings
from delivery.crash import crash_at
from trading.costs import CostModel, turnover_cost_bps
from trading.features import FeatureSettings, schema
from trading.gateway import OrderGateway
from trading.instruments import charged_lot
from trading.intents import (
    answered,
    earned_bps,
    handing_over,
    handover_of,
    holding,
    leaving,
    legal,
    succession,
)
from trading.ledger import Intent, Order
from trading.market import SECOND_NS, day_of
from trading.ownership import ARMS, Book, Owner
from trading.service import DecisionAnswer
from trading.stream import Bar, FeatureWindow


class Venue(Protocol):
    """What a trader does to the world. Intents may come again after a restart: their ids say so."""

    def opened(self, symbol: str, bar: Bar) -> None:
        """A bar is there: what was ordered before may be filled at its open."""

    def cancel(self, order: Order) -> None: ...

    def send(self, intent: Intent) -> None:
        """The order of an intent that has one."""

    def close(self, intent: Intent, price: float) -> None:
        """Let go of what is held; `price`: the last one there is."""

    def report(self, symbol: str, day: date, champion_bps: float, challenger_bps: float) -> None:
        """Tell the service what both arms earned with the decision before."""


class Trader:
    """`on_bar` gives the question for the service, `on_answer` takes its answer. What matters is in the ledger."""

    def __init__(
        self,
        symbol: str,
        gateway: OrderGateway,
        venue: Venue,
        *,
        settings: Settings,
        cost: CostModel,
        session_bars: int,
        observation: ObservationSchema | None = None,
    ) -> None:
        self.symbol, self.gateway, self.venue, self.ledger = symbol, gateway, venue, gateway.ledger
        self.settings, self.cost = settings, cost
        self.session_bars = session_bars
        self.observation = observation or schema(settings.observation)
        self.interval_ns = self.observation.interval_s * SECOND_NS
        self.last_intent = self.ledger.last_intent(symbol)
        self.resume_ns = -1 if self.last_intent is None else self.last_intent.bar_ns
        self.held = 0  # bars without a valid answer
        self.start_over()

    def start_over(self) -> None:
        """Forget all bars: history is to be shown from its beginning."""
        features = FeatureSettings.of(
            self.settings.hierarchical_reasoning_model.complexity_detection,
            bars_per_session=self.session_bars,
            capital=self.settings.trading.initial_capital,
        )
        self.features = FeatureWindow(features, self.observation, self.symbol)
        self.previous: Bar | None = None
        self.opened_ns = 0  # the session

    def is_new(self, bar: Bar) -> bool:
        """Whether a bar is to be acted on; one before the last intent is there for the features."""
        return bar.timestamp_ns >= self.resume_ns

    def feed(self, bar: Bar) -> Bar | None:
        """Take a bar for the features alone; the bar before it.

        Raises DataError, with nothing changed, if it is impossible or out of order.
        """
        self.features.push(bar)
        before, self.previous = self.previous, bar
        if before is None or bar.session != before.session:
            self.opened_ns = bar.timestamp_ns
        return before

    def on_bar(self, bar: Bar) -> dict[str, Any] | None:
        """Take a closed bar; the question for the service, if there is something to decide.

        Raises DataError, with nothing changed, if the bar is impossible or out of order.
        """
        before = self.feed(bar)
        if not self.is_new(bar):
            return None
        if before is not None and bar.session != before.session:
            self._leave_stale_session(bar)
        self.venue.opened(self.symbol, bar)
        self._report_outcome(bar, before)
        if bar.last_of_session:
            self._square_off(bar, bar.close)
            return None
        return self._question(bar) if self.features.ready else None

    def on_answer(self, bar: Bar, answer: DecisionAnswer | None) -> Intent:
        """Record the intent of a bar, unless there is one, and let follow what it says."""
        intent = self.ledger.intent(f"{self.symbol}:{bar.timestamp_ns}")
        intent = intent or self.ledger.record_intent(self._decided(bar, answer))
        crash_at("intent_recorded")
        return self._follow(intent)

    def hold(self, bar: Bar, why: str) -> Intent:
        """Record that a bar is not decided. One that has an intent keeps it."""
        held = holding(self.symbol, bar.timestamp_ns, self._positions(self.gateway.book(self.symbol)))
        intent = self.ledger.record_intent(replace(held, reason=f"HOLD:{why}"))
        self.last_intent = intent
        return intent

    def close(self, bar_ns: int, price: float) -> None:
        """Let go of what is held and of what is on its way; the arms' own books are flat with it."""
        self.last_intent = self._close(bar_ns, price) or self.last_intent

    def _close(self, bar_ns: int, price: float) -> Intent | None:
        book = self.gateway.book(self.symbol)
        wanted = Intent(self.symbol, bar_ns, "square_off", -book.units, owner=str(book.owner))
        on_record = self.ledger.intent(wanted.intent_id)
        if on_record is None and book.units == 0.0 and not self.ledger.open_orders(self.symbol):
            return None
        intent = on_record or self.ledger.record_intent(wanted)
        self.venue.close(intent, price)
        return intent

    def _leave_stale_session(self, bar: Bar) -> None:
        """The last bar of a session never came: cancel what it left open and close at the first price there is."""
        for order in self.ledger.open_orders(self.symbol):
            if order.bar_ns < bar.timestamp_ns:
                self.venue.cancel(order)
        self._square_off(bar, bar.open)

    def _square_off(self, bar: Bar, price: float) -> None:
        if bar.timestamp_ns == self.resume_ns and self.last_intent and self.last_intent.reason != "square_off":
            return  # this bar was squared off, if it had to be, before its recorded decision
        self._close(bar.timestamp_ns, price)

    def _question(self, bar: Bar) -> dict[str, Any] | None:
        """None if the bar has its intent already: then that is followed."""
        intent = self.ledger.intent(f"{self.symbol}:{bar.timestamp_ns}")
        if intent is not None:
            self._follow(intent)
            return None
        return self.question(bar)

    def question(self, bar: Bar) -> dict[str, Any]:
        """What the service is asked about the newest bar."""
        book = self.gateway.book(self.symbol)
        context = self.features.context.tolist()
        accounts = {
            arm: {"features": [*context, float(position)], "position": position}
            for arm, position in self._positions(book).items()
        }
        return {
            "symbol": self.symbol,
            "bars": self.features.bars.tolist(),
            "complexity": self.features.complexity,
            "accounts": accounts,
            "acting": book.acting,
            "request_id": f"{self.symbol}:{bar.timestamp_ns}"[-64:],
        }

    def _decided(self, bar: Bar, answer: DecisionAnswer | None) -> Intent:
        """Targets of both arms from an answer, and what follows for the real position."""
        book = self.gateway.book(self.symbol)
        before = self._positions(book)
        intent = holding(self.symbol, bar.timestamp_ns, before)
        now_ns = bar.timestamp_ns + self.interval_ns
        if answer is None or not legal(answer, before, book):
            self.held += 1
        else:
            intent = answered(answer, intent, book, self.settings.trading.max_quantity)
            mode = succession(book, answer)
            if mode is not None:
                closes_ns = self.opened_ns + self.session_bars * self.interval_ns
                intent = handing_over(intent, mode, answer, now_ns=now_ns, closes_ns=closes_ns)
        if book.exit_due(now_ns) or intent.handover == "flatten":
            return leaving(intent, book)
        return intent

    def _follow(self, intent: Intent) -> Intent:
        if intent.handover is not None:
            self.gateway.hand_over(handover_of(intent, intent.bar_ns + self.interval_ns))
        if intent.order_units:
            self.venue.send(intent)
        self.last_intent = intent
        return intent

    def _positions(self, book: Book) -> dict[str, int]:
        """Each arm's direction: the owner's is the real one, the other's where its decisions of this session led."""
        last = self.last_intent
        positions: dict[str, int] = dict.fromkeys(ARMS, 0)
        if last is not None and last.reason != "square_off" and last.bar_ns >= self.opened_ns:
            positions = {"champion": last.champion_to, "challenger": last.challenger_to}
            if last.order_units and book.acting is None:  # closed, or its order came to nothing
                positions[Owner.parse(last.owner).arm] = 0
        return positions if book.acting is None else positions | {book.acting: int(np.sign(book.units))}

    def _report_outcome(self, bar: Bar, before: Bar | None) -> None:
        """Tell what the decision at the bar before earned in each arm's own portfolio."""
        last = self.last_intent
        if last is None or before is None or last.bar_ns != before.timestamp_ns or last.reported:
            return
        if self.ledger.claim_report(last.intent_id):
            day = day_of(bar.timestamp_ns)
            cost_bps = turnover_cost_bps(self.cost(day), bar.open, charged_lot(self.symbol, day))
            stays = bar.session == before.session  # else its order was cancelled, and all was let go of at the open
            champion_bps, challenger_bps = (
                earned_bps(before.close, bar, (held, wanted if stays else 0), cost_bps)
                for held, wanted in ((last.champion_from, last.champion_to), (last.challenger_from, last.challenger_to))
            )
            self.venue.report(self.symbol, day, champion_bps, challenger_bps)
