"""What becomes of the positions that a challenger holds when it is rolled back: the plan's policy, nothing else.

    adopt         the champion takes them as they are
    reduce_only   they may only become smaller; after `flatten_after`, or near the close, they go
    flatten       they go at the next price
    freeze        nothing, until a person says so

The service tells it with every decision for such a position (serving/decisions.py); trading carries it out and keeps
the time (trading/ownership.py).
"""

from __future__ import annotations

from delivery.plan import Handover, HandoverMode


def mode_for(handover: Handover, trigger: str, symbol: str) -> HandoverMode:
    """The symbol's own, else that of what ended the rollout, else the default."""
    own = handover.symbols.get(symbol)
    return own if own is not None else handover.triggers.get(trigger, handover.default)
