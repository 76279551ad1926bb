"""One model file in a process that knows what a service knows: `python -m benchmarks.engine_process TASK`.

It keeps to one core, loads the engine, and prints one JSON object (B rows, one thread; TASK is benchmarks.engine.Task):

    ready_s, rss_mb             from the start of the process to a warm and verified engine; resident then
    full_depth_p50_ms, _p99_ms  one decision, all segments that the model may take
    segment_ms, floor_ms        by B: a segment as the batcher runs it; its products in numpy; medians of turns, in the
                                core's time: it is not ours alone
    ratio_to_floor              by B: the median of the turns' ratios
    rows_per_s                  by B: segments of rows in a second of the core
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from core.settings import load_settings
from serving.engine import Engine
from serving.reasoning import UNLIMITED, Reasoning
from serving.store import load_version

BATCHES = (1, 8, 16, 32)
TURNS_S = 1.5  # of every batch size
FULL_DEPTH_S, FEWEST_DECISIONS = 6.0, 30
MB = 1e6


def measure(task: dict[str, Any]) -> dict[str, Any]:
    engine = Engine(load_version(Path(task["store"]), task["model_id"], size_limit_mb=1e3), load_settings().serving)
    process = psutil.Process()
    found = {
        "ready_s": time.time() - process.create_time(),
        "rss_mb": process.memory_info().rss / MB,
        "provider": engine.provider,
    }
    return found | _full_depth(engine) | _segments(engine, task)


def _full_depth(engine: Engine) -> dict[str, float]:
    rule = engine.manifest.halting
    segments = rule.max_segments if rule else 1

    def decide() -> None:
        thinking = _thinking(engine, 1)
        for _ in range(segments):
            thinking.step()

    decide()
    times, until = list[float](), time.monotonic() + FULL_DEPTH_S
    while len(times) < FEWEST_DECISIONS or time.monotonic() < until:
        times.append(_ms(decide, time.perf_counter))
    return {f"full_depth_p{q}_ms": float(np.percentile(times, q)) for q in (50, 99)}


def _segments(engine: Engine, task: dict[str, Any]) -> dict[str, dict[int, float]]:
    found: dict[str, dict[int, float]] = {"segment_ms": {}, "floor_ms": {}, "ratio_to_floor": {}, "rows_per_s": {}}
    for batch in BATCHES:
        turns = _turns(_thinking(engine, batch).step, _floor(task, batch))
        segment_ms, floor_ms = np.median(turns, axis=0)
        found["segment_ms"][batch], found["floor_ms"][batch] = float(segment_ms), float(floor_ms)
        found["ratio_to_floor"][batch] = float(np.median(turns[:, 0] / turns[:, 1]))
        found["rows_per_s"][batch] = batch / float(segment_ms) * 1e3
    return found


def _turns(ours: Callable[[], object], floor: Callable[[], object]) -> np.ndarray:
    """ms of both, one after the other, turn by turn: [turns, 2]."""
    turns, until = list[tuple[float, float]](), time.monotonic() + TURNS_S
    while len(turns) < 2 or time.monotonic() < until:
        turns.append((_ms(ours, time.thread_time), _ms(floor, time.thread_time)))
    return np.array(turns[1:])  # the first warms up


def _thinking(engine: Engine, rows: int) -> Reasoning:
    """`rows` rows that are about to think; they go on as long as they are told to."""
    random, reasoning = np.random.default_rng(0), engine.reasoning(rows)
    feeds = {name: random.standard_normal((rows, *shape)) for name, shape in engine.row_shapes.items()}
    reasoning.join(feeds, np.zeros(rows), np.zeros(rows, np.int64), np.full(rows, UNLIMITED))
    return reasoning


def _floor(task: dict[str, Any], batch: int) -> Callable[[], object]:
    """The segment's products in numpy, `batch` rows at once."""
    rows = batch * task["tokens"]
    pairs = [
        (np.ones((rows, inputs), np.float32), np.ones((inputs, outputs), np.float32), times)
        for inputs, outputs, times in task["products"]
    ]
    return lambda: [left @ right for left, right, times in pairs for _ in range(times)]


def _ms(work: Callable[[], object], clock: Callable[[], float]) -> float:
    started = clock()
    work()
    return (clock() - started) * 1e3


if __name__ == "__main__":
    if hasattr(os, "sched_setaffinity"):  # Linux
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    sys.stdout.write(json.dumps(measure(json.loads(sys.argv[1]))) + "\n")
