"""What can be made to go wrong, how often, and for whom.

A fault waits until something comes by that it is for (`take`), lets `after` of them pass, then strikes `count` times,
each with `probability` from a generator of its own seed. What it does is at the place that takes it: rest.py (calls),
venue.py (orders, updates, ticks). What strikes
when it is given, such as a disconnect, is in control.py.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

PLACING = "POST /api/v3/orders/sync"

CallFault = Literal[
    "lost_ack", "hang", "delayed_accept", "bad_gateway", "rate_limited", "refused", "no_ack", "unauthorized"
]
OrderFault = Literal["rejected", "partial_cancel", "disconnect_on_order"]
UpdateFault = Literal["drop_update", "duplicate_update", "reorder_update"]
TickFault = Literal["malformed_tick", "stalled_feed"]
Kind = CallFault | OrderFault | UpdateFault | TickFault

Malformation = Literal[
    "zero",
    "negative",
    "sentinel",
    "future",
    "past",
    "outlier",
    "unknown_symbol",
    "truncated",
    "truncated_snapshot",  # the SDK forgets the symbol's scale by it, and tells no price of it until it connects anew
    "text",  # of quotes only, as the next
    "null",
]
Socket = Literal["data", "orders"]


class Spec(BaseModel):
    """A fault as it is ordered. Scope: what is None fits everything."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Kind
    count: int = Field(1, ge=1)
    probability: float = Field(1.0, gt=0.0, le=1.0)
    seed: int = 0
    after: int = Field(0, ge=0)
    symbol: str | None = None
    route: str | None = None  # of a call: "POST /api/v3/orders/sync" if it is not said; "*" any
    closing: bool | None = None  # orders that make a position smaller, or those that do not

    message: str = "RED:RULE:{refused by the emulator}"
    hang_s: float | None = Field(None, ge=0.0)  # None: until it is healed
    delay_s: float = Field(1.0, ge=0.0)
    done: bool = False  # bad_gateway: after the call was carried out
    retry_after_s: float = Field(1.0, ge=0.0)
    block_s: float = Field(0.0, ge=0.0)
    ratio: float = Field(0.5, ge=0.0, lt=1.0)
    of: Literal["orders", "trades", "positions", "any"] = "any"
    how: Malformation = "zero"
    where: Literal["socket", "quotes"] = "socket"
    sockets: tuple[Socket, ...] = ("data", "orders")


@dataclass(frozen=True)
class Passing:
    """What came by."""

    symbol: str | None = None
    route: str | None = None
    closing: bool | None = None
    of: str | None = None
    where: str | None = None


@dataclass
class Fault:
    id: int
    spec: Spec
    fired: int = 0
    seen: int = 0
    healed: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self._random = random.Random(self.spec.seed)

    @property
    def spent(self) -> bool:
        return self.healed.is_set() or self.fired >= self.spec.count

    def strikes(self, passing: Passing) -> bool:
        if self.spent or not self._is_for(passing):
            return False
        self.seen += 1
        if self.seen <= self.spec.after or self._random.random() >= self.spec.probability:
            return False
        self.fired += 1
        return True

    def _is_for(self, passing: Passing) -> bool:
        spec = self.spec
        route = spec.route or PLACING
        return (
            spec.symbol in (None, passing.symbol)
            and (passing.route is None or route in ("*", passing.route))
            and spec.closing in (None, passing.closing)
            and (passing.of is None or spec.of in ("any", passing.of))
            and (passing.where is None or spec.where == passing.where)
        )

    async def hold(self) -> None:
        """Until it is healed, or for as long as it was ordered."""
        try:
            await asyncio.wait_for(self.healed.wait(), self.spec.hang_s)
        except TimeoutError:
            return


class Faults:
    def __init__(self) -> None:
        self._all: list[Fault] = []

    def add(self, spec: Spec) -> Fault:
        fault = Fault(len(self._all) + 1, spec)
        self._all.append(fault)
        return fault

    def take(self, passing: Passing, *kinds: Kind) -> Fault | None:
        """The first fault of these kinds that strikes now."""
        return next((f for f in self._all if f.spec.kind in kinds and f.strikes(passing)), None)

    def heal(self, fault_id: int | None = None) -> int:
        """One fault, or all: it strikes no more, and what it holds goes on. How many."""
        healed = [fault for fault in self._all if fault_id in (None, fault.id) and not fault.healed.is_set()]
        for fault in healed:
            fault.healed.set()
        return len(healed)

    def listed(self) -> list[dict[str, Any]]:
        return [
            {"id": f.id, **f.spec.model_dump(exclude_defaults=True), "fired": f.fired, "healed": f.healed.is_set()}
            for f in self._all
        ]
