"""Backtests as jobs: one at a time, a bounded queue, and what became of each on disk.

    <state_dir>/backtest_jobs/<id>.json    a job: what was asked, its state, its result or problem; the newest are kept
    <state_dir>/backtest_jobs/jobs.lock    held by the process that runs them, as long as it lives

A job whose process ended is told as failed: nobody goes on with it, and its result is a function of its request, so it
is asked for again. Progress is in memory: it is of no use to anybody once the process is gone.
"""

from __future__ import annotations

import fcntl
import json
import re
import secrets
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import structlog

from core.errors import DataError, HrmSystemError, ModelError
from core.files import write_atomically
from serving import problems

Status = Literal["queued", "running", "succeeded", "failed", "cancelled"]
Progress = Callable[[int, int], None]  # bars done, and of how many; raises Cancelled
Document = dict[str, Any]
Work = Callable[[Document, Progress], Document]

FOLDER, LOCK = "backtest_jobs", "jobs.lock"
MOST_WAITING = 8  # beside the one that runs
MOST_KEPT = 100
ID = re.compile(r"\d{8}T\d{12}-[0-9a-f]{8}")
UNFINISHED = frozenset({"queued", "running"})

log = structlog.get_logger(__name__)


class Cancelled(Exception):  # noqa: N818 - somebody wanted it so
    """A job is to end."""


@dataclass(frozen=True)
class Job:
    """`problem` is problem+json. Times are ISO 8601, UTC."""

    id: str
    by: str
    request: Document
    status: Status
    created_at: str
    finished_at: str | None = None
    bars_done: int = 0
    bars: int | None = None  # None: not known yet
    result: Document | None = None
    problem: Document | None = None

    @property
    def is_over(self) -> bool:
        return self.status not in UNFINISHED


@dataclass(eq=False)
class _Going:
    """A job of this process that is not over."""

    job: Job
    future: Future[Job]
    cancelled: threading.Event


class Jobs:
    """Of one state directory. `work` makes a result of a request, in a thread, and tells how far it is."""

    def __init__(self, state_dir: Path, work: Work) -> None:
        self._folder, self._work = state_dir / FOLDER, work
        self._pool = ThreadPoolExecutor(1, "backtest")
        self._mutex = threading.Lock()
        self._going: dict[str, _Going] = {}
        self._lock_file: Any = None

    def submit(self, request: Document, by: str) -> Job:
        """Queue a job; it is durable. Raises ModelError `overloaded` (503) where too many wait, or others run them."""
        with self._mutex:
            self._take_lock()
            if len(self._going) > MOST_WAITING:
                raise ModelError(f"{len(self._going)} backtests wait; come back when one is over", code="overloaded")
            job = Job(_new_id(), by, request, "queued", _now())
            self._write(job)
            cancelled = threading.Event()
            future = self._pool.submit(self._run, job.id)
            self._going[job.id] = _Going(job, future, cancelled)
            return job

    def get(self, job_id: str) -> Job | None:
        """With its progress, if it is this process's; a job that died with its process has failed."""
        with self._mutex:
            going = self._going.get(job_id)
            if going is not None:
                return going.job
        job = self._read(job_id)
        return job if job is None or job.is_over or self._runs_elsewhere() else _died(job)

    def future(self, job_id: str) -> Future[Job] | None:
        """Of a job of this process that is not over: done when it is."""
        with self._mutex:
            going = self._going.get(job_id)
            return None if going is None else going.future

    def cancel(self, job_id: str) -> bool:
        """Ask it to end; it does within one step of all its sessions. False: it is not one of ours that goes on."""
        with self._mutex:
            going = self._going.get(job_id)
            if going is not None:
                going.cancelled.set()
            return going is not None

    def close(self) -> None:
        """End what runs, and what waits."""
        with self._mutex:
            for going in self._going.values():
                going.cancelled.set()
        self._pool.shutdown(wait=True)
        if self._lock_file is not None:
            self._lock_file.close()

    def _run(self, job_id: str) -> Job:
        """In the pool's thread."""
        with self._mutex:
            going = self._going[job_id]
        try:
            self._change(going, status="running")
            self._finish(going, status="succeeded", result=self._work(going.job.request, self._progress(going)))
        except (Cancelled, CancelledError):
            self._finish(going, status="cancelled")
        except HrmSystemError as error:
            self._finish(going, status="failed", problem=problems.describe(error))
        except Exception:  # whatever it is: the job has failed, and the next one is run
            log.exception("backtest_failed", job=job_id)
            told = problems.document(500, "internal_error", "unforeseen error; the backend's log has the details")
            self._finish(going, status="failed", problem=told)
        return going.job

    def _progress(self, going: _Going) -> Progress:
        def told(done: int, bars: int) -> None:
            if going.cancelled.is_set():
                raise Cancelled
            going.job = replace(going.job, bars_done=done, bars=bars)

        return told

    def _change(self, going: _Going, **changes: Any) -> None:
        if going.cancelled.is_set() and changes["status"] == "running":
            raise Cancelled
        going.job = replace(going.job, **changes)
        self._write(going.job)

    def _finish(self, going: _Going, **changes: Any) -> None:
        try:
            self._change(going, finished_at=_now(), **changes)
        except OSError as error:  # it is told as far as memory goes: whoever waits has the result
            log.error("job_not_written", job=going.job.id, error=str(error))
        finally:
            with self._mutex:
                del self._going[going.job.id]
        self._prune()

    def _write(self, job: Job) -> None:
        write_atomically(self._folder / f"{job.id}.json", json.dumps(asdict(job), indent=1).encode(), mode=0o600)

    def _read(self, job_id: str) -> Job | None:
        if not ID.fullmatch(job_id):
            return None
        try:
            return Job(**json.loads((self._folder / f"{job_id}.json").read_bytes()))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError) as error:
            raise DataError(
                f"{self._folder / job_id}.json: no job ({error}); delete it", code="job_unreadable"
            ) from None

    def _prune(self) -> None:
        with self._mutex:
            files = sorted(file for file in self._folder.glob("*.json") if file.stem not in self._going)
        for file in files[:-MOST_KEPT]:
            file.unlink(missing_ok=True)

    def _take_lock(self) -> None:
        """Raises ModelError `overloaded` where another process runs the jobs of this state directory."""
        if self._lock_file is not None:
            return
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = (self._folder / LOCK).open("a")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            told = f"{self._folder}: another backend runs the backtests of this state directory; ask that one"
            raise ModelError(told, code="overloaded") from None
        self._lock_file = file

    def _runs_elsewhere(self) -> bool:
        """Whether another process has the jobs: then what it wrote is how they are."""
        if self._lock_file is not None:
            return False
        try:
            with (self._folder / LOCK).open() as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                return False
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True


def _died(job: Job) -> Job:
    told = problems.document(500, "backend_stopped", "the backend ended before this backtest did; ask for it again")
    return replace(job, status="failed", problem=told)


def _new_id() -> str:
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S%f}-{secrets.token_hex(4)}"


def _now() -> str:
    return datetime.now(UTC).isoformat()
