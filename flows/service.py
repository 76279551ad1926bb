"""The inference service as the flows see it: found running or started, spoken to over HTTP, ended if started here.

If a service answers at `serving.host:port` with this state directory's token it is used; else one is started on a
free port for as long as the block lasts, with a state of its own in the run's folder. That state is durable, so
phases need not share a process.
"""

from __future__ import annotations

import sqlite3
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import structlog

from core.errors import HrmSystemError, RolloutError
from core.settings import Settings
from core.signing import KEYS
from delivery.plan import Plan
from flows.phases import dataset_of
from flows.processes import child, free_port, wait_until_healthy
from flows.progress import report
from flows.replay import Course
from flows.run_state import Run
from serving import calls
from serving.calls import ServiceError
from serving.client import ServiceClient
from serving.local_token import read_or_create_token
from serving.question import Question
from serving.schemas import DecisionResponse, HealthResponse
from serving.schemas_rollout import RolloutResponse
from trading.market import Ints, Market

log = structlog.get_logger()

LANES = 20  # symbols at a time: a step of 5 % is one of them
VALIDATION_SHARE = 0.6  # of the test sessions for the shadow phase; the rollout replays the others
START_DEADLINE_S = 60.0
ACTOR = "flows"
RETRY_S = 1.0
ONE_THREAD = {"OMP_NUM_THREADS": "1"}  # per run of a model; the service runs several at a time


@dataclass(frozen=True)
class RunningService:
    """The calls flows make. They raise ServiceError when the service refuses, or does not answer (retryable)."""

    client: ServiceClient

    def decide(self, question: Question) -> DecisionResponse:
        return self.client.call(calls.decision(question))

    def outcome(self, symbol: str, champion_bps: float, challenger_bps: float) -> None:
        self.client.call(calls.outcome(symbol, champion_bps=champion_bps, challenger_bps=challenger_bps))

    def rollout(self) -> RolloutResponse:
        return self.client.call(calls.rollout())

    def plan(self) -> Plan:
        """Of the current or latest attempt."""
        return self.client.call(calls.plan())

    def events(self) -> list[dict[str, Any]]:
        """The whole log of the rollout, oldest first, as it goes on record."""
        events: list[dict[str, Any]] = []
        while page := self.client.call(calls.events(after=events[-1]["version"] if events else 0)).events:
            events += [event.model_dump(mode="json") for event in page]
        return events

    def start(self, champion: str, challenger: str, reason: str) -> RolloutResponse:
        return self.client.call(calls.start(champion, challenger, reason=reason, actor=ACTOR))

    def promote(self, reason: str) -> RolloutResponse:
        return self.client.call(calls.command("promote", reason=reason, actor=ACTOR))

    def roll_back(self, reason: str) -> RolloutResponse:
        return self.client.call(calls.command("rollback", reason=reason[:500], actor=ACTOR))

    def health(self) -> HealthResponse:
        return self.client.call(calls.health())

    def memory_gb(self) -> float:
        """Resident set of the service, as it measures itself: its guard judges the same number."""
        return float(self.rollout().statistics["rss_gb"])


@contextmanager
def running_service(run: Run) -> Iterator[RunningService]:
    """The service of the run's state directory: the one that listens, else a child. Raises ConfigError."""
    with reachable_service(run.settings) as service:
        if service is not None:
            yield service
            return
    with _started(run) as started:
        yield started


@contextmanager
def reachable_service(settings: Settings) -> Iterator[RunningService | None]:
    """The service at `serving.host:port` if it is live and accepts our token, else None."""
    with _client(settings, settings.paths.state_dir, settings.serving.port) as client:
        service = RunningService(client)
        try:
            service.rollout()
            found = True
        except HrmSystemError:
            found = False  # nobody listens, or somebody else's service
        yield service if found else None


