"""The five actions of the seed and what they mean for a position.

From every position exactly three actions are legal, one for each target in {-1, 0, +1}:

    position   target -1      target 0       target +1
    short      HOLD           CLOSE_SHORT    BUY_LONG (reverse)
    flat       SELL_SHORT     HOLD           BUY_LONG
    long       SELL_SHORT (reverse)  CLOSE_LONG  HOLD
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray


class Action(IntEnum):
    BUY_LONG = 0
    SELL_SHORT = 1
    CLOSE_LONG = 2
    CLOSE_SHORT = 3
    HOLD = 4


N_ACTIONS = len(Action)
SAFE_DECISION = (Action.HOLD, 1.0)  # what an agent answers when it cannot decide (seed 2.4.1)

# ACTION_OF[position + 1, target + 1]: the action that moves `position` to `target`.
ACTION_OF: NDArray[np.int64] = np.array(
    [
        [Action.HOLD, Action.CLOSE_SHORT, Action.BUY_LONG],
        [Action.SELL_SHORT, Action.HOLD, Action.BUY_LONG],
        [Action.SELL_SHORT, Action.CLOSE_LONG, Action.HOLD],
    ],
    dtype=np.int64,
)

_ILLEGAL = -9
# TARGET_OF[position + 1, action]: the position after the action; _ILLEGAL where it may not be taken.
TARGET_OF: NDArray[np.int64] = np.full((3, N_ACTIONS), _ILLEGAL, dtype=np.int64)
for _position in (-1, 0, 1):
    for _target in (-1, 0, 1):
        TARGET_OF[_position + 1, ACTION_OF[_position + 1, _target + 1]] = _target

# LEGAL[position + 1, action]
LEGAL: NDArray[np.bool_] = TARGET_OF != _ILLEGAL


def legal_actions(position_sign: NDArray[np.integer] | int) -> NDArray[np.bool_]:
    """Mask of legal actions, shape (*position_sign.shape, 5), for position signs in {-1, 0, +1}."""
    mask: NDArray[np.bool_] = LEGAL[np.asarray(position_sign) + 1]
    return mask


def go_flat(position: int) -> tuple[Action, float]:
    """The rule that needs no model: close what is held, HOLD where nothing is."""
    return Action(int(ACTION_OF[position + 1, 1])), 1.0
