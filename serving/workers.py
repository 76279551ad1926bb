"""Several processes behind one port, and the parent that keeps them.

    parent ──fork──> worker 0, 1, ... N-1      each serves; the parent only waits for what becomes of them

Nobody serves before all have loaded: a worker says that it is ready and waits at a gate. A worker that dies is replaced
at once, one that dies early again and again after growing pauses, and then the service gives up and says why. SIGTERM
and SIGINT drain all workers within a limit. A worker never outlives its parent, not even after kill -9 (Linux).

Forked and not spawned: what is imported is shared and a replacement is there in milliseconds. So the parent has neither
threads nor models. uvicorn's own supervisor (docs/adr/0019-processes.md) leaves orphans and hides start-up errors.
"""

from __future__ import annotations

import asyncio
import ctypes
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.process import BaseProcess

import structlog

from core.errors import ConfigError, HrmSystemError

log = structlog.get_logger()

STOP_S = 12.0  # uvicorn's limit for requests in flight, and the service's own for an undurable rollback, and some
EARLY_S = 30.0  # who dies sooner after its start dies early
EARLY_DEATHS = 5  # of one worker, in a row: then it is no accident
FIRST_PAUSE_S = 0.5
PR_SET_PDEATHSIG = 1

READY = GO = b""


class Gate:
    """Where a worker waits, loaded and warm, until all are: then all begin to listen."""

    def __init__(self, channel: connection.Connection) -> None:
        self._channel = channel

    async def wait(self) -> None:
        """Raises EOFError when the parent stops instead."""
        self._channel.send_bytes(READY)
        await asyncio.to_thread(self._channel.recv_bytes)

    def fail(self, error: HrmSystemError) -> None:
        """Tell the parent why this worker does not start."""
        with suppress(OSError):  # it has heard that of another worker, and has gone
            self._channel.send_bytes(f"{error.code} {error}".encode())


Work = Callable[[int, Gate], None]


def supervise(work: Work, count: int, *, after_death: Callable[[int], None]) -> None:
    """Keep `count` processes at `work(slot, gate)` until SIGTERM or SIGINT, then drain them.

    `after_death(slot)` runs in the parent. Raises HrmSystemError with a worker's own code and message if it does not
    start, and ConfigError if one dies early EARLY_DEATHS times in a row; no worker is left then.
    """
    with _stop_signals() as stop:
        crew = _Crew(work, count, after_death)
        try:
            while not crew.step(stop):
                pass
        finally:
            crew.stop()


@dataclass
class _Worker:
    process: BaseProcess
    channel: connection.Connection
    started: float
    ready: bool = False
    refusal: str = ""  # "<code> <message>" of a worker that did not start

    def let_in(self) -> None:
        with suppress(OSError):  # it died meanwhile: its sentinel says so
            self.channel.send_bytes(GO)


