"""Orders, trades and positions as they are told: by REST (camelCase), by the order socket (snake_case, which the SDK
maps back by its map.json), and to a test (units signed, words instead of numbers)."""

from __future__ import annotations

from typing import Any

from tests.fyers_emulator.books import STATUS, Order, Position, Trade
from tests.fyers_emulator.clock import written
from tests.fyers_emulator.contracts import Contract
from tests.fyers_emulator.exchange import Exchange

FY_ID = "XE00001"
EXCHANGE = 10  # NSE


def tag(own: str) -> str:
    return f"1:{own}" if own else "2:Untagged"


def order(it: Order, contract: Contract, number: int) -> dict[str, Any]:
    return {
        "clientId": FY_ID,
        "id": it.id,
        "exchOrdId": it.exchange_id,
        "qty": it.qty,
        "remainingQuantity": it.remaining,
        "filledQty": it.filled,
        "discloseQty": 0,
        "disclosedQty": 0,
        "dqQtyRem": 0,
        "limitPrice": it.limit,
        "stopPrice": it.stop,
        "tradedPrice": it.average,
        "type": it.type,
        "fyToken": contract.fy_token,
        "exchange": EXCHANGE,
        "segment": contract.segment,
        "symbol": it.symbol,
        "ex_sym": it.symbol.split(":")[1],
        "description": it.symbol,
        "instrument": 0,
        "message": it.message,
        "offlineOrder": False,
        "orderDateTime": written(it.at),
        "orderValidity": it.new.validity,
        "pan": "",
        "productType": it.new.product,
        "side": it.new.side,
        "status": it.status,
        "source": it.new.source,
        "slNo": number,
        "orderNumStatus": f"{it.id}:{it.status}",
        "orderTag": tag(it.new.tag),
        "takeProfit": 0,
        "stopLoss": 0,
    }


def trade(it: Trade, contract: Contract) -> dict[str, Any]:
    return {
        "clientId": FY_ID,
        "orderDateTime": written(it.at),
        "orderNumber": it.order_id,
        "exchangeOrderNo": it.exchange_id,
        "exchange": EXCHANGE,
        "side": it.new.side,
        "segment": contract.segment,
        "orderType": it.type,
        "fyToken": contract.fy_token,
        "productType": it.new.product,
        "tradedQty": it.qty,
        "tradePrice": it.price,
        "tradeValue": it.qty * it.price,
        "tradeNumber": it.number,
        "row": int(it.number),
        "symbol": it.symbol,
        "orderTag": tag(it.new.tag),
    }


def position(it: Position, contract: Contract, price: float, number: int) -> dict[str, Any]:
    unrealized = it.unrealized(price)
    carried_buy, carried_sell = max(it.carried, 0), max(-it.carried, 0)
    return {
        "id": it.id,
        "symbol": it.symbol,
        "productType": it.product,
        "netQty": it.units,
        "qty": abs(it.units),
        "side": (it.units > 0) - (it.units < 0),
        "avgPrice": it.average,
        "netAvg": it.average,
        "buyQty": it.buy_qty,
        "buyAvg": it.buy_average,
        "buyVal": it.buy_value,
        "sellQty": it.sell_qty,
        "sellAvg": it.sell_average,
        "sellVal": it.sell_value,
        "cfBuyQty": carried_buy,
        "cfSellQty": carried_sell,
        "dayBuyQty": it.buy_qty - carried_buy,
        "daySellQty": it.sell_qty - carried_sell,
        "realized_profit": it.realized,
        "unrealized_profit": unrealized,
        "pl": it.realized + unrealized,
        "ltp": price,
        "fyToken": contract.fy_token,
        "exchange": EXCHANGE,
        "segment": contract.segment,
        "crossCurrency": "N",
        "rbiRefRate": 1.0,
        "qtyMulti_com": 1.0,
        "slNo": number,
    }


def order_update(it: Order, contract: Contract) -> dict[str, Any]:
    return {
        "client_id": FY_ID,
        "id": it.id,
        "id_fyers": f"fyers-{it.id}",
        "id_exchange": it.exchange_id,
        "qty": it.qty,
        "qty_remaining": it.remaining,
        "qty_filled": it.filled,
        "price_limit": it.limit,
        "price_stop": it.stop,
        "price_traded": it.average,
        "ord_type": it.type,
        "fy_token": contract.fy_token,
        "exchange": EXCHANGE,
        "segment": contract.segment,
        "symbol": it.symbol,
        "symbol_exch": it.symbol.split(":")[1],
        "symbol_desc": it.symbol,
        "instrument": 0,
        "oms_msg": it.message,
        "offline_flag": False,
        "time_oms": written(it.at),
        "validity": it.new.validity,
        "product_type": it.new.product,
        "tran_side": it.new.side,
        "org_ord_status": it.status,
        "ord_source": it.new.source,
        "ordertag": tag(it.new.tag),
    }


