"""Where a live process is killed, and what goes wrong at the broker meanwhile.

Points are places in the code (delivery/crash.py): `appended:KIND` and `handled:KIND` around each event, and those
inside the handlers. Faults are the emulator's (tests/fyers_emulator/faults.py), and two of people: `halt` stops all
trading for a while, `request` asks the desk for an order.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

Fault = dict[str, Any]


@dataclass(frozen=True)
class Point:
    """`most`: how often a short life gets there. `needs`: what makes it get there at all."""

    most: int = 1
    needs: tuple[Fault, ...] = ()
    bars_missed: int = 0  # while nobody runs
    orders_per_s: int = 10


HALT: Fault = {"kind": "halt"}
REQUEST: Fault = {"kind": "request"}
AROUND = ("appended", "handled")
EVENTS = {
    "start": Point(),
    "history": Point(bars_missed=2),
    "bar": Point(4),
    "answer": Point(4),
    "placed": Point(4),
    "declined": Point(needs=({"kind": "refused", "count": 2},)),
    "unknown": Point(needs=({"kind": "lost_ack", "count": 2},)),
    "unsent": Point(needs=(HALT,), orders_per_s=1),
    "order": Point(5),
    "trade": Point(4),
    "snapshot": Point(3),
    "state": Point(2, needs=(HALT,)),
    "epoch": Point(),
    "clock": Point(3),
    "command": Point(needs=(REQUEST,)),
}
POINTS = {f"{around}:{kind}": point for kind, point in EVENTS.items() for around in AROUND} | {
    "intent_recorded": Point(4),
    "order_accepted": Point(3),
    "about_to_send": Point(4),
    "sent": Point(4),
    "transaction_written": Point(12),
    "transaction_committed": Point(12),
    "trade_booked": Point(4),
    "snapshot_applied": Point(3),
}

SLOW_S = 0.8  # of a call that hangs: shorter than the time after which an order counts as never arrived
SLOW = {"hang", "lost_ack", "delayed_accept"}  # what may be done after the desk that asked for it is dead
FAULTS: tuple[Fault, ...] = (
    {"kind": "lost_ack"},
    {"kind": "lost_ack", "hang_s": SLOW_S},
    {"kind": "hang", "hang_s": SLOW_S},
    {"kind": "delayed_accept", "delay_s": SLOW_S},
    {"kind": "bad_gateway"},
    {"kind": "bad_gateway", "done": True},
    {"kind": "bad_gateway", "route": "GET /api/v3/tradebook", "count": 2},
    {"kind": "bad_gateway", "route": "DELETE /api/v3/orders/sync"},
    {"kind": "rate_limited", "block_s": 1.0, "retry_after_s": 1.0},
    {"kind": "no_ack"},
    {"kind": "refused"},
    {"kind": "rejected"},
    {"kind": "rejected", "closing": True, "count": 2},
    {"kind": "partial_cancel"},
    {"kind": "disconnect_on_order"},
    {"kind": "drop_update", "of": "trades", "count": 3},
    {"kind": "drop_update", "count": 6},
    {"kind": "duplicate_update", "count": 6},
    {"kind": "reorder_update", "count": 3},
    {"kind": "malformed_tick", "how": "zero"},
    {"kind": "malformed_tick", "how": "outlier"},
    {"kind": "malformed_tick", "how": "future"},
    {"kind": "malformed_tick", "how": "truncated"},
    {"kind": "stalled_feed", "count": 4},
    {"kind": "disconnect"},
    {"kind": "manual_trade"},
    {"kind": "token_expiry"},
    HALT,
    REQUEST,
)
RULES: tuple[dict[str, Any], ...] = (  # how the exchange fills; mostly all at once
    {"fill": "arrival", "units_per_fill": None},
    {"fill": "arrival", "units_per_fill": None},
    {"fill": "arrival", "units_per_fill": None},
    {"fill": "arrival", "units_per_fill": 1},  # lots
    {"fill": "next_tick", "units_per_fill": None},
)


@dataclass(frozen=True)
class Kill:
    """One life and its end: at a point, or at an instant."""

    point: str | None  # None: at an instant
    nth: int = 1
    trading: bool = False  # whether it trades when it dies
    after_s: float = 0.0  # of trading; else the share of a usual start
    faults: tuple[Fault, ...] = ()
    rules: dict[str, Any] | None = None

    @property
    def place(self) -> Point:
        return Point() if self.point is None else POINTS[self.point]


def kills(count: int, draw: random.Random) -> Iterator[Kill]:
    """Every second one at a random instant, the others at the points, in turn."""
    points: list[str] = []
    for number in range(count):
        rules = draw.choice(RULES)
        if number % 2:
            trading = draw.random() < 0.7
            after_s = draw.uniform(0.0, 5.0 if trading else 1.0)
            faults = tuple(draw.choices(FAULTS, k=draw.choice((0, 1, 1, 2))))
            yield Kill(None, trading=trading, after_s=after_s, faults=faults, rules=rules)
            continue
        points = points or draw.sample(sorted(POINTS), len(POINTS))
        point = POINTS[name := points.pop()]
        others = draw.choices([each for each in FAULTS if each["kind"] != "token_expiry"], k=draw.choice((0, 0, 1)))
        yield Kill(name, draw.randint(1, point.most), faults=(*point.needs, *others), rules=rules)
