"""Everything on one machine, without Docker: `hrm up`, `hrm down`, `hrm ps`.

    prefect   the server with its UI              service   the inference service
    backend   the API and the dashboard           worker    runs flows: schedules, triggers, approvals
    trade     paper trading on replayed bars

Parts outlive the command that started them. What was started is on record before it is waited for
(flows/up_record.py), so that a killed `hrm up` leaves nothing that `hrm down` would not find. All listen on loopback
and ask for credentials; a part that does not become ready takes the others down again.
"""

from __future__ import annotations

import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpx
import psutil

from core.errors import ConfigError
from core.settings import Settings
from flows.processes import Child, tail
from flows.run_state import only_one
from flows.up_model import first_champion
from flows.up_prefect import POOL, WORKER, Control, clean_environment, control_of
from flows.up_record import MARK, Part, Record, end, end_strays, forget, read_record, require_free, write_record

HOST = "127.0.0.1"
PORTS = {"prefect": 4200, "backend": 8200}  # and the service at serving.port
READY_WITHIN_S = 180.0  # a loaded machine takes a minute for what an idle one does in ten seconds
DEPLOY_WITHIN_S = 300.0
POLL_S = 0.2

_outliving: list[subprocess.Popen[bytes]] = []  # nobody waits for them here; Python warns of a handle that is dropped
TRADED_SESSIONS, BARS_PER_S = 200, 1.0  # synthetic ones: some hours of something to see

Tell = Callable[[str, str], None]  # part, what became of it


@dataclass(frozen=True)
class Plan:
    """One part: how it is started, and how one knows that it works."""

    name: str
    command: tuple[str, ...]
    env: Mapping[str, str]
    ready: Callable[[], bool]
    address: str
    may_end: bool = False  # with code 0, when its work is done


@dataclass(frozen=True)
class Starting:
    """A part that is waited for, whoever has started it: a command that was killed before may have begun."""

    plan: Plan
    ended: Callable[[], int | None]  # its code, or -1; None while it runs
    log: Path

    def is_ready(self, left_s: float) -> bool:
        """Raises ConfigError with the end of its log if it has ended, or if no time is left."""
        if self.plan.ready():
            return True
        code = self.ended()
        if code is None and left_s > 0:
            return False
        if code == 0 and self.plan.may_end:
            return True
        what = "was not ready in time" if code is None else f"exited with code {code}"
        raise ConfigError(f"{self.plan.name} {what}; {self.log} ends:\n{tail(self.log)}", code="not_started")


@dataclass(frozen=True)
class Desk:
    """Where this desk lies and listens."""

    settings: Settings
    control: Control
    record: Record  # as it was when this command began: marks, ports and data stay

    @property
    def ports(self) -> Mapping[str, int]:
        return self.record.ports

    def mark_of(self, part: str) -> str:
        return self.record.mark_of(part)

    def since(self, part: str) -> float:
        """From when on a sign of life is this part's own, Unix s: it may run already, or is about to be started."""
        found = self.record.part(part)
        return time.time() if found is None or found.leader is None else found.started_at

    @property
    def state_dir(self) -> Path:
        return self.settings.paths.state_dir

    def log(self, part: str) -> Path:
        return self.state_dir / "logs" / f"{part}.log"

    def url(self, part: str) -> str:
        return f"http://{HOST}:{self.ports[part]}"


def bring_up(settings: Settings, tell: Tell, *, ports: Mapping[str, int], data: Path | None = None) -> Record:
    """Start what does not run, wait until all of it works; `ports` beside PORTS. Idempotent.

    Raises ConfigError that names the part, its log and the remedy; then nothing runs that did not run before.
    """
    settings = _absolute(settings)
    state_dir = settings.paths.state_dir
    with _alone(state_dir):
        record = _record(settings, ports, data)
        require_free(HOST, {name: port for name, port in record.ports.items() if not record.runs(name)})
        write_record(state_dir, record)  # before anything carries its mark
        desk = Desk(settings, control_of(state_dir, record.ports["prefect"]), record)
        try:
            return _start_all(desk, record, tell)
        except BaseException:  # Ctrl-C as well: half a desk is none, but what ran before is none of this command's
            _back_to(desk)
            raise


