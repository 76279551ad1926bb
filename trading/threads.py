"""Threads around one that handles events: calls go out to pools, what comes of them comes back through an inbox.

Whoever reads the inbox is the only one that runs what is in it. What comes of some calls is run before all else that
waits: an answer may not stand behind the news of what the answers before it led to. A failure of a call is raised
there: without its threads a process would wait for ever, so it ends.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NoReturn, TypeVar

T = TypeVar("T")


class Threads:
    """`sizes`: of each pool, by name. `first`: of which pools what comes is run before all else."""

    def __init__(self, sizes: Mapping[str, int], first: Collection[str] = ()) -> None:
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._first: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()  # each has a place in the inbox, too
        self._pools_first = frozenset(first)
        self._pools = {name: ThreadPoolExecutor(size, name) for name, size in sizes.items()}
        self.under_way: Counter[str] = Counter()  # calls of each pool that the reader has not heard of
        self.ending = threading.Event()

    def put(self, message: Callable[[], None]) -> None:
        """From any thread, or a signal handler."""
        self._inbox.put(message)

    def do(self, pool: str, call: Callable[[], T], then: Callable[[T], None] | None = None) -> None:
        """`call` in a thread of the pool, then `then`, with its result, in the reader's. For the reader only."""
        self.under_way[pool] += 1
        self._pools[pool].submit(self._job, pool, call, then)

    def handle(self, wait_s: float) -> None:
        """Run one message, if there is one in time. Raises what a call raised."""
        if not self._first.empty():
            self._run_first()
            return
        try:
            message = self._inbox.get(timeout=max(0.0, wait_s))
        except queue.Empty:
            return
        message()

    def finish(self, *pools: str, wait_s: float) -> None:
        """Go on handling until no call of these is under way, but not for longer than `wait_s`."""
        give_up = time.monotonic() + wait_s
        while any(self.under_way[pool] for pool in pools) and time.monotonic() < give_up:
            self.handle(give_up - time.monotonic())

    def close(self) -> None:
        """Begin nothing more. A call that is under way ends by its own timeout, unheard."""
        self.ending.set()
        for pool in self._pools.values():
            pool.shutdown(wait=False, cancel_futures=True)

    def _job(self, pool: str, call: Callable[[], T], then: Callable[[T], None] | None) -> None:
        try:
            came = call()
        except BaseException as error:  # whatever it is, the reader is the one to know
            self.put(partial(_fail, error))
        else:
            self._come(pool, partial(self._done, pool, came, then))

    def _come(self, pool: str, message: Callable[[], None]) -> None:
        if pool in self._pools_first:
            self._first.put(message)
            message = self._run_first  # wakes a reader that waits; nothing is left to run if it did not
        self.put(message)

    def _run_first(self) -> None:
        """The oldest of those, unless it was run already. Nobody else takes any."""
        if not self._first.empty():
            self._first.get()()

    def _done(self, pool: str, came: T, then: Callable[[T], None] | None) -> None:
        self.under_way[pool] -= 1
        if then is not None:
            then(came)


def _fail(error: BaseException) -> NoReturn:
    raise error