class _Crew:
    def __init__(self, work: Work, count: int, after_death: Callable[[int], None]) -> None:
        self._context = multiprocessing.get_context("fork")
        self._work = work
        self._after_death = after_death
        self._workers: dict[int, _Worker] = {}
        self._due = dict.fromkeys(range(count), 0.0)  # slot without a worker -> monotonic time to start one
        self._early_deaths = [0] * count
        self._open = False

    def step(self, stop: socket.socket) -> bool:
        """Wait for the next thing that happens and deal with it; True when it is the end."""
        now = time.monotonic()
        for slot in [slot for slot, due in self._due.items() if due <= now]:
            self._start(slot)
        pause_s = max(0.0, min(self._due.values()) - time.monotonic()) if self._due else None
        ends = [end for worker in self._workers.values() for end in (worker.process.sentinel, worker.channel)]
        if stop in connection.wait([stop, *ends], pause_s):
            return True
        for slot, worker in list(self._workers.items()):
            self._hear(worker)
            if not worker.process.is_alive():
                self._bury(slot, worker)
        self._open_gate()
        return False

    def stop(self) -> None:
        """Drain: every worker ends what it has begun, within STOP_S together; then they are killed."""
        for worker in self._workers.values():
            worker.channel.close()
            worker.process.terminate()
        deadline = time.monotonic() + STOP_S
        for slot, worker in self._workers.items():
            worker.process.join(max(0.0, deadline - time.monotonic()))
            if worker.process.is_alive():
                log.error("worker_killed", worker=slot, why=f"did not stop within {STOP_S:g} s")
                worker.process.kill()
                worker.process.join()

    def _start(self, slot: int) -> None:
        del self._due[slot]
        ours, theirs = self._context.Pipe()
        others = [ours, *(worker.channel for worker in self._workers.values())]
        process = self._context.Process(
            target=_be_worker, args=(self._work, slot, theirs, others), name=f"worker {slot}", daemon=True
        )
        process.start()
        theirs.close()
        self._workers[slot] = _Worker(process, ours, time.monotonic())
        log.info("worker_started", worker=slot, pid=process.pid)

    def _hear(self, worker: _Worker) -> None:
        try:
            while worker.channel.poll():
                message = worker.channel.recv_bytes()
                worker.ready, worker.refusal = message == READY, message.decode()
                if worker.ready and self._open:
                    worker.let_in()
        except (EOFError, OSError):
            return  # it is ending

    def _bury(self, slot: int, worker: _Worker) -> None:
        del self._workers[slot]
        worker.channel.close()
        self._after_death(slot)
        code, lived_s = worker.process.exitcode, time.monotonic() - worker.started
        why = worker.refusal.partition(" ")[2] or _exit_in_words(code)
        log.error("worker_died", worker=slot, pid=worker.process.pid, why=why, lived_s=round(lived_s, 1))
        if not self._open:
            raise _did_not_start(slot, worker.refusal, why)
        self._early_deaths[slot] = self._early_deaths[slot] + 1 if lived_s < EARLY_S else 0
        deaths = self._early_deaths[slot]
        if deaths >= EARLY_DEATHS:
            raise ConfigError(
                f"worker {slot} died {deaths} times in a row within {EARLY_S:g} s of its start (last: {why}); "
                f"read the log above, and restart the service when the cause is gone",
                code="worker_keeps_dying",
            )
        self._due[slot] = time.monotonic() + (FIRST_PAUSE_S * 2 ** (deaths - 2) if deaths > 1 else 0.0)

    def _open_gate(self) -> None:
        if self._open or self._due or not all(worker.ready for worker in self._workers.values()):
            return
        self._open = True
        for worker in self._workers.values():
            worker.let_in()
        log.info("workers_ready", workers=len(self._workers))


def _be_worker(work: Work, slot: int, channel: connection.Connection, others: list[connection.Connection]) -> None:
    """The child's life. What it inherited of its siblings it closes, so that an end of file means the parent's."""
    signal.set_wakeup_fd(-1)  # the parent's: our signals are not its
    _die_with_parent()
    for other in others:
        other.close()
    work(slot, Gate(channel))


def _die_with_parent() -> None:
    """Ask the kernel for SIGKILL at the parent's death; elsewhere than on Linux a kill -9 of it leaves us behind."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    parent = multiprocessing.parent_process()
    if parent is None or os.getppid() != parent.pid:
        os._exit(1)  # it died before the request was made


def _exit_in_words(code: int | None) -> str:
    if code is not None and code < 0:
        return f"ended by {signal.Signals(-code).name}"
    return f"exit code {code}"


def _did_not_start(slot: int, refusal: str, why: str) -> HrmSystemError:
    code, _, message = refusal.partition(" ")
    if message:
        return HrmSystemError(message, code=code)
    return ConfigError(f"worker {slot} did not start: {why}; read the log above")


@contextmanager
def _stop_signals() -> Iterator[socket.socket]:
    """A socket that can be read once SIGTERM or SIGINT has come; nothing is interrupted half way."""
    heard, told = socket.socketpair()
    told.setblocking(False)
    before = signal.set_wakeup_fd(told.fileno())
    handlers = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield heard
    finally:
        signal.set_wakeup_fd(before)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        heard.close()
        told.close()
