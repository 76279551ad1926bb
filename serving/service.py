"""The running service: what is loaded, who decides, and the one place where that changes.

Memory leads, disk follows, for one kind of change only: a rollback takes effect at once and is made durable after.
Every other change is durable first. `live` is replaced as a whole, so a decision sees one consistent picture. What
another process of this service has made durable takes effect here a moment later (serving/follow.py).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import psutil
import structlog
from sqlalchemy.exc import SQLAlchemyError

from core import log as log_lines
from core.errors import ModelError, RolloutError
from core.observation import BookSchema
from core.settings import Settings
from serving.batcher import Batcher, open_model
from serving.follow import Follower
from serving.guard import Guard
from serving.ladder import Ladder, Rung
from serving.outbox import Outbox, PrefectApi
from serving.records import Records, Turns
from serving.rollout import RolloutStore
from serving.routing import Role
from serving.telemetry import Telemetry
from serving.transitions import Change, Command, Phase, RolloutState, transition

log = structlog.get_logger()

TICK_S = 0.25
TIDY_S = 1.0  # of decisions that a loss of power may cost their records
RETRY_S = 0.25
DURABLE_WAIT_S = 5.0  # how long the answer to an abort waits for the disk; the abort itself does not


@dataclass(frozen=True)
class Live:
    """Who decides now. `durable` is False between a rollback in memory and its arrival on disk."""

    state: RolloutState
    models: MappingProxyType[str, Batcher] = field(default_factory=lambda: MappingProxyType({}))
    durable: bool = True

    def model(self, model_id: str | None) -> Batcher | None:
        return self.models.get(model_id) if model_id else None

    @property
    def champion(self) -> Batcher | None:
        """Who decides; while a model that was promoted in another process is still loading, the one before it."""
        return self.model(self.state.champion) or self.model(self.state.fallback)


class Service:
    def __init__(self, settings: Settings, champion: str | None = None, prefect: PrefectApi | None = None) -> None:
        """`champion` (name/version) is installed only if the rollout state names none yet.

        `prefect` is told about rollbacks; without one nobody is.
        """
        self.settings = settings
        self.telemetry = Telemetry()
        alpha = settings.triggers.performance_alpha / settings.serving.workers  # of what all may err together
        self.guard = Guard(settings.triggers.model_copy(update={"performance_alpha": alpha}))
        self.ladder = Ladder(settings.ladder, time.perf_counter)
        self.records = Records(settings.paths.state_dir / "decisions", settings.records)
        self.turns = Turns(self.records)
        self.lag_ms = 0.0  # by which the event loop was late when it was last looked at
        self.live = Live(RolloutState())
        self._first_champion = champion
        self._prefect = prefect
        self._outbox: Outbox | None = None
        self._follower = Follower(settings.paths.state_dir / "rollout.db", self.sync)
        self._loading = asyncio.Lock()
        self._commands = asyncio.Lock()
        self._rollback: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._beside: set[str] = set()  # loaded on request, not by the rollout

    async def open(self) -> None:
        """Load what the durable state names, all of it warm. Raises ConfigError or ModelError."""
        s = self.settings
        self.store = RolloutStore(s.paths.state_dir / "rollout.db", s.rollout)
        if self._prefect is not None:  # before anything below can roll back
            self._outbox = Outbox(self._prefect, self.store, s.paths.state_dir / "outbox.json")
        state = self.store.read()
        first: dict[str, Batcher] = {}
        if state.champion is None and self._first_champion is not None:
            first[self._first_champion] = await self._open(self._first_champion)  # before it is noted
            _ = first[self._first_champion].engine.manifest.market  # a model of books is none: it raises ModelError
            install = Change(Command.INSTALL, time.time(), "first champion", "service", champion=self._first_champion)
            state = self.store.apply(install)
        self._install(*await self._load(state, first))
        if s.serving.book_model is not None:
            _of_books(await self.load(s.serving.book_model))
        self._tick_memory()
        self.spawn(self._follower.run())
        self.telemetry.stands_on(self.ladder.rung)
        self.spawn(self._watch())
        self.spawn(self._tidy())
        if self._outbox is not None:
            self.spawn(self._outbox.run())

    async def close(self) -> None:
        """Stop running models and background work; an undurable rollback gets a last chance."""
        if self._rollback is not None:
            await asyncio.wait({self._rollback}, timeout=DURABLE_WAIT_S)
        await asyncio.gather(*(model.close(drain=False) for model in self.live.models.values()))
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.store.close()
        self.records.close()

    async def command(self, change: Change, expected_version: int | None = None) -> Live:
        """Carry out a rollout command. Raises RolloutError (409, or 503 if the disk refuses) or ModelError."""
        if change.command in (Command.ABORT, Command.ROLLBACK):
            await self._abort(change)
            return self.live
        await self.sync()  # another process may know better
        transition(self.live.state, change, self.settings.rollout)  # refused before anything is loaded
        opened: dict[str, Batcher] = {}
        try:
            await self._open_for(change, opened)
            async with self._commands:
                await self._commit(change, expected_version, opened)
        finally:  # refused, overtaken, or there meanwhile: nobody else knows of them
            self._close([model for name, model in opened.items() if self.live.model(name) is not model], drain=False)
        return self.live

    async def sync(self) -> None:
        """Let a newer durable state take effect; models it needs are loaded meanwhile. Raises RolloutError (503)."""
        async with self._commands:
            try:
                state = await asyncio.to_thread(self.store.read)
            except SQLAlchemyError as error:
                raise _not_durable(error) from error
            if not self.live.durable or state.version <= self.live.state.version:
                return  # a rollback of ours is on its way to the disk, and will read what is there
            if state.latched and state.rolled_back_at is not None:
                self.telemetry.propagation.observe(max(0.0, time.time() - state.rolled_back_at))
            self._install(state, {})
        for model_id in _needed(state) - set(self.live.models):
            self.spawn(self._catch_up(model_id))
        if self._outbox is not None:
            self._outbox.wake()

    @property
    def blind(self) -> bool:
        """Whether another process may have rolled back without our knowing."""
        return self._follower.blind

    async def load(self, model_id: str) -> Batcher:
        """Have `name/version` loaded beside the rollout's models, until it is unloaded. Raises ModelError."""
        s = self.settings.serving
        if s.workers > 1 and model_id != s.book_model:
            why = f"one of {s.workers} workers would load {model_id}, and the others not hear of it"
            raise ModelError(f"{why}; set serving.workers to 1, or start a rollout", code="several_workers")
        self._beside.add(model_id)
        try:
            return await self._loaded(model_id)
        except ModelError:
            self._beside.discard(model_id)
            raise

    async def unload(self, model_id: str) -> None:
        """Let go of a model that the rollout does not need; what it was asked is still answered. Raises ModelError."""
        async with self._commands:
            model = self.live.model(model_id)
            if model is None:
                raise ModelError(f"{model_id} is not loaded; GET /v1/models says what is", code="model_not_loaded")
            if model_id in _needed(self.live.state):
                raise ModelError(f"the rollout needs {model_id}; end the rollout first", code="model_in_use")
            self._beside.discard(model_id)
            self._keep(self.live.state, dict(self.live.models), durable=self.live.durable)

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

    async def _open(self, model_id: str) -> Batcher:
        model = await open_model(self.settings, model_id)
        model.on_segment = self.telemetry.batch_rows.labels(*model_id.split("/")).observe
        return model

    async def _loaded(self, model_id: str) -> Batcher:
        """The model, loaded if it is not, once however many ask; kept if it is still wanted. Raises ModelError."""
        async with self._loading:
            model = self.live.model(model_id)
            if model is not None:
                return model
            model = await self._open(model_id)
            async with self._commands:
                models = {model_id: model, **self.live.models}
                self._keep(self.live.state, models, durable=self.live.durable)
            if models[model_id] is not model:  # a start was faster
                self._close([model])
        return models[model_id]

    async def _catch_up(self, model_id: str) -> None:
        """Load what a start in another process needs. A candidate that does not load here is rolled back for all."""
        try:
            await self._loaded(model_id)
        except ModelError as error:
            log.error("model_does_not_load", model=model_id, error=str(error))
            if model_id == self.live.state.candidate:
                self.telemetry.rollbacks.labels("not_loadable").inc()
                self._roll_back(Change(Command.ROLLBACK, time.time(), str(error), "service"))

    async def _commit(self, change: Change, expected_version: int | None, opened: dict[str, Batcher]) -> None:
        """Make a change durable, and let it take effect. Under the commands' lock."""
        if not self.live.durable:
            raise RolloutError(
                "a rollback is not on disk yet; free the disk and retry", code="state_not_durable", retryable=True
            )
        try:
            state = await asyncio.to_thread(self.store.apply, change, expected_version)
        except SQLAlchemyError as error:
            raise _not_durable(error) from error
        self._install(state, opened)

    async def _abort(self, change: Change) -> None:
        if self.live.state.latched:
            with suppress(RolloutError):  # a disk that cannot be read stops no abort; here nothing is left to abort
                await self.sync()  # somebody may have started anew a moment ago
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
        self._beside.discard(rejected or "")
        self._keep(after, dict(before.models), durable=False)
        self.telemetry.rollout(after)
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
            models = dict(self.live.models) | await self._champion_unknown_to_memory(state)
            self.live = Live(state, MappingProxyType(models))
            self.telemetry.rollout(state)
        return True

    async def _champion_unknown_to_memory(self, state: RolloutState) -> dict[str, Batcher]:
        """A first start may have reached the disk, with its champion, while a rollback swapped in memory."""
        if state.champion is None or state.champion in self.live.models:
            return {}
        try:
            return {state.champion: await self._open(state.champion)}
        except ModelError as error:  # it loaded a moment ago; without it the service says that it is not ready
            log.error("champion_does_not_load", model=state.champion, error=str(error))
            return {}

    def _install(self, state: RolloutState, models: dict[str, Batcher]) -> None:
        """Let a durable state take effect, unless a rollback overtook it."""
        if not self.live.durable or self.live.state.version > state.version:
            return
        if state.phase is Phase.SHADOW and self.live.state.candidate != state.candidate:
            self.guard.reset()
        if state.phase is Phase.PROMOTED and self.live.state.phase is not Phase.PROMOTED:
            self.guard.reset()  # the new champion is judged by what it does as champion
        self._keep(state, {**models, **self.live.models}, durable=True)
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

    def _keep(self, state: RolloutState, models: dict[str, Batcher], *, durable: bool) -> None:
        """Let `state` take effect with the models it needs and those loaded beside it; the others finish and go."""
        wanted = _needed(state) | self._beside
        kept = {name: model for name, model in models.items() if name in wanted}
        self.live = Live(state, MappingProxyType(kept), durable=durable)
        # A model that lost its traffic to a rollback ends at once: whoever waits for it is answered by the stable one.
        self._close([model for name, model in models.items() if name not in wanted], drain=durable)

    def _close(self, models: list[Batcher], *, drain: bool = True) -> None:
        for model in models:
            self.spawn(model.close(drain=drain))

    async def _open_for(self, change: Change, opened: dict[str, Batcher]) -> None:
        """Load the models a start needs into `opened`, before anything changes. Raises ModelError."""
        for model_id in (change.champion, change.challenger):
            if model_id is not None and model_id not in self.live.models:
                opened[model_id] = await self._open(model_id)
        models = {**opened, **self.live.models}
        champion = models.get(change.champion or self.live.state.champion or "")
        challenger = models.get(change.challenger or "")
        if champion is not None and challenger is not None:
            theirs = challenger.engine
            champion.engine.manifest.market.require(theirs.manifest.market, theirs.id)

    async def _load(self, state: RolloutState, models: dict[str, Batcher]) -> tuple[RolloutState, dict[str, Batcher]]:
        """Models at start-up. A candidate that does not load is rolled back; a stable model must load."""
        stable = state.fallback or state.champion
        if stable is not None and stable not in models:
            models[stable] = await self._open(stable)
        if state.candidate is None:
            return state, models
        try:
            models[state.candidate] = await self._open(state.candidate)
        except ModelError as error:
            log.error("candidate_does_not_load", model=state.candidate, error=str(error))
            self.telemetry.rollbacks.labels("not_loadable").inc()
            state = self.store.apply(Change(Command.ROLLBACK, time.time(), str(error), "service"))
        return state, models

    async def _watch(self) -> None:
        while True:
            self._tick_memory()
            self.telemetry.alerts(self._alerts())
            self.telemetry.watched(self.live.models, log_lines.dropped_lines())
            self.telemetry.state_age.set(self._follower.age_s)
            self.judge()
            due = time.perf_counter() + TICK_S
            await asyncio.sleep(TICK_S)
            self.lag_ms = max(0.0, (time.perf_counter() - due) * 1e3)

    async def _tidy(self) -> None:
        while True:
            await asyncio.to_thread(self.records.tidy)
            await asyncio.sleep(TIDY_S)

    def _tick_memory(self) -> None:
        resident = psutil.Process().memory_info().rss
        self.guard.rss_gb = resident / 1e9
        self.telemetry.resident.set(resident)

    def _alerts(self) -> dict[str, bool]:
        role: Role = "challenger" if self.live.state.challenger else "champion"
        return self.guard.alerts(self.settings.alerts, role) | {
            "degraded": self.ladder.rung is not Rung.FULL,
            "unrecorded": self.records.problem is not None,
        }


def _of_books(model: Batcher) -> None:
    """Raises ModelError if it decides single instruments: it would never be asked."""
    if not isinstance(model.engine.manifest.observation, BookSchema):
        raise ModelError(
            f"serving.book_model: {model.engine.id} decides single instruments; name what `hrm book train` published",
            code="not_a_book_model",
        )


def _needed(state: RolloutState) -> set[str]:
    return {name for name in (state.champion, state.challenger, state.fallback) if name is not None}


def _not_durable(error: SQLAlchemyError) -> RolloutError:
    return RolloutError(f"rollout.db: {error}; free the disk and retry", code="state_not_durable", retryable=True)
