"""What the arms of a rollout earned: judged at once, durable a moment later, however often the database refuses.

    an outcome ──> the ledger in memory ──> a breach rolls back, now
               └─> the batch that is next on its way to the database ──> the pages as all processes together see them
                   ──> the ledger again

An answer waits for its batch, but not long: what the database refuses counts in memory, and is written when it is back.
Of the outcomes one by one (delivery/earned.py) only the latest EARNED_MAX are kept meanwhile; all of them count.

The challenger of ledger and tests is the candidate, after its promotion too: then the arms of an outcome change places.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

import structlog
from sqlalchemy.exc import SQLAlchemyError

from delivery.earned import Earned
from delivery.losses import MAX_PAGES, Arms, Ledger, LossStore, Outcome, Page, joined
from delivery.plan import Limits
from delivery.transitions import ACTIVE
from serving.guard import Guard
from serving.live import Live
from serving.telemetry import Telemetry

log = structlog.get_logger()

RETRY_S = 0.25
WAIT_S = 0.25  # of an answer, for the disk
LAST_CHANCE_S = 5.0
EARNED_MAX = 100_000


class Outcomes:
    """The guard's ledger, and the way from it to the database. Used from the event loop only."""

    def __init__(
        self,
        store: LossStore,
        guard: Guard,
        telemetry: Telemetry,
        *,
        judge: Callable[[], None],
        spawn: Callable[[Coroutine[Any, Any, Any]], asyncio.Task[Any]],
    ) -> None:
        self._store, self._guard, self._telemetry = store, guard, telemetry
        self._judge, self._spawn = judge, spawn
        self._batch: dict[Page, Arms] = {}
        self._earned: list[Earned] = []  # the same, one by one
        self._waiting: list[asyncio.Future[bool]] = []
        self._crossed: set[str] = set()  # symbols whose outcomes are of decisions after the promotion
        self._writer: asyncio.Task[None] | None = None
        self._trouble = ""

    def begin(self, attempt: int, limits: Limits) -> None:
        """Another attempt, with a ledger of its own."""
        self._guard.ledger = Ledger(attempt, limits)
        self._telemetry.lost(self._guard.ledger)

    def promoted(self) -> None:
        """The candidate is judged anew, by what it does as champion; its losses go on."""
        self._guard.reset()
        self._crossed.clear()

    def of_candidate(self, outcome: Outcome, live: Live) -> Outcome | None:
        """The outcome with the candidate as challenger; None where nobody is judged by it.

        A symbol's first one after a promotion is of a decision before it, when the arms had not changed places.
        """
        if live.state.phase in ACTIVE:
            return outcome
        if live.on_trial is None:
            return None
        if outcome.symbol not in self._crossed:
            if len(self._crossed) < MAX_PAGES:
                self._crossed.add(outcome.symbol)
            return None
        return replace(outcome, champion_bps=outcome.challenger_bps, challenger_bps=outcome.champion_bps)

    def load(self) -> None:
        """What was earned before this process began. Raises SQLAlchemyError."""
        ledger = self._guard.ledger
        ledger.know(self._store.read(ledger.attempt))
        self._telemetry.lost(ledger)

    async def add(self, outcome: Outcome) -> bool:
        """Whether it is on the disk; it counts in any case. Raises DataError where there are too many symbols."""
        ledger = self._guard.ledger
        self._batch = joined(self._batch, ledger.add(outcome))
        self._guard.earned(outcome.champion_bps, outcome.challenger_bps)
        self._earned.append(Earned(ledger.attempt, time.time(), outcome))
        self._look()
        if self._writer is None or self._writer.done():
            self._writer = self._spawn(self._write_all())
        if self._trouble:
            return False
        written: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting.append(written)
        await asyncio.wait({written}, timeout=WAIT_S)
        return written.done() and written.result()

    async def close(self) -> None:
        """A last chance for what is not on the disk yet."""
        if self._writer is not None:
            await asyncio.wait({self._writer}, timeout=LAST_CHANCE_S)

    async def _write_all(self) -> None:
        while self._batch:
            batch, self._batch = self._batch, {}
            earned, self._earned = self._earned, []
            waiting, self._waiting = self._waiting, []
            written = await self._write(batch, earned)
            for each in waiting:
                each.set_result(written)
            if not written:
                self._batch = joined(batch, self._batch)
                self._earned = [*earned, *self._earned][-EARNED_MAX:]
                await asyncio.sleep(RETRY_S)

    async def _write(self, batch: dict[Page, Arms], earned: list[Earned]) -> bool:
        """Whether the database took it; then the ledger knows what other processes have added."""
        try:
            pages, symbols = await asyncio.to_thread(self._store.write, batch, earned)
        except SQLAlchemyError as error:
            if not self._trouble:
                log.error("outcomes_not_durable", error=str(error), remedy="mend the state database; retrying")
            self._trouble = str(error)
            return False
        self._trouble = ""
        ledger = self._guard.ledger
        mine = {page: arms for page, arms in pages.items() if page.attempt == ledger.attempt}
        since = {page: self._batch[page] for page in mine.keys() & self._batch.keys()}
        ledger.know(joined(mine, since), symbols.get(ledger.attempt, 0))
        self._look()
        return True

    def _look(self) -> None:
        """Let a breach take effect, and be seen."""
        ledger = self._guard.ledger
        self._telemetry.lost(ledger)
        self._judge()
