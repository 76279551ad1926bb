"""From the service's answer to an intent: what each arm's own book does, and what follows for the real position. Pure.

The acting arm's order takes the real position where that arm's own decision leads; a held direction keeps its size. A
position stays with its owner until it is flat or handed over, so nobody else's order follows before (the gateway would
refuse it), and with a hand-over nothing is ordered but the exit that it may ask for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import cast

import numpy as np

from core.actions import LEGAL, TARGET_OF, Action
from delivery.plan import HandoverMode
from trading.instruments import in_lots, lot_of
from trading.ledger import Intent, Order
from trading.market import SECOND_NS, day_of
from trading.ownership import ARMS, Book, Handover, Owner
from trading.service import DecisionAnswer, HandoverTerms
from trading.stream import Bar


def holding(symbol: str, bar_ns: int, positions: Mapping[str, int]) -> Intent:
    """HOLD: what is left without a valid answer. `positions`: each arm's direction, in {-1, 0, +1}."""
    champion, challenger = positions["champion"], positions["challenger"]
    return Intent(symbol, bar_ns, Action.HOLD.name, 0.0, champion, champion, challenger, challenger)


def legal(answer: DecisionAnswer, positions: Mapping[str, int], book: Book) -> bool:
    """Every arm's action is allowed in its own position; without a model what is held may be kept or closed."""
    shadow = answer.shadow
    twice = shadow is not None and shadow.role in ("safe", answer.account)  # else each decides on its own account
    if twice or (shadow is not None and not LEGAL[positions[shadow.role] + 1, shadow.action]):
        return False
    if answer.role != "safe":
        return bool(LEGAL[positions[answer.account] + 1, answer.action])
    closing = book.acting is not None and TARGET_OF[positions[book.acting] + 1, answer.action] == 0
    return answer.action is Action.HOLD or closing


def answered(answer: DecisionAnswer, held: Intent, book: Book, max_quantity: float) -> Intent:
    """What follows from a legal answer if nobody is to hand anything over."""
    after = _targets(answer, held, book)
    arm = book.acting if answer.role == "safe" else answer.account
    target = None if arm is None else after[arm]
    stands_in = answer.role == "safe" or (answer.fallback and book.acting == arm)  # for whoever holds the position
    return replace(
        held,
        reason=answer.action.name,
        order_units=_order_units(book, target, _size(held, min(answer.quantity, max_quantity))),
        champion_to=after["champion"],
        challenger_to=after["challenger"],
        model_version=answer.model_version,
        epoch=answer.epoch,
        reported=answer.shadow is None or {answer.account, answer.shadow.role} != set(ARMS),
        decision_id=answer.decision_id,
        owner=str(book.owner) if stands_in else answer.owner,
    )


def succession(book: Book, answer: DecisionAnswer) -> HandoverMode | None:
    """How another one takes over what the owner holds; None where nobody does: the position stays.

    The answer says so after a rollback, even if no model gave it. Otherwise a model takes over from itself when it
    becomes champion, and the champion from the champion before it; a challenger that nobody knows any more loses what
    it held.
    """
    owner = book.owner
    if owner is None or not book.units or answer.owner == str(owner):
        return None
    if answer.handover is not None and (owner.arm == "challenger" or answer.role == "champion"):
        return answer.handover.mode
    if answer.role == "safe" or (owner.arm == "champion" and answer.fallback):
        return None  # who failed once decides again
    if owner.arm == "champion":  # who answers was promoted meanwhile, or is back after a promotion
        return "adopt" if answer.role == "champion" else None
    if owner.model == answer.model_id:
        return "adopt"
    return None if answer.has_challenger(owner.model) else "reduce_only"


def handing_over(intent: Intent, mode: HandoverMode, answer: DecisionAnswer, *, now_ns: int, closes_ns: int) -> Intent:
    """The intent with which the symbol is taken over; `closes_ns`: when the session does."""
    terms = answer.handover or HandoverTerms(mode=mode)
    after_ns, before_close_ns = (int(s * SECOND_NS) for s in (terms.flatten_after_s, terms.flatten_before_close_s))
    flatten_at_ns = min(now_ns + after_ns, closes_ns - before_close_ns)
    to = answer.owner if answer.role != "safe" else str(Owner("champion", answer.model_id))  # whoever that will be
    return replace(intent, order_units=0.0, owner=to, handover=mode, flatten_at_ns=flatten_at_ns)


def leaving(intent: Intent, book: Book) -> Intent:
    """Let go of everything, whatever was decided; the owner's own book is flat with it."""
    owner = Owner.parse(intent.owner) if intent.handover is not None else book.owner
    assert owner is not None  # noqa: S101 - somebody holds what is let go of
    left = replace(intent, reason="flatten", order_units=-book.units, owner=str(owner))
    return replace(left, champion_to=0) if owner.arm == "champion" else replace(left, challenger_to=0)


def order_of(intent: Intent, at_ns: int) -> Order:
    """The order of an intent that has one; without an epoch if no model decided it."""
    return Order(
        intent.intent_id,
        intent.symbol,
        intent.order_units,
        intent.owner,
        epoch=None if intent.is_exit else intent.epoch,
        at_ns=at_ns,
        bar_ns=intent.bar_ns,
        decision_id=intent.decision_id,
        model_version=intent.model_version,
    )


def handover_of(intent: Intent, at_ns: int) -> Handover:
    """The hand-over of an intent that has one."""
    mode = cast(HandoverMode, intent.handover)
    return Handover(intent.symbol, Owner.parse(intent.owner), mode, intent.epoch, at_ns, intent.flatten_at_ns)


def earned_bps(close: float, bar: Bar, moved: tuple[int, int], cost_bps: float) -> float:
    """Return in bps of going from one direction to another at the open after `close` (trading/env.py's reward)."""
    old, new = moved
    turnover = abs(new - old) + (abs(new) if bar.last_of_session else 0)
    return 1e4 * (old * (bar.open - close) + new * (bar.close - bar.open)) / close - cost_bps * turnover


def _targets(answer: DecisionAnswer, held: Intent, book: Book) -> dict[str, int]:
    """Each arm's direction after its own decision; the safe rule decides for the arm that acts."""
    after = {"champion": held.champion_to, "challenger": held.challenger_to}
    decided: dict[str | None, Action] = {book.acting if answer.role == "safe" else answer.account: answer.action}
    if answer.shadow is not None:
        decided[answer.shadow.role] = answer.shadow.action
    return after | {arm: int(TARGET_OF[after[arm] + 1, action]) for arm, action in decided.items() if arm is not None}


def _size(held: Intent, quantity: float) -> float:
    """Units of a direction, as the backtest rounds them: whole lots of the day, one at least, where lots are known."""
    return float(in_lots(quantity, lot_of(held.symbol, day_of(held.bar_ns))))


def _order_units(book: Book, target: int | None, size: float) -> float:
    held = int(np.sign(book.units))
    if target is None or target == held:
        return 0.0
    if book.mode != "normal":
        return -book.units  # the other side of zero is as far as it may go
    return target * size - book.units
