"""How long something took, as a histogram of constant size.

Its buckets are an eighth of a doubling wide, from a hundredth of a millisecond on, so that a percentile is at most 9 %
above the true one.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

LEAST_MS = 0.01
PER_DOUBLING = 8


class Histogram:
    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()  # by bucket: the upper edge is LEAST_MS * 2 ** (bucket / PER_DOUBLING)
        self._most_ms = 0.0

    def add(self, ms: float) -> None:
        self._counts[max(0, math.ceil(PER_DOUBLING * math.log2(max(ms, LEAST_MS) / LEAST_MS)))] += 1
        self._most_ms = max(self._most_ms, ms)

    @property
    def count(self) -> int:
        return self._counts.total()

    def percentile(self, ratio: float) -> float | None:
        """The upper edge of the bucket in which it lies, in ms; None without a measurement."""
        below = 0
        for bucket in sorted(self._counts):
            below += self._counts[bucket]
            if below >= ratio * self.count:
                return min(_edge_ms(bucket), self._most_ms)
        return None

    def summary(self) -> dict[str, Any]:
        """In plain values; `buckets` by their upper edges."""
        p50_ms, p99_ms = self.percentile(0.5), self.percentile(0.99)
        buckets = {f"{_edge_ms(bucket):.4g}": self._counts[bucket] for bucket in sorted(self._counts)}
        return {"count": self.count, "p50_ms": p50_ms, "p99_ms": p99_ms, "max_ms": self._most_ms, "buckets_ms": buckets}


def _edge_ms(bucket: int) -> float:
    return float(LEAST_MS * 2.0 ** (bucket / PER_DOUBLING))
