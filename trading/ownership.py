"""Whose a position is, and what becomes of it when its owner is taken away. Pure: no database, no clock.

A symbol has one owner at a time: the arm and the model whose orders made its position. It stays with that owner until
it is flat ("sticky until flat") or is handed over; then the new owner holds the units, all of them, and may

    adopt         do with them as with its own
    reduce_only   only make them fewer, until flat; from `flatten_at_ns` on they go at the next price
    flatten       only let them go at the next price: reduce_only with a deadline that has passed
    freeze        do nothing until a person releases the symbol

Units are signed and whole (positive: long); times are UTC nanoseconds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from delivery.plan import HandoverMode

Arm = Literal["champion", "challenger"]
ARMS: tuple[Arm, ...] = ("champion", "challenger")
Mode = Literal["normal", "reduce_only", "flatten", "freeze"]
STRICTER: tuple[Mode, ...] = ("normal", "reduce_only", "flatten", "freeze")  # than the one before


@dataclass(frozen=True)
class Owner:
    """An arm of the rollout and the model that was it, as name/version."""

    arm: Arm
    model: str

    def __str__(self) -> str:
        return f"{self.arm}:{self.model}"

    @classmethod
    def parse(cls, text: str) -> Owner:
        arm, _, model = text.partition(":")
        for known in ARMS:
            if arm == known and model:
                return cls(known, model)
        raise ValueError(f"{text!r} names no owner; write arm:name/version, such as champion:ppo/v1")


@dataclass(frozen=True)
class Book:
    """What is held of one symbol, by whom, and what may be done with it."""

    symbol: str
    owner: Owner | None = None  # None: never traded
    units: float = 0.0
    mode: Mode = "normal"
    flatten_at_ns: int | None = None

    @property
    def acting(self) -> Arm | None:
        """Whose position the symbol holds now; None when flat."""
        return self.owner.arm if self.owner is not None and self.units else None

    def exit_due(self, now_ns: int) -> bool:
        """Whether what is held must go at the next price."""
        if not self.units or self.mode not in ("reduce_only", "flatten"):
            return False
        return self.mode == "flatten" or (self.flatten_at_ns is not None and now_ns >= self.flatten_at_ns)

    def reduces(self, units: float, pending: float) -> bool:
        """Whether an order makes the position smaller without crossing zero, even if `pending` units fill first.

        Args:
            units: of the order.
            pending: of open orders that close as well, signed as orders are.
        """
        return units * self.units < 0 and abs(units) + abs(pending) <= abs(self.units)


@dataclass(frozen=True)
class Handover:
    """A symbol's way from its owner to another one."""

    symbol: str
    to: Owner
    mode: HandoverMode
    epoch: int  # in which it was taken away
    at_ns: int
    flatten_at_ns: int | None = None  # of reduce_only


def handed_over(book: Book, handover: Handover) -> Book:
    """The book in its new owner's hands. What was forbidden stays so; there is nothing to make fewer when flat."""
    if handover.mode == "adopt" or (not book.units and handover.mode != "freeze"):
        return replace(book, owner=handover.to)
    return restricted(replace(book, owner=handover.to), handover.mode, handover.flatten_at_ns)


def restricted(book: Book, mode: Mode, flatten_at_ns: int | None) -> Book:
    """The stricter of the book's mode and `mode`, with the earlier deadline."""
    deadlines = [each for each in (book.flatten_at_ns, flatten_at_ns) if each is not None]
    stricter = max(book.mode, mode, key=STRICTER.index)
    return replace(book, mode=stricter, flatten_at_ns=min(deadlines, default=None))


def filled(book: Book, units: float) -> Book:
    """The book after a fill. Once flat it is free again, but not from a freeze."""
    after = replace(book, units=book.units + units)
    if after.units or after.mode == "freeze":
        return after
    return replace(after, mode="normal", flatten_at_ns=None)


def closed_by_hand(units: float, apart: float, held: float) -> float:
    """What of a trade by hand closes our own position; signed as the trade.

    Args:
        units: of the trade.
        apart: what was made by hand before and is kept apart, signed: that is closed first.
        held: by us.
    """
    left = units if units * apart >= 0 else math.copysign(max(abs(units) - abs(apart), 0.0), units)
    return math.copysign(min(abs(left), abs(held)), left) if left * held < 0 else 0.0
