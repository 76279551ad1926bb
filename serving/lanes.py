"""Where models run: a few threads per role, so that the event loop stays free and a sick challenger cannot take the
champion's threads. A run has two limits, one for waiting and one for running.
"""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.errors import ModelError
from serving.engine import Decisions, Engine

THREADS = 2
QUEUE_LIMIT_S = 1.0  # a decision that waited longer answers a market that has moved on


@dataclass(frozen=True)
class Observation:
    """One row: bars [1, W, F], account [1, A], complexity [1], position [1]."""

    bars: NDArray[np.float32]
    account: NDArray[np.float32]
    complexity: NDArray[np.float32]
    position: NDArray[np.int64]


@dataclass(frozen=True)
class Run:
    """What became of one run. `latency_ms` is the model's own time, or the time waited when it gave no answer."""

    model_id: str
    decisions: Decisions | None
    latency_ms: float
    error_code: str | None = None
    error: str | None = None

    @property
    def failed(self) -> bool:
        """A run that was too slow is slow, not failed: the latency trigger judges it."""
        return self.error_code is not None and self.error_code != "inference_timeout"


class Lane:
    """The threads of one role. First come, first served."""

    def __init__(self, name: str, run_limit_s: float) -> None:
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix=name)
        self._free = asyncio.Semaphore(THREADS)
        self._run_limit_s = run_limit_s
        self.waiting = 0

    async def run(self, engine: Engine, row: Observation) -> Run:
        """Never raises: a failure is a Run with an error."""
        arrived = time.perf_counter()
        self.waiting += 1
        try:
            await asyncio.wait_for(self._free.acquire(), QUEUE_LIMIT_S)
        except TimeoutError:
            return _timed_out(engine.id, arrived, "waited too long for a free thread")
        finally:
            self.waiting -= 1
        started = time.perf_counter()
        work = asyncio.get_running_loop().run_in_executor(self._pool, _timed, engine, row)
        work.add_done_callback(lambda _: self._free.release())  # the thread is free when it is, not before
        done, _ = await asyncio.wait({work}, timeout=self._run_limit_s)
        return work.result() if done else _timed_out(engine.id, started, "the run took too long")

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)


def _timed(engine: Engine, row: Observation) -> Run:
    started = time.perf_counter()
    try:
        decisions = engine.decide(row.bars, row.account, row.complexity, row.position)
    except ModelError as error:
        return Run(engine.id, None, _ms_since(started), error.code, str(error))
    except Exception as error:  # whatever a model's arrays may provoke is that model's failure
        return Run(engine.id, None, _ms_since(started), "inference_failed", repr(error))
    return Run(engine.id, decisions, _ms_since(started))


def _timed_out(model_id: str, since: float, why: str) -> Run:
    return Run(model_id, None, _ms_since(since), "inference_timeout", f"{model_id}: {why}")


def _ms_since(start: float) -> float:
    return (time.perf_counter() - start) * 1e3


def observation(bars: Any, features: Any, complexity: float, position: int) -> Observation:
    """A batch of one from plain numbers."""
    return Observation(
        bars=np.asarray(bars, dtype=np.float32)[None],
        account=np.asarray(features, dtype=np.float32)[None],
        complexity=np.array([complexity], dtype=np.float32),
        position=np.array([position], dtype=np.int64),
    )
