"""`POST /api/trading/manual-trade` (seed 7.1.1): an order of a person's, through the same risk engine and gateway.

Who has a ledger open trades it: a live process takes the request from its file (trading/manual.py), and this process
only asks and reads. Where none runs, the order goes into the ledger of the replay on paper, which fills it at the open
of its next bar, as it fills a model's. `account: real` must be said where orders are real; nothing else ever sends one.

The header `Idempotency-Key` names the trade for this caller: sent again, also after a restart, it is the same trade.
Without it, as the seed's clients ask, every request is a trade of its own.
Quantities are units, as everywhere; where an instrument has lots they are whole lots.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import threading
import time
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from backend import paper_orders
from backend.backtest_routes import Symbol
from core.errors import DataError
from core.settings import Settings
from serving import problems
from serving.openapi import failures
from serving.scopes import Scope, needs
from trading import switch
from trading.ledger import Ledger, OrderState
from trading.manual import GOOD_FOR_S, Answer, ManualTrade, Requests, answer_of, is_traded

PAPER, LIVE_PAPER, REAL = "paper.db", "live-paper.db", "live.db"
WAIT_S = 5.0  # for the desk's answer, and the broker's; then what is known is told
LOOK_EVERY_S = 0.05
INVALID = frozenset({"odd_lot", "unknown_symbol", "above_freeze", "order_invalid", "wrong_instrument"})
SETTLED = frozenset({"refused", "filled", "cancelled", "rejected"})
Status = Literal["pending", "refused", "unknown", "open", "cancelling", "filled", "cancelled", "rejected"]
Key = Annotated[str, Field(min_length=8, max_length=128, pattern=r"^[\x21-\x7e]+$")]


class ManualTradeRequest(BaseModel):
    """`quantity` is in units. `account`: with `real` orders go to the broker, if a live process has it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    symbol: Symbol
    side: Literal["buy", "sell"]
    quantity: Annotated[int, Field(ge=1, le=1_000_000, strict=True)]
    account: Literal["paper", "real"] = "paper"
    reason: Annotated[str, Field(max_length=switch.LONGEST)] = ""

    @property
    def units(self) -> int:
        return self.quantity if self.side == "buy" else -self.quantity


class ManualTradeState(BaseModel):
    """What became of it.

    status: pending (nobody has answered yet), refused, unknown (the order is on its way: whether it arrived is not
    known, and it is never sent again), open, cancelling, filled, cancelled or rejected (perhaps after a part).
    """

    trade_id: str
    symbol: str
    units: int
    ledger: str
    order_id: str
    status: Status
    detail: str
    filled_units: float
    average_price: float | None
    broker_id: str | None


def router(settings: Settings) -> APIRouter:
    routes, desk = APIRouter(prefix="/api/trading", tags=["trading"]), ManualTrades(settings)

    waiting: dict[int | str, dict[str, Any]] = {
        202: {"model": ManualTradeState, "description": "Nobody has answered yet."}
    }

    @routes.post("/manual-trade", response_model=ManualTradeState, responses=waiting | failures(400, 409))
    @needs(Scope.TRADE_WRITE)
    async def manual_trade(
        request: Request, asked: ManualTradeRequest, key: Annotated[Key | None, Header(alias="Idempotency-Key")] = None
    ) -> Response:
        """Waits up to 5 s for what becomes of it; 202 while nobody has answered, 409 or 422 where it is refused.

        Send an `Idempotency-Key` if you may ask again: without one, a second request is a second trade.
        """
        trade = await asyncio.to_thread(desk.ask, asked, request.user.id, key or secrets.token_hex())
        state = await desk.settled(trade)
        if state.status == "refused":
            reason = state.detail.split(":")[0]
            return problems.problem(422 if reason in INVALID else 409, reason, state.detail, trade_id=trade.trade_id)
        location = {"Location": f"/api/trading/manual-trades/{trade.trade_id}"}
        return JSONResponse(state.model_dump(), 202 if state.status == "pending" else 200, location)

    @routes.get("/manual-trades/{trade_id}", response_model=ManualTradeState, responses=failures(404))
    @needs(Scope.ROLLOUT_READ)
    def one(trade_id: str) -> ManualTradeState | Response:
        """What became of a trade that was asked for."""
        trade = desk.requests.of(trade_id)
        if trade is None:
            return problems.problem(404, "unknown_trade", "no manual trade has this id")
        return desk.state(trade)

    return routes


