"""How many rows one run may hold, so that a decision of full depth ends in time: when loaded, and as it goes.

rows_within    on an idle machine, measured once
Pace           on this machine as it is now: its cores are shared with whatever else runs there
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np

from serving.engine import Engine
from serving.graph import GPU_PROVIDERS
from serving.reasoning import UNLIMITED

PROBE_ROWS, PROBES = 8, 3
MIN_ROWS = 4  # with fewer a core wastes half of its time


@dataclass(eq=False)
class Pace:
    """Of one thread, which alone writes it. A decision of full depth, `depth` segments, may take `limit_s`."""

    most: int  # rows, on an idle machine
    depth: int
    limit_s: float
    here: int = 0  # rows of the segment that runs
    began: float = field(default_factory=time.perf_counter)  # it, s
    share_s: float = 0.0  # what a row that was always here would have cost: its part of every segment

    def __post_init__(self) -> None:
        self.allowed = self.most

    def begin(self, rows: int) -> None:
        self.here, self.began = rows, time.perf_counter()

    def end(self) -> None:
        """Allow fewer rows at once where this segment was too slow, and one more where it was not."""
        took_s = time.perf_counter() - self.began
        self.share_s += took_s / self.here
        full_s = took_s * self.depth
        slow = full_s > self.limit_s
        self.allowed = max(1, int(self.here * self.limit_s / full_s)) if slow else min(self.most, self.allowed + 1)

    def crowded(self, now: float) -> bool:
        """Whether rows here wait for each other rather than for the model: there are several, and they get on."""
        return self.here > 1 and now - self.began < self.limit_s


def rows_within(engine: Engine, limit_ms: float, most: int) -> int:
    """How many rows a run may hold so that a decision of full depth ends within `limit_ms`, in [MIN_ROWS, most].

    Measured now. A device is no slower with all of them.
    """
    rule = engine.manifest.halting
    if engine.provider in GPU_PROVIDERS or rule is None:
        return most
    reasoning = engine.reasoning(PROBE_ROWS)
    feeds = {name: np.zeros((PROBE_ROWS, *shape), np.float32) for name, shape in engine.row_shapes.items()}
    position = np.zeros((PROBE_ROWS, *engine.manifest.observation.answers), np.int64)
    reasoning.join(feeds, np.zeros(PROBE_ROWS), position, np.full(PROBE_ROWS, UNLIMITED))
    times = []
    for _ in range(PROBES):
        started = time.perf_counter()
        reasoning.step()
        times.append(time.perf_counter() - started)
    row_ms = min(times) * 1e3 / PROBE_ROWS
    return min(most, max(MIN_ROWS, int(limit_ms / rule.max_segments / row_ms)))