def trade_update(it: Trade, contract: Contract) -> dict[str, Any]:
    return {
        "client_id": FY_ID,
        "id_fill": it.number,
        "id": it.order_id,
        "id_exchange": it.exchange_id,
        "qty_traded": it.qty,
        "price_traded": it.price,
        "traded_val": it.qty * it.price,
        "product_type": it.new.product,
        "ord_type": it.type,
        "tran_side": it.new.side,
        "symbol": it.symbol,
        "fill_time": written(it.at),
        "fy_token": contract.fy_token,
        "exchange": EXCHANGE,
        "segment": contract.segment,
        "ordertag": tag(it.new.tag),
    }


def position_update(it: Position, contract: Contract, price: float) -> dict[str, Any]:
    unrealized = it.unrealized(price)
    return {
        "symbol": it.symbol,
        "id": it.id,
        "buy_avg": it.buy_average,
        "buy_qty": it.buy_qty,
        "buy_val": it.buy_value,
        "sell_avg": it.sell_average,
        "sell_qty": it.sell_qty,
        "sell_val": it.sell_value,
        "net_avg": it.average,
        "net_qty": it.units,
        "tran_side": (it.units > 0) - (it.units < 0),
        "qty": abs(it.units),
        "product_type": it.product,
        "pl_realized": it.realized,
        "pl_unrealized": unrealized,
        "pl_total": it.realized + unrealized,
        "fy_token": contract.fy_token,
        "exchange": EXCHANGE,
        "segment": contract.segment,
    }


def funds(exchange: Exchange) -> list[dict[str, Any]]:
    used, realized = exchange.margin_used(), exchange.realized()
    amounts = {
        "Total Balance": exchange.cash + realized,
        "Utilized Amount": used,
        "Clear Balance": exchange.cash + realized,
        "Realized Profit and Loss": realized,
        "Collaterals": 0,
        "Fund Transfer": 0,
        "Receivables": 0,
        "Adhoc Limit": 0,
        "Limit at start of the day": exchange.cash,
        "Available Balance": exchange.available(),
    }
    return [
        {"id": i, "title": title, "equityAmount": amount, "commodityAmount": 0}
        for i, (title, amount) in enumerate(amounts.items(), 1)
    ]


def book(exchange: Exchange, day: str | None) -> dict[str, Any]:
    """As the exchange has it: of today, of one day (2026-11-22), or of all."""
    days = [*exchange.past, exchange.today]
    shown = [it for it in days if day == "all" or it.day.isoformat() == (day or exchange.today.day.isoformat())]
    return {
        "day": exchange.today.day.isoformat(),
        "days": [it.day.isoformat() for it in days],
        "orders": [_plain_order(it) for d in shown for it in d.orders.values()],
        "trades": [_plain_trade(it) for d in shown for it in d.trades],
        "positions": [_plain_position(it) for d in shown for it in d.positions.values() if it.buy_qty or it.sell_qty],
        "funds": {"cash": exchange.cash, "available": exchange.available(), "used": exchange.margin_used()},
    }


def _plain_order(it: Order) -> dict[str, Any]:
    return {
        "id": it.id,
        "tag": it.new.tag,
        "symbol": it.symbol,
        "units": it.new.side * it.qty,
        "filled": it.new.side * it.filled,
        "status": STATUS[it.status],
        "limit": it.limit,
        "type": it.type,
        "product": it.new.product,
        "message": it.message,
        "at": it.at,
        "source": it.new.source,
    }


def _plain_trade(it: Trade) -> dict[str, Any]:
    return {
        "number": it.number,
        "order_id": it.order_id,
        "tag": it.new.tag,
        "symbol": it.symbol,
        "units": it.units,
        "price": it.price,
        "at": it.at,
    }


def _plain_position(it: Position) -> dict[str, Any]:
    return {
        "symbol": it.symbol,
        "product": it.product,
        "units": it.units,
        "buy_qty": it.buy_qty,
        "sell_qty": it.sell_qty,
        "buy_avg": it.buy_average,
        "sell_avg": it.sell_average,
        "realized": it.realized,
    }
