"""A rollout to play with: the real store, lease and controller; time and readings are the test's."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from core.errors import DataError
from core.settings import Rollout
from delivery.controller import Controller
from delivery.judges import Reading
from delivery.lease import Lease
from delivery.metrics import Metric
from delivery.plan import Plan
from delivery.store import RolloutStore
from delivery.transitions import Change, Command, RolloutState

READINGS = {"good": Reading(0.5), "bad": Reading(2.0), "nothing": Reading()}
LEVEL = {"provider": {"service": "rss_gb"}, "interval": 1, "failureCondition": "result > 1"}


class Scripted:
    """A source that says what the test says."""

    reading = "good"

    async def read(self, metric: Metric) -> Reading:
        if self.reading == "error":
            raise DataError("nobody answers", code="provider_failed", retryable=True)
        return READINGS[self.reading]


class Desk:
    def __init__(self, folder: Path, *, cool_down_s: float = 0.0) -> None:
        self.rollout = Rollout(steps=(100,), salt="s", cool_down_s=cool_down_s)
        self.store = RolloutStore(folder / "rollout.db", self.rollout)
        self.store.apply(Change(Command.INSTALL, 0.0, champion="ppo/v1"))
        self.source = Scripted()
        self.now = 1000.0
        self.appoint()

    def appoint(self) -> None:
        """A controller that knows nothing but what is in the database."""
        self.lease = Lease(self.store.engine)
        self.controller = Controller(self.store, self.lease, self._act, self.source, clock=lambda: self.now)

    async def _act(self, change: Change, decided_on: RolloutState) -> None:
        self.store.apply(change, decided_on.version, token=self.lease.token)

    def ask(self, command: str, **fields: Any) -> RolloutState:
        """Raises RolloutError."""
        return self.store.apply(Change(Command(command), self.now, **fields))

    def start(self, plan: Plan, challenger: str = "hrm/v1") -> RolloutState:
        return self.ask("start", challenger=challenger, plan=plan)

    def look(self, reading: str = "good", after_s: float = 1.0) -> RolloutState:
        self.now += after_s
        self.source.reading = reading
        asyncio.run(self.controller.tick())
        return self.store.read()
