"""The API's rate limits: 10 calls a second, 200 a minute; who breaks the minute's a fourth time is out for the day."""

from __future__ import annotations

from collections import deque

PER_SECOND, PER_MINUTE, BREACHES = 10, 200, 3


class RateLimits:
    def __init__(self) -> None:
        self.enforced = False
        self._calls: deque[float] = deque(maxlen=PER_MINUTE)
        self._breaches = 0
        self._breached_at = float("-inf")
        self._blocked_until = 0.0

    def block(self, now: float, seconds: float) -> None:
        self._blocked_until = max(self._blocked_until, now + seconds)

    def wait_s(self, now: float) -> float | None:
        """Counts one call; None: it may go on. Else how long it should have waited."""
        if now < self._blocked_until:
            return self._blocked_until - now
        if not self.enforced:
            return None
        if len(self._calls) == PER_MINUTE and now - self._calls[0] < 60.0:
            self._breach(now)
            return 60.0 - (now - self._calls[0])
        if len(self._calls) >= PER_SECOND and now - self._calls[-PER_SECOND] < 1.0:
            return 1.0 - (now - self._calls[-PER_SECOND])
        self._calls.append(now)
        return None

    def _breach(self, now: float) -> None:
        if now - self._breached_at < 60.0:
            return
        self._breached_at = now
        self._breaches += 1
        if self._breaches > BREACHES:
            self.block(now, 24 * 3600.0)
