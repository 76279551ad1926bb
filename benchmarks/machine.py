"""What every benchmark says about where and how it was measured."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flows.revision import git_commit


def described(runs: int) -> dict[str, Any]:
    """`commit`, `machine`, `threads` and `runs`: the keys every benchmark shares."""
    return {
        "commit": (git_commit() or "unknown")[:7],
        "machine": f"{os.cpu_count()} cores, {_processor()}",
        "threads": int(os.environ.get("OMP_NUM_THREADS", "0")) or os.cpu_count(),
        "runs": runs,
    }


def median_seconds(work: Callable[[], object], runs: int) -> float:
    """Median wall time of `runs` calls, after one that is not counted."""
    work()
    times = []
    for _ in range(runs):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
