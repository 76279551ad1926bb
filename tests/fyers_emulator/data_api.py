"""The data part of the API, /data: history, quotes, depth, market status, and the data socket's tokens."""

from __future__ import annotations

import math
from datetime import UTC, date, datetime, time
from typing import Any

from tests.fyers_emulator.calls import Call, Endpoint
from tests.fyers_emulator.exchange import Refused
from tests.fyers_emulator.faults import Passing
from tests.fyers_emulator.rest import ok
from tests.fyers_emulator.tape import Quote
from trading.calendar import KOLKATA

MINUTES = ("1", "2", "3", "5", "10", "15", "20", "30", "45", "60", "120", "180", "240")
DAILY = ("D", "1D")
DAYS_A_CALL = {True: 366, False: 100}  # of days; of minutes
QUOTES_A_CALL = 50
# (exchange, segment, market type) as /marketStatus lists them
MARKETS = ((10, 10, "NORMAL"), (10, 11, "NORMAL"), (10, 12, "NORMAL"), (10, 10, "AUCTION"))


def _history(call: Call) -> dict[str, Any]:
    symbol, resolution = call.query.get("symbol", ""), call.query.get("resolution", "")
    if symbol not in call.venue.exchange.contracts:
        raise Refused(-300, f"Invalid symbol provided: {symbol}")
    if resolution not in (*MINUTES, *DAILY):
        raise Refused(-50, "Invalid resolution")
    first, last = _range(call.query)
    if last - first > DAYS_A_CALL[resolution in DAILY] * 86_400:
        raise Refused(-50, "Date range must be up to 100 days for minutes, 366 for days")
    seconds = None if resolution in DAILY else 60 * int(resolution)
    candles = call.venue.tape.candles(symbol, first, last, seconds)
    return {"s": "ok" if candles else "no_data", "candles": candles, "code": 200, "message": ""}


def _range(query: dict[str, str]) -> tuple[float, float]:
    """First and last second that is asked for."""
    try:
        if query.get("date_format") == "1":
            days = [date.fromisoformat(query[name]) for name in ("range_from", "range_to")]
            first, last = (datetime.combine(day, time(), KOLKATA).timestamp() for day in days)
            last += 86_399
        else:
            first, last = float(query["range_from"]), float(query["range_to"])
    except (KeyError, ValueError):
        raise Refused(-50, "Invalid range_from or range_to") from None
    if not (math.isfinite(first) and math.isfinite(last) and first <= last):
        raise Refused(-50, "Invalid range_from or range_to")
    return first, last


def _quotes(call: Call) -> dict[str, Any]:
    symbols = [name for name in call.query.get("symbols", "").split(",") if name]
    if not symbols or len(symbols) > QUOTES_A_CALL:
        raise Refused(-50, "Provide 1 to 50 symbols")
    return {"s": "ok", "code": 200, "message": "", "d": [_quote(call, symbol) for symbol in symbols]}


def _quote(call: Call, symbol: str) -> dict[str, Any]:
    venue = call.venue
    contract, quote = venue.exchange.contracts.get(symbol), venue.tape.quotes.get(symbol)
    if contract is None or quote is None:
        code = -300 if contract is None else -50
        return {"n": symbol, "s": "error", "v": {"code": code, "errmsg": "no quote of this symbol"}}
    bad = venue.faults.take(Passing(symbol, where="quotes"), "malformed_tick")
    price: Any = quote.price
    if bad:
        wrong = {"zero": 0, "negative": -price, "outlier": 2 * price, "text": "n/a", "null": None}
        price = wrong.get(bad.spec.how, -21_474_836.48)
    value = {
        "lp": price,
        **_change(quote),
        "spread": 2 * contract.tick_at(quote.price),
        "ask": round(quote.price + contract.tick_at(quote.price), 2),
        "bid": round(quote.price - contract.tick_at(quote.price), 2),
        "open_price": quote.open,
        "high_price": quote.high,
        "low_price": quote.low,
        "prev_close_price": quote.previous_close,
        "atp": quote.price,
        "volume": quote.volume,
        "short_name": symbol.split(":")[1],
        "exchange": "NSE",
        "description": symbol,
        "original_name": symbol,
        "symbol": symbol,
        "fyToken": contract.fy_token,
        "tt": str(int(datetime.combine(quote.day, time(), UTC).timestamp())),  # the day: no time of the price
    }
    return {"n": symbol, "s": "ok", "v": value}


def _change(quote: Quote) -> dict[str, float]:
    change = quote.price - quote.previous_close
    return {"ch": round(change, 2), "chp": round(100 * change / quote.previous_close, 2)}


def _depth(call: Call) -> dict[str, Any]:
    symbol, venue = call.query.get("symbol", ""), call.venue
    contract, quote = venue.exchange.contracts.get(symbol), venue.tape.quotes.get(symbol)
    if contract is None or quote is None:
        raise Refused(-300, f"Invalid symbol provided: {symbol}")
    tick = contract.tick_at(quote.price)
    sides = {
        name: [{"price": round(quote.price + way * tick * n, 2), "volume": 100, "ord": 1} for n in range(1, 6)]
        for name, way in (("bids", -1), ("ask", 1))
    }
    day = {"o": quote.open, "h": quote.high, "l": quote.low, "c": quote.previous_close, "v": quote.volume}
    last = {"ltp": quote.price, "ltq": quote.bought, "ltt": int(venue.clock.told(quote.at)), "tick_Size": tick}
    totals = {"totalbuyqty": 500, "totalsellqty": 500, "lower_ckt": 0, "upper_ckt": 0, "atp": quote.price}
    return ok(d={symbol: {**sides, **day, **last, **totals, **_change(quote)}})


def _market_status(call: Call) -> dict[str, Any]:
    statuses = call.venue.statuses
    rows = [
        {"exchange": exchange, "segment": segment, "market_type": kind, "status": statuses.get(segment, "CLOSED")}
        if kind == "NORMAL"
        else {"exchange": exchange, "segment": segment, "market_type": kind, "status": "CLOSED"}
        for exchange, segment, kind in MARKETS
    ]
    return ok(marketStatus=rows)


def _symbol_token(call: Call) -> dict[str, Any]:
    """Asked for by the data socket with the bare token."""
    call.venue.logins.check_token((call.authorization or "").rpartition(":")[2])
    wanted = call.body.get("symbols") if isinstance(call.body, dict) else None
    if not isinstance(wanted, list):
        raise Refused(-50, "symbols: provide a list")
    contracts = call.venue.exchange.contracts
    valid = {symbol: contracts[symbol].fy_token for symbol in map(str, wanted) if symbol in contracts}
    return ok(validSymbol=valid, invalidSymbol=[symbol for symbol in wanted if symbol not in valid])


ENDPOINTS = (
    Endpoint("GET", "/data/history", _history),
    Endpoint("GET", "/data/quotes", _quotes),
    Endpoint("GET", "/data/depth", _depth),
    Endpoint("GET", "/data/marketStatus", _market_status),
    Endpoint("POST", "/data/symbol-token", _symbol_token, public=True),
)
