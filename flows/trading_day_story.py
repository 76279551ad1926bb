"""What a rehearsed day comes to: minute by minute, symbol by symbol, and the figures that it is judged by.

Money is told in bps of the capital of a symbol, the book being the mean over symbols. The real book's comes from the
ledger's fills at the prices of the bars; what each arm alone would have earned is what both earned on their own
portfolios at the same ticks, which is known as long as there are two arms.
"""

from __future__ import annotations

import bisect
import json
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import accumulate
from typing import Any

import numpy as np
import sqlalchemy as sa

from flows.trading_day import HALF, Minute, Played
from flows.trading_day_desk import Decided, Sent
from serving.schemas_rollout import Event
from trading.calendar import KOLKATA
from trading.features import Floats
from trading.ledger import Ledger
from trading.ledger_tables import handovers
from trading.market import SECOND_NS

LAST_CHALLENGER_LIMIT_MS = 1000.0
TRIGGER = "drawdown_exceeded"
RATE = "too_many_orders"  # not refused for good: the exchange takes it a moment later

Story = dict[str, Any]


def story(played: Played, capital: float) -> Story:
    """All of the day as JSON. `capital`: rupees of each symbol."""
    with closing(Ledger(played.folder / "paper.db")) as ledger:
        real_bps = _real_bps(played, ledger, capital)
        handed_over = _handed_over(played, ledger)
        figures = _figures(played, ledger, handed_over)
    told = _minutes(played, real_bps)
    rolled_back = next((one for one in told if one["phase"] == "rolled_back"), None)
    compared = told[told.index(rolled_back) if rolled_back else -1]
    money = {
        "real_bps": told[-1]["real_bps"],
        "real_rupees": round(told[-1]["real_bps"] / 1e4 * capital * len(played.day.bars)),
        "at_rollback_bps": {arm: compared[f"{arm}_bps"] for arm in ("real", "champion", "challenger")},
    }
    problems = failures(figures)
    return {
        "passed": not problems,
        "failures": problems,
        "figures": figures | money,
        "market": _market(played),
        "minutes": told,
        "events": [_event(event, played) for event in played.events],
        "handovers": handed_over,
        "refused": [_refused(sent, played) for sent in played.notes.sent if sent.refused not in (None, RATE)],
    }


def failures(figures: dict[str, Any]) -> list[str]:
    """What must not be, in words; none if the rehearsal passed."""
    late_ms = [figures[f"breach_to_last_challenger_{what}_ms"] for what in ("decision", "order")]
    checks: list[tuple[bool, str]] = [
        (figures["trigger"] == TRIGGER, f"rolled back by {figures['trigger'] or 'nobody'}, not by {TRIGGER}"),
        (figures["weight_at_breach"] == HALF, f"it came to {figures['weight_at_breach']} % only; try another --seed"),
        (max(late_ms) <= LAST_CHALLENGER_LIMIT_MS, f"the challenger acted {max(late_ms):.0f} ms after the breach"),
        (figures["handed_over"] > 0, "the challenger held nothing that could be handed over"),
        (figures["stale_orders_refused"] > 0, "no order of an old epoch came, so none was refused; try another --seed"),
        (figures["lost_decisions"] == 0, f"{figures['lost_decisions']} questions got no answer"),
    ]
    nothing = {
        "stale_orders_accepted": "orders of an old epoch were accepted",
        "reconciliation_differences": "times the ledger did not add up",
        "symbols_moved_while_not_flat": "decisions were another arm's than the holder's",
        "not_flat_after_handover": "positions were not flat after their hand-over",
        "held_after_close": "positions or open orders were left after the close",
    }
    checks += [(figures[name] == 0, f"{figures[name]} {what}") for name, what in nothing.items()]
    return [why for holds, why in checks if not holds]


def clock(at_ns: int) -> str:
    """Hours and minutes where the exchange is."""
    return datetime.fromtimestamp(at_ns / SECOND_NS, UTC).astimezone(KOLKATA).strftime("%H:%M")


