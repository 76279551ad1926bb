"""How fast a training goes, how long it will take, and how often it can afford to write itself down."""

from __future__ import annotations

import math
import time
from collections.abc import Callable


class Stopwatch:
    """Calls per second since the last look, and seconds left at the mean rate since the start."""

    def __init__(self, calls: int) -> None:
        """`calls` done before, by an earlier process perhaps."""
        self.first_calls = self.lap_calls = calls
        self.started = self.lap_started = time.monotonic()

    def lap(self, calls: int) -> float:
        now = time.monotonic()
        rate = (calls - self.lap_calls) / max(now - self.lap_started, 1e-9)
        self.lap_calls, self.lap_started = calls, now
        return rate

    def left_s(self, calls: int, total: int) -> float:
        return (time.monotonic() - self.started) / max(1, calls - self.first_calls) * (total - calls)


class Spacing:
    """Which multiples of `every` steps are worth a checkpoint, so that these cost at most `ratio` of the time."""

    def __init__(self, every: int, ratio: float, step: int) -> None:
        """`step`: where the process begins."""
        self.every, self.ratio = every, ratio
        self.last, self.last_ended = step, time.monotonic()
        self.next = (step // every + 1) * every

    def due(self, step: int) -> bool:
        return step >= self.next and step % self.every == 0

    def carry_out(self, step: int, save: Callable[[], None]) -> int:
        """Save now; the step that is far enough away for the next time, as this process sees it."""
        began = time.monotonic()
        save()
        ended = time.monotonic()
        step_s = max(began - self.last_ended, 1e-9) / max(1, step - self.last)
        multiples = math.ceil((ended - began) / (self.ratio * step_s * self.every))
        self.last, self.last_ended = step, ended
        return (step // self.every + max(1, multiples)) * self.every


def clock(seconds: float) -> str:
    """1:02:03 or 2:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
