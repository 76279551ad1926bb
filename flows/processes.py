"""Children that never outlive this process, not even after kill -9.

On Linux the child asks the kernel for SIGKILL at its parent's death (prctl PR_SET_PDEATHSIG) and then becomes
the command; a small interpreter does this before the exec, since code between fork and exec may deadlock in a
process with threads. The kernel means the thread that started the child: it must live as long as the child,
which a `with` block guarantees. Elsewhere the child is ended on exit only.

A child has a session of its own: Ctrl-C reaches this process only, which then ends its children in order instead of
waiting for the answers of children that were interrupted first.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from core.errors import ConfigError

TERMINATE_GRACE_S = 5.0
POLL_S = 0.05

_DIE_WITH_PARENT = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)
if os.getppid() != int(sys.argv[1]):
    sys.exit(1)  # the parent died before the request was made
os.execvp(sys.argv[2], sys.argv[2:])
"""


@dataclass(frozen=True)
class Child:
    """A running command and the file that takes its output."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    def tail(self, lines: int = 15) -> str:
        """The last lines the child wrote, for an error message."""
        return tail(self.log, lines)


def tail(log: Path, lines: int = 15) -> str:
    text = log.read_text(encoding="utf-8", errors="replace").strip()
    return "\n".join(text.splitlines()[-lines:]) or "(it wrote nothing)"


@contextmanager
def child(name: str, command: Sequence[str], *, log: Path, env: Mapping[str, str]) -> Iterator[Child]:
    """Run `command` while the block runs; stdout and stderr are appended to `log`; always ended after it.

    `env` is the child's whole environment.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        process = subprocess.Popen(  # noqa: S603 - our own commands, no shell
            _bound_to_parent(command),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=dict(env),
            start_new_session=True,
        )
    try:
        yield Child(name, process, log)
    finally:
        end(process)


def _bound_to_parent(command: Sequence[str]) -> list[str]:
    if sys.platform != "linux":
        return list(command)
    return [sys.executable, "-I", "-S", "-c", _DIE_WITH_PARENT, str(os.getpid()), *command]


def end(process: subprocess.Popen[bytes]) -> None:
    """Ask once, then insist. Returns when the process is gone."""
    process.terminate()
    try:
        process.wait(TERMINATE_GRACE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def wait_until_healthy(running: Child, healthy: Callable[[], bool], deadline_s: float) -> float:
    """Poll `healthy` until it is true; the seconds it took.

    Raises ConfigError with the end of the child's log if the child exits first or the deadline passes.
    """
    started = time.monotonic()
    while not healthy():
        code = running.process.poll()
        if code is not None:
            raise ConfigError(f"{running.name} exited with code {code} at start; {_ending(running)}")
        if time.monotonic() - started > deadline_s:
            raise ConfigError(f"{running.name} was not ready after {deadline_s:g} s; {_ending(running)}")
        time.sleep(POLL_S)
    return time.monotonic() - started


def _ending(running: Child) -> str:
    return f"{running.log} ends:\n{running.tail()}"


def free_port(host: str = "127.0.0.1") -> int:
    """A port nobody listens on now. If another process takes it before the child does, the child says so."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port