def _market(played: Played) -> dict[str, Any]:
    day, plan = played.day, played.plan
    limits = plan.limits.book
    return {
        "name": day.name,
        "synthetic": day.synthetic,
        "day": datetime.fromtimestamp(int(day.times[0]) / SECOND_NS, UTC).astimezone(KOLKATA).date().isoformat(),
        "symbols": len(day.bars),
        "interval_s": day.interval_s,
        "breaks_at": _closed(played, played.breaks_at),
        "drawdown_limit_bps": 100 * (limits.max_drawdown_pct or 0.0),
        "weights": [stage.weight for stage in plan.stages],
        "handover": plan.handover.triggers[TRIGGER],
        "flatten_after_min": plan.handover.flatten_after / 60,
        "plan_sha256": plan.sha256,
    }


def _closed(played: Played, bar: int) -> str:
    """When a bar had closed, and was decided at."""
    return clock(int(played.day.times[bar]) + played.day.interval_s * SECOND_NS)


def _figures(played: Played, ledger: Ledger, handed_over: list[dict[str, Any]]) -> dict[str, Any]:
    decided, sent = played.notes.decided, played.notes.sent
    rollback = next((event for event in played.events if event.command == "rollback"), None)
    breach_at = rollback.at if rollback else float("inf")
    accepted = [one for one in sent if one.refused is None and one.order.epoch is not None]
    waits = [one["minutes"] for one in handed_over if one["minutes"] is not None]
    return {
        "trigger": rollback.reason if rollback else None,
        "breach": played.losses["breach"],
        "weight_at_breach": _weight_before(rollback, played),
        "breach_to_last_challenger_decision_ms": _after_ms(
            breach_at, [one.at for one in decided if one.role == "challenger"]
        ),
        "breach_to_last_challenger_order_ms": _after_ms(
            breach_at, [one.at for one in accepted if one.order.owner.startswith("challenger")]
        ),
        "stale_orders_refused": sum(one.refused == "stale_epoch" for one in sent),
        "stale_orders_accepted": sum(one.stale and one.refused is None for one in sent),
        "reconciliation_differences": sum(len(minute.discrepancies) for minute in played.minutes),
        "symbols_moved_while_not_flat": sum(map(_moved, decided)),
        "handed_over": len(handed_over),
        "not_flat_after_handover": len(handed_over) - len(waits),
        "minutes_until_flat": max(waits, default=None),
        "held_after_close": len(ledger.holdings()) + sum(len(ledger.open_orders(name)) for name in played.day.bars),
        "decisions": len(decided),
        "lost_decisions": sum(one.role == "none" for one in decided),
        "decision_p50_ms": float(np.percentile([one.elapsed_ms for one in decided], 50)),
        "decision_p99_ms": float(np.percentile([one.elapsed_ms for one in decided], 99)),
        "orders": len({one.order.order_id for one in sent if one.refused is None}),
        "seconds": played.seconds,
    }


def _weight_before(rollback: Event | None, played: Played) -> int:
    """The challenger's, as the log has it; of a rollout that goes on the latest."""
    weights = [json.loads(event.state)["weight"] for event in played.events if event is not rollback]
    return int(weights[-1]) if weights else 0


def _after_ms(breach_at: float, times: list[float]) -> float:
    return max(0.0, 1e3 * (max(times, default=breach_at) - breach_at))


def _moved(one: Decided) -> bool:
    """Whether another arm decided than the one that held the position, and no hand-over said so."""
    return one.acting is not None and one.role not in (one.acting, "safe", "none") and one.mode is None


def _real_bps(played: Played, ledger: Ledger, capital: float) -> Floats:
    """Of the book at the end of every bar [T], in bps of the capital, after charges."""
    times, total = played.day.times, np.zeros(len(played.day.times))
    for symbol, bars in played.day.bars.items():
        cash, units = np.zeros(len(times)), np.zeros(len(times))
        for fill in ledger.fills(symbol):
            bar = int(np.searchsorted(times, fill.bar_ns))
            cash[bar] -= fill.units * fill.price + fill.cost
            units[bar] += fill.units
        total += np.cumsum(cash) + np.cumsum(units) * bars.close[-len(times) :]
    return 1e4 * total / capital / len(played.day.bars)


def _handed_over(played: Played, ledger: Ledger) -> list[dict[str, Any]]:
    """Every hand-over of a position with how, and how many minutes later, it came to nothing."""
    with ledger.engine.connect() as connection:
        rows = connection.execute(sa.select(handovers).where(handovers.c.units != 0).order_by(handovers.c.seq)).all()
    return [_one_handover(row, ledger, played.day.interval_s) for row in rows]


