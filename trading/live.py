"""The paper loop: bars in, decisions over HTTP, orders to the paper broker, outcomes back to the service.

At the close of bar t:  fill what was ordered at t-1 (at the open of t), report what the decision of t-1 earned,
close everything if t is the session's last bar, else decide and order. The same bars give the same fills and the
same money as trading/backtest.py.

Each arm, champion and challenger, decides on its own virtual portfolio; the real position follows the arm that
acts. After a hand-over it moves to the new arm's book with that arm's next decision. Without a valid answer: HOLD.
A restarted loop reads all bars again for the features and acts only from its last intent on.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import structlog

from core.actions import LEGAL, TARGET_OF, Action
from core.errors import DataError
from core.observation import ObservationSchema
from core.settings import Settings
from trading.costs import CostModel, flat_costs, turnover_cost_bps
from trading.features import FeatureSettings, schema
from trading.instruments import charged_lot
from trading.market import Bars, day_of, require_fit
from trading.paper import Intent, Ledger, PaperBroker, Position, position_of
from trading.service import ArmDecision, DecisionAnswer, DecisionClient
from trading.stream import Bar, FeatureWindow, replay, usual_session_length

ARMS = ("champion", "challenger")

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
    """One symbol's loop; `on_bar` is the whole of it. State that matters is in the ledger."""

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
        self.first_session = first_session
        self.symbol, self.service, self.broker, self.ledger = symbol, service, broker, broker.ledger
        self.settings = settings
        features = FeatureSettings.of(
            settings.hierarchical_reasoning_model.complexity_detection,
            bars_per_session=session_bars,
            capital=settings.trading.initial_capital,
        )
        self.features = FeatureWindow(features, observation or schema(settings.observation), symbol)
        self.last_intent = self.ledger.last_intent(symbol)
        self.resume_ns = -1 if self.last_intent is None else self.last_intent.bar_ns
        self.previous: Bar | None = None
        self.last_price = 0.0
        self.bars = self.decisions = self.held = self.slow = self.skipped = 0

    def on_bar(self, bar: Bar) -> bool:
        """Take one closed bar; False if it lies before the last intent or the first session and only feeds features."""
        self.bars += 1
        try:
            self.features.push(bar)
        except DataError as error:
            self.skipped += 1
            log.warning("bar_skipped", symbol=self.symbol, error=str(error))
            return True
        new = bar.timestamp_ns >= self.resume_ns and bar.session >= self.first_session
        if new:
            self._trade(bar)
        self.previous, self.last_price = bar, bar.close
        return new

    def _trade(self, bar: Bar) -> None:
        if self.previous is not None and bar.session != self.previous.session:
            self._leave_stale_session(bar)
        self.broker.fill_open_orders(self.symbol, bar.open, bar.timestamp_ns)
        self._report_outcome(bar)
        if bar.last_of_session:
            self._square_off(bar, bar.close)
        elif self.features.ready:
            self._decide(bar)

    def _leave_stale_session(self, bar: Bar) -> None:
        """The last bar of a session never came: cancel what it left open and close at the first price there is."""
        for order_id, _units, ordered_ns in self.ledger.open_orders(self.symbol):
            if ordered_ns < bar.timestamp_ns:
                self.ledger.cancel(order_id)
        self._square_off(bar, bar.open)

    def _square_off(self, bar: Bar, price: float) -> None:
        if bar.timestamp_ns == self.resume_ns and self.last_intent and self.last_intent.reason != "square_off":
            return  # this bar was squared off, if it had to be, before its recorded decision
        units = self.ledger.units(self.symbol)
        wanted = Intent(self.symbol, bar.timestamp_ns, "square_off", -units)
        on_record = self.ledger.intent(wanted.intent_id)
        if on_record is None and units == 0.0:
            return
        self.broker.fill_now(on_record or self.ledger.record_intent(wanted), price)

    def _decide(self, bar: Bar) -> None:
        intent = self.ledger.intent(f"{self.symbol}:{bar.timestamp_ns}")
        if intent is None:
            intent = self.ledger.record_intent(self._new_intent(bar))
        if intent.order_units:
            self.ledger.record_order(intent)
        self.last_intent = intent

    def _new_intent(self, bar: Bar) -> Intent:
        """Ask the service and turn its answer into targets of both arms and an order of the one that acts."""
        before = self._virtual_positions(bar)
        self.decisions += 1
        held = Intent(self.symbol, bar.timestamp_ns, Action.HOLD.name, 0.0, *_pairs(before, before))
        answer = self._ask(bar, before)
        if answer is None or not _legal(answer, before):
            self.held += 1
            return held
        by_role = {decision.role: decision for decision in (answer.shadow, answer) if decision is not None}
        after = {
            arm: int(TARGET_OF[before[arm] + 1, by_role[arm].action]) if arm in by_role else before[arm] for arm in ARMS
        }
        return replace(
            held,
            reason=answer.action.name,
            order_units=self._order_units(answer, after.get(answer.role)),
            champion_to=after["champion"],
            challenger_to=after["challenger"],
            model_version=answer.model_version,
            epoch=answer.epoch,
            reported=not all(arm in by_role for arm in ARMS),
        )

    def _ask(self, bar: Bar, positions: Mapping[str, int]) -> DecisionAnswer | None:
        """The service's answer; slow ones (NFR1.1) are counted and warned about."""
        started = time.perf_counter()
        answer = self.service.decide(self._request(bar, positions))
        elapsed_ms = 1e3 * (time.perf_counter() - started)
        if elapsed_ms > self.settings.performance.inference_timeout_ms:
            self.slow += 1
            log.warning("slow_decision", symbol=self.symbol, elapsed_ms=round(elapsed_ms, 2))
        return answer

    def _virtual_positions(self, bar: Bar) -> dict[str, int]:
        last = self.last_intent
        if last is None or last.reason == "square_off" or self.previous is None:
            return dict.fromkeys(ARMS, 0)
        if self.previous.session != bar.session:
            return dict.fromkeys(ARMS, 0)
        return {"champion": last.champion_to, "challenger": last.challenger_to}

    def _order_units(self, answer: ArmDecision, target: int | None) -> float:
        """Units that take the real position to the acting arm's target; a held direction keeps its size."""
        units = self.ledger.units(self.symbol)
        if target is None or np.sign(units) == target:
            return 0.0
        quantity = min(answer.quantity, self.settings.trading.max_quantity)
        return float(target * math.floor(quantity) - units)

    def _request(self, bar: Bar, positions: Mapping[str, int]) -> dict[str, Any]:
        context = self.features.context.tolist()
        accounts = {
            arm: {"features": [*context, float(position)], "position": position} for arm, position in positions.items()
        }
        return {
            "symbol": self.symbol,
            "bars": self.features.bars.tolist(),
            "complexity": self.features.complexity,
            "accounts": accounts,
            "request_id": f"{self.symbol}:{bar.timestamp_ns}"[-64:],
        }

    def _report_outcome(self, bar: Bar) -> None:
        """Tell the service what the decision at the previous bar earned in each arm's own portfolio."""
        last, previous = self.last_intent, self.previous
        if last is None or previous is None or last.bar_ns != previous.timestamp_ns or last.reported:
            return
        if self.ledger.claim_report(last.intent_id):
            day = day_of(bar.timestamp_ns)
            cost_bps = turnover_cost_bps(self.broker.cost(day), bar.open, charged_lot(self.symbol, day))
            earned = [
                earned_bps(previous.close, bar, moved, cost_bps)
                for moved in ((last.champion_from, last.champion_to), (last.challenger_from, last.challenger_to))
            ]
            self.service.report(self.symbol, *earned)

    def summary(self) -> TradeReport:
        position = position_of(self.symbol, self.ledger.fills(self.symbol))
        open_profit = position.units * (self.last_price - position.average_price)
        equity = self.settings.trading.initial_capital + position.realised + open_profit
        return TradeReport(self.bars, self.decisions, self.held, self.slow, self.skipped, position, equity)


