"""What a test, or a person, does to the emulator: /emulator/... over plain HTTP, without a login."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import time
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, RootModel, TypeAdapter, ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tests.fyers_emulator import shapes
from tests.fyers_emulator.books import BY_HAND, MARKET, NewOrder
from tests.fyers_emulator.contracts import SHARES_MARGIN_RATIO, Contract
from tests.fyers_emulator.exchange import Refused
from tests.fyers_emulator.faults import Socket, Spec
from tests.fyers_emulator.logins import TOKEN_LIVES_S
from tests.fyers_emulator.tape import Candle
from tests.fyers_emulator.venue import Venue

Price = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
Seconds = Annotated[float, Field(allow_inf_nan=False)]
Answer = dict[str, Any]


class _Body(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Nothing(_Body):
    pass


class Login(_Body):
    expires_in_s: Seconds = TOKEN_LIVES_S


class ClockBody(_Body):
    now: Seconds | None = None
    speed: float | None = Field(None, ge=0.0, allow_inf_nan=False)
    skew_s: Seconds | None = None


class Listing(_Body):
    symbol: str = Field(pattern=r"^[A-Z]+:[A-Z0-9&-]+$")
    lot: int = Field(1, ge=1)
    tick: Price = 0.05
    freeze: int | None = Field(None, ge=1)
    tradable: bool | None = None  # an index is not, all else is
    margin_ratio: float = Field(SHARES_MARGIN_RATIO, ge=0.0, allow_inf_nan=False)

    def contract(self) -> Contract:
        tradable = not self.symbol.endswith("-INDEX") if self.tradable is None else self.tradable
        return Contract(self.symbol, self.lot, ((0.0, self.tick),), self.freeze, tradable, self.margin_ratio)


class Tick(_Body):
    symbol: str
    price: Price
    at: Seconds | None = None
    volume: int = Field(0, ge=0)


class Ticks(_Body):
    ticks: list[Tick]


class Leader(_Body):
    index: str
    basis: Seconds = 0.0


class Followers(RootModel[dict[str, str | Leader]]):
    pass


class History(_Body):
    symbol: str
    candles: list[Annotated[list[Seconds], Field(min_length=6, max_length=6)]]


class Status(_Body):
    status: str
    segment: Literal[10, 11] | None = None


class RulesBody(_Body):
    fill: Literal["arrival", "next_tick"] = "arrival"
    units_per_fill: int | None = Field(None, ge=1)
    square_off: time | None = None
    rate_limits: bool = False


class Funds(_Body):
    rupees: Seconds


class ManualTrade(_Body):
    symbol: str
    units: int
    price: Price | None = None
    tag: str = ""
    product: str = "INTRADAY"

    def new_order(self) -> NewOrder:
        if self.units == 0:
            raise Refused(-50, "units: 0 is no trade")
        side, limit = (1 if self.units > 0 else -1), self.price or 0.0
        return NewOrder(
            self.symbol, side, abs(self.units), MARKET, limit, product=self.product, tag=self.tag, source=BY_HAND
        )


class Disconnect(_Body):
    sockets: tuple[Socket, ...] = ("data", "orders")


class Skew(_Body):
    skew_s: Seconds


FAULT = TypeAdapter(dict[str, Any])


def _login(venue: Venue, body: Login) -> Answer:
    return {"access_token": venue.logins.token(body.expires_in_s)}


def _reset(venue: Venue, _: Nothing) -> Answer:
    venue.reset()
    return {}


def _set_clock(venue: Venue, body: ClockBody) -> Answer:
    if body.now is not None or body.speed is not None:
        now = venue.clock.now() if body.now is None else body.now
        venue.set_clock(now, body.speed or 0.0)
    if body.skew_s is not None:
        venue.clock.skew_s = body.skew_s
    return _clock(venue)


def _clock(venue: Venue) -> Answer:
    return {"now": venue.clock.now(), "speed": venue.clock.speed, "skew_s": venue.clock.skew_s}


def _list(venue: Venue, body: Listing) -> Answer:
    venue.list(body.contract())
    return {"fy_token": body.contract().fy_token}


def _ticks(venue: Venue, body: Ticks) -> Answer:
    return {"filled": sum(venue.tick(tick.symbol, tick.price, tick.at, tick.volume) for tick in body.ticks)}


def _follow(venue: Venue, body: Followers) -> Answer:
    for symbol, leader in body.root.items():
        given = Leader(index=leader) if isinstance(leader, str) else leader
        venue.follow(symbol, given.index, given.basis)
    return {}


def _history(venue: Venue, body: History) -> Answer:
    candles: list[Candle] = [list(candle) for candle in body.candles]
    venue.tape.load(body.symbol, candles)
    return {"candles": len(candles)}


def _status(venue: Venue, body: Status) -> Answer:
    venue.set_status(body.status, body.segment)
    return {}


def _rules(venue: Venue, body: RulesBody) -> Answer:
    """What is said changes; null takes a rule away."""
    said = body.model_dump(exclude_unset=True)
    venue.limits.enforced = said.pop("rate_limits", venue.limits.enforced)
    venue.exchange.rules = replace(venue.exchange.rules, **said)
    return {"rate_limits": venue.limits.enforced, "fill": venue.exchange.rules.fill}


def _funds(venue: Venue, body: Funds) -> Answer:
    venue.exchange.cash = body.rupees
    return {"available": venue.exchange.available()}


def _manual_trade(venue: Venue, body: ManualTrade) -> Answer:
    order = venue.exchange.by_hand(body.new_order(), venue.clock.now())
    venue.publish()
    return {"id": order.id}


def _square_off(venue: Venue, _: Nothing) -> Answer:
    venue.exchange.square_off(venue.clock.now())
    venue.publish()
    return {}


def _disconnect(venue: Venue, body: Disconnect) -> Answer:
    venue.cut(body.sockets)
    return {}


def _expire_tokens(venue: Venue, _: Nothing) -> Answer:
    venue.expire_tokens()
    return {}


def _night(venue: Venue, _: Nothing) -> Answer:
    venue.nightly_reset()
    return {"now": venue.clock.now()}


def _exhaust_funds(venue: Venue, _: Nothing) -> Answer:
    return _funds(venue, Funds(rupees=0.0))


def _skew(venue: Venue, body: Skew) -> Answer:
    venue.clock.skew_s = body.skew_s
    return {}


Act = tuple[type[BaseModel], Callable[[Venue, Any], Answer]]
AT_ONCE: dict[str, Act] = {  # faults that strike when they are given; all others wait (faults.py)
    "disconnect": (Disconnect, _disconnect),
    "token_expiry": (Nothing, _expire_tokens),
    "nightly_reset": (Nothing, _night),
    "exhausted_funds": (Nothing, _exhaust_funds),
    "clock_skew": (Skew, _skew),
    "manual_trade": (ManualTrade, _manual_trade),
}


def _fault(venue: Venue, body: dict[str, Any]) -> Answer:
    kind = str(body.get("kind"))
    if kind not in AT_ONCE:
        return {"id": venue.faults.add(Spec.model_validate(body)).id}
    model, act = AT_ONCE[kind]
    return {"id": None, **act(venue, model.model_validate({k: v for k, v in body.items() if k != "kind"}))}


async def _order_fault(request: Request) -> Response:
    try:
        answer = _fault(request.app.state.venue, FAULT.validate_json(await request.body()))
    except (ValidationError, Refused) as error:
        return _mistake(error)
    return JSONResponse({"s": "ok", **answer})


async def _list_faults(request: Request) -> Response:
    return JSONResponse({"s": "ok", "faults": request.app.state.venue.faults.listed()})


async def _heal(request: Request) -> Response:
    chosen = request.query_params.get("id", "")
    healed = request.app.state.venue.faults.heal(int(chosen) if chosen.isdecimal() else None)
    return JSONResponse({"s": "ok", "healed": healed})


async def _get_clock(request: Request) -> Response:
    return JSONResponse({"s": "ok", **_clock(request.app.state.venue)})


async def _book(request: Request) -> Response:
    venue: Venue = request.app.state.venue
    books = shapes.book(venue.exchange, request.query_params.get("day"))
    return JSONResponse({"s": "ok", "now": venue.clock.now(), **books})


async def _log(request: Request) -> Response:
    return JSONResponse({"s": "ok", "requests": list(request.app.state.venue.calls)})


async def _sockets(request: Request) -> Response:
    venue: Venue = request.app.state.venue
    counts = {"data": len(venue.data_lines), "orders": len(venue.order_lines)}
    return JSONResponse({"s": "ok", **counts, "subscribed": venue.followed()})


def _mistake(error: ValidationError | Refused) -> Response:
    message = (
        error.message
        if isinstance(error, Refused)
        else "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors(include_url=False))
    )
    return JSONResponse({"s": "error", "message": message}, status_code=400)


def _post(path: str, model: type[Any], act: Callable[[Venue, Any], Answer]) -> Route:
    async def endpoint(request: Request) -> Response:
        try:
            answer = act(request.app.state.venue, model.model_validate_json(await request.body() or b"{}"))
        except (ValidationError, Refused) as error:
            return _mistake(error)
        return JSONResponse({"s": "ok", **answer})

    return Route(f"/emulator/{path}", endpoint, methods=["POST"])


ROUTES = [
    _post("login", Login, _login),
    _post("reset", Nothing, _reset),
    _post("clock", ClockBody, _set_clock),
    _post("instruments", Listing, _list),
    _post("market/ticks", Ticks, _ticks),
    _post("market/follow", Followers, _follow),
    _post("market/history", History, _history),
    _post("market/status", Status, _status),
    _post("rules", RulesBody, _rules),
    _post("funds", Funds, _funds),
    _post("manual-trade", ManualTrade, _manual_trade),
    _post("square-off", Nothing, _square_off),
    Route("/emulator/faults", _order_fault, methods=["POST"]),
    Route("/emulator/faults", _list_faults, methods=["GET"]),
    Route("/emulator/faults", _heal, methods=["DELETE"]),
    Route("/emulator/clock", _get_clock, methods=["GET"]),
    Route("/emulator/book", _book, methods=["GET"]),
    Route("/emulator/log", _log, methods=["GET"]),
    Route("/emulator/sockets", _sockets, methods=["GET"]),
]
