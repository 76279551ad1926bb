"""What the order gateway promises, in the plainest way: what test_gateway_machine.py holds it to."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from trading.ledger import Order

RANK = ("normal", "reduce_only", "flatten", "freeze")


@dataclass
class Held:
    owner: str
    units: int = 0
    mode: str = "normal"
    taken_from: dict[str, str] = field(default_factory=dict)  # owner -> how the symbol was taken from it, the latest

    def free(self) -> None:
        self.mode = self.mode if self.units or self.mode == "freeze" else "normal"


@dataclass
class Sent:
    order: Order
    status: str = "open"
    trades: dict[str, int] = field(default_factory=dict)
    broker_id: str | None = None

    @property
    def filled(self) -> int:
        return sum(self.trades.values())

    @property
    def is_open(self) -> bool:
        return self.status in ("open", "cancelling")

    @property
    def left(self) -> float:
        return self.order.units - self.filled


class Model:
    def __init__(self) -> None:
        self.fence = 0
        self.held: dict[str, Held] = {}
        self.sent: dict[str, Sent] = {}
        self.booked: Counter[tuple[str, str]] = Counter()  # by (symbol, owner)
        self.broker: Counter[str] = Counter()
        self.by_hand: set[str] = set()
        self.apart: Counter[str] = Counter()

    def open_units(self, symbol: str) -> list[float]:
        return [s.left for s in self.sent.values() if s.is_open and s.order.symbol == symbol]

    def submit(self, order: Order, forbidden: bool = False) -> str:
        """The reason of the refusal, or the order's status."""
        self.fence = max(self.fence, order.epoch or 0)
        if order.order_id in self.sent:
            known, mine = self.sent[order.order_id], (order.symbol, order.units, order.owner)
            same = (known.order.symbol, known.order.units, known.order.owner) == mine
            return known.status if same else "order_id_taken"
        if order.epoch is not None and order.epoch < self.fence:
            return "stale_epoch"
        held = self.held.get(order.symbol)
        if held is not None and held.mode == "freeze":
            return "frozen"
        waiting = self.open_units(order.symbol)
        if held is not None and held.owner != order.owner and (held.units or waiting):
            return "not_owner"
        if (order.epoch is None or (held is not None and held.mode != "normal")) and not self._less(order, waiting):
            return "raises_exposure"
        if not forbidden:
            self.held.setdefault(order.symbol, Held(order.owner)).owner = order.owner
            self.sent[order.order_id] = Sent(order)
        return "forbidden" if forbidden else "open"

    def _less(self, order: Order, waiting: list[float]) -> bool:
        """Whether the position has not crossed zero once every order that closes is filled, this one included."""
        units = self.held[order.symbol].units if order.symbol in self.held else 0
        closing = [each for each in [*waiting, order.units] if each * units < 0]
        return order.units in closing and abs(sum(closing)) <= abs(units)

    def acknowledge(self, order_id: str, broker_id: str) -> bool:
        new = self.sent[order_id].broker_id is None
        self.sent[order_id].broker_id = self.sent[order_id].broker_id or broker_id
        return new

    def end(self, order_id: str, status: str) -> bool:
        was_open = self.sent[order_id].is_open
        if was_open:
            self.sent[order_id].status = status
        return was_open

    def trade(self, order_id: str, trade_id: str, units: int) -> bool:
        sent = self.sent[order_id]
        if trade_id in sent.trades:
            return False
        sent.trades[trade_id] = units
        held = self.held[sent.order.symbol]
        if sent.order.owner != held.owner:  # as it was taken, so are its late units
            held.mode = max(held.mode, held.taken_from.get(sent.order.owner, "normal"), key=RANK.index)
        if abs(sent.filled) >= abs(sent.order.units):
            sent.status = "filled"
        if abs(sent.filled) > abs(sent.order.units):
            held.mode = max(held.mode, "reduce_only", key=RANK.index)
        self._book(sent.order.symbol, units)
        return True

    def fill(self, order_id: str) -> bool:
        sent = self.sent[order_id]
        return sent.status != "filled" and self.trade(order_id, order_id, int(sent.left))

    def foreign(self, symbol: str, trade_id: str, units: int, adopt: bool) -> bool:
        """A trade by hand closes what hands made, then what we hold; the rest is ours if it is adopted."""
        if trade_id in self.by_hand:
            return False
        self.by_hand.add(trade_id)
        one = 1 if units > 0 else -1
        held, ours = self.held[symbol].units if symbol in self.held else 0, 0
        for _ in range(abs(units)):
            if adopt or (self.apart[symbol] * one >= 0 and (held + ours) * one < 0):
                ours += one
            else:
                self.apart[symbol] += one
        if ours:
            self.held.setdefault(symbol, Held("champion:unknown/0"))
            self._book(symbol, ours)
        return True

    def _book(self, symbol: str, units: int) -> None:
        held = self.held[symbol]
        held.units += units
        self.broker[symbol] += units
        self.booked[symbol, held.owner] += units
        held.free()

    def hand_over(self, symbol: str, to: str, mode: str, epoch: int) -> bool:
        stale, self.fence = epoch < self.fence, max(self.fence, epoch)
        held = self.held.get(symbol)
        if stale or held is None or held.owner == to:
            return False
        for sent in self.sent.values():
            if sent.order.symbol == symbol and sent.status == "open":
                sent.status = "cancelling" if sent.order.instrument else "cancelled"
        lasting = "normal" if mode == "adopt" else mode
        held.taken_from[held.owner] = lasting
        self.booked[symbol, held.owner] -= held.units
        self.booked[symbol, to] += held.units
        held.owner, held.mode = to, max(held.mode, lasting, key=RANK.index)
        held.free()
        return True
