"""Places in the code where a test lets the process die as if by kill -9: nothing is flushed, closed or rolled back.

HRM_CRASH_AT=order_accepted      the first time that it gets there; order_accepted#3: the third time
"""

from __future__ import annotations

import itertools
import os
import signal

VARIABLE = "HRM_CRASH_AT"
_hits = itertools.count(1)  # of the point that the environment names; counts right in any number of threads


def crash_at(point: str) -> None:
    """End this process here if the environment says so; else nothing."""
    wanted, _, which = os.environ.get(VARIABLE, "").partition("#")
    if wanted == point and next(_hits) == int(which or 1):
        os.kill(os.getpid(), signal.SIGKILL)
