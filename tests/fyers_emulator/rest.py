"""The trading part of the API, /api/v3: login, profile, funds, orders, trades, positions."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from tests.fyers_emulator import shapes
from tests.fyers_emulator.books import NewOrder
from tests.fyers_emulator.calls import Call, Endpoint
from tests.fyers_emulator.exchange import Refused
from tests.fyers_emulator.faults import PLACING, Passing

Rupees = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
Model = TypeVar("Model", bound=BaseModel)


class _Body(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class OrderBody(_Body):
    symbol: str
    qty: Annotated[int, Field(strict=True)]
    type: Literal[1, 2, 3, 4]
    side: Literal[1, -1]
    product: Literal["INTRADAY", "MARGIN", "CNC", "MTF"] = Field(alias="productType")
    limit: Rupees = Field(0.0, alias="limitPrice")
    stop: Rupees = Field(0.0, alias="stopPrice")
    validity: Literal["DAY", "IOC"]
    disclosed: int = Field(0, ge=0, alias="disclosedQty")
    offline: bool = Field(False, alias="offlineOrder")
    tag: str = Field("", alias="orderTag", pattern=r"^[A-Za-z0-9]{0,30}$")

    @field_validator("tag")
    @classmethod
    def _its_own(cls, tag: str) -> str:
        if tag in ("Untagged", shapes.FY_ID):
            raise ValueError("orderTag cannot be the client id or Untagged")
        return tag

    def new_order(self) -> NewOrder:
        limit = self.limit if self.type in (1, 4) else 0.0
        stop = self.stop if self.type in (3, 4) else 0.0
        return NewOrder(self.symbol, self.side, self.qty, self.type, limit, stop, self.product, self.validity, self.tag)


class ModifyBody(_Body):
    id: str
    type: Literal[1, 2, 3, 4] | None = None
    qty: Annotated[int, Field(strict=True)] | None = None
    limit: Rupees | None = Field(None, alias="limitPrice")
    stop: Rupees | None = Field(None, alias="stopPrice")


class CancelBody(_Body):
    id: str


class ExitBody(_Body):
    id: str | list[str] | None = None


def _read(model: type[Model], body: Any) -> Model:
    try:
        return model.model_validate(body)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"])) or "body"
        raise Refused(-50, f"{place}: {first['msg']}") from None


def ok(**content: Any) -> dict[str, Any]:
    return {"s": "ok", "code": 200, "message": "", **content}


# login


def _validate_authcode(call: Call) -> dict[str, Any]:
    body = call.body if isinstance(call.body, dict) else {}
    return ok(access_token=call.venue.logins.token_for(body), refresh_token="")


def _logout(call: Call) -> dict[str, Any]:
    call.venue.logins.log_out(call.authorization or "")
    return ok(message="you are successfully logged out")


def _profile(_: Call) -> dict[str, Any]:
    data = {"name": "EMULATED CLIENT", "display_name": "", "fy_id": shapes.FY_ID, "email_id": "", "PAN": ""}
    return ok(data={**data, "totp": True, "pwd_to_expire": 42, "ddpi_enabled": False, "mtf_enabled": False})


def _funds(call: Call) -> dict[str, Any]:
    return ok(fund_limit=shapes.funds(call.venue.exchange))


def _holdings(_: Call) -> dict[str, Any]:
    overall = {"count_total": 0, "total_investment": 0, "total_current_value": 0, "total_pl": 0, "pnl_perc": 0}
    return ok(holdings=[], overall=overall)


# books


def _orders(call: Call) -> dict[str, Any]:
    exchange = call.venue.exchange
    orders = [
        shapes.order(order, exchange.contracts[order.symbol], number)
        for number, order in enumerate(exchange.today.orders.values(), 1)
    ]
    wanted = [name for name in call.query.get("id", "").split(",") if name]
    if wanted and not any(order["id"] in wanted for order in orders):
        raise Refused(-51, "Invalid order id provided")
    shown = [order for order in _tagged(call, orders) if not wanted or order["id"] in wanted]
    return ok(orderBook=shown)


def _trades(call: Call) -> dict[str, Any]:
    exchange = call.venue.exchange
    trades = [shapes.trade(trade, exchange.contracts[trade.symbol]) for trade in exchange.today.trades]
    return ok(tradeBook=_tagged(call, trades))


def _tagged(call: Call, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    wanted = call.query.get("order_tag")
    return [row for row in rows if wanted in (None, row["orderTag"])]


def _positions(call: Call) -> dict[str, Any]:
    exchange = call.venue.exchange
    held = [it for it in exchange.today.positions.values() if it.buy_qty or it.sell_qty]
    rows = [
        shapes.position(it, exchange.contracts[it.symbol], exchange.last.get(it.symbol, it.average), number)
        for number, it in enumerate(held)
    ]
    overall = {
        "count_total": len(rows),
        "count_open": sum(row["netQty"] != 0 for row in rows),
        "pl_total": sum(row["pl"] for row in rows),
        "pl_realized": sum(row["realized_profit"] for row in rows),
        "pl_unrealized": sum(row["unrealized_profit"] for row in rows),
    }
    return ok(netPositions=rows, overall=overall)


# orders


def _place(call: Call) -> dict[str, Any]:
    order = call.venue.place(_read(OrderBody, call.body).new_order())
    message = f"Order submitted successfully. Your Order Ref. No.{order.id}"
    return ok(code=1101, message=message, id=order.id)


def _placing(call: Call) -> Passing:
    """Faults find an order by its symbol; one that cannot be read has none."""
    try:
        return call.venue.passing(_read(OrderBody, call.body).new_order(), PLACING)
    except Refused:
        return Passing(route=PLACING)


def _modify(call: Call) -> dict[str, Any]:
    body, venue = _read(ModifyBody, call.body), call.venue
    changes = body.model_dump(exclude={"id"})
    order = venue.exchange.modify(body.id, venue.clock.now(), **changes)
    venue.publish()
    return ok(code=1102, message="Successfully modified order", id=order.id)


def _cancel(call: Call) -> dict[str, Any]:
    order = call.venue.exchange.cancel(_read(CancelBody, call.body).id)
    call.venue.publish()
    return ok(code=1103, message="Successfully cancelled order", id=order.id)


def _exit(call: Call) -> dict[str, Any]:
    """Without an id everything is closed, as the SDK's default asks for."""
    body, venue = _read(ExitBody, call.body or {}), call.venue
    wanted = [body.id] if isinstance(body.id, str) else body.id
    held = [it for it in venue.exchange.today.positions.values() if wanted is None or it.id in wanted]
    if wanted is not None and len(held) < len(set(wanted)):
        raise Refused(-53, "Invalid position id provided")
    closed = venue.exchange.close(held, venue.clock.now())
    venue.publish()
    if not closed:
        raise Refused(-352, "No position available to exit")
    return ok(message="The position is closed.")


ENDPOINTS = (
    Endpoint("POST", "/api/v3/validate-authcode", _validate_authcode, public=True),
    Endpoint("POST", "/api/v3/logout", _logout),
    Endpoint("GET", "/api/v3/profile", _profile),
    Endpoint("GET", "/api/v3/funds", _funds),
    Endpoint("GET", "/api/v3/holdings", _holdings),
    Endpoint("GET", "/api/v3/orders", _orders),
    Endpoint("GET", "/api/v3/tradebook", _trades),
    Endpoint("GET", "/api/v3/positions", _positions),
    Endpoint("DELETE", "/api/v3/positions", _exit),
    Endpoint("POST", "/api/v3/orders/sync", _place, order=_placing),
    Endpoint("PATCH", "/api/v3/orders/sync", _modify),
    Endpoint("DELETE", "/api/v3/orders/sync", _cancel),
)
