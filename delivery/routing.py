"""Who decides for a symbol: sticky, monotone, and never away from under a position.

Every symbol (weightBasis: symbols, notional, var) or request (requests) has a bucket in [0, 1) that never changes:

    symbols, requests   the challenger's while the bucket is below the weight
    notional, var       symbols in the order of their buckets, as far as their shares together stay within the weight

As the weight grows, symbols only move from champion to challenger. A symbol that is not flat stays with the arm that
holds it until it is, whatever the weight says; only a weight of nothing (shadow, rollback, a worker that is blind)
takes it away. What the plan does not allow, or denies, never reaches the challenger: the weight is of the others.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from math import inf
from typing import Literal

from delivery.plan import Plan, Symbols

Role = Literal["champion", "challenger"]

_RESOLUTION = 2**53  # integers below this are exact in a double: the bucket never rounds up to 1
_ROUNDING = 1e-9  # of a sum of shares: 0.1 + 0.2 is within 30 percent


@dataclass(frozen=True)
class Asked:
    """What routing needs to know of a question. `holder`: whose position the symbol holds, None where it is flat."""

    symbol: str
    request_id: str
    holder: Role | None = None


def route(asked: Asked, weight: int, plan: Plan, salt: str) -> Role:
    """The arm that decides, when the challenger has `weight` percent of what the plan counts."""
    if weight <= 0 or not eligible(asked.symbol, plan.symbols):
        return "champion"
    if asked.holder is not None:
        return asked.holder
    return "challenger" if weight >= 100 or _place(asked, plan, salt) <= weight / 100 else "champion"


def eligible(symbol: str, symbols: Symbols) -> bool:
    """Whether the challenger may have it at all."""
    return symbol not in symbols.deny and (symbols.allow is None or symbol in symbols.allow)


def bucket(salt: str, name: str) -> float:
    """A number in [0, 1), uniform over names, the same in every process."""
    digest = hashlib.blake2b(f"{salt}\0{name}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / _RESOLUTION


def _place(asked: Asked, plan: Plan, salt: str) -> float:
    """The weight, as a ratio, from which on the challenger has it."""
    if plan.weight_basis in ("notional", "var"):
        return _reach(_Order(plan.sha256, salt, plan)).get(asked.symbol, inf)
    return bucket(salt, asked.request_id if plan.weight_basis == "requests" else asked.symbol)


@dataclass(frozen=True)
class _Order:
    """What an order of symbols follows from: a plan is known by its digest."""

    sha256: str
    salt: str
    plan: Plan = field(compare=False, repr=False)


@lru_cache(maxsize=16)
def _reach(order: _Order) -> Mapping[str, float]:
    """By symbol the cumulative share in the order of the buckets, its own included; none has a share: none is here."""
    symbols = order.plan.symbols
    counted = symbols.shares(order.plan.weight_basis)
    shares = {name: share for name, share in counted.items() if eligible(name, symbols)}
    total, reached = sum(shares.values()) * (1 + _ROUNDING), 0.0
    reach: dict[str, float] = {}
    for name in sorted(shares, key=lambda name: (bucket(order.salt, name), name)):
        reached += shares[name]
        reach[name] = reached / total
    return reach