def _record(settings: Settings, ports: Mapping[str, int], data: Path | None) -> Record:
    """Of the desk that runs, else a new one: what an old one has left behind is ended first."""
    state_dir, data = settings.paths.state_dir, data and data.resolve()
    record = read_record(state_dir)
    if record is None or not any(part.leader for part in record.parts):
        _end_all(state_dir, lambda *_: None)
        wanted = {"service": settings.serving.port, **PORTS, **ports}
        return Record(mark=secrets.token_hex(8), ports=wanted, data=data)
    other = [f"{name} {port}" for name, port in ports.items() if record.ports[name] != port]
    other += [] if data in (None, record.data) else [str(data)]
    if other:
        runs = f"runs already, at {record.ports} on {record.data or 'the synthetic market'}"
        raise ConfigError(f"{state_dir}: {runs}; for {', '.join(other)} end it first: `hrm down`", code="runs_already")
    return record


def bring_down(settings: Settings, tell: Tell) -> None:
    """End what `bring_up` started, in reverse. Raises ConfigError if something cannot be ended."""
    state_dir = _absolute(settings).paths.state_dir
    with _alone(state_dir):
        _end_all(state_dir, tell)


def running(settings: Settings) -> Record | None:
    """What is on record as started, whether it still runs or not."""
    return read_record(_absolute(settings).paths.state_dir)


def _start_all(desk: Desk, record: Record, tell: Tell) -> Record:
    champion, known = first_champion(desk.settings)
    tell("model", f"{champion} decides")
    servers = _servers(desk, None if known else champion)
    fresh = not record.runs("prefect")
    record = _start(desk, record, servers, tell)
    if fresh or not record.deployed:  # a start that was killed may have come no further
        _deploy(desk, tell)
        record = record.model_copy(update={"deployed": True})
        write_record(desk.state_dir, record)
    return _start(desk, record, _clients(desk), tell)


def _start(desk: Desk, record: Record, plans: list[Plan], tell: Tell) -> Record:
    """Side by side: all are started, then all are waited for."""
    waiting: list[Starting] = []
    for plan in plans:
        part = record.part(plan.name)
        if part is not None and part.leader is not None:
            tell(plan.name, "runs already")
            waiting.append(Starting(plan, partial(_gone, part), part.log))
            continue
        child = _spawn(desk, plan)
        waiting.append(Starting(plan, child.process.poll, child.log))
        record = record.with_part(_part(plan, child))
        write_record(desk.state_dir, record)
    _await(waiting, tell)
    return record


def _await(waiting: list[Starting], tell: Tell) -> None:
    """Until each is ready. Raises ConfigError as soon as one has ended, or when one takes too long."""
    since = time.monotonic()
    while waiting:
        left = READY_WITHIN_S - (time.monotonic() - since)
        for one in waiting.copy():
            if one.is_ready(left):
                tell(one.plan.name, f"ready after {time.monotonic() - since:.1f} s")
                waiting.remove(one)
        time.sleep(POLL_S)


def _gone(part: Part) -> int | None:
    return None if part.leader else -1


def _spawn(desk: Desk, plan: Plan) -> Child:
    """A process with a session of its own, which outlives this one."""
    log = desk.log(plan.name)
    log.parent.mkdir(parents=True, exist_ok=True)
    if log.exists():
        log.replace(log.with_suffix(".log.1"))  # why it ended may stand there
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: S603 - our own commands, no shell
            plan.command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**plan.env, MARK: desk.mark_of(plan.name)},
            start_new_session=True,
        )
    _outliving.append(process)
    return Child(plan.name, process, log)


def _part(plan: Plan, child: Child) -> Part:
    """As the kernel knows it: it is our child, so even if it has ended its pid is still its own."""
    started_at = psutil.Process(child.process.pid).create_time()
    return Part(name=plan.name, pid=child.process.pid, started_at=started_at, address=plan.address, log=child.log)


def _deploy(desk: Desk, tell: Tell) -> None:
    since, log = time.monotonic(), desk.log("deploy")
    try:
        done = _deployment(desk, log).returncode == 0
    except subprocess.TimeoutExpired:
        done = False
    if not done:
        raise ConfigError(f"the flows could not be deployed; {log} says why", code="not_deployed")
    tell("flows", f"deployed after {time.monotonic() - since:.1f} s")


def _deployment(desk: Desk, log: Path) -> subprocess.CompletedProcess[bytes]:
    """Everything in prefect.yaml; its schedules look at the bars that this desk trades."""
    bars = {"DESK_DATA": str(desk.record.data), "DESK_SYMBOL": ""} if desk.record.data else {}
    with log.open("wb") as output:
        return subprocess.run(
            [sys.executable, "-m", "flows.up_deployments"],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=_environment(desk) | desk.control.client_environment() | bars,
            timeout=DEPLOY_WITHIN_S,
            check=False,
        )