@contextmanager
def _started(run: Run) -> Iterator[RunningService]:
    settings = run.settings
    port = free_port(settings.serving.host)
    command = [sys.executable, "-m", "serving", "--champion", run.result("ppo_baseline_capture")["model"]]
    run.service_dir.mkdir(parents=True, exist_ok=True)
    for name in ("models", KEYS):  # what the models' signatures are checked with lies beside them
        if not (run.service_dir / name).is_symlink():
            (run.service_dir / name).symlink_to(run.settings.paths.state_dir / name, target_is_directory=True)
    own = {
        "HRM_SERVING__PORT": str(port),
        "HRM_PATHS__STATE_DIR": str(run.service_dir),
        "HRM_ROLLOUT__DATABASE_URL_ENV": "null",  # never the desk's own rollout
    }
    env = run.environment(**own) | ONE_THREAD
    env.pop("PREFECT_API_URL", None)  # the migration rolls back by itself; no automation shall start a second one
    log = run.folder / "logs" / "service.log"
    with (
        child("the inference service", command, log=log, env=env) as process,
        _client(settings, run.service_dir, port) as client,
    ):
        service = RunningService(client)
        wait_until_healthy(process, lambda: _ready(service), START_DEADLINE_S)
        yield service


def adopt_state(run: Run) -> bool:
    """Let a later `hrm serve` begin where the run's own service ended, unless somebody decides there already.

    A state on a server is left alone: other hosts decide by it. `hrm rollout start` brings the model there.
    """
    if run.settings.rollout.database_url_env is not None:
        log.info("state_not_adopted", reason="it is on a server", remedy="start the model with `hrm rollout start`")
        return False
    own, shared = run.service_dir / "rollout.db", run.settings.paths.state_dir / "rollout.db"
    if not own.exists() or shared.exists():
        return False
    copy = shared.with_suffix(".adopting")
    copy.unlink(missing_ok=True)
    with closing(sqlite3.connect(own)) as source, closing(sqlite3.connect(copy)) as target:
        source.backup(target)
    copy.rename(shared)
    return True


def _client(settings: Settings, state_dir: Path, port: int) -> ServiceClient:
    token = read_or_create_token(state_dir)
    return ServiceClient(f"http://{settings.serving.host}:{port}", token)


def _ready(service: RunningService) -> bool:
    try:
        return service.rollout().champion is not None
    except ServiceError:
        return False


def ensure_started(service: RunningService, run: Run, phase: str) -> RolloutResponse:
    """The rollout of this run's two models: started now, or found where a killed run left it.

    Waits out the cool-down after a rollback. Raises RolloutError if another rollout is under way, ServiceError
    `champion_mismatch` if another model than this run's incumbent has begun to decide meanwhile.
    """
    champion = run.result("ppo_baseline_capture")["model"]
    challenger = run.result("hrm_training")["model"]
    while True:
        state = service.rollout()
        if challenger in (state.challenger, state.champion):
            return state
        if state.challenger is not None:
            raise RolloutError(
                f"a rollout of {state.challenger} is under way; finish it, or end it with `hrm rollout abort`",
                code="rollout_under_way",
            )
        try:
            return service.start(champion, challenger, f"migration {run.id}")
        except ServiceError as error:
            if error.code != "cool_down":
                raise
            report(phase, 0.0, str(error))
            time.sleep(RETRY_S)


def course_of(run: Run) -> Course:
    data = dataset_of(run)
    return Course(data.test, data.schema, data.cost_bps, data.optimum_known)


@dataclass(frozen=True)
class Lanes:
    """Symbols and sessions for replays: NAME#01, NAME#02, ... each living through a held-out session.

    One market stands in for many symbols, so that a weight in percent of symbols means something.
    """

    name: str
    validation: Ints
    rollout: Ints

    @classmethod
    def of(cls, test: Market) -> Lanes:
        """The first sessions of the test market for the shadow phase, later ones for the rollout."""
        sessions = test.sessions
        cut = int(len(sessions) * VALIDATION_SHARE)
        return cls(test.name, sessions[:cut], sessions[cut:])

    def for_validation(self, number: int) -> dict[str, int]:
        """Round `number`, from 0: symbol to session; empty when all sessions have been replayed."""
        return self._pair(self.validation[number * LANES : (number + 1) * LANES], 0)

    def for_rollout(self, *, first_symbol: int, first_session: int) -> dict[str, int]:
        """LANES symbols from `first_symbol` on; sessions start over when there are too few."""
        places = (first_session + np.arange(LANES)) % len(self.rollout)
        return self._pair(self.rollout[places], first_symbol)

    def _pair(self, sessions: Ints, first_symbol: int) -> dict[str, int]:
        return {f"{self.name}#{first_symbol + i + 1:02d}": int(session) for i, session in enumerate(sessions)}
