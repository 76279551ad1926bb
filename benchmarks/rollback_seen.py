"""How soon the other processes of a service know of a rollback, and how soon they know that they cannot know.

Every worker is a process with a Follower and an event loop, as a worker of the service is. Times are of the machine's
monotonic clock, which all processes share:

    seen     from the call that rolls back, its commit included, to the end of the other worker's reading
    blind    from the instant at which the database is gone to the worker's own word that it is blind
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

import numpy as np
import structlog

from benchmarks.rollback_kills import ROLLOUT, forkserver
from delivery.follow import SERVER_POLL_S, Follower
from delivery.state_database import Place
from delivery.store import RolloutStore
from delivery.transitions import Change, Command

WORKERS = 8
ANSWER_LIMIT_S = 60.0
LOOK_S = 0.002  # how often a worker asks itself whether it is blind


@dataclass
class Worker:
    process: Any  # of the fork server
    said: Connection


def seen(place: Place, rounds: int, *, workers: int = WORKERS, seed: int = 0) -> dict[str, Any]:
    """`rounds` rollbacks by this process, at any instant between two looks of the others; milliseconds."""
    draw, store, took_ms = random.Random(seed), RolloutStore(place, ROLLOUT), []
    with _workers(place, workers, _tell_versions) as followers:
        for number in range(rounds):
            started = store.apply(_change(Command.START, champion="ppo/v1", challenger=f"hrm/v{number}"))
            _await(followers, started.version)
            time.sleep(draw.uniform(0, SERVER_POLL_S))
            began = time.monotonic()
            rolled_back = store.apply(_change(Command.ROLLBACK))
            took_ms += [1000 * (at - began) for at in _await(followers, rolled_back.version)]
    store.close()
    return {"workers": workers, "rollbacks": rounds, "latency_ms": _percentiles(took_ms)}


def blind(place: Place, take_away: Callable[[], None], *, workers: int = WORKERS) -> dict[str, Any]:
    """Until every worker says that it is blind, once `take_away` was called; seconds."""
    RolloutStore(place, ROLLOUT).close()
    with _workers(place, workers, _tell_blindness) as followers:
        _await(followers, 0)  # all of them see
        gone = time.monotonic()
        take_away()
        took_s = [at - gone for at in _await(followers, 1)]
    return {"workers": workers, "most_s": round(max(took_s), 3), "least_s": round(min(took_s), 3)}


def _change(command: Command, **fields: Any) -> Change:
    return Change(command, time.time(), **fields)


@contextmanager
def _workers(place: Place, count: int, task: Callable[[Place, Connection], None]) -> Iterator[list[Worker]]:
    workers = []
    try:
        for _ in range(count):
            receiver, sender = forkserver.Pipe(duplex=False)
            process = forkserver.Process(target=task, args=(place, sender), daemon=True)
            process.start()
            sender.close()
            workers.append(Worker(process, receiver))
        yield workers
    finally:
        for worker in workers:
            worker.process.kill()
            worker.process.join()
            worker.said.close()


def _await(workers: list[Worker], number: int) -> list[float]:
    """When each of them first said `number`, or more. Raises TimeoutError, and EOFError if one of them ended."""
    missing, times, deadline = {worker.said for worker in workers}, [], time.monotonic() + ANSWER_LIMIT_S
    while missing:
        ready = wait(missing, deadline - time.monotonic())
        if not ready:
            raise TimeoutError(f"{len(missing)} workers did not answer within {ANSWER_LIMIT_S:g} s")
        for said in ready:
            assert isinstance(said, Connection)  # noqa: S101 - of those that it was given
            what, at = said.recv()
            if what >= number:
                missing.discard(said)
                times.append(at)
    return times


def _tell_versions(place: Place, say: Connection) -> None:
    _quiet()
    store = RolloutStore(place, ROLLOUT)

    async def read() -> None:
        state = await asyncio.to_thread(store.read)
        say.send((state.version, time.monotonic()))

    asyncio.run(Follower(place, read).run())


def _tell_blindness(place: Place, say: Connection) -> None:
    """0 when it sees, 1 when it does not any more."""
    _quiet()

    async def read() -> None:
        say.send((0, time.monotonic()))

    async def look() -> None:
        follower = Follower(place, read)
        following = asyncio.get_running_loop().create_task(follower.run())
        while not follower.blind and not following.done():
            await asyncio.sleep(LOOK_S)
        if following.done():
            await following  # it raised: that is no blindness
        say.send((1, time.monotonic()))
        await following

    asyncio.run(look())


def _quiet() -> None:
    """What a follower logs when its database is taken away is no part of the figures."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))


def _percentiles(took_ms: list[float]) -> dict[str, float]:
    p50, p99 = np.percentile(took_ms, [50, 99])
    return {"p50": round(float(p50), 1), "p99": round(float(p99), 1), "max": round(max(took_ms), 1)}
