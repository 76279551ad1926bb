"""Watches the models and says when one must go: the seed's four triggers (6.1.2), one-sided, on rolling windows.

    error_rate_exceeded      failed runs / runs above error_ratio
    latency_violation        p95 of the model's own time above latency_ms: more than 5 % of the runs slower
    memory_overflow          resident set above memory_gb: a level, not a statistic, so one sample is enough
    performance_degradation  paired outcomes, anytime-valid (serving/sequential.py)

A window holds the last `window_s`, and the last `min_samples` however old: ten symbols that decide every five minutes
are judged like ten thousand requests a second. A sudden collapse needs no minimum of samples at all.

Runs in shadow count like runs that decide. A run that hit the time limit is slow, not failed. Everything here is
arithmetic on memory: no disk, no network, no other process is needed to reach a verdict.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from core.settings import Alerts, Rolling, Triggers
from serving.routing import Role
from serving.sequential import Collapse, PerformanceTest, ratio_exceeded

WINDOW_LIMIT = 10_000  # samples: bounds memory at high rates, where the window is then shorter in time
SLOW_RATIO = 0.05  # a p95 above the limit means that more than this part was slower
ROLES: tuple[Role, Role] = ("champion", "challenger")


class Trigger(StrEnum):
    PERFORMANCE = "performance_degradation"
    ERRORS = "error_rate_exceeded"
    LATENCY = "latency_violation"
    MEMORY = "memory_overflow"


@dataclass(frozen=True)
class Sample:
    at: float  # monotonic time, s
    latency_ms: float  # the guard's: of the model's run, without queueing; the ladder's: with it
    failed: bool
    segments: int  # 0 when the run failed


class Window:
    """Samples of one role: the last `window_s` and no fewer than `min_samples`. Constant work per sample."""

    def __init__(self, limits: Rolling) -> None:
        self._limits = limits
        self._samples: deque[Sample] = deque()
        self.failed = 0
        self.slow = 0
        self.total = 0  # since the rollout began
        self.total_failed = 0
        self._failing = Collapse(limits.error_ratio)
        self._slowing = Collapse(SLOW_RATIO)

    def __len__(self) -> int:
        return len(self._samples)

    def add(self, sample: Sample) -> None:
        self._samples.append(sample)
        self._count(sample, 1)
        self.total += 1
        self.total_failed += sample.failed
        self._failing.add(sample.failed)
        self._slowing.add(sample.latency_ms > self._limits.latency_ms)
        self.prune(sample.at)

    def prune(self, now: float) -> None:
        oldest = now - self._limits.window_s
        fewest = self._limits.min_samples
        while len(self._samples) > WINDOW_LIMIT or (len(self._samples) > fewest and self._samples[0].at < oldest):
            self._count(self._samples.popleft(), -1)

    @property
    def too_slow(self) -> bool:
        return self._slowing.fired or (self._enough and ratio_exceeded(self.slow, len(self), SLOW_RATIO))

    @property
    def too_faulty(self) -> bool:
        limit = self._limits.error_ratio
        return self._failing.fired or (self._enough and ratio_exceeded(self.failed, len(self), limit))

    @property
    def _enough(self) -> bool:
        return len(self) >= self._limits.min_samples

    def _count(self, sample: Sample, sign: int) -> None:
        self.failed += sign * sample.failed
        self.slow += sign * (sample.latency_ms > self._limits.latency_ms)

    def slower_ratio(self, limit_ms: float) -> float:
        """Of the window's samples; above 0.05 where its p95 is above the limit. Looked at often: no sorting."""
        return sum(sample.latency_ms > limit_ms for sample in self._samples) / max(1, len(self._samples))

    def statistics(self) -> dict[str, float | int | None]:
        """Of the window; None where there is no data."""
        n = len(self._samples)
        latencies = np.array([sample.latency_ms for sample in self._samples])
        segments = [sample.segments for sample in self._samples if sample.segments]
        p50, p95, p99 = np.percentile(latencies, (50, 95, 99)).tolist() if n else (None, None, None)
        return {
            "samples": n,
            "error_ratio": self.failed / n if n else None,
            "p50_ms": p50,
            "p95_ms": p95,
            "p99_ms": p99,
            "mean_segments": sum(segments) / len(segments) if segments else None,
            "total": self.total,
            "total_errors": self.total_failed,
        }


class Guard:
    """Collects samples and answers with a trigger. Used from the event loop only; not thread-safe."""

    def __init__(self, triggers: Triggers, clock: Callable[[], float] = time.monotonic) -> None:
        self._triggers = triggers
        self._clock = clock
        self.rss_gb = 0.0
        self.reset()

    def reset(self) -> None:
        """Forget everything about the models: another one is being judged."""
        t = self._triggers
        self.windows: dict[Role, Window] = {role: Window(t) for role in ROLES}
        self.performance = PerformanceTest(t.performance_drop, t.performance_alpha, t.performance_batch)

    def observe(self, role: Role, latency_ms: float, *, failed: bool = False, segments: int = 0) -> None:
        self.windows[role].add(Sample(self._clock(), latency_ms, failed, segments))

    def verdict(self, role: Role) -> Trigger | None:
        """The trigger that condemns the model in `role`, or None. No data condemns nobody."""
        if self.rss_gb > self._triggers.memory_gb:
            return Trigger.MEMORY
        window = self.windows[role]
        window.prune(self._clock())
        if window.too_slow:
            return Trigger.LATENCY
        if window.too_faulty:
            return Trigger.ERRORS
        if role == "challenger" and self.performance.outcomes >= self._triggers.min_samples:
            return Trigger.PERFORMANCE if self.performance.degraded else None
        return None

    def alerts(self, limits: Alerts, role: Role) -> dict[str, bool]:
        """The levels at which a person is told, long before a trigger: which of them the model in `role` has passed."""
        window = self.windows[role]
        enough = len(window) >= self._triggers.min_samples
        return {
            "error_ratio": enough and window.failed > limits.error_ratio * len(window),
            "latency": enough and window.slower_ratio(limits.latency_ms) > SLOW_RATIO,
            "memory_warning": self.rss_gb > limits.memory_warning_gb,
            "memory_mitigation": self.rss_gb > limits.memory_mitigation_gb,
            "performance_drop": self.performance.relative_drop() > limits.performance_drop,
        }

    def statistics(self) -> dict[str, object]:
        """Per role, the paired performance and the memory; finite numbers or None."""
        now = self._clock()
        for window in self.windows.values():
            window.prune(now)
        difference = self.performance.difference
        return {
            **{role: window.statistics() for role, window in self.windows.items()},
            "performance": {
                "outcomes": self.performance.outcomes,
                "difference_bps": difference.mean if difference.count else None,
                "difference_upper_bps": difference.bound if math.isfinite(difference.bound) else None,
            },
            "rss_gb": self.rss_gb,
        }
