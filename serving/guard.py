"""Watches the models and says when one must go: the seed's four triggers (6.1.2), one-sided, on rolling windows.

    error_rate_exceeded      failed runs / runs have come to error_ratio (delivery/sequential.py, `Excess`)
    latency_violation        p95 of the model's own time above latency_ms: as many as 5 % of the runs are slower
    memory_overflow          resident set, or growth on a device, above memory_gb: a level, so one sample is enough
    performance_degradation  paired outcomes, anytime-valid (delivery/sequential.py)

and the plan's two limits of money, of the candidate's own ledger (delivery/losses.py):

    drawdown_exceeded, daily_loss_exceeded

Ten symbols that decide every five minutes are judged like ten thousand requests a second, sample by sample. What is
shown, the alert levels, and the ladder's judgement (serving/ladder.py) are of a window: the last `window_s`, and the
last `min_samples` however old.

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
from numpy.typing import NDArray

from core.settings import Alerts, Rolling, Triggers
from delivery.losses import BreachKind, Ledger
from delivery.routing import Role
from delivery.seen import Seen, buckets
from delivery.sequential import SLOW_RATIO, Collapse, Excess, PerformanceTest, ratio_exceeded

WINDOW_LIMIT = 10_000  # samples: bounds memory at high rates, where the window is then shorter in time
ROLES: tuple[Role, Role] = ("champion", "challenger")


class Trigger(StrEnum):
    PERFORMANCE = "performance_degradation"
    ERRORS = "error_rate_exceeded"
    LATENCY = "latency_violation"
    MEMORY = "memory_overflow"
    DRAWDOWN = BreachKind.DRAWDOWN
    DAILY_LOSS = BreachKind.DAILY_LOSS


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
        self.total_slow = 0
        self._failing = Collapse(limits.error_ratio)
        self._slowing = Collapse(SLOW_RATIO)

    def __len__(self) -> int:
        return len(self._samples)

    def add(self, sample: Sample) -> None:
        self._samples.append(sample)
        self._count(sample, 1)
        self.total += 1
        self.total_failed += sample.failed
        self.total_slow += sample.latency_ms > self._limits.latency_ms
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

    def latencies_ms(self) -> NDArray[np.float64]:
        """Of the window's samples [n]."""
        return np.fromiter((sample.latency_ms for sample in self._samples), np.float64, len(self._samples))

    def statistics(self) -> dict[str, float | int | None]:
        """Of the window; None where there is no data."""
        n = len(self._samples)
        latencies = self.latencies_ms()
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
        self.device_gb = 0.0  # more than when models were last loaded or unloaded (serving/memory.py)
        self.ledger = Ledger()
        self.reset()

    @property
    def memory_gb(self) -> float:
        """What is judged: whichever is larger."""
        return max(self.rss_gb, self.device_gb)

    def reset(self) -> None:
        """Forget everything about the models: another one is being judged."""
        t = self._triggers
        self.windows: dict[Role, Window] = {role: Window(t) for role in ROLES}
        self._failing = {role: Excess(t.error_ratio) for role in ROLES}
        self._slowing = {role: Excess(SLOW_RATIO) for role in ROLES}
        self.performance = PerformanceTest(t.performance_drop, t.performance_alpha, t.performance_batch)

    def observe(self, role: Role, latency_ms: float, *, failed: bool = False, segments: int = 0) -> None:
        now = self._clock()
        self.windows[role].add(Sample(now, latency_ms, failed, segments))
        self._failing[role].add(failed, now)
        self._slowing[role].add(latency_ms > self._triggers.latency_ms, now)

    def earned(self, champion_bps: float, challenger_bps: float) -> None:
        """What one decision was worth in each arm's own portfolio, on the same ticks."""
        self.performance.add(champion_bps, challenger_bps)

    def seen(self, role: Role) -> Seen:
        """What this process knows of the model in `role`, for the other ones."""
        window = self.windows[role]
        window.prune(self._clock())
        latencies = buckets(window.latencies_ms())
        return Seen(window.total, window.total_failed, window.total_slow, latencies, self.memory_gb)

    def verdict(self, role: Role) -> Trigger | None:
        """The trigger that condemns the candidate, which runs in `role`, or None. No data condemns nobody."""
        if self.ledger.breach is not None:
            return Trigger(self.ledger.breach.kind)
        if self.memory_gb > self._triggers.memory_gb:
            return Trigger.MEMORY
        if self._slowing[role].fired:
            return Trigger.LATENCY
        if self._failing[role].fired:
            return Trigger.ERRORS
        if self.performance.outcomes >= self._triggers.min_samples:
            return Trigger.PERFORMANCE if self.performance.degraded else None
        return None

    def alerts(self, limits: Alerts, role: Role) -> dict[str, bool]:
        """The levels at which a person is told, long before a trigger: which of them the model in `role` has passed."""
        window = self.windows[role]
        window.prune(self._clock())
        enough = len(window) >= self._triggers.min_samples
        return {
            "error_ratio": enough and window.failed > limits.error_ratio * len(window),
            "latency": enough and window.slower_ratio(limits.latency_ms) > SLOW_RATIO,
            "memory_warning": self.memory_gb > limits.memory_warning_gb,
            "memory_mitigation": self.memory_gb > limits.memory_mitigation_gb,
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
            "losses": self.ledger.statistics(),
            "rss_gb": self.memory_gb,  # by this name in plans and gates
            "device_gb": self.device_gb,
        }
