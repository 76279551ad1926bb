"""A person's order into the ledger of the replay on paper, judged as the live desk judges a model's.

The replay (trading/paper_replay.py) puts every bar on record; its last one is what is known here of price and time. It
fills what it finds open at its next bar. The gateway lets any number of processes order.
"""

from __future__ import annotations

import math

from core.settings import Settings
from trading import switch
from trading.events import Event, EventLog, bars_of, quotes_of
from trading.gateway import OrderGateway, Refused
from trading.ledger import Ledger, Order
from trading.limits import Limits
from trading.manual import WORDS, Answer, ManualTrade, answer, answer_of, is_late, owner_of


def trade(settings: Settings, wanted: ManualTrade) -> None:
    """Order it, or refuse it, and answer; a second time nothing happens. Raises BrokerError without a usable ledger."""
    ledger = Ledger(settings.paths.state_dir / wanted.ledger)
    try:
        if answer_of(ledger, wanted.trade_id) is None:
            refusal = None if ledger.order(wanted.order_id) is not None else _ordered(ledger, settings, wanted)
            answer(ledger, Answer(wanted.trade_id, wanted.at_ns, refusal))
    finally:
        ledger.close()


def _ordered(ledger: Ledger, settings: Settings, wanted: ManualTrade) -> str | None:
    """None: it is. Else why not."""
    bar = EventLog(ledger).last_of("bar", wanted.symbol)
    if is_late(wanted):
        return f"too_late: {WORDS['too_late']}"
    if bar is None:
        return f"no_price: no replay on paper has shown a bar of {wanted.symbol}; start hrm trade"
    if ledger.open_orders(wanted.symbol):
        return f"open_order: {WORDS['open_order']}"
    bar_ns = bars_of(bar)[0].timestamp_ns
    gateway = OrderGateway(ledger, settings.trading, _limits(ledger, settings, bar, bar_ns).judge)
    order = Order(
        wanted.order_id,
        wanted.symbol,
        float(wanted.units),
        owner_of(gateway.book(wanted.symbol)),
        epoch=gateway.epoch(),
        at_ns=bar_ns,
        bar_ns=bar_ns,
    )
    told = gateway.submit(order)
    return f"{told.reason}: {told.detail}" if isinstance(told, Refused) else None


def _limits(ledger: Ledger, settings: Settings, bar: Event, now_ns: int) -> Limits:
    """What the risk engine judges by, at the time of the replay: prices of its bars, what the books are worth."""
    limits = Limits(ledger, settings, ())
    bars = EventLog(ledger)
    for last in (bars.last_of("bar", symbol) for symbol in limits.money.positions):
        limits.see({} if last is None else quotes_of(last))
    limits.see(quotes_of(bar))
    limits.now_ns, limits.orders = now_ns, ledger.unfinished()
    limits.switched(switch.read(settings.paths.state_dir))
    held = limits.money.positions.values()
    margin = settings.risk.margin_ratio * math.fsum(abs(each.units) * each.average_price for each in held)
    limits.free_funds_rupees = limits.money.capital + math.fsum(each.realised for each in held) - margin
    limits.look()  # a loss beyond a limit counts here, as on the desk
    return limits
