"""What `hrm up` started, on record, so that `hrm down` ends exactly that and nothing else.

A pid alone names nobody: it is given away again when its process has ended. A part is the process with this pid AND
this start time; with it goes whatever carries the part's mark, a random word, in its environment: flow runs have
sessions of their own, and outlive a worker that was killed. What anybody else started has neither.
"""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable
from pathlib import Path

import psutil
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from core.errors import ConfigError
from core.files import write_json

FILE = "up.json"
MARK = "DESK_UP_MARK"  # in the environment of every part; HRM_ is for settings
SAME_START_S = 0.05  # the kernel counts starts in hundredths of a second
GRACE_S = 8.0
# Prefect's worker can outlive one SIGTERM, so it gets two; whatever is left then is killed.
SIGNALS = (signal.SIGTERM, signal.SIGTERM, signal.SIGKILL)


class Part(BaseModel):
    """A process that was started, and where it is found."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    pid: int = Field(gt=0)
    started_at: float  # Unix seconds, the kernel's
    address: str
    log: Path

    @property
    def leader(self) -> psutil.Process | None:
        """The process itself, or None when it has ended, whoever has its pid now."""
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.started_at) < SAME_START_S
            return process if same and process.status() != psutil.STATUS_ZOMBIE else None
        except psutil.NoSuchProcess:
            return None


class Record(BaseModel):
    """Everything one `hrm up` (and those after it, until `hrm down`) has started, in the order of starting."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mark: str
    ports: dict[str, int]
    deployed: bool = False  # the flows, onto the Prefect server of this record
    data: Path | None = None  # bars that are traded; None: the synthetic market
    parts: tuple[Part, ...] = ()

    def mark_of(self, name: str) -> str:
        """What a part's environment carries, and hands on to whatever it starts."""
        return f"{self.mark}:{name}"

    def part(self, name: str) -> Part | None:
        return next((part for part in self.parts if part.name == name), None)

    def runs(self, name: str) -> bool:
        part = self.part(name)
        return part is not None and part.leader is not None

    def with_part(self, part: Part) -> Record:
        others = tuple(other for other in self.parts if other.name != part.name)
        return self.model_copy(update={"parts": (*others, part)})


def read_record(state_dir: Path) -> Record | None:
    """None where nothing was started. Raises ConfigError for a file that is no record: then nobody is ended."""
    file = state_dir / FILE
    try:
        return Record.model_validate_json(file.read_bytes())
    except FileNotFoundError:
        return None
    except (ValidationError, OSError) as error:
        raise ConfigError(
            f"{file}: no record of what runs ({type(error).__name__}); end those processes by hand, then delete it",
            code="record_unreadable",
        ) from None


def write_record(state_dir: Path, record: Record) -> None:
    write_json(state_dir / FILE, record.model_dump(mode="json"))


def forget(state_dir: Path) -> None:
    (state_dir / FILE).unlink(missing_ok=True)


def members(part: Part, mark: str) -> list[psutil.Process]:
    """The part's living processes: the one that was started first, then whatever carries its mark."""
    leader = part.leader
    others = [process for process in psutil.process_iter() if process != leader and _mark_of(process) == mark]
    return others if leader is None else [leader, *others]


def _mark_of(process: psutil.Process) -> str | None:
    """What a living process carries; None for one that has just ended, or is somebody else's."""
    try:
        return process.environ().get(MARK) if process.status() != psutil.STATUS_ZOMBIE else None
    except (psutil.Error, OSError):
        return None


def strays(record: Record) -> list[psutil.Process]:
    """Whatever carries a mark of the desk, on record or not: a start that was killed may not have come to that."""
    return [process for process in psutil.process_iter() if (_mark_of(process) or "").startswith(f"{record.mark}:")]


def end(part: Part, mark: str) -> bool:
    """Ask twice, then insist. True once nothing of the part lives."""
    return _ended(lambda: members(part, mark), part.pid)


def end_strays(record: Record) -> bool:
    """The same of whatever carries a mark of the desk."""
    return _ended(lambda: strays(record))


def _ended(find: Callable[[], list[psutil.Process]], leader: int | None = None) -> bool:
    for number in SIGNALS:
        alive = find()
        if not alive:
            return True
        _signal(alive, leader, number)
        psutil.wait_procs(alive, timeout=GRACE_S)
    return not find()


def _signal(alive: list[psutil.Process], leader: int | None, number: signal.Signals) -> None:
    """A leader that is asked ends its own children in order; without one, or by force, everybody is meant."""
    leads = alive[0].pid == leader and number is not signal.SIGKILL
    for process in alive[:1] if leads else alive:
        try:
            process.send_signal(number)
        except psutil.NoSuchProcess:
            continue


def require_free(host: str, ports: dict[str, int]) -> None:
    """Raises ConfigError that names who listens on a port that is wanted."""
    for name, port in ports.items():
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: a closed connection is no user
            try:
                probe.bind((host, port))
            except OSError as error:
                remedy = f"end it, or choose another with --{name}-port"
                message = f"{host}:{port} ({name}): {holder(port) or error.strerror}; {remedy}"
                raise ConfigError(message, code="port_busy") from None


def holder(port: int) -> str | None:
    """Who listens on a port, in words; None where this user may not know, or nobody does."""
    for one in psutil.net_connections("tcp"):
        if one.status == psutil.CONN_LISTEN and one.laddr and one.laddr.port == port and one.pid is not None:
            return f"process {one.pid} ({_named(one.pid)}) listens there"
    return None


def _named(pid: int) -> str:
    """What a person knows a process by; its arguments are left out, they may hold a secret."""
    try:
        return psutil.Process(pid).name()
    except psutil.Error:
        return "it has just ended"
