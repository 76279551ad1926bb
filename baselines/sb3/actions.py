"""A foreign agent's actions as ours: scores for K choices, and what each choice means in each position.

    choices [3, 5, K]   [position + 1, action, choice]: True if the choice, made in that position, is that action

The logit of an action is the highest score among the choices that come to it, so that the best action is the one that
the agent's own best choice comes to. A choice that is illegal in a position leaves it as it is, as our environment has
it (trading/gym_env.py), unless the agent was trained with illegal actions masked: then it is never made.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from baselines.sb3.archive import refused
from baselines.sb3.description import ActionSpace, Box, Discrete
from core.actions import ACTION_OF, N_ACTIONS, TARGET_OF, Action

TARGETS = {"short": -1, "flat": 0, "long": 1}
ALIASES = {"buy": Action.BUY_LONG, "sell": Action.SELL_SHORT}
NAMED = ALIASES | {action.name.lower(): action for action in Action}
DEFAULT_NAMES = {3: tuple(TARGETS), N_ACTIONS: tuple(action.name.lower() for action in Action)}
POSITIONS = (-1, 0, 1)
MOST = 1_000  # choices or bins


@dataclass(frozen=True, eq=False)
class Choices:
    """One of K, by its scores: the first K outputs of the network."""

    table: NDArray[np.bool_]  # [3, 5, K]


@dataclass(frozen=True, eq=False)
class Direction:
    """The first output a is a target position in [-1, 1]: flat within `dead_zone`, else its sign."""

    dead_zone: float

    @property
    def table(self) -> NDArray[np.bool_]:
        return choices_of(tuple(TARGETS), masked=False)


@dataclass(frozen=True)
class Constant:
    quantity: float


@dataclass(frozen=True)
class Bins:
    """One of `quantities`, by the scores that follow those of the action."""

    quantities: tuple[float, ...]


@dataclass(frozen=True)
class Share:
    """The second output, from low to high, as a share of the largest quantity, at least one unit."""

    low: float
    high: float


@dataclass(frozen=True, eq=False)
class Actions:
    """How the outputs of a network are read."""

    outputs: int
    action: Choices | Direction
    quantity: Constant | Bins | Share
    quantity_max: float


def actions_of(
    space: ActionSpace,
    *,
    masked: bool,
    quantity_max: float,
    names: tuple[str, ...] = (),
    quantities: tuple[float, ...] = (),
    dead_zone: float,
) -> Actions:
    """Raises ModelError for a space without a meaning here, or options that do not fit it."""
    if not all(1.0 <= quantity <= quantity_max for quantity in quantities):
        raise refused(f"--quantities {list(quantities)} must be within 1 and {quantity_max:g} (trading.max_quantity)")
    if isinstance(space, Box):
        if names:
            raise refused("--actions names the choices of Discrete actions; these are a Box")
        return _of_box(space, quantities, quantity_max, dead_zone)
    kinds = (space.n,) if isinstance(space, Discrete) else space.nvec
    if len(kinds) > 2 or not all(0 < count <= MOST for count in kinds):
        raise refused(f"its actions are {space}; one choice, or one and a bin of quantities, can be imported")
    choices = Choices(choices_of(names or _default(kinds[0]), masked=masked))
    if choices.table.shape[2] != kinds[0]:
        raise refused(f"--actions has {choices.table.shape[2]} names, the agent has {kinds[0]} choices")
    quantity = _bins(kinds[1], quantities, quantity_max) if len(kinds) == 2 else _constant(quantities)
    return Actions(sum(kinds), choices, quantity, quantity_max)


def _default(count: int) -> tuple[str, ...]:
    if count not in DEFAULT_NAMES:
        raise refused(f"its {count} choices have no names; give them in order with --actions, from {_KNOWN}")
    return DEFAULT_NAMES[count]


def choices_of(names: tuple[str, ...], *, masked: bool) -> NDArray[np.bool_]:
    """[3, 5, K] for choices of these names: targets (short, flat, long) or actions (buy, sell, hold, ...)."""
    table = np.zeros((3, N_ACTIONS, len(names)), dtype=np.bool_)
    for choice, name in enumerate(names):
        for position in POSITIONS:
            target = _target(name, position, masked)
            if target is not None:
                table[position + 1, ACTION_OF[position + 1, target + 1], choice] = True
    return table


def _target(name: str, position: int, masked: bool) -> int | None:
    """Where a choice leads; None if it is never made there."""
    if name in TARGETS:
        return TARGETS[name]
    if name not in NAMED:
        raise refused(f"--actions: {name!r} is none of {_KNOWN}")
    target = int(TARGET_OF[position + 1, NAMED[name]])
    if target in POSITIONS:
        return target
    return None if masked else position


_KNOWN = ", ".join([*TARGETS, *NAMED])


def _of_box(space: Box, quantities: tuple[float, ...], quantity_max: float, dead_zone: float) -> Actions:
    outputs = len(space.low)
    if outputs > 2 or len(space.high) != outputs or (space.low[0], space.high[0]) != (-1.0, 1.0):
        raise refused(f"its actions are {space}; a target position in [-1, 1] must come first, a size may follow")
    if not 0.0 <= dead_zone < 1.0:
        raise refused(f"--dead-zone {dead_zone:g} must be at least 0 and below 1")
    if outputs == 1:
        return Actions(1, Direction(dead_zone), _constant(quantities), quantity_max)
    if quantities:
        raise refused("--quantities: the second number of its actions is the size, a share of the largest quantity")
    low, high = space.low[1], space.high[1]
    if not low < high:
        raise refused(f"its actions are {space}, with an empty range of sizes")
    return Actions(2, Direction(dead_zone), Share(low, high), quantity_max)


def _constant(quantities: tuple[float, ...]) -> Constant:
    if len(quantities) > 1:
        raise refused("--quantities: its actions choose no quantity; give one, which it always trades")
    return Constant(quantities[0] if quantities else 1.0)


def _bins(count: int, quantities: tuple[float, ...], quantity_max: float) -> Bins:
    """Log-spaced unless they are given."""
    if quantities and len(quantities) != count:
        raise refused(f"--quantities has {len(quantities)} of them, the agent chooses among {count}")
    spaced = np.geomspace(1.0, quantity_max, count).tolist()
    return Bins(quantities or tuple(spaced))
