"""Processes that die at a named point. A fork server that has imported nothing of the tests makes them: 10 ms each."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from typing import Any

from core.settings import Rollout
from delivery.analysis import Measurement
from delivery.crash import VARIABLE
from delivery.lease import Lease
from delivery.state_database import Place
from delivery.store import RolloutStore
from delivery.transitions import Change

ROLLOUT = Rollout(steps=(5, 100), salt="s", cool_down_s=0.0)


FORKSERVER = multiprocessing.get_context("forkserver")
FORKSERVER.set_forkserver_preload(["delivery.store", "delivery.lease", "psycopg"])


def dies_at(point: str, task: Callable[..., None], *arguments: Any) -> bool:
    """Whether a process that carries out `task` was killed at `point`. Raises RuntimeError if it ended otherwise."""
    process = FORKSERVER.Process(target=_run, args=(point, task, arguments))
    process.start()
    process.join(60)
    if process.exitcode not in (0, -signal.SIGKILL):
        raise RuntimeError(f"{task.__name__} ended with {process.exitcode}")
    return process.exitcode == -signal.SIGKILL


def _run(point: str, task: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    os.environ[VARIABLE] = point
    task(*arguments)


def opens(place: Place) -> None:
    RolloutStore(place, ROLLOUT)


def applies(place: Place, change: Change) -> None:
    RolloutStore(place, ROLLOUT).apply(change)


def measures(place: Place, attempt: int, measured: Measurement) -> None:
    RolloutStore(place, ROLLOUT).record_measurement(attempt, "background", "errors", measured)


def holds(place: Place, ttl_s: float) -> None:
    Lease(RolloutStore(place, ROLLOUT).engine, ttl_s=ttl_s).hold()
