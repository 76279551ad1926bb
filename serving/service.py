"""The running service: what is loaded, who decides, and the one place where that changes.

Memory leads, disk follows, for one kind of change only: a rollback takes effect at once and is made durable after.
Every other change is durable first. `live` is replaced as a whole, so a decision sees one consistent picture.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import psutil
import structlog
from sqlalchemy.exc import SQLAlchemyError

from core.errors import ModelError, RolloutError
from core.settings import Settings
from serving.engine import Engine, load_engine
from serving.guard import Guard
from serving.lanes import Lane
from serving.outbox import Outbox, PrefectApi
from serving.rollout import Event, RolloutStore
from serving.routing import Role
from serving.telemetry import Telemetry
from serving.transitions import Change, Command, Phase, RolloutState, transition

log = structlog.get_logger()

TICK_S = 0.25
RETRY_S = 0.25
DURABLE_WAIT_S = 5.0  # how long the answer to an abort waits for the disk; the abort itself does not
# The hard limit of one run. Twice the latency trigger's 100 ms: below that the trigger would never see
# the slowness it judges, far above it one stuck run would hold up a trade.
TIMEOUT_FACTOR = 4


@dataclass(frozen=True)
class Live:
    """Who decides now. `durable` is False between a rollback in memory and its arrival on disk."""

    state: RolloutState
    engines: MappingProxyType[str, Engine] = field(default_factory=lambda: MappingProxyType({}))
    durable: bool = True

    def engine(self, model_id: str | None) -> Engine | None:
        return self.engines.get(model_id) if model_id else None


class Service:
    def __init__(self, settings: Settings, champion: str | None = None, prefect: PrefectApi | None = None) -> None:
        """`champion` (name/version) is installed only if the rollout state names none yet.

        `prefect` is told about rollbacks; without one nobody is.
        """
        self.settings = settings
        self.telemetry = Telemetry()
        self.guard = Guard(settings.triggers)
        self.live = Live(RolloutState())
        self._first_champion = champion
        self._prefect = prefect
        self._outbox: Outbox | None = None
        self._commands = asyncio.Lock()
        self._rollback: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[Any]] = set()

    async def open(self) -> None:
        """Load what the durable state names, all of it warm. Raises ConfigError or ModelError."""
        s = self.settings
        self.store = RolloutStore(s.paths.state_dir / "rollout.db", s.rollout)
        if self._prefect is not None:  # before anything below can roll back
            self._outbox = Outbox(self._prefect, self.store, s.paths.state_dir / "outbox.json")
        limit_s = s.performance.inference_timeout_ms * TIMEOUT_FACTOR / 1e3
        self.lanes: dict[Role, Lane] = {
            "champion": Lane("champion", limit_s),
            "challenger": Lane("challenger", limit_s),
        }
        state = self.store.read()
        if state.champion is None and self._first_champion is not None:
            engine = load_engine(s, self._first_champion)  # proved before it is written down
            install = Change(Command.INSTALL, time.time(), "first champion", "service", champion=engine.id)
            state = self.store.apply(install)
        self._install(*self._load(state))
        self._tick_memory()
        self.spawn(self._watch())
        if self._outbox is not None:
            self.spawn(self._outbox.run())

    async def close(self) -> None:
        """Stop running models and background work; an undurable rollback gets a last chance."""
        if self._rollback is not None:
            await asyncio.wait({self._rollback}, timeout=DURABLE_WAIT_S)
        for engine in self.live.engines.values():
            engine.stop()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for lane in self.lanes.values():
            lane.close()
        self.store.close()

    async def command(self, change: Change, expected_version: int | None = None) -> Live:
        """Carry out a rollout command. Raises RolloutError (409, or 503 if the disk refuses) or ModelError."""
        if change.command in (Command.ABORT, Command.ROLLBACK):
            await self._abort(change)
            return self.live
        transition(self.live.state, change, self.settings.rollout)  # refused before anything is loaded
        engines = await self._engines_for(change)
        async with self._commands:
            if not self.live.durable:
                raise RolloutError(
                    "a rollback is not on disk yet; free the disk and retry", code="state_not_durable", retryable=True
                )
            try:
                state = await asyncio.to_thread(self.store.apply, change, expected_version)
            except SQLAlchemyError as error:
                raise RolloutError(
                    f"rollout.db: {error}; free the disk and retry", code="state_not_durable", retryable=True
                ) from error
            self._install(state, engines)
        return self.live

    def events(self, after_version: int) -> list[Event]:
        return self.store.events(after_version)

    def judge(self) -> None:
        """Take the candidate's traffic away if the guard says so; the very next decision is the stable model's."""
        state = self.live.state
        if state.candidate is None:
            return
        trigger = self.guard.verdict("champion" if state.phase is Phase.PROMOTED else "challenger")
        if trigger is not None:
            self.telemetry.rollbacks.labels(trigger).inc()
            self._roll_back(Change(Command.ROLLBACK, time.time(), trigger, "guard"))

    def warnings(self) -> list[str]:
        """The alert levels that are passed now."""
        return [name for name, active in self._alerts().items() if active]

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Background work that the service keeps alive, and ends at close."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _abort(self, change: Change) -> None:
        if not self.live.state.latched:
            self.telemetry.rollbacks.labels("manual").inc()
            self._roll_back(change)
        if self._rollback is not None:
            await asyncio.wait({self._rollback}, timeout=DURABLE_WAIT_S)

    def _roll_back(self, change: Change) -> None:
        """Swap in memory now, make it durable in the background, however often the disk refuses."""
        before = self.live
        after = transition(before.state, change, self.settings.rollout)
        rejected = before.state.candidate
        log.warning("rollback", reason=change.reason, actor=change.actor, rejected=rejected, epoch=after.epoch)
        keep = {name: engine for name, engine in before.engines.items() if name == after.champion}
        self.live = Live(after, MappingProxyType(keep), durable=False)
        self.telemetry.rollout(after)
        for name, engine in before.engines.items():
            if name not in keep:
                engine.stop()
        self._rollback = self.spawn(self._make_durable(change))

    async def _make_durable(self, change: Change) -> None:
        started = time.perf_counter()
        while not await self._write_down(change):
            await asyncio.sleep(RETRY_S)
        self.telemetry.propagation.observe(time.perf_counter() - started)
        if self._outbox is not None:
            self._outbox.wake()

    async def _write_down(self, rollback: Change) -> bool:
        """Whether the disk took it. Under the commands' lock: none of them commits between the disk and `live`."""
        async with self._commands:
            try:
                state = await asyncio.to_thread(self.store.apply, rollback)
            except SQLAlchemyError as error:
                log.error("rollback_not_durable", error=str(error), remedy="free the disk; retrying")
                return False
            engines = dict(self.live.engines) | await self._champion_unknown_to_memory(state)
            self.live = Live(state, MappingProxyType(engines))
            self.telemetry.rollout(state)
        return True

    async def _champion_unknown_to_memory(self, state: RolloutState) -> dict[str, Engine]:
        """A first start may have reached the disk, with its champion, while a rollback swapped in memory."""
        if state.champion is None or state.champion in self.live.engines:
            return {}
        try:
            return {state.champion: await asyncio.to_thread(load_engine, self.settings, state.champion)}
        except ModelError as error:  # it loaded a moment ago; without it the service says that it is not ready
            log.error("champion_does_not_load", model=state.champion, error=str(error))
            return {}

    def _install(self, state: RolloutState, engines: dict[str, Engine]) -> None:
        """Let a durable state take effect, unless a rollback overtook it."""
        overtaken = not self.live.durable or (self.live.state.version > state.version)
        if overtaken:
            return
        if state.phase is Phase.SHADOW and self.live.state.candidate != state.candidate:
            self.guard.reset()
        if state.phase is Phase.PROMOTED and self.live.state.phase is not Phase.PROMOTED:
            self.guard.reset()  # the new champion is judged by what it does as champion
        wanted = {state.champion, state.challenger, state.fallback}
        known = {**self.live.engines, **engines}
        self.live = Live(state, MappingProxyType({name: known[name] for name in known if name in wanted}))
        self.telemetry.rollout(state)
        log.info(
            "rollout",
            phase=state.phase,
            champion=state.champion,
            challenger=state.challenger,
            weight=state.weight,
            epoch=state.epoch,
            version=state.version,
        )

    async def _engines_for(self, change: Change) -> dict[str, Engine]:
        """The engines a start needs, loaded and warm before anything changes."""
        engines: dict[str, Engine] = {}
        for model_id in (change.champion, change.challenger):
            if model_id is not None and model_id not in self.live.engines:
                engines[model_id] = await asyncio.to_thread(load_engine, self.settings, model_id)
        both = [{**self.live.engines, **engines}.get(name or "") for name in (change.champion, change.challenger)]
        if both[0] is not None and both[1] is not None:
            both[0].manifest.observation.require(both[1].manifest.observation, both[1].id)
        return engines

    def _load(self, state: RolloutState) -> tuple[RolloutState, dict[str, Engine]]:
        """Engines at start-up. A candidate that does not load is rolled back; a stable model must load."""
        engines: dict[str, Engine] = {}
        stable = state.fallback or state.champion
        if stable is not None:
            engines[stable] = load_engine(self.settings, stable)
        if state.candidate is None:
            return state, engines
        try:
            engines[state.candidate] = load_engine(self.settings, state.candidate)
        except ModelError as error:
            log.error("candidate_does_not_load", model=state.candidate, error=str(error))
            self.telemetry.rollbacks.labels("not_loadable").inc()
            state = self.store.apply(Change(Command.ROLLBACK, time.time(), str(error), "service"))
        return state, engines

    async def _watch(self) -> None:
        while True:
            self._tick_memory()
            self.telemetry.alerts(self._alerts())
            self.judge()
            await asyncio.sleep(TICK_S)

    def _tick_memory(self) -> None:
        resident = psutil.Process().memory_info().rss
        self.guard.rss_gb = resident / 1e9
        self.telemetry.resident.set(resident)

    def _alerts(self) -> dict[str, bool]:
        alerts, guard = self.settings.alerts, self.guard
        window = guard.windows["challenger" if self.live.state.challenger else "champion"]
        statistics = window.statistics()
        enough = len(window) >= self.settings.triggers.min_samples
        return {
            "error_ratio": enough and (statistics["error_ratio"] or 0.0) > alerts.error_ratio,
            "latency": enough and (statistics["p95_ms"] or 0.0) > alerts.latency_ms,
            "memory_warning": guard.rss_gb > alerts.memory_warning_gb,
            "memory_mitigation": guard.rss_gb > alerts.memory_mitigation_gb,
            "performance_drop": guard.performance.relative_drop() > alerts.performance_drop,
        }