def _one_handover(row: Any, ledger: Ledger, interval_s: int) -> dict[str, Any]:
    held, flat_ns, how = 0.0, None, "never"
    for fill in ledger.fills(row.symbol):
        held += fill.units
        if fill.bar_ns >= row.at_ns and held == 0.0:
            intent = ledger.intent(fill.order_id)
            how = intent.reason.lower() if intent else "unknown"
            at_close = how == "square_off"  # else at the open of the bar
            flat_ns = fill.bar_ns + (interval_s * SECOND_NS if at_close else 0)
            break
    return {
        "symbol": row.symbol,
        "units": row.units,
        "mode": row.mode,
        "to": row.to_owner,
        "at": clock(row.at_ns),
        "flat_at": None if flat_ns is None else clock(flat_ns),
        "minutes": None if flat_ns is None else (flat_ns - row.at_ns) / SECOND_NS / 60,
        "how": how,
    }


@dataclass(frozen=True)
class _Arms:
    """Both arms' book at the end of every bar, bps; each bar's outcomes are of the decisions before."""

    champion: list[float]
    challenger: list[float]


def _arms(played: Played) -> _Arms:
    symbols = len(played.day.bars)

    def book(of: Callable[[Any], float]) -> list[float]:
        by_bar: defaultdict[int, float] = defaultdict(float)
        for one in played.notes.earned:
            by_bar[one.bar] += of(one) / symbols
        return list(accumulate(by_bar[bar] for bar in range(len(played.minutes))))

    return _Arms(book(lambda one: one.champion_bps), book(lambda one: one.challenger_bps))


def _minutes(played: Played, real_bps: Floats) -> list[dict[str, Any]]:
    arms = _arms(played)
    roles = [Counter(one.role for one in played.notes.decided if one.bar == bar) for bar in range(len(played.minutes))]
    ended = next((bar for bar, minute in enumerate(played.minutes) if minute.phase == "rolled_back"), None)
    rows = []
    for bar, minute in enumerate(played.minutes):
        two_arms = ended is None or bar <= ended
        sent = [one for one in played.notes.sent if one.bar == bar]
        rows.append(
            {
                "at": _closed(played, bar),
                "phase": minute.phase,
                "weight": minute.weight,
                "epoch": minute.epoch,
                "deciding": {role: roles[bar][role] for role in ("champion", "challenger", "safe")},
                "real_bps": float(real_bps[bar]),
                "champion_bps": arms.champion[bar] if two_arms else None,
                "challenger_bps": arms.challenger[bar] if two_arms else None,
                "champion_drawdown_bps": minute.champion_drawdown_bps if two_arms else None,
                "challenger_drawdown_bps": minute.challenger_drawdown_bps if two_arms else None,
                "held": _held(minute),
                "orders": sum(one.refused is None for one in sent),
                "refused": sum(one.refused not in (None, RATE) for one in sent),
                "differences": len(minute.discrepancies),
            }
        )
    return rows


def _held(minute: Minute) -> dict[str, int]:
    """Symbols that are not flat, by who holds them; what was handed over and may only become smaller is its own."""
    handed_over = [symbol for symbol in minute.restricted if symbol in minute.holders]
    free = Counter(arm for symbol, arm in minute.holders.items() if symbol not in handed_over)
    return {"champion": free["champion"], "challenger": free["challenger"], "handed_over": len(handed_over)}


def _event(event: Event, played: Played) -> dict[str, Any]:
    state = json.loads(event.state)
    return {
        "at": _market_time(event.at, played),
        "command": event.command,
        "reason": event.reason,
        "actor": event.actor,
        "phase": state["phase"],
        "weight": state["weight"],
        "epoch": state["epoch"],
        "version": event.version,
    }


def _market_time(at: float, played: Played) -> str:
    """Of something that happened on the wall clock: the bar that was under way. Before the first one: the open."""
    began = [minute.wall_at for minute in played.minutes]
    bar = bisect.bisect_right(began, at) - 1
    return clock(int(played.day.times[0])) if bar < 0 else _closed(played, bar)


def _refused(sent: Sent, played: Played) -> dict[str, Any]:
    order = sent.order
    return {
        "at": _closed(played, sent.bar),
        "symbol": order.symbol,
        "units": order.units,
        "owner": order.owner,
        "epoch": order.epoch,
        "reason": sent.refused,
    }
