"""What time it is: this machine's time, or that of an emulator, whose market is in a session whenever it is played.

clock() -> UTC nanoseconds; clock.told(at_ns): a price that says it is of that time was seen
"""

from __future__ import annotations

import threading
import time
from typing import Protocol

import httpx
import structlog

from core.errors import BrokerError
from trading.market import SECOND_NS

PASSED = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)  # nobody sets it; Linux counts its sleep as well
ASK_S = 0.25
TIMEOUT_S = 5.0

log = structlog.get_logger(__name__)


class Clock(Protocol):
    def __call__(self) -> int: ...

    def told(self, at_ns: int) -> None: ...

    def close(self) -> None: ...


class MachineClock:
    """This machine's time, which never goes back: set back, it goes on as if nothing were, until a new process begins.

    Set forward it is followed: a machine that stood still has to catch up, and what follows from a time that is too
    late (nothing is opened, everything is closed) costs less than what follows from one that is too early. That it is
    wrong shows beside the exchange's (trading/vigil.py).
    """

    def __init__(self) -> None:
        self._ahead_ns = 0  # of the clock that nobody sets

    def __call__(self) -> int:
        wall_ns = time.time_ns()  # first: a thread that is held up in between may not make it later for ever
        passed_ns = time.clock_gettime_ns(PASSED)
        self._ahead_ns = max(self._ahead_ns, wall_ns - passed_ns)
        return self._ahead_ns + passed_ns

    def told(self, at_ns: int) -> None:
        """An exchange's time sets no machine's clock."""

    def close(self) -> None: ...


class EmulatorClock:
    """The time of the emulator at `base_url`, asked for now and then; never goes back.

    Raises BrokerError if it does not answer at the start; later it goes on from the last answer.
    """

    def __init__(self, base_url: str) -> None:
        self._http = httpx.Client(base_url=base_url, timeout=TIMEOUT_S, trust_env=False)
        self._lock, self._done = threading.Lock(), threading.Event()
        self._newest_ns = 0
        try:
            self._ask()
        except (httpx.HTTPError, KeyError, ValueError) as error:
            self._http.close()
            told = f"no emulator answers at {base_url} ({error}); start it with `hrm fyers emulate`"
            raise BrokerError(told, code="unavailable", retryable=True) from None
        self._thread = threading.Thread(target=self._follow, name="emulator-clock", daemon=True)
        self._thread.start()

    def __call__(self) -> int:
        with self._lock:
            passed_s = self._speed * (time.monotonic() - self._asked)
            self._newest_ns = max(self._newest_ns, self._said_ns + int(passed_s * SECOND_NS))
            return self._newest_ns

    def told(self, at_ns: int) -> None:
        """A market that is played in steps jumps: it is asked at once, so that its prices are not of the future."""
        if at_ns > self():
            self._ask_if_there()

    def close(self) -> None:
        self._done.set()
        self._thread.join()
        self._http.close()

    def _ask(self) -> None:
        answer = self._http.get("/emulator/clock").raise_for_status().json()
        with self._lock:
            self._said_ns, self._asked = int(float(answer["now"]) * SECOND_NS), time.monotonic()
            self._speed = float(answer["speed"])

    def _follow(self) -> None:
        while not self._done.wait(ASK_S):
            self._ask_if_there()

    def _ask_if_there(self) -> None:
        try:
            self._ask()
        except (httpx.HTTPError, KeyError, ValueError) as error:
            log.debug("emulator_clock_unknown", error=str(error))
