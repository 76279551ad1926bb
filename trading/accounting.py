"""What a lock-step of B portfolios does, compiled: the one place where decisions become positions, returns and money.

At bar t the row's direction goes from p to q (core/actions.py) and its units from u to v, all filled at the next
open; at its session's last decision everything is closed at the close of t+1:

    v          = u if sign(u) = q else q * floor(quantity)
    reward_bps = 1e4 (p (open[t+1] - close[t]) + q (close[t+1] - open[t+1])) / close[t] - cost_bps (|q - p| + exit)
    pnl        = u (open[t+1] - close[t]) + v (close[t+1] - open[t+1]) - charges      rupees, charges of each order
    exit       = |q| at the last decision of a session, else 0

`reward_bps` is what models are trained on and judged by: the direction, at a flat cost. `pnl` is the money that
their sizes make of it, at the charges of the day (trading/costs.py). trading/gym_env.py is the same in plain Python.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from core.actions import LEGAL, TARGET_OF
from trading.costs import order_rupees

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

ILLEGAL_ACTION, BAD_QUANTITY = 1, 2


@njit(cache=True)
def refusal(action: Ints, quantity: Floats, position: Ints, active: Bools) -> int:
    """0, or why a lock-step cannot be taken: ILLEGAL_ACTION or BAD_QUANTITY in an active row."""
    for row in range(len(action)):
        if active[row]:
            if not 0 <= action[row] < LEGAL.shape[1] or not LEGAL[position[row] + 1, action[row]]:
                return ILLEGAL_ACTION
            if not 1.0 <= quantity[row] < np.inf:
                return BAD_QUANTITY
    return 0


@njit(cache=True, error_model="numpy")
def settle(
    decided: tuple[Ints, Floats],
    prices: tuple[Floats, Floats],
    costs: tuple[float, Floats],
    last: Ints,
    state: tuple[Ints, Ints, Floats, Bools],
    earned: Floats,
    traded: Ints,
) -> int:
    """Take decisions, in place; or, for a `refusal`, change nothing and answer it. 0 when taken.

    Args:
        decided: action and quantity, [B] each.
        prices: open and close of the market, [n] each.
        costs: bps of a unit of turnover in `reward_bps`, and [B, 5] `OrderCosts.vector` of each row's day.
        last: the bar of each row's last decision.
        state: bar, position, units and active of each row, advanced; an inactive row stays as it is.
        earned: [3, B] written: reward_bps, pnl, charges in it. Zeros where inactive.
        traded: [3, B] written: position after the decision, turnover, orders (the exit's included in both).
    """
    action, quantity = decided
    open_, close = prices
    cost_bps, order_costs = costs
    at, position, units, active = state
    refused = refusal(action, quantity, position, active)
    if refused:
        return refused
    for row in range(len(action)):
        if not active[row]:
            earned[:, row] = 0.0
            traded[:, row] = 0
            continue
        t, old, held = at[row], position[row], units[row]
        new = TARGET_OF[old + 1, action[row]]
        kept = held if new == old else new * np.floor(quantity[row])
        before, fill, after = close[t], open_[t + 1], close[t + 1]
        turnover, orders, charges = abs(new - old), 0, 0.0
        reward = 1e4 * (old * (fill - before) + new * (after - fill)) / before
        pnl = held * (fill - before) + kept * (after - fill)
        if kept != held:
            charges += order_rupees(order_costs[row], kept - held, fill)
            orders += 1
        ending = t >= last[row]
        if ending and new != 0:
            charges += order_rupees(order_costs[row], -kept, after)
            orders += 1
            turnover += 1
        earned[0, row], earned[1, row], earned[2, row] = reward - cost_bps * turnover, pnl - charges, charges
        traded[0, row], traded[1, row], traded[2, row] = new, turnover, orders
        position[row] = 0 if ending else new
        units[row] = 0.0 if ending else kept
        active[row] = not ending
        at[row] = t if ending else t + 1
    return 0


@njit(cache=True, boundscheck=True)
def begin(
    rows: Ints,
    places: Ints,
    starts: tuple[Ints, Ints, Ints, Floats],
    state: tuple[Ints, Ints, Ints, Floats, Ints, Floats, Bools],
) -> None:
    """Put `rows` [R] flat at the start of the sessions at `places` [R].

    Args:
        starts: id, bar of the first decision, bar of the last, `OrderCosts.vector` of each session, [S] and [S, 5].
        state: the same of each row, [B] and [B, 5], and its position, units and active; written.
    """
    ids, first, last, costs = starts
    session, at, final, order_costs, position, units, active = state
    for k in range(len(rows)):
        row, place = rows[k], places[k]
        session[row], at[row], final[row], order_costs[row] = ids[place], first[place], last[place], costs[place]
        position[row], units[row], active[row] = 0, 0.0, True
