"""What a policy decided over many sessions in lock-step, and what each decision earned: the backtest's raw record.

Two ways to fill it: `play` asks a policy once per lock-step, `follow` takes decisions made beforehand (a `Plan`) and
never leaves compiled code. Both step the same accounting (trading/accounting.py).

D decisions, one for every decision bar of the market: sessions one after the other, bars in order. B rows (sessions)
of a lock-step, n bars. Money in rupees.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numba import njit
from numpy.typing import NDArray

from core.actions import ACTION_OF, Action
from core.errors import DataError
from trading.accounting import BAD_QUANTITY, settle
from trading.env import SessionEnv
from trading.features import Floats
from trading.instruments import in_lots
from trading.market import Ints, Market
from trading.observations import Policy, observe

UNKNOWN = -1  # of `stable`: the policy does not say

Watch = Callable[[float], None]  # told the ratio done, 0 to 1


@dataclass(frozen=True)
class Journal:
    """Arrays over decisions [D]. `position` and `units` are what is held after the decision, until the next."""

    at: Ints  # the bar decided at
    action: NDArray[np.int8]
    position: NDArray[np.int8]
    units: Floats  # signed
    segments: NDArray[np.int8]
    stable: NDArray[np.int8]  # 1: the last segment left the action as it was, 0: it changed it, UNKNOWN
    net: Floats  # after charges, the forced exit's included
    charges: Floats
    orders: NDArray[np.int8]  # the forced exit included

    def without(self, stopped: NDArray[np.bool_]) -> Journal:
        """The same decisions, those in mask [D] not carried out."""
        kept = {name: np.where(stopped, 0, getattr(self, name)) for name in ("units", "net", "charges")}
        whole = {name: np.where(stopped, np.int8(0), getattr(self, name)) for name in ("position", "orders")}
        return replace(self, **kept, **whole)

    def changed(self, market: Market) -> Floats:
        """Units bought (+) and sold (-) at the next open by each decision [D]; the forced exit is not among them."""
        first = np.concatenate([[True], np.diff(market.bars.session[self.at]) != 0])
        held = np.where(first, 0.0, np.concatenate([[0.0], self.units[:-1]]))
        return np.asarray(self.units - held)


@dataclass(frozen=True)
class Plan:
    """Decisions made beforehand: `targets` [n, 3] in {-1, 0, 1} by bar and by position index p + 1, `quantity` [n]."""

    targets: NDArray[np.integer]
    quantity: Floats

    def checked(self, bars: int) -> tuple[NDArray[np.int8], Floats]:
        """Both as compiled code reads them. Raises DataError unless there is a target and a size for every bar."""
        targets = np.ascontiguousarray(self.targets, dtype=np.int8)
        if targets.shape != (bars, 3) or self.quantity.shape != (bars,):
            raise DataError(f"a plan for {bars} bars needs targets [{bars}, 3] and quantity [{bars}]")
        if (np.abs(targets) > 1).any() or (targets != self.targets).any():
            raise DataError("a plan's targets are -1, 0 and 1")
        return targets, np.ascontiguousarray(self.quantity, dtype=np.float64)


def play(policy: Policy, env: SessionEnv, lot_units: Floats, watch: Watch) -> Journal:
    """Ask `policy` for all sessions that go on, lock-step by lock-step, to their ends.

    `lot_units` [B] is the lot of each row's day; 1 where there are none. Raises DataError for an illegal answer.
    """
    journal, offset, steps = _blank(env), _places(env), int((env.last - env.at).max()) + 1
    action, quantity = np.full(len(env), Action.HOLD, dtype=np.int64), np.ones(len(env))
    for k in range(steps):
        rows = np.flatnonzero(env.active)
        decided = policy(*observe(env.market, env.schema, env.at[rows], env.position[rows]))
        if not len(rows) == len(decided.action) == len(decided.quantity):
            raise DataError(f"the policy answered {len(decided.action)} decisions for {len(rows)} observations")
        action[rows] = decided.action
        quantity[rows] = in_lots(decided.quantity, lot_units[rows])
        held = env.units[rows]
        step, place = env.step(action, quantity), offset[rows] + k
        position = step.position[rows]
        journal.action[place], journal.segments[place] = decided.action, decided.segments
        journal.stable[place] = getattr(decided, "stable", UNKNOWN)  # a rule has no segments to compare
        journal.position[place], journal.orders[place] = position, step.orders[rows]
        journal.units[place] = np.where(np.sign(held) == position, held, position * quantity[rows])
        journal.net[place], journal.charges[place] = step.pnl[rows], step.charges[rows]
        watch((k + 1) / steps)
    return journal


def follow(plan: Plan, env: SessionEnv, lot_units: Floats) -> Journal:
    """Carry a plan out in every session. Raises DataError for a quantity that is not a finite number of at least 1."""
    journal, bars, places = _blank(env), env.market.bars, _places(env)
    targets, quantity = plan.checked(len(bars))
    decisions = np.diff(np.append(places, len(journal.at)))  # of each row
    refused = _follow(
        (targets, in_lots(quantity[journal.at], np.repeat(lot_units, decisions))),
        (bars.open, bars.close),
        (env.cost_bps, env.order_costs),
        env.last,
        (env.at, env.position, env.units, env.active),
        places,
        (journal.action, journal.position, journal.orders, journal.units, journal.net, journal.charges),
    )
    if refused == BAD_QUANTITY:
        raise DataError("a quantity of the plan is not a finite number of at least 1")
    return journal


def _blank(env: SessionEnv) -> Journal:
    at = env.market.decision_bars
    action, position, segments, stable, orders = np.zeros((5, len(at)), dtype=np.int8)
    units, net, charges = np.zeros((3, len(at)))
    segments[:], stable[:] = 1, UNKNOWN
    return Journal(at, action, position, units, segments, stable, net, charges, orders)


def _places(env: SessionEnv) -> Ints:
    """Where each row's first decision stands among all decisions, [B]."""
    return np.asarray(np.searchsorted(env.market.decision_bars, env.at))


@njit(cache=True)
def _follow(
    plan: tuple[NDArray[np.int8], Floats],
    prices: tuple[Floats, Floats],
    costs: tuple[float, Floats],
    last: Ints,
    state: tuple[Ints, Ints, Floats, NDArray[np.bool_]],
    place: Ints,
    journal: tuple[NDArray[np.int8], NDArray[np.int8], NDArray[np.int8], Floats, Floats, Floats],
) -> int:
    """`plan` is targets [n, 3] and quantity [D]; `place` [B] where each row begins in the journal's arrays [D]."""
    targets, quantity = plan
    at, position, units, active = state
    actions, positions, orders, held, net, charges = journal
    rows = len(at)
    action, size = np.zeros(rows, dtype=np.int64), np.ones(rows)
    earned, traded = np.empty((3, rows)), np.empty((3, rows), dtype=np.int64)
    going, before, k = active.copy(), units.copy(), 0
    while going.any():
        for row in range(rows):
            if going[row]:
                p = position[row] + 1
                action[row], size[row] = ACTION_OF[p, targets[at[row], p] + 1], quantity[place[row] + k]
        refused = settle((action, size), prices, costs, last, state, earned, traded)
        if refused:
            return refused
        for row in range(rows):
            if going[row]:
                d, new = place[row] + k, traded[0, row]
                kept = before[row] if np.sign(before[row]) == new else new * size[row]
                actions[d], positions[d], orders[d], held[d] = action[row], new, traded[2, row], kept
                net[d], charges[d] = earned[1, row], earned[2, row]
                going[row], before[row] = active[row], units[row]
        k += 1
    return 0
