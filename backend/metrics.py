"""`GET /metrics` of the backend: how trading is, for Prometheus. Read anew at every scrape, where it is durable.

The live process has no such address of its own: that it is gone, or hangs, is the first thing to be told, and then it
could not tell it. What cannot be read is `hrm_desk_readable` 0 for its source, and the others are told all the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import sqlalchemy as sa
from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy.exc import SQLAlchemyError

from backend.dashboard.panel import market_is_open
from core.errors import HrmSystemError
from core.settings import Settings
from serving.scopes import Scope, needs
from trading import drift_record, switch
from trading.events import EventLog
from trading.features import BAR_FEATURES
from trading.ledger import Ledger
from trading.ledger_tables import books
from trading.manual import is_traded
from trading.status import LEDGERS

LIVE = tuple(name for name in LEDGERS if name.startswith("live"))
GAUGES: dict[str, tuple[str, tuple[str, ...]]] = {
    "hrm_trading_switch": ("1 for what the switch says", ("state",)),
    "hrm_live_running": ("1 while a live process has the ledger", ("ledger",)),
    "hrm_live_positions": ("Symbols in which something is held", ("ledger",)),
    "hrm_live_written_timestamp_seconds": ("When the ledger was last written", ("ledger",)),
    "hrm_live_blocked": ("1 for the reason for which a running desk opens nothing", ("ledger", "why")),
    "hrm_drift_features": ("Bar features that the newest drift check found to be others than in training", ()),
    "hrm_feature_psi": (
        "Population stability index of a bar feature, recent sessions to those trained on",
        ("feature",),
    ),
    "hrm_drift_checked_timestamp_seconds": ("When drift was last looked for", ()),
    "hrm_market_open": ("1 while the exchange is in session, by its calendar", ()),
    "hrm_desk_readable": ("0 for what is there and could not be read", ("source",)),
}
Families = dict[str, GaugeMetricFamily]


def router(settings: Settings) -> APIRouter:
    """Over one state directory."""
    routes = APIRouter(tags=["health"])
    registry = CollectorRegistry()
    registry.register(Desk(settings.paths.state_dir))

    @routes.get("/metrics", response_class=Response, responses={200: {"content": {CONTENT_TYPE_LATEST: {}}}})
    @needs(Scope.METRICS_READ, local=True)
    def metrics() -> Response:
        """For Prometheus to scrape."""
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    return routes


class Desk(Collector):
    """The switch, the live ledgers and the newest drift check of a state directory. Any number of scrapes at once."""

    def __init__(self, state_dir: Path, clock: Callable[[], float] = time.time) -> None:
        """`clock`: Unix seconds."""
        self._state_dir, self._clock = state_dir, clock
        self._sources: dict[str, Callable[[Families], None]] = {
            **{name: partial(_ledger, state_dir / name) for name in LIVE},
            drift_record.FILE: partial(_drift, state_dir),
        }

    def collect(self) -> Iterator[Metric]:
        found = {name: GaugeMetricFamily(name, what, labels=labels) for name, (what, labels) in GAUGES.items()}
        stands = switch.read(self._state_dir).state  # never raises: what cannot be read is halted
        for state in switch.STRICTER:
            found["hrm_trading_switch"].add_metric([state], float(state == stands))
        found["hrm_market_open"].add_metric([], float(market_is_open(self._clock())))
        for source, read in self._sources.items():
            found["hrm_desk_readable"].add_metric([source], float(_was_read(read, found)))
        yield from found.values()


def _was_read(read: Callable[[Families], None], found: Families) -> bool:
    try:
        read(found)
    except (HrmSystemError, SQLAlchemyError, OSError, ValueError):  # a gauge tells it: a log would at every scrape
        return False
    return True


def _ledger(file: Path, found: Families) -> None:
    """Nothing of a ledger that nobody ever traded."""
    if not file.exists():
        return
    running = is_traded(file)
    found["hrm_live_running"].add_metric([file.name], float(running))
    found["hrm_live_written_timestamp_seconds"].add_metric([file.name], _written_at(file))
    ledger = Ledger(file, as_it_is=True)
    try:
        found["hrm_live_positions"].add_metric([file.name], _positions(ledger))
        clock = EventLog(ledger).last_of("clock") if running else None
    finally:
        ledger.close()
    gate = None if clock is None else clock.body.get("gate")
    if gate is not None:
        found["hrm_live_blocked"].add_metric([file.name, str(gate)], 1.0)


def _written_at(file: Path) -> float:
    """Unix seconds. SQLite writes beside the file first, and folds that in when the last one closes it."""
    log = file.with_name(f"{file.name}-wal")
    return max(each.stat().st_mtime for each in (file, log) if each.exists())


def _positions(ledger: Ledger) -> int:
    with ledger.engine.connect() as connection:
        query = sa.select(sa.func.count()).select_from(books).where(books.c.units != 0)
        return int(connection.execute(query).scalar_one())


def _drift(state_dir: Path, found: Families) -> None:
    record = drift_record.newest(state_dir)
    if record is not None:
        found["hrm_drift_features"].add_metric([], len(record.drifted))
        found["hrm_drift_checked_timestamp_seconds"].add_metric([], record.at_s)
        for feature in BAR_FEATURES:  # and no other name that a file may have
            if feature in record.psi:
                found["hrm_feature_psi"].add_metric([feature], record.psi[feature])
