"""What is held, what stands, and the switch: `/api/trading/{positions,status,kill,resume}`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from sqlalchemy.exc import DatabaseError

from core.errors import BrokerError
from core.settings import Settings
from serving import problems
from serving.openapi import failures
from serving.scopes import Scope, needs
from trading.gateway import OrderGateway
from trading.ledger import Ledger, Position
from trading.ownership import Book
from trading.status import LEDGERS, status, today
from trading.switch import LONGEST, Switch, engage, facts, read, release


class KillRequest(BaseModel):
    """All of it may be left out, the body too: whoever stops trading need not explain first, nor be understood."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    reason: Annotated[str, Field(max_length=LONGEST)] = ""
    flatten: bool = False  # what is held is closed at the next price; nothing is opened

    @classmethod
    def heard(cls, body: bytes) -> KillRequest:
        try:
            return cls.model_validate_json(body or b"{}")
        except ValidationError:
            return cls(reason="killed in words that were not understood")

    @classmethod
    def described(cls) -> dict[str, Any]:
        """For the OpenAPI document: any words will do, and these are understood."""
        example = {"by_hand": {"value": cls(reason="the feed is wrong").model_dump()}}
        return {"requestBody": {"content": {"application/json": {"schema": {}, "examples": example}}}}


class ResumeRequest(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    reason: Annotated[str, Field(max_length=LONGEST, pattern=r"\S")]
    flatten: Annotated[bool, Field(strict=True)] = False  # not quite: what is held is closed, and nothing is opened


def router(settings: Settings) -> APIRouter:
    """Over the switch and the ledgers of one state directory."""
    state_dir = settings.paths.state_dir
    routes = APIRouter(prefix="/api/trading", tags=["trading"])

    @routes.get("/positions")
    @needs(Scope.ROLLOUT_READ)
    def positions() -> dict[str, Any]:
        """Of every symbol ever traded, by ledger: how much, at what price, and whose it is."""
        found: list[dict[str, Any]] = []
        unreadable: dict[str, str] = {}
        for name in LEDGERS:
            try:
                found += _positions(state_dir / name, settings)
            except (BrokerError, DatabaseError) as error:  # the other ledgers are told all the same
                unreadable[name] = str(error)
        return {"positions": found, "problems": unreadable}

    @routes.get("/status")
    @needs(Scope.ROLLOUT_READ)
    def trading_status() -> dict[str, Any]:
        return status(state_dir, today())

    # In threads that nothing else has: whatever waits for a backtest, a disk or a desk, a kill does not wait behind it.
    hands = ThreadPoolExecutor(2, "switch")
    by_hand = partial(_in, hands)

    @routes.post("/kill", response_model=None, responses=failures(409), openapi_extra=KillRequest.described())
    @needs(Scope.ROLLOUT_ABORT)
    async def kill(request: Request) -> dict[str, Any] | Response:
        asked = KillRequest.heard(await request.body())
        state: Literal["reducing", "halted"] = "reducing" if asked.flatten else "halted"
        stands = await by_hand(partial(engage, state_dir, state, request.user.id, asked.reason, flatten=asked.flatten))
        if asked.flatten and not stands.flatten:
            detail = "trading is halted: nothing is sent, so nothing is closed; POST /api/trading/resume with flatten"
            return problems.problem(409, "halted", detail)
        return facts(stands)

    @routes.post("/resume", responses=failures(400))
    @needs(Scope.ROLLOUT_ABORT)
    async def resume(request: Request, asked: ResumeRequest) -> dict[str, Any]:
        lifted = await by_hand(partial(release, state_dir, request.user.id, asked.reason, flatten=asked.flatten))
        return facts(read(state_dir)) | {"lifted": facts(lifted)}

    return routes


async def _in(threads: ThreadPoolExecutor, call: Callable[[], Switch]) -> Switch:
    return await asyncio.get_running_loop().run_in_executor(threads, call)


def _positions(file: Path, settings: Settings) -> list[dict[str, Any]]:
    """None of a ledger that is not there: nothing was ever traded in it, and it is not made."""
    if not file.exists():
        return []
    ledger = Ledger(file, as_it_is=True)
    try:
        gateway = OrderGateway(ledger, settings.trading)
        return [_held(file.name, position, gateway.book(position.symbol)) for position in ledger.positions()]
    finally:
        ledger.close()


def _held(ledger: str, position: Position, book: Book) -> dict[str, Any]:
    owner = None if book.owner is None else str(book.owner)
    return asdict(position) | {"ledger": ledger, "what": LEDGERS[ledger], "owner": owner, "mode": book.mode}