def earned_bps(close: float, bar: Bar, moved: tuple[int, int], cost_bps: float) -> float:
    """Return in bps of going from one direction to another at the open after `close` (trading/env.py's reward)."""
    old, new = moved
    turnover = abs(new - old) + (abs(new) if bar.last_of_session else 0)
    return 1e4 * (old * (bar.open - close) + new * (bar.close - bar.open)) / close - cost_bps * turnover


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

    Raises DataError if the bars are of another timeframe than the models', or of a symbol that they do not know.
    """
    observation = observation or schema(settings.observation, interval_s=bars.interval_s)
    require_fit(bars, observation)
    ledger = Ledger(settings.paths.state_dir / "paper.db")
    try:
        broker = PaperBroker(ledger, cost or flat_costs(settings.trading.cost_bps))
        trader = PaperTrader(
            bars.name,
            service,
            broker,
            settings=settings,
            session_bars=usual_session_length(bars),
            observation=observation,
            first_session=first_session,
        )
        _drive(trader, replay(bars), 0.0 if bars_per_s is None else 1.0 / bars_per_s)
        return trader.summary()
    finally:
        ledger.close()


def _drive(trader: PaperTrader, feed: Iterable[Bar], interval_s: float) -> None:
    due = time.monotonic()
    for bar in feed:
        if trader.on_bar(bar):
            due = max(due + interval_s, time.monotonic())
            time.sleep(max(0.0, due - time.monotonic()))


def _legal(answer: DecisionAnswer, positions: Mapping[str, int]) -> bool:
    """Every arm's action is allowed in its own position; a safe answer may only hold."""
    decisions = [answer] if answer.shadow is None else [answer, answer.shadow]
    return all(
        decision.action is Action.HOLD
        if decision.role == "safe"
        else bool(LEGAL[positions[decision.role] + 1, decision.action])
        for decision in decisions
    )


def _pairs(before: Mapping[str, int], after: Mapping[str, int]) -> tuple[int, int, int, int]:
    return before["champion"], after["champion"], before["challenger"], after["challenger"]
