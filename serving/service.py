"""The running service: what is loaded, who decides, and the one place where that changes.

Memory leads, disk follows, for one kind of change only: a rollback takes effect at once and is made durable after.
Every other change is durable first. `live` is replaced as a whole, so a decision sees one consistent picture. What
another process of this service has made durable takes effect here a moment later (delivery/follow.py).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Mapping
from contextlib import suppress
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import structlog
from sqlalchemy.exc import SQLAlchemyError

from core.errors import ModelError, RolloutError
from core.settings import Settings
from delivery.controller import Controller
from delivery.default_plan import default_plan
from delivery.follow import Follower
from delivery.lease import Lease
from delivery.losses import LossStore
from delivery.plan import Plan
from delivery.refusals import RefusalLog
from delivery.seen import SeenStore
from delivery.state_database import place_of
from delivery.store import RolloutStore
from delivery.transitions import UNSTOPPABLE, Change, Command, Phase, RolloutState, transition
from serving.analyses import Analyses
from serving.batcher import Batcher, open_model
from serving.guard import Guard
from serving.ladder import Ladder
from serving.live import (
    Live,
    applied,
    current,
    facts,
    needed,
    not_durable,
    not_loadable,
    require_books,
    require_same_market,
    require_started,
    require_unchanged,
)
from serving.memory import measure_memory, watch_device
from serving.outbox import Outbox, PrefectApi
from serving.outcomes import Outcomes
from serving.readings import readings, tell
from serving.records import Records, Turns
from serving.refusals import Refusals
from serving.steering import Steering
from serving.telemetry import Telemetry
from serving.watch import tidy, watch

log = structlog.get_logger()

RETRY_S = 0.25
DURABLE_WAIT_S = 5.0  # how long the answer to an abort waits for the disk; the abort itself does not


class Service:
    def __init__(
        self,
        settings: Settings,
        champion: str | None = None,
        prefect: PrefectApi | None = None,
        environ: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """`champion`: name/version, only if the state names none; `environ`: the secrets of webhooks and metrics."""
        self.settings = settings
        self.telemetry = Telemetry()
        alpha = settings.triggers.performance_alpha / settings.serving.workers  # of what all may err together
        self.guard = Guard(settings.triggers.model_copy(update={"performance_alpha": alpha}))
        self.ladder = Ladder(settings.ladder, time.perf_counter)
        self.records = Records(settings.paths.state_dir / "decisions", settings.records)
        self.turns = Turns(self.records)
        self.lag_ms = 0.0  # by which the event loop was late when it was last looked at
        self.live = Live(RolloutState(), default_plan(settings))
        self.steering = Steering(settings, environ)
        self.analyses = Analyses()
        self._first_champion = champion
        self._prefect = prefect
        self.outbox: Outbox | None = None
        self._place = place_of(settings, environ)
        self.follower = Follower(self._place, self.sync)  # blind: another process may have rolled back
        self._loading = asyncio.Lock()
        self._commands = asyncio.Lock()
        self._rollback: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._beside: set[str] = set()  # loaded on request, not by the rollout
        self._aborts = 0  # so far: a start that one of them overtook is over

    async def open(self) -> None:
        """Load what the durable state names, all of it warm. Raises ConfigError or ModelError."""
        s = self.settings
        self.store = RolloutStore(self._place, s.rollout)
        if self._prefect is not None:  # before anything below can roll back
            self.outbox = Outbox(self._prefect, self.store, s.paths.state_dir / "outbox.json")
        state = self.store.read()
        first: dict[str, Batcher] = {}
        if state.champion is None and self._first_champion is not None:
            first[self._first_champion] = await self._open(self._first_champion)  # before it is noted
            _ = first[self._first_champion].engine.manifest.market  # a model of books is none: it raises ModelError
            install = Change(Command.INSTALL, time.time(), "first champion", "service", champion=self._first_champion)
            state = self.store.apply(install)
        state, models = await self._load(state, first)
        self.refusals = Refusals(RefusalLog(self.store.engine), lambda: self.live, self.spawn)
        losses = LossStore(self.store.engine)
        self.outcomes = Outcomes(losses, self.guard, self.telemetry, judge=self.judge, spawn=self.spawn)
        self._install(state, self.store.plan(state), models)
        self.outcomes.load()
        if s.serving.book_model is not None:
            require_books(await self.load(s.serving.book_model))
        measure_memory(self)
        self._lease = Lease(self.store.engine)
        seen = SeenStore(self.store.engine, self._lease.holder)
        measured, source = self.telemetry.measured, readings(self, seen)
        looked = self.telemetry.looks.inc
        self._controller = Controller(self.store, self._lease, self._steer, source, measured=measured, looked=looked)
        self.spawn(self._controller.run())
        self.follower.steady()
        self.spawn(self.follower.run())
        self.telemetry.stands_on(self.ladder.rung)
        self.spawn(watch(self))
        self.spawn(watch_device(self))
        self.spawn(tidy(self))
        self.spawn(tell(self, seen))
        if self.outbox is not None:
            self.spawn(self.outbox.run())

    async def close(self) -> None:
        """Stop running models and background work; what is not durable yet gets a last chance."""
        if self._rollback is not None:
            await asyncio.wait({self._rollback}, timeout=DURABLE_WAIT_S)
        await self.outcomes.close()
        await self.refusals.close()
        await asyncio.gather(*(model.close(drain=False) for model in self.live.models.values()))
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.steering.close()
        with suppress(SQLAlchemyError):  # it runs out by itself
            await asyncio.to_thread(self._lease.release)
        self.store.close()
        self.records.close()

    async def command(self, change: Change, expected_version: int | None = None) -> Live:
        """Carry out a rollout command. Raises RolloutError (409, or 503 if the disk refuses) or ModelError."""
        if change.command in UNSTOPPABLE:
            await self._abort(change)
            return self.live
        opened, aborts = dict[str, Batcher](), self._aborts
        await self.sync()  # another process may know better
        if change.command is Command.START and change.plan is None:
            change = replace(change, plan=default_plan(self.settings))
        judged = await self.steering.require_possible(self.store, change, self.live.state)
        if change.command is Command.PROMOTE:  # what was asked and measured is of this stage, and of no later one
            expected_version = judged if expected_version is None else expected_version
            await require_unchanged(self.live, self.settings)
        try:
            change = await self._open_for(change, opened)
            async with self._commands:
                if aborts != self._aborts:
                    raise RolloutError("an abort came meanwhile; read the rollout and decide again", code="aborted")
                await self._commit(change, expected_version, opened)
        finally:  # refused, overtaken, or there meanwhile: nobody else knows of them
            kept = self.live.models
            self._close([model for name, model in opened.items() if kept.get(name) is not model], drain=False)
        return self.live

    async def _steer(self, change: Change, decided_on: RolloutState) -> None:
        """What the controller decided. Its rollback is of the attempt it has measured, and of no other."""
        await self.sync()
        if self.live.state.attempt == decided_on.attempt:
            with self.refusals.noted(change):
                await self.command(replace(change, attempt=decided_on.attempt), decided_on.version)

    async def sync(self) -> None:
        """Let a newer durable state take effect; models it needs are loaded meanwhile. Raises RolloutError (503)."""
        async with self._commands:
            try:
                state, plan = await asyncio.to_thread(current, self.store)
            except SQLAlchemyError as error:
                raise not_durable(error) from error
            if not self.live.durable or state.version <= self.live.state.version:
                return  # a rollback of ours is on its way to the disk, and will read what is there
            if state.latched and state.rolled_back_at is not None:
                self.telemetry.propagation.observe(max(0.0, time.time() - state.rolled_back_at))
            self._install(state, plan, {})
        for model_id in self.live.missing:
            self.spawn(self._catch_up(model_id))
        if self.outbox is not None:
            self.outbox.wake()

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
            if model_id in needed(self.live.state):
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
            now, attempt = time.time(), state.attempt
            self._roll_back(Change(Command.ROLLBACK, now, trigger, "guard", trigger=trigger, attempt=attempt))

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
            model = self.live.models.get(model_id)
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
            require_started(await self._loaded(model_id), self.live.state)
        except ModelError as error:
            log.error("model_does_not_load", model=model_id, error=str(error))
            if model_id == self.live.state.candidate:
                self.telemetry.rollbacks.labels("not_loadable").inc()
                self._roll_back(not_loadable(error, self.live.state.attempt))

    async def _commit(self, change: Change, expected_version: int | None, opened: dict[str, Batcher]) -> None:
        """Make a change durable, and let it take effect. Under the commands' lock."""
        if not self.live.durable:
            raise RolloutError(
                "a rollback is not on disk yet; free the disk and retry", code="state_not_durable", retryable=True
            )
        try:
            state = await asyncio.to_thread(self.store.apply, change, expected_version)
            plan = await asyncio.to_thread(self.store.plan, state)
        except SQLAlchemyError as error:
            raise not_durable(error) from error
        self._install(state, plan, opened)
        self._controller.wake()
        self.steering.tell(change, state, plan)

    async def _abort(self, change: Change) -> None:
        self._aborts += 1
        if self.live.state.candidate is None:
            with suppress(RolloutError):  # a disk that cannot be read stops no abort; here nothing is left to abort
                await self.sync()  # somebody may have started a moment ago
        if not self.live.state.latched:
            self._roll_back(change)
            self.telemetry.rollbacks.labels(change.trigger).inc()
        if self._rollback is not None:
            await asyncio.wait({self._rollback}, timeout=DURABLE_WAIT_S)

    def _roll_back(self, change: Change) -> None:
        """Swap in memory now, make it durable in the background, however often the disk refuses."""
        before = self.live
        after = transition(before.state, change, self.store.rules(before.state, change))
        rejected = before.state.candidate
        self.follower.unsteady()
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
        if self.outbox is not None:
            self.outbox.wake()

    async def _write_down(self, rollback: Change) -> bool:
        """Whether the disk took it. Under the commands' lock: none of them commits between the disk and `live`."""
        async with self._commands:
            try:
                state, plan = await asyncio.to_thread(applied, self.store, rollback, self.live.plan)
            except Exception as error:  # whatever it is: it is tried again until it is durable
                log.error("rollback_not_durable", error=str(error), remedy="free the disk; retrying")
                return False
            self.follower.steady()
            models = await self._champion_unknown_to_memory(state)
            self.live = replace(self.live, durable=True)
            self._install(state, plan, models)
        for model_id in self.live.missing:  # of an attempt that began meanwhile
            self.spawn(self._catch_up(model_id))
        self.steering.tell(rollback, state, plan)
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

    def _install(self, state: RolloutState, plan: Plan, models: dict[str, Batcher]) -> None:
        """Let a durable state take effect, unless a rollback overtook it."""
        if not self.live.durable or self.live.state.version > state.version:
            return
        if state.attempt != self.guard.ledger.attempt:
            self.guard.reset()
            self.outcomes.begin(state.attempt, plan.limits)
        if state.phase is Phase.PROMOTED and self.live.state.phase is not Phase.PROMOTED:
            self.outcomes.promoted()
        self.live = replace(self.live, plan=plan)
        self._keep(state, {**models, **self.live.models}, durable=True)
        self.telemetry.rollout(state)
        log.info("rollout", **facts(state))

    def _keep(self, state: RolloutState, models: dict[str, Batcher], *, durable: bool) -> None:
        """Let `state` take effect with the models it needs and those loaded beside it; the others finish and go."""
        wanted = needed(state) | self._beside
        kept = {name: model for name, model in models.items() if name in wanted}
        self.live = Live(state, self.live.plan, MappingProxyType(kept), durable=durable)
        # A model that lost its traffic to a rollback ends at once: whoever waits for it is answered by the stable one.
        self._close([model for name, model in models.items() if name not in wanted], drain=durable)

    def _close(self, models: list[Batcher], *, drain: bool = True) -> None:
        for model in models:
            self.spawn(model.close(drain=drain))

    async def _open_for(self, change: Change, opened: dict[str, Batcher]) -> Change:
        """Load the models a start needs into `opened`, before anything changes; it names them. Raises ModelError."""
        for model_id in (change.champion, change.challenger):
            if model_id is not None and model_id not in self.live.models:
                opened[model_id] = await self._open(model_id)
        models = {**opened, **self.live.models}
        champion = models.get(change.champion or self.live.state.champion or "")
        challenger = models.get(change.challenger or "")
        require_same_market(champion, challenger)
        return replace(change, challenger_sha256=challenger.engine.manifest_sha256) if challenger else change

    async def _load(self, state: RolloutState, models: dict[str, Batcher]) -> tuple[RolloutState, dict[str, Batcher]]:
        """Models at start-up. A candidate that does not load is rolled back; a stable model must load."""
        stable = state.fallback or state.champion
        if stable is not None and stable not in models:
            models[stable] = await self._open(stable)
        if state.candidate is None:
            return state, models
        try:
            models[state.candidate] = await self._open(state.candidate)
            require_started(models[state.candidate], state)
        except ModelError as error:
            log.error("candidate_does_not_load", model=state.candidate, error=str(error))
            self.telemetry.rollbacks.labels("not_loadable").inc()
            change = not_loadable(error, state.attempt)
            state = self.store.apply(change)
            self.steering.tell(change, state, self.store.plan(state))
        return state, models
