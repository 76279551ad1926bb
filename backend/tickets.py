"""Single-use tickets: how a browser shows whose it is on a websocket, where it can send no header.

A ticket is an answer to an authenticated request, good for one connection within 30 s, and never part of an address,
which logs keep. What it opens goes on being asked of the credentials that it was given for: `Holder.who_now`.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass

from serving.scopes import Principal, Scope, Unknown

GOOD_FOR_S = 30.0
SECRET_BYTES = 24
MOST = 1024  # that were not used yet, of all callers
MOST_OF_ONE = 64


@dataclass(frozen=True)
class Holder:
    """Whom a ticket was given to."""

    principal: Principal
    who_now: Callable[[], Principal | Unknown]

    def may_still(self, scope: Scope) -> bool:
        """Whether the credentials are good, and of the same caller, and have that scope, now."""
        now = self.who_now()
        return isinstance(now, Principal) and now.id == self.principal.id and now.may(scope)


@dataclass(frozen=True)
class _Given:
    holder: Holder
    expires_s: float  # monotonic


class Tickets:
    """Of one process, in its memory: a restart ends them all. For one thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._given: dict[str, _Given] = {}  # by digest, oldest first

    def __len__(self) -> int:
        return len(self._given)

    def give(self, holder: Holder) -> str | None:
        """A new ticket; None while the caller, or all of them, have too many that were not used."""
        self._forget()
        own = sum(given.holder.principal.id == holder.principal.id for given in self._given.values())
        if own >= MOST_OF_ONE or len(self._given) >= MOST:
            return None
        ticket = secrets.token_urlsafe(SECRET_BYTES)
        self._given[_digest(ticket)] = _Given(holder, self._clock() + GOOD_FOR_S)
        return ticket

    def take(self, ticket: str) -> Holder | None:
        """Whose it is, once; None of one that is used, too old, or never was."""
        self._forget()
        given = self._given.pop(_digest(ticket), None)
        return None if given is None else given.holder

    def _forget(self) -> None:
        now = self._clock()
        for digest in [digest for digest, given in self._given.items() if given.expires_s <= now]:
            del self._given[digest]


def _digest(ticket: str) -> str:
    """What is looked up by: how long it takes says nothing about a ticket."""
    return hashlib.sha256(ticket.encode(errors="replace")).hexdigest()
