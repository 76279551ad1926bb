"""kill -9 of processes that write the rollout's state, as often as is asked: is anything lost, or there twice?

Several writers race; each names every change (`reason`) and says which version it became, after the commit. One after
the other is killed at a random instant and replaced. In the end every change that was acknowledged must be in the log
once, as that version; versions must follow each other; the chain must verify; the state must be the last event's.
"""

from __future__ import annotations

import json
import multiprocessing
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from typing import Any

from sqlalchemy.exc import OperationalError

from core.errors import RolloutError
from core.settings import Rollout
from delivery.state_database import Place
from delivery.store import Event, RolloutStore, verify_chain
from delivery.transitions import ACTIVE, Change, Command

ROLLOUT = Rollout(steps=(50, 100), salt="s", cool_down_s=0.0)
WRITERS = 4
LONGEST_WAIT_S = 0.01  # some commits
ROLLBACK_EVERY = 100  # writers
PAGE = 10_000
OF_A_FASTER_ONE = frozenset({"stale_version", "invalid_transition"})

forkserver = multiprocessing.get_context("forkserver")  # a new process in milliseconds, without what this one holds
forkserver.set_forkserver_preload(["delivery.store", "delivery.follow", "psycopg"])


@dataclass
class Writer:
    process: Any  # of the fork server
    acknowledged: Connection


def kills(place: Place, count: int, *, seed: int = 0) -> dict[str, Any]:
    """Kill `count` writers of a state that is new, and say what became of their changes."""
    draw, began = random.Random(seed), time.perf_counter()
    RolloutStore(place, ROLLOUT).close()
    acknowledged: dict[str, int] = {}  # the version that a change became
    writers = [_writer(place, number) for number in range(min(WRITERS, count))]
    try:
        for number in range(WRITERS, count):
            which = draw.randrange(len(writers))
            _kill(writers[which], draw.uniform(0, LONGEST_WAIT_S), acknowledged)
            writers[which] = _writer(place, number)
        for writer in writers:
            _kill(writer, 0.0, acknowledged)
    finally:
        for writer in writers:
            writer.process.kill()
    return {"kills": count, "seconds": round(time.perf_counter() - began, 1)} | verdict(place, acknowledged)


def verdict(place: Place, acknowledged: dict[str, int]) -> dict[str, Any]:
    """What the log holds of the changes that were acknowledged."""
    store = RolloutStore(place, ROLLOUT)
    try:
        state = store.read()
        names = Counter[str]()
        versions: dict[str, int] = {}
        last = None
        for last in _events(store):
            names[last.reason] += 1
            versions[last.reason] = last.version
        return {
            "acknowledged": len(acknowledged),
            "committed": names.total(),
            "lost": sum(versions.get(name) != version for name, version in acknowledged.items()),
            "duplicated": sum(times - 1 for times in names.values()),
            "chain_verifies": verify_chain(_events(store)),
            "consistent": last is None or json.loads(last.state) == json.loads(json.dumps(asdict(state))),
        }
    finally:
        store.close()


def _events(store: RolloutStore) -> Iterator[Event]:
    after = 0
    while page := store.events(after, PAGE):
        yield from page
        after = page[-1].version


def _writer(place: Place, number: int) -> Writer:
    receiver, sender = forkserver.Pipe(duplex=False)
    process = forkserver.Process(target=write_for_ever, args=(place, number, sender), daemon=True)
    process.start()
    sender.close()
    return Writer(process, receiver)


def _kill(writer: Writer, wait_s: float, acknowledged: dict[str, int]) -> None:
    """At a random instant of its work: only after its first commit."""
    with suppress(EOFError):
        name, version = writer.acknowledged.recv()
        acknowledged[name] = version
        time.sleep(wait_s)
        writer.process.kill()
        while True:
            name, version = writer.acknowledged.recv()
            acknowledged[name] = version
    writer.acknowledged.close()
    writer.process.join()
    if writer.process.exitcode != -signal.SIGKILL:
        raise RuntimeError(f"a writer ended by itself, with {writer.process.exitcode}; see its message above")


def write_for_ever(place: Place, number: int, acknowledged: Connection) -> None:
    """Pause and resume, for ever; now and then roll back and start, seldom since the state keeps what was rejected."""
    store = RolloutStore(place, ROLLOUT)
    for turn in range(10**9):
        name = f"{number}.{turn}"
        state = store.read()
        command = Command.RESUME if state.paused else Command.PAUSE
        command = Command.ROLLBACK if turn == 2 and number % ROLLBACK_EVERY == 0 else command
        command = Command.START if state.phase not in ACTIVE else command
        change = Change(command, time.time(), name, champion="ppo/v1", challenger=f"hrm/{name}")
        try:
            after = store.apply(change)
        except RolloutError as error:
            if error.code not in OF_A_FASTER_ONE:
                raise
        except OperationalError as error:  # SQLite's queue is not fair: a lock may be somebody else's for seconds
            if "locked" not in str(error):
                raise
        else:
            if after.reason == name:  # else somebody else had done it
                acknowledged.send((name, after.version))