def _environment(desk: Desk) -> dict[str, str]:
    return clean_environment(desk.state_dir, desk.ports["service"])


def _servers(desk: Desk, champion: str | None) -> list[Plan]:
    """What listens. The service tells Prefect about its rollbacks, and works without it."""
    python, env = sys.executable, _environment(desk)
    control, service, backend = desk.control, desk.url("service"), desk.url("backend")
    served = env | control.client_environment()
    named = ("--champion", champion) if champion else ()
    backend_port = str(desk.ports["backend"])
    return [
        Plan("prefect", _prefect_server(desk), env | control.server_environment(), control.is_up, control.address),
        Plan("service", (python, "-m", "serving", *named), served, _ok(f"{service}/health/ready"), service),
        Plan(
            "backend",
            (python, "-m", "backend", "--port", backend_port),
            env,
            _ok(f"{backend}/health/live"),
            f"{backend}/dashboard",
        ),
    ]


def _prefect_server(desk: Desk) -> tuple[str, ...]:
    """Prefect's own application, as one process: `prefect server start` would put another around it."""
    factory = ("--factory", "prefect.server.api.server:create_app", "--lifespan", "on")
    place = ("--host", HOST, "--port", str(desk.ports["prefect"]), "--log-level", "warning")
    return (sys.executable, "-m", "uvicorn", *factory, *place)


def _clients(desk: Desk) -> list[Plan]:
    """What works for those that listen."""
    env, since = _environment(desk), desk.since("worker")
    worker = ("-m", "prefect", "worker", "start", "--pool", POOL, "--type", "process", "--name", WORKER)
    trade = ("-m", "cli", "trade", "--sessions", str(TRADED_SESSIONS), "--bars-per-s", str(BARS_PER_S))
    data = ("--data", str(desk.record.data)) if desk.record.data else ()
    return [
        Plan(
            "worker",
            (sys.executable, *worker),
            env | desk.control.worker_environment(),
            lambda: desk.control.has_worker(since),
            f"pool {POOL}",
        ),
        Plan(
            "trade",
            (sys.executable, *trade, *data),
            env,
            _written_since(desk.state_dir / "paper.db", desk.since("trade")),
            str(desk.state_dir / "paper.db"),
            may_end=True,
        ),
    ]


def _ok(url: str) -> Callable[[], bool]:
    def answers() -> bool:
        try:
            return httpx.get(url, timeout=2.0, trust_env=False).status_code == httpx.codes.OK
        except httpx.TransportError:
            return False

    return answers


def _written_since(ledger: Path, since: float) -> Callable[[], bool]:
    """SQLite writes beside the file first."""
    files = (ledger, ledger.with_name(f"{ledger.name}-wal"))
    return lambda: any(file.exists() and file.stat().st_mtime > since for file in files)


def _end_all(state_dir: Path, tell: Tell) -> None:
    record = read_record(state_dir)
    if record is None:
        return
    for part in reversed(record.parts):
        _end(part, record, tell)
    if not end_strays(record):
        raise ConfigError(f"{state_dir}: something that carries the mark {record.mark} does not end", code="not_ended")
    forget(state_dir)


def _end(part: Part, record: Record, tell: Tell) -> None:
    since = time.monotonic()
    if not end(part, record.mark_of(part.name)):
        raise ConfigError(f"{part.name} (process {part.pid}) does not end; {part.log} may say why", code="not_ended")
    tell(part.name, f"ended after {time.monotonic() - since:.1f} s")


def _back_to(desk: Desk) -> None:
    """End what this command has started; without anything that ran before, all of it."""
    before, now = desk.record, read_record(desk.state_dir)
    if now is None or not any(part.leader for part in before.parts):
        _end_all(desk.state_dir, lambda *_: None)
        return
    for part in reversed(now.parts):
        if part not in before.parts:
            _end(part, now, lambda *_: None)


def _absolute(settings: Settings) -> Settings:
    """Parts may run elsewhere."""
    state_dir = settings.paths.state_dir.resolve()
    return settings.model_copy(update={"paths": settings.paths.model_copy(update={"state_dir": state_dir})})


@contextmanager
def _alone(state_dir: Path) -> Iterator[None]:
    with only_one(state_dir / "up.lock", "is starting or ending this desk; wait for it", code="up_running"):
        yield
