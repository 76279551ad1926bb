"""Every answered decision is on record before its answer leaves, with all that it follows from.

    <folder>/<day>-<worker>.records    one file per day (UTC; a session of the exchange lies within one) and process
    <folder>/archive/                  days past the retention: moved here, never written to again, never deleted

What is in a file: serving/record_format.py. One write(2) at the end of it: what was answered survives the end of the
process, however it ends. The platter has it a second later (`tidy`): a loss of power costs no more. A torn frame is
skipped; what follows it is found by its first bytes. Why a file and no database, and at what cost:
docs/adr/0017-decision-records.md. Reading: serving/audit.py.

A disk that refuses, is slow or has little room left costs the record and not the decision.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import os
import re
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from io import FileIO
from operator import itemgetter
from pathlib import Path

import structlog

from core.settings import Records as RecordsSettings
from serving.record_format import Record, encode, file_name

log = structlog.get_logger()

NamedFrame = tuple[str, bytes]  # the file it belongs in, and what is written there
ARCHIVE = "archive"
FILE_PATTERN = re.compile(r"(\d{8})-[0-9a-f]{8}\.records")
RETRY_S = 1.0  # the disk is left alone so long after it refused or was slow: no queue of decisions behind it
SLOW_S = 0.05
GB = 1e9


def named_frame(record: Record) -> NamedFrame:
    return file_name(record.facts.decision_id), encode(record)


class Records:
    """Writes the records of one process. `tidy` belongs to any one thread, all else to one other."""

    def __init__(self, folder: Path, settings: RecordsSettings, clock: Callable[[], float] = time.time) -> None:
        """Touches no disk: a folder that cannot be used is a `problem`, not an error."""
        self._folder = folder
        self._settings = settings
        self._clock = clock
        self._worker = secrets.token_hex(4)
        self._numbers = itertools.count()
        self._second = (math.nan, "")  # the one of the latest id, and how it is written
        self._file: FileIO | None = None
        self._name = ""
        self._swap = threading.Lock()  # around the file's opening and closing
        self._removed = False
        self._retry_at = 0.0  # monotonic
        self._refused: str | None = None
        self._room = True
        self._untidy: str | None = None
        self._archived_on = ""

    @property
    def problem(self) -> str | None:
        """What keeps records from the disk, and what to do; None while nothing does."""
        return self._untidy or self._refused

    def new_id(self) -> tuple[str, float]:
        """An id that no other decision has, which sorts by time; and that time, Unix s."""
        at = self._clock()
        second, rest = divmod(at, 1)
        if second != self._second[0]:
            self._second = (second, f"{datetime.fromtimestamp(second, UTC):%Y%m%dT%H%M%S}")
        number = next(self._numbers) & 0xFFFFFFFF
        return f"{self._second[1]}{int(rest * 1000):03d}-{self._worker}-{number:08x}", at

    def write(self, record: Record) -> bool:
        """Whether the record is out of this process's hands. Never raises OSError."""
        return self.write_frames([named_frame(record)])

    def write_frames(self, frames: Sequence[NamedFrame]) -> bool:
        """Whether all of them are out of this process's hands, in one write. Never raises OSError."""
        started = time.monotonic()
        if not self._room or started < self._retry_at:
            return False
        try:
            for name, same in itertools.groupby(frames, itemgetter(0)):
                self._append(name, b"".join(frame for _, frame in same))
        except OSError as error:
            self._close_file()
            self._pause(_trouble(self._folder, error))
            return False
        took_s = time.monotonic() - started
        if took_s > SLOW_S:
            self._pause(f"{self._folder}: a write took {took_s * 1e3:.0f} ms; records need a disk that is less busy")
        else:
            self._refused = None
        return True

    def tidy(self) -> None:
        """About once a second: sync, look how much room is left, archive what is old. Never raises OSError.

        May take as long as the disk does.
        """
        try:
            self._sync()
            free_gb = shutil.disk_usage(self._existing_folder()).free / GB
            self._room = free_gb >= self._settings.min_free_gb
            self._untidy = (
                None
                if self._room
                else (
                    f"{self._folder}: {free_gb:.2f} GB left, less than records.min_free_gb; move {ARCHIVE}/ elsewhere"
                )
            )
            self._archive()
        except OSError as error:
            self._untidy = _trouble(self._folder, error)

    def close(self) -> None:
        with contextlib.suppress(OSError):  # the kernel has the records; nobody is left to be told
            self._sync()
        self._close_file()

    def _append(self, name: str, frames: bytes) -> None:
        if self._file is None or self._name != name or self._removed:
            self._open(name)
        assert self._file is not None  # noqa: S101 - just opened; for the type checker
        written = self._file.write(frames)
        if written != len(frames):
            raise OSError(0, f"the disk took {written} of {len(frames)} bytes")

    def _open(self, name: str) -> None:
        self._close_file()
        file = FileIO(self._existing_folder() / name, "ab", opener=_private)
        with self._swap:
            self._file, self._name, self._removed = file, name, False

    def _close_file(self) -> None:
        with self._swap:
            file, self._file = self._file, None
        if file is not None:
            with contextlib.suppress(OSError):  # every write has told its own outcome
                file.close()

    def _pause(self, why: str) -> None:
        if why != self._refused:
            log.error("decisions_not_recorded", why=why)
        self._refused = why
        self._retry_at = time.monotonic() + RETRY_S

    def _sync(self) -> None:
        with self._swap:  # a descriptor of its own: the other thread may close the file meanwhile
            descriptor = None if self._file is None else os.dup(self._file.fileno())
        if descriptor is None:
            return
        try:
            os.fdatasync(descriptor)
            self._removed = os.fstat(descriptor).st_nlink == 0
        finally:
            os.close(descriptor)

    def _archive(self) -> None:
        """Once a day. Other processes do the same: whoever comes second finds nothing to move."""
        today = datetime.fromtimestamp(self._clock(), UTC)
        if self._archived_on == f"{today:%Y%m%d}":
            return
        kept_since = f"{today - timedelta(days=self._settings.retention_days):%Y%m%d}"
        archive = self._existing_folder() / ARCHIVE
        archive.mkdir(mode=0o700, exist_ok=True)
        for file in sorted(self._folder.iterdir()):
            known = FILE_PATTERN.fullmatch(file.name)
            if known is not None and known[1] < kept_since:
                with contextlib.suppress(FileNotFoundError):
                    file.rename(archive / file.name)
                    log.warning("records_archived", file=str(archive / file.name), remedy="keep it for the audit")
        self._archived_on = f"{today:%Y%m%d}"

    def _existing_folder(self) -> Path:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return self._folder


class Turns:
    """Records of one turn of the event loop are written together.

    A write lets the threads that run models in, and to get back the loop waits for them: once for all decisions that
    one run of a model has ended, not once for each.
    """

    def __init__(self, records: Records) -> None:
        self._records = records
        self._waiting: list[tuple[NamedFrame, asyncio.Future[bool]]] = []

    async def write(self, record: Record) -> bool:
        """As Records.write."""
        frame, loop = named_frame(record), asyncio.get_running_loop()
        written: asyncio.Future[bool] = loop.create_future()
        if not self._waiting:
            loop.call_soon(self._write_all)
        self._waiting.append((frame, written))
        return await written

    def _write_all(self) -> None:
        waiting, self._waiting = self._waiting, []
        try:
            recorded = self._records.write_frames([frame for frame, _ in waiting])
        except Exception as error:  # whatever it is, nobody may be left waiting for it
            for _, written in waiting:
                if not written.done():
                    written.set_exception(error)
            return
        for _, written in waiting:
            if not written.done():  # its request may have broken off
                written.set_result(recorded)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _trouble(folder: Path, error: OSError) -> str:
    return f"{folder}: {error.strerror or error}; free the disk, or mend its permissions"
