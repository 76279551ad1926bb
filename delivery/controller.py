"""The controller: measures what the plan asks for, and moves the rollout. One of a service's processes at a time.

    every second:  read the durable state ──> hold the lease ──> measure what is due, keep it ──> progress.next_change

Where nothing is under way nothing is written, nor is the lease held.

All it knows is in the database, so whoever takes the lease over goes on where the last one was killed. A change names
the version it was decided on: of two controllers only one can make it. It is not needed for a rollback by the guard or
by a person, and a rollout without it stands still.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

import structlog
from sqlalchemy.exc import SQLAlchemyError

from core.errors import DataError, ModelError, RolloutError
from delivery.analysis import Measurement, MeasurementPhase, Tally, measurement, tallied
from delivery.judges import Args, judge
from delivery.lease import NONE, Lease
from delivery.metrics import Metric
from delivery.plan import Plan
from delivery.progress import Run, measurements, next_change, runs
from delivery.providers import Source
from delivery.store import RolloutStore
from delivery.transitions import ACTIVE, UNSTOPPABLE, Change, Command, RolloutState

log = structlog.get_logger()

TICK_S = 1.0
DENIED, DENIED_RETRY_S = "webhook_denied", 30.0
READ_LIMIT_S = 10.0  # of one reading; the service's own take none

Act = Callable[[Change, RolloutState], Awaitable[None]]  # a change and the state it was decided on


class Controller:
    """`act` carries a change out, and may refuse to; `source` reads what metrics name; `measured` hears each phase.

    `looked` hears of every look at a rollout that went through, by whoever holds the lease: what its plan asks for,
    measurements or none, was done.
    """

    def __init__(
        self,
        store: RolloutStore,
        lease: Lease,
        act: Act,
        source: Source,
        *,
        measured: Callable[[str, str], None] = lambda metric, phase: None,
        looked: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store, self._lease = store, lease
        self._act, self._source = act, source
        self._measured, self._looked, self._clock = measured, looked, clock
        self._attempt, self._token = 0, NONE
        self._asked_on = self._denied = 0  # versions
        self._denied_until = 0.0
        self._acting: asyncio.Future[None] | None = None
        self._woken = asyncio.Event()
        self._taken: dict[tuple[str, str], list[Measurement]] = {}  # as it was when this process took over
        self._tallies: dict[tuple[str, float, str], Tally] = {}

    def wake(self) -> None:
        """Look at once: something has changed."""
        self._woken.set()

    async def run(self) -> None:
        """Until cancelled; trouble is logged once and tried again."""
        try:
            await self._run()
        finally:
            if self._acting is not None:
                self._acting.cancel()

    async def _run(self) -> None:
        trouble = ""
        while True:
            try:
                await self.tick()
                trouble = ""
            except Exception as error:  # whatever it is: without a controller nothing would roll back on an analysis
                self._attempt = 0  # what was kept meanwhile is read again
                if str(error) != trouble:
                    foreseen = isinstance(error, RolloutError | ModelError | SQLAlchemyError)
                    remedy = "the rollout stands still until this is over"
                    log.warning("controller", error=str(error), remedy=remedy, exc_info=not foreseen)
                trouble = str(error)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._woken.wait(), TICK_S)
            self._woken.clear()

    async def tick(self) -> Change | None:
        """One look; the change it led to. Raises RolloutError or SQLAlchemyError."""
        self._carried_out()
        state, plan = await asyncio.to_thread(self._read)
        if state.phase not in ACTIVE and not runs(state, plan, self._clock()):
            return None
        if not await asyncio.to_thread(self._lease.hold):
            self._attempt = 0
            return None
        if self._lease.token != self._token:  # another one may have measured meanwhile
            self._attempt, self._token = 0, self._lease.token
        await self._remember(state)
        for run in runs(state, plan, self._clock()):
            await self._measure(run, state)
        change = next_change(state, plan, self._tally, self._clock())
        self._looked()
        return await self._carry_out(change, state) if change is not None else None

    async def _carry_out(self, change: Change, state: RolloutState) -> Change | None:
        """A rollback at once. Anything else may be asked about for long: looks, and rollbacks, go on meanwhile."""
        if change.command in UNSTOPPABLE:
            self._log(change, state)
            await self._act(change, state)
            return change
        if self._acting is not None or self._is_denied(change, state):
            return None
        self._log(change, state)
        self._asked_on = state.version
        self._acting = asyncio.ensure_future(self._act(change, state))
        await asyncio.wait({self._acting}, timeout=TICK_S)
        return change if self._carried_out() else None

    def _carried_out(self) -> bool:
        """Whether what was begun is done. Raises what it raised."""
        acting = self._acting
        if acting is None or not acting.done():
            return False
        self._acting = None
        try:
            acting.result()
        except (RolloutError, ModelError) as error:
            if error.code == DENIED or isinstance(error, ModelError):
                self._denied, self._denied_until = self._asked_on, self._clock() + DENIED_RETRY_S
            raise
        return True

    def _is_denied(self, change: Change, state: RolloutState) -> bool:
        """A webhook that says no is asked again, but not every second; a clock that was set back waits no longer."""
        waits = 0 < self._denied_until - self._clock() <= DENIED_RETRY_S
        return waits and state.version == self._denied and change.command is not Command.PAUSE

    def _log(self, change: Change, state: RolloutState) -> None:
        log.info("controller", command=change.command, reason=change.reason, version=state.version)

    def _read(self) -> tuple[RolloutState, Plan]:
        state = self._store.read()
        return state, self._store.plan(state)

    async def _remember(self, state: RolloutState) -> None:
        """What was measured in this attempt, by this process or by one before it."""
        if state.attempt == self._attempt:
            return
        self._tallies.clear()
        self._taken = await asyncio.to_thread(self._store.measurements, state.attempt)
        self._attempt = state.attempt

    def _tally(self, run: Run, metric: Metric) -> Tally:
        """Measured once, folded once: a background analysis may run for weeks."""
        key = run.name, run.since, metric.name
        if key not in self._tallies:
            self._tallies[key] = tallied(metric, measurements(run, metric, self._taken))
        return self._tallies[key]

    async def _measure(self, run: Run, state: RolloutState) -> None:
        now = self._clock()
        wanted = [(metric, args) for metric, args in run.metrics if self._tally(run, metric).due(run.since, now)]
        found = await self._while_holding(asyncio.gather(*(self._measurement(*one) for one in wanted)))
        for (metric, _), one in zip(wanted, found, strict=True):
            await asyncio.to_thread(
                self._store.record_measurement, state.attempt, run.name, metric.name, one, token=self._lease.token
            )
            self._tally(run, metric).add(one)
            self._measured(metric.name, one.phase)

    async def _while_holding(self, work: asyncio.Future[list[Measurement]]) -> list[Measurement]:
        """Its result; a reading may take longer than a lease lasts. Raises RolloutError `lease_lost`."""
        while not (await asyncio.wait({work}, timeout=TICK_S))[0]:
            if not await asyncio.to_thread(self._lease.hold):
                work.cancel()
                await asyncio.wait({work})
                raise RolloutError("another process is the controller now", code="lease_lost", retryable=True)
        return work.result()

    async def _measurement(self, metric: Metric, args: Args) -> Measurement:
        try:
            async with asyncio.timeout(READ_LIMIT_S):
                reading = await self._source.read(metric)
            judged = judge(metric, reading, args)
        except TimeoutError:
            return Measurement(self._clock(), MeasurementPhase.ERROR, None, f"no reading within {READ_LIMIT_S:g} s")
        except DataError as error:
            return Measurement(self._clock(), MeasurementPhase.ERROR, None, str(error))
        except Exception as error:  # of one metric: the others are judged all the same
            log.exception("metric_fails", metric=metric.name)
            return Measurement(self._clock(), MeasurementPhase.ERROR, None, f"{type(error).__name__}: {error}")
        return measurement(judged, self._clock(), reading)
