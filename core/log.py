"""structlog, configured by entry points only: JSON lines unless a person is watching.

A service's lines must never hold up what it serves: `LineWriter` writes whole lines to stderr at once, or, when whoever
reads it has fallen behind (a full pipe, a full disk, nobody there), drops and counts them.
"""

from __future__ import annotations

import asyncio
import atexit
import json
import logging
import os
import socket
import stat
import sys
import threading
from collections.abc import Callable
from functools import partial
from typing import TextIO, cast

import orjson
import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

STDERR = 2

_writer: LineWriter | None = None  # of this process, once it is a service


class _Stderr:
    """Whatever stderr is when a line is written: progress bars put themselves in its place."""

    def write(self, text: str) -> int:
        return sys.stderr.write(text)

    def flush(self) -> None:
        sys.stderr.flush()


class LineWriter:
    """Whole lines to a file descriptor, without ever waiting and without ever raising. Thread-safe.

    The descriptor's own flags stay as they are: other processes may share it.
    """

    def __init__(self, descriptor: int = STDERR) -> None:
        self.dropped = 0  # lines, ever
        self._send = _without_waiting(descriptor)
        self._lock = threading.Lock()
        self._untold = 0  # dropped since the last line that says so
        self._torn = False  # the last line broke off in the middle

    def write(self, *lines: bytes) -> None:
        """In one piece; a line has no newline at its end."""
        with self._lock:
            notice = self._notice() if self._untold else b""
            whole = b"\n" * self._torn + notice + b"\n".join(lines) + b"\n"
            try:
                sent = self._send(whole)
            except OSError:  # BlockingIOError: no room; others: no reader, no disk. A log is not worth a decision
                sent = 0
            if sent == len(whole):
                self._untold, self._torn = 0, False
                return
            self._torn = self._torn or sent > 0
            self._untold += len(lines)
            self.dropped += len(lines)

    msg = log = debug = info = warning = warn = error = critical = exception = fatal = write

    def _notice(self) -> bytes:
        return orjson.dumps({"event": "log_lines_dropped", "level": "warning", "count": self._untold}) + b"\n"


class TurnWriter:
    """Lines of one turn of an event loop in one write, which lets other threads in; of other threads as they come."""

    def __init__(self, writer: LineWriter) -> None:
        self._writer = writer
        self._lines: list[bytes] = []
        atexit.register(self.flush)

    def write(self, line: bytes) -> None:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self._writer.write(line)
            return
        if not self._lines:
            loop.call_soon(self.flush)
        self._lines.append(line)

    msg = log = debug = info = warning = warn = error = critical = exception = fatal = write

    def flush(self) -> None:
        lines, self._lines = self._lines, []
        if lines:
            self._writer.write(*lines)


def configure_logging(level: str = "INFO") -> None:
    """Log to stderr, so that stdout stays for results. Called once by commands that a person waits for."""
    watched = sys.stderr.isatty()
    renderer: Processor = structlog.dev.ConsoleRenderer() if watched else structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[*_PROCESSORS, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level]),
        logger_factory=structlog.PrintLoggerFactory(cast(TextIO, _Stderr())),
    )


def configure_service_logging(level: str = "INFO") -> None:
    """The same for a service: nothing it logs can block it, unless a person is watching."""
    global _writer  # noqa: PLW0603 - structlog's configuration is the process's as well
    if sys.stderr.isatty():
        configure_logging(level)
        return
    _writer = LineWriter()
    writer = TurnWriter(_writer)
    structlog.configure(
        processors=[*_PROCESSORS, _as_json],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level]),
        logger_factory=lambda *_: writer,
        cache_logger_on_first_use=True,  # half of a line's cost; only a process that configures once may do so
    )


def dropped_lines() -> int:
    """Lines of this process that found no reader, ever."""
    return _writer.dropped if _writer is not None else 0


def _as_json(_logger: WrappedLogger, _method: str, event: EventDict) -> bytes:
    try:
        return orjson.dumps(event, default=repr)
    except orjson.JSONEncodeError:  # half a surrogate pair, an integer of more than 64 bits
        return json.dumps(event, default=repr).encode()


def _without_waiting(descriptor: int) -> Callable[[bytes], int]:
    """A `write` that raises BlockingIOError instead of waiting for a pipe's or a socket's reader."""
    kind = os.fstat(descriptor).st_mode
    if stat.S_ISSOCK(kind):
        reader = socket.socket(fileno=os.dup(descriptor))
        return lambda line: reader.send(line, socket.MSG_DONTWAIT)
    if stat.S_ISFIFO(kind):
        try:  # a description of our own for the same pipe; no /proc, no permission or no reader: as it is
            flags = os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC
            descriptor = os.open(f"/proc/self/fd/{descriptor}", flags)
        except OSError:
            pass
    return partial(os.write, descriptor)


_PROCESSORS: tuple[Processor, ...] = (
    structlog.contextvars.merge_contextvars,
    structlog.processors.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    structlog.processors.format_exc_info,
)