class ManualTrades:
    """Over the ledgers of one state directory."""

    def __init__(self, settings: Settings) -> None:
        self.settings, self.state_dir = settings, settings.paths.state_dir
        self.requests = Requests(self.state_dir)
        self._paper = threading.Lock()  # one at a time: the same trade may be asked for twice at once

    def ask(self, asked: ManualTradeRequest, by: str, key: str) -> ManualTrade:
        """Put it on record and, on paper, trade it. Raises DataError for a key of another trade, or no such account."""
        trade_id = hashlib.sha256(f"{by}\0{key}".encode()).hexdigest()[:24]
        known = self.requests.of(trade_id)
        if known is None:
            ledger = self._ledger(asked.account)
            wanted = ManualTrade(trade_id, ledger, asked.symbol, asked.units, by, asked.reason, time.time_ns())
            known = self.requests.ask(wanted)
        if (known.symbol, known.units, known.ledger == REAL) != (asked.symbol, asked.units, asked.account == "real"):
            told = f"this key asked for {known.units} units of {known.symbol} before; another trade has another key"
            raise DataError(told, code="idempotency_key_reused")
        if known.ledger == PAPER:
            with self._paper:
                paper_orders.trade(self.settings, known)
        return known

    async def settled(self, trade: ManualTrade) -> ManualTradeState:
        """Its state, once it is over, or known at least, or `WAIT_S` have passed."""
        give_up = time.monotonic() + WAIT_S
        while True:
            state = await asyncio.to_thread(self.state, trade)
            on_paper = state.status == "open" and trade.ledger == PAPER  # until the next bar
            if state.status in SETTLED or on_paper or time.monotonic() >= give_up:
                return state
            await asyncio.sleep(LOOK_EVERY_S)

    def state(self, trade: ManualTrade) -> ManualTradeState:
        """From the ledger that it is for, whoever writes it."""
        file = self.state_dir / trade.ledger
        answer, order, price = _read(file, trade) if file.exists() else (None, None, None)
        status, detail = self._words(file, trade, answer, order)
        return ManualTradeState(
            trade_id=trade.trade_id,
            symbol=trade.symbol,
            units=trade.units,
            ledger=trade.ledger,
            order_id=trade.order_id,
            status=status,
            detail=detail,
            filled_units=0.0 if order is None else order.filled_units,
            average_price=price,
            broker_id=None if order is None else order.broker_id,
        )

    def _words(
        self, file: Path, trade: ManualTrade, answer: Answer | None, order: OrderState | None
    ) -> tuple[Status, str]:
        if order is not None:
            return _of_order(order)
        if answer is not None and answer.refusal is not None:
            return "refused", answer.refusal
        if time.time_ns() > trade.expires_ns and not is_traded(file):
            return "refused", f"too_late: nobody took it up within {GOOD_FOR_S:g} s, and nobody will"
        return "pending", "the desk has not answered yet; GET this trade again"

    def _ledger(self, account: Literal["paper", "real"]) -> str:
        """Of whoever trades now. Raises DataError where what is asked for is not what runs."""
        if is_traded(self.state_dir / REAL):
            if account == "paper":
                told = "a live process sends real orders; say account: real, or stop it"
                raise DataError(told, code="real_account")
            return REAL
        if account == "real":
            raise DataError("no live process sends real orders; start hrm trade --live", code="no_live_desk")
        return LIVE_PAPER if is_traded(self.state_dir / LIVE_PAPER) else PAPER


def _read(file: Path, trade: ManualTrade) -> tuple[Answer | None, OrderState | None, float | None]:
    """The answer, the order, and the average price of what was filled."""
    ledger = Ledger(file, as_it_is=True)
    try:
        order = ledger.order(trade.order_id)
        fills = (
            [] if order is None else [each for each in ledger.fills(trade.symbol) if each.order_id == trade.order_id]
        )
        units = sum(each.units for each in fills)
        price = sum(each.units * each.price for each in fills) / units if units else None
        return answer_of(ledger, trade.trade_id), order, price
    finally:
        ledger.close()


def _of_order(order: OrderState) -> tuple[Status, str]:
    if order.is_open and order.order.instrument and order.broker_id is None:
        return "unknown", "it is on its way, or lost: the desk looks for it at the broker, and never sends it again"
    if order.status == "open" and not order.order.instrument:
        return "open", "the replay on paper fills it at the open of its next bar"
    status: Status = order.status  # type: ignore[assignment] # one of OrderState's
    return status, order.reason
