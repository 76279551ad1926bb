"""What Prometheus scrapes, at a bounded cost for the decisions that share the interpreter with it.

Adding up the files of all processes costs some 3 ms for every version that was ever loaded, of Python's one lock: five
scrapes a second after two dozen versions took a third of it, and p99 of a decision rose from 60 to 257 ms.
"""

from __future__ import annotations

import fcntl
import os
import threading
import time
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest, multiprocess

from core.files import write_atomically

FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
SHARE = 0.05  # of the time may go into it; whoever scrapes more often reads what was found last
BURST_S = 0.25  # of computing, after a while without


class Exposition:
    """Of all processes that share this one's folder, or of `registry` where there is none. Thread-safe.

    Processes share what was found last, too: one that read an older text than its neighbour would tell Prometheus of
    counters that went back, which it takes for restarts.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._computing = threading.Lock()
        self._left_s = BURST_S
        self._since = time.monotonic()
        self._text: bytes | None = None

    def text(self) -> bytes:
        """In Prometheus' text format; no older than its own computing time / SHARE. Reads files: not for the loop."""
        folder = os.environ.get(FOLDER_VARIABLE)
        with self._computing:
            now = time.monotonic()
            self._left_s = min(BURST_S, self._left_s + SHARE * (now - self._since))
            self._since = now
            if folder is not None:
                return self._of_all(Path(folder))
            if self._text is None or self._left_s > 0:
                self._text = self._found(self._registry)
            return self._text

    def _of_all(self, folder: Path) -> bytes:
        """Of all processes. One of them at a time computes; the others, and who may not, read what it found last."""
        last = folder / "exposition.txt"
        with (folder / "exposition.lock").open("a") as lock:
            computes = self._left_s > 0 and _locked(lock.fileno())
            if not computes and last.exists():
                return last.read_bytes()
            everybody = CollectorRegistry()
            multiprocess.MultiProcessCollector(everybody, str(folder))  # type: ignore[no-untyped-call]  # the library's
            text = self._found(everybody)
            write_atomically(last, text)
            return text

    def _found(self, registry: CollectorRegistry) -> bytes:
        started = time.thread_time()
        text = generate_latest(registry)
        self._left_s -= time.thread_time() - started
        return text


def _locked(file: int) -> bool:
    """Whether the lock is this process's until the file is closed, or the process ends."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
