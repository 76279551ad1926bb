"""How often one caller may ask: an allowance of its own for each kind of request, counted by each worker for itself.

The generic cell rate algorithm (ITU-T I.371): a request is due one interval after the one before; one that comes
earlier than the burst allows is refused and not counted. One number for each caller, no window whose edge lets twice as
many through, and the exact time until the next one may come.
"""

from __future__ import annotations

from enum import StrEnum

from core.settings import RateLimits
from serving.scopes import Scope

BURST_S = 2.0  # of requests may come at once
MAX_CALLERS = 10_000


class Kind(StrEnum):
    DECISIONS = "decisions"
    READS = "reads"
    CHANGES = "changes"
    ABORTS = "aborts"  # an allowance that nothing else can use up


KIND_OF: dict[Scope | None, Kind] = {
    Scope.DECIDE: Kind.DECISIONS,
    Scope.INFER: Kind.DECISIONS,
    Scope.MODELS_WRITE: Kind.CHANGES,
    Scope.ROLLOUT_PROMOTE: Kind.CHANGES,
    Scope.ROLLOUT_APPROVE: Kind.CHANGES,
    Scope.TRADE_WRITE: Kind.CHANGES,
    Scope.ADMIN: Kind.CHANGES,
    Scope.ROLLOUT_ABORT: Kind.ABORTS,
}  # any other reads


class Allowance:
    def __init__(self, per_s: float) -> None:
        self.per_s = per_s
        self.burst = max(round(per_s * BURST_S), 1)
        self._interval_s = 1.0 / per_s
        self._ahead_s = max(BURST_S - self._interval_s, 0.0)  # how much earlier than due a request may come
        self._due: dict[str, float] = {}
        self._swept = 0.0

    def wait_s(self, caller: str, now: float) -> float:
        """0.0 if the caller may go on, and that is counted; else the seconds until it may. `now` is monotonic."""
        due = max(self._due.get(caller, now), now)
        early = due - now - self._ahead_s
        if early > 0.0:
            return early
        if len(self._due) >= MAX_CALLERS and caller not in self._due and not self._sweep(now):
            return self._interval_s
        self._due[caller] = due + self._interval_s
        return 0.0

    def is_spent(self, caller: str, now: float) -> bool:
        """Whether the caller would have to wait; counts nothing. Of a stranger: whether there is room for no more."""
        due = self._due.get(caller)
        return len(self._due) >= MAX_CALLERS if due is None else due - now > self._ahead_s

    def _sweep(self, now: float) -> bool:
        """Forget who has not come for a while, at most once a second; whether there is room again."""
        if now >= self._swept + 1.0:
            self._swept = now
            self._due = {caller: due for caller, due in self._due.items() if due > now}
        return len(self._due) < MAX_CALLERS


def allowances(limits: RateLimits) -> dict[Kind, Allowance]:
    return {kind: Allowance(getattr(limits, f"{kind}_per_s")) for kind in Kind}
