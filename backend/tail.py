"""What happens, read from where it is durable, by one task for everybody: sources in, messages out.

    decisions       records of the inference service (backend/tail_records.py)
    trading         ledgers: fills, positions, refused orders (backend/tail_ledgers.py)
    rollout, switch the log of the rollout, the kill switch (below)
    service         memory and alerts, from its /metrics, as often as Prometheus asks

Each remembers how far it has read. Whatever writes these knows nothing of it: no call, no lock, no row more than
before. A source that cannot be read says so, once, and the others go on.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import httpx
import structlog
from prometheus_client.parser import text_string_to_metric_families

from backend.hub import News, now, utc
from backend.tail_ledgers import LedgerTail
from backend.tail_records import RecordTail
from core.errors import ConfigError, HrmSystemError
from core.settings import Settings
from delivery.state_database import place_of
from delivery.store import Event, RolloutStore
from delivery.transitions import RolloutState
from serving.local_token import read_or_create_token
from trading import switch
from trading.status import LEDGERS
from trading.switch import Switch

POLL_S = 0.05
SERVICE_S = 15.0  # between two looks at the service's metrics
SERVICE_WITHIN_S = 2.0
OPEN_AGAIN_S = 1.0
TOLD_OF_STATE = (
    *("phase", "champion", "challenger", "fallback", "step", "weight", "paused"),
    *("reason", "epoch", "version", "attempt", "trigger", "rolled_back_from"),
)
ALERTING = {"abort", "rollback"}
Vitals = tuple[float, dict[str, bool]]  # resident memory in MB, and which alerts are active

log = structlog.get_logger(__name__)


class Source(Protocol):
    def look(self) -> Iterator[News]:
        """What is new since the last time; at first, how things stand. Raises whatever its reader raises."""


class Tail:
    """All sources of one state directory."""

    def __init__(self, settings: Settings) -> None:
        self.problems: dict[str, str] = {}  # by source: why it cannot be read
        self._settings = settings
        self._service = ServiceTail(settings)
        state_dir = settings.paths.state_dir
        self._sources: dict[str, Source] = {
            "decisions": RecordTail(settings, self._service.memory_mb),
            "rollout": RolloutTail(settings),
            "switch": SwitchTail(settings),
            **{name: LedgerTail(state_dir / name) for name in LEDGERS},
        }

    async def follow(self, publish: Callable[[News], None]) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow_files(publish))
            tasks.create_task(self._service.follow(publish))

    async def _follow_files(self, publish: Callable[[News], None]) -> None:
        while True:
            for news in await asyncio.to_thread(self._look):
                try:
                    publish(news)
                except ValueError as error:  # a number that is none: this message is not sent, the next one is
                    self._note(news.kind, error)
            await asyncio.sleep(POLL_S)

    def _look(self) -> list[News]:
        """In a thread: what all sources found."""
        found: list[News] = []
        for name, source in self._sources.items():
            try:
                found.extend(source.look())
                self.problems.pop(name, None)
            except Exception as error:  # whatever it is: the other sources go on, and this one is tried again
                self._note(name, error)
        return found

    def _note(self, name: str, error: Exception) -> None:
        problem = f"{type(error).__name__}: {error}"
        if self.problems.get(name) != problem:
            log.warning("not_readable", source=name, error=problem, exc_info=not isinstance(error, HrmSystemError))
        self.problems[name] = problem


class SwitchTail:
    """The kill switch, as an alert that stands until trading goes on."""

    def __init__(self, settings: Settings) -> None:
        self._state_dir = settings.paths.state_dir
        self._seen: Switch | None = None

    def look(self) -> Iterator[News]:
        stands = switch.read(self._state_dir)
        if stands != self._seen:
            self._seen = stands
            active = stands.state != "active"
            text = f"trading is {stands.state}" + (f": {stands.reason}" if stands.reason else "")
            yield alert("switch", text, active=active, severity="critical", **switch.facts(stands))


class RolloutTail:
    """The rollout's log, one message for every change, with the state that it led to."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._store: RolloutStore | None = None
        self._version = -1
        self._open_at = 0.0
        self._trouble: ConfigError | None = None

    def look(self) -> Iterator[News]:
        if self._store is None and not self._opened():
            return
        assert self._store is not None  # noqa: S101 - just opened
        if self._version < 0:
            state = self._store.read()
            self._version = state.version
            yield _standing(state)
        for event in self._store.events(self._version):
            self._version = event.version
            yield from _changed(event)

    def _opened(self) -> bool:
        """A service that never ran has no rollout: then this is looked for again, but not all the time."""
        if time.monotonic() < self._open_at:
            if self._trouble is not None:
                raise self._trouble
            return False
        self._open_at, self._trouble = time.monotonic() + OPEN_AGAIN_S, None
        try:
            place = place_of(self._settings)
            if isinstance(place, Path) and not place.exists():
                return False
            self._store = RolloutStore(place, self._settings.rollout, as_it_is=True)
        except ConfigError as error:
            self._trouble = error
            raise
        return True


