"""Rows that prove their own order and completeness: each holds the hash of the one before it, and its own.

None can be altered, dropped or put in without the chain breaking at it or at the next one. What a chain cannot show is
that its end is missing: whoever audits keeps the last hash elsewhere. Alike for changes (delivery/store.py) and for
commands that were refused (delivery/refusals.py).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

GENESIS = "0" * 64

Fields = Mapping[str, Any]


def digest(fields: Fields) -> str:
    """Of all of a row's fields but its `hash`."""
    sealed = {name: value for name, value in fields.items() if name != "hash"}
    return hashlib.sha256(json.dumps(sealed, sort_keys=True, allow_nan=False).encode()).hexdigest()


class Chain:
    """Rows as they come: how many fit, and the last one's hash."""

    def __init__(self) -> None:
        self.count, self.latest = 0, GENESIS

    def fits(self, number: int, fields: Fields) -> bool:
        """Whether row `number` is the next one, and as it was written; rows after one that is not prove nothing."""
        whole = fields["prev_hash"] == self.latest and fields["hash"] == digest(fields)
        if number != self.count + 1 or not whole:
            return False
        self.count, self.latest = number, fields["hash"]
        return True


def storable(text: str) -> str:
    """Without what a database refuses in a text: no rollback shall fail for its reason."""
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}").encode("utf-8", "replace").decode("utf-8")
