"""Who decides for a symbol: sticky and monotone.

A symbol's bucket never changes, and a symbol belongs to the challenger while its bucket is below the weight:
as the weight grows, symbols only move from champion to challenger; as it falls, only back.
"""

from __future__ import annotations

import hashlib
from typing import Literal

Role = Literal["champion", "challenger"]

_RESOLUTION = 2**53  # integers below this are exact in a double: the bucket never rounds up to 1


def bucket(salt: str, symbol: str) -> float:
    """A number in [0, 1), uniform over symbols, the same in every process."""
    digest = hashlib.blake2b(f"{salt}\0{symbol}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / _RESOLUTION


def route(symbol: str, weight: int, salt: str) -> Role:
    """The role that decides for `symbol` when the challenger has `weight` percent of the symbols."""
    return "challenger" if bucket(salt, symbol) < weight / 100 else "champion"