def _standing(state: RolloutState) -> News:
    shown = asdict(state)
    return News("rollout", {name: shown[name] for name in TOLD_OF_STATE}, now(), state="rollout")


def _changed(event: Event) -> Iterator[News]:
    said = json.loads(event.state)
    state = {name: said.get(name) for name in TOLD_OF_STATE}
    change = {"command": event.command, "actor": event.actor, "why": event.reason}
    yield News("rollout", state | change, utc(event.at), state="rollout")
    if event.command in ALERTING:
        text = f"{event.command} by {event.actor}: {event.reason}"
        yield alert(event.command, text, active=True, severity="critical", lasting=False, version=event.version)


class ServiceTail:
    """The inference service's own view of itself, which nothing durable has: memory, and alerts."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._memory_mb: float | None = None
        self._active: dict[str, bool] = {}

    def memory_mb(self) -> float | None:
        """Resident memory of all workers, at most `SERVICE_S` old; None while the service cannot be asked."""
        return self._memory_mb

    async def follow(self, publish: Callable[[News], None]) -> None:
        token = read_or_create_token(self._settings.paths.state_dir)
        headers = {"Authorization": f"Bearer {token}"}
        url = f"{self._settings.serving.url}/metrics"
        async with httpx.AsyncClient(headers=headers, timeout=SERVICE_WITHIN_S, trust_env=False) as client:
            while True:
                for news in self._told(await _scraped(client, url)):
                    publish(news)
                await asyncio.sleep(SERVICE_S)

    def _told(self, vitals: Vitals | None) -> Iterator[News]:
        self._memory_mb, alerts = vitals or (None, {})
        active = {"service_unreachable": vitals is None} | alerts
        for name, on in active.items():
            if self._active.get(name, False) != on:
                yield alert(name, f"{name} of the inference service", active=on, severity="warning")
        self._active |= active


async def _scraped(client: httpx.AsyncClient, url: str) -> Vitals | None:
    try:
        return _read((await client.get(url)).raise_for_status().text)
    except (httpx.HTTPError, httpx.InvalidURL, ValueError):  # the last of something else that listens there
        return None


def _read(text: str) -> Vitals:
    memory, alerts = 0.0, {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == "process_resident_memory_bytes":
                memory += sample.value / 1e6
            elif sample.name == "hrm_alert_active":
                alerts[sample.labels["alert"]] = sample.value > 0
    return memory, alerts


def alert(name: str, text: str, *, active: bool, severity: str, lasting: bool = True, **more: Any) -> News:
    """For a person. One that is `lasting` stands until it is not active any more."""
    data = {"alert": name, "severity": severity, "active": active, "text": text, **more}
    return News("alert", data, now(), state=f"alert:{name}" if lasting else None)
