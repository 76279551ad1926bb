"""What the broker says about orders, trades, positions and funds, checked, in trading's own words.

REST books and the order socket (as the SDK maps it) name the same fields the same way. One row that cannot be read
makes the whole answer malformed: what is left out of a book would look like what never was.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from core.errors import BrokerError
from trading.broker import Holding, OrderReport, OrderStatus, Trade
from trading.calendar import KOLKATA, Segment

STATUS: dict[int, OrderStatus] = {
    1: "cancelled",
    2: "filled",
    3: "open",  # reserved
    4: "open",  # on its way to the exchange
    5: "rejected",
    6: "open",
    7: "cancelled",  # expired
}
AVAILABLE_BALANCE = 10  # id of the row among the funds
NSE = 10
SEGMENTS: dict[int, Segment] = {10: "cash", 11: "index_futures"}
TIME = "%d-%b-%Y %H:%M:%S"  # in India


def _tag(told: object) -> object:
    """ "1:HRMX" is the tag HRMX; "2:Untagged" and nothing at all are none."""
    kind, _, tag = str(told or "").rpartition(":")
    return "" if kind == "2" else tag


def _at_ns(told: object) -> int:
    return int(datetime.strptime(str(told), TIME).replace(tzinfo=KOLKATA).timestamp()) * 10**9


Text = Annotated[str, Field(min_length=1)]
Tag = Annotated[str, BeforeValidator(_tag)]
AtNs = Annotated[int, BeforeValidator(_at_ns)]
Side = Literal[1, -1]


class _Row(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", coerce_numbers_to_str=True, hide_input_in_errors=True)


class _Order(_Row):
    id: Text
    symbol: Text
    side: Side
    qty: int = Field(ge=1)
    filled: int = Field(ge=0, alias="filledQty")
    status: Literal[1, 2, 3, 4, 5, 6, 7]
    tag: Tag = Field("", alias="orderTag")
    message: str | None = None

    def report(self) -> OrderReport:
        return OrderReport(
            broker_id=self.id,
            tag=self.tag,
            instrument=self.symbol,
            units=self.side * self.qty,
            filled_units=self.side * self.filled,
            status=STATUS[self.status],
            message=self.message or "",
        )


class _Trade(_Row):
    number: Text = Field(alias="tradeNumber")
    order: Text = Field(alias="orderNumber")
    symbol: Text
    side: Side
    qty: int = Field(ge=1, alias="tradedQty")
    price: float = Field(gt=0, allow_inf_nan=False, alias="tradePrice")
    at_ns: AtNs = Field(alias="orderDateTime")
    tag: Tag = Field("", alias="orderTag")

    def trade(self) -> Trade:
        units = self.side * self.qty
        return Trade(self.number, self.order, self.tag, self.symbol, units, self.price, self.at_ns)


class _Position(_Row):
    symbol: Text
    units: int = Field(alias="netQty")


class _Fund(_Row):
    id: int
    rupees: float = Field(allow_inf_nan=False, alias="equityAmount")


class _Market(_Row):
    exchange: int
    segment: int
    kind: str = Field(alias="market_type")
    status: Text


Row = TypeVar("Row", bound=_Row)


def order_report(row: object) -> OrderReport:
    """Raises BrokerError `malformed`, as all of these do."""
    return _checked(_Order, row, "order").report()


def trade(row: object) -> Trade:
    return _checked(_Trade, row, "trade").trade()


def order_reports(body: Mapping[str, Any]) -> tuple[OrderReport, ...]:
    return tuple(map(order_report, _listed(body, "orderBook")))


def trades(body: Mapping[str, Any]) -> tuple[Trade, ...]:
    return tuple(map(trade, _listed(body, "tradeBook")))


def holdings(body: Mapping[str, Any]) -> tuple[Holding, ...]:
    """Net units by instrument: of all product types together, as trades are."""
    units: dict[str, int] = {}
    for row in _listed(body, "netPositions"):
        position = _checked(_Position, row, "position")
        units[position.symbol] = units.get(position.symbol, 0) + position.units
    return tuple(Holding(symbol, held) for symbol, held in units.items())


def free_rupees(body: Mapping[str, Any]) -> float:
    for row in _listed(body, "fund_limit"):
        fund = _checked(_Fund, row, "fund")
        if fund.id == AVAILABLE_BALANCE:
            return fund.rupees
    raise malformed("funds without an available balance")


def market_status(body: Mapping[str, Any]) -> dict[str, str]:
    """By segment of the calendar, of NSE's normal market."""
    markets: Iterable[_Market] = (_checked(_Market, row, "market") for row in _listed(body, "marketStatus"))
    return {
        SEGMENTS[market.segment]: market.status.upper()
        for market in markets
        if market.exchange == NSE and market.kind == "NORMAL" and market.segment in SEGMENTS
    }


def malformed(what: str) -> BrokerError:
    return BrokerError(f"Fyers: {what}; nothing of this answer is used", code="malformed", retryable=True)


def _listed(body: Mapping[str, Any], name: str) -> list[Any]:
    rows = body.get(name)
    if not isinstance(rows, list):
        raise malformed(f"an answer without its list '{name}'")
    return rows


def _checked(model: type[Row], row: object, what: str) -> Row:
    try:
        return model.model_validate(row)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"])) or "the row"
        raise malformed(f"a {what} that cannot be read ({place}: {first['msg']})") from None
