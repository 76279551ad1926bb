"""Durable rollout state, on SQLite or Postgres (delivery/state_database.py), synced to disk at every change.

A change is one transaction: compare-and-set on `version` and one row in an append-only, hash-chained event log.
After a crash at any instant the state and its log are both before or both after the change.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from core.errors import ConfigError, RolloutError
from core.settings import Rollout
from delivery import tables
from delivery.analysis import Measurement, MeasurementPhase
from delivery.chain import GENESIS, Chain, digest, storable
from delivery.crash import crash_at
from delivery.lease import require_token
from delivery.plan import Handover, Plan, frozen_plan, plan_of_steps
from delivery.schema import prepare, require_ready
from delivery.state_database import Place, named, notify, open_engine, writing
from delivery.transitions import UNSTOPPABLE, Change, Command, RolloutState, Rules, transition

MOST = 2**63 - 1  # what an integer of a database holds


@dataclass(frozen=True)
class Event:
    """One change: the state it led to (canonical JSON) and the hash that chains it to the one before."""

    version: int
    at: float  # Unix time, s
    actor: str
    command: str
    reason: str
    state: str
    prev_hash: str
    hash: str


class RolloutStore:
    """The state and its log in one database. Safe to use from several threads and processes."""

    def __init__(self, place: Place, rollout: Rollout, *, as_it_is: bool = False) -> None:
        """Open, create or bring up to date; `as_it_is`: neither of the last two, for who only looks.

        Raises ConfigError when the database cannot be used.
        """
        if as_it_is and isinstance(place, Path) and not place.is_file():
            raise ConfigError(f"{place}: no such file; a service keeps its rollout.db in its state directory")
        self._cool_down_s = rollout.cool_down_s
        self._default_plan = plan_of_steps(rollout.steps)
        self._plans: dict[str, Plan] = {}
        self._engine = open_engine(place)
        try:
            (require_ready if as_it_is else prepare)(self._engine)
        except (ConfigError, sa.exc.DatabaseError) as error:
            self._engine.dispose()
            why = str(error) if isinstance(error, ConfigError) else _in_words(error, place)
            raise ConfigError(f"{named(place)}: not usable as rollout state: {why}") from None

    @property
    def engine(self) -> sa.Engine:
        """Of the state database, for what else is kept there."""
        return self._engine

    def read(self) -> RolloutState:
        with self._engine.connect() as connection:
            return tables.state_of(connection.execute(sa.select(tables.rollout)).mappings().one())

    def plan(self, state: RolloutState) -> Plan:
        """The frozen plan of the state's attempt; the default one before the first attempt.

        Raises RolloutError `plan_altered`.
        """
        self._frozen(state.handover_sha256)  # asked for when there is no time to read
        return self._frozen(state.plan_sha256)

    def handover(self, state: RolloutState) -> Handover:
        """What becomes of positions that a rollback has left. Reads nothing: `plan` of the same state has."""
        return self._plans.get(state.handover_sha256 or "", self._default_plan).handover

    def _frozen(self, sha256: str | None) -> Plan:
        if sha256 is None:
            return self._default_plan
        if sha256 not in self._plans:
            with self._engine.connect() as connection:
                found = connection.execute(
                    sa.select(tables.plan.c.json).where(tables.plan.c.sha256 == sha256)
                ).scalar_one()
            self._plans[sha256] = frozen_plan(found, sha256)
        return self._plans[sha256]

    def apply(self, change: Change, expected_version: int | None = None, *, token: int | None = None) -> RolloutState:
        """Carry out a command durably and return the new state. `token`: of the lease, if it is the controller's.

        Raises RolloutError `invalid_transition`, `stale_version` (somebody else was faster; read and decide again) or
        `lease_lost`. Abort and rollback never lose a race: they re-read and try again, and so does the first
        champion's installation, which several processes attempt at once. Raises sqlalchemy's OperationalError when
        the database refuses.
        """
        change = replace(change, reason=storable(change.reason), actor=storable(change.actor))
        while True:
            before = self.read()
            rules = self.rules(before, change)
            after = transition(before, change, rules)
            unstoppable = change.command in UNSTOPPABLE or change.command is Command.INSTALL
            stale = expected_version is not None and expected_version != before.version
            if stale and not unstoppable:
                raise _stale(before.version)
            if after is before or self._commit(before.version, after, change, rules.plan, token=token):
                return after
            if not unstoppable:
                raise _stale(self.read().version)

    def rules(self, state: RolloutState, change: Change) -> Rules:
        """What `change` is judged by: its own plan if it is a start, the attempt's for anything else."""
        if change.command is Command.START:
            return Rules(change.plan or self._default_plan, self._cool_down_s)
        # A rollback asks no plan, so one that cannot be read stops none.
        unstoppable = change.command in UNSTOPPABLE
        return Rules(self._default_plan if unstoppable else self.plan(state), self._cool_down_s)

    def events(self, after_version: int = 0, limit: int = 1000) -> list[Event]:
        """Up to `limit` events, oldest first, with versions above `after_version`."""
        query = (
            sa.select(tables.event)
            .where(tables.event.c.version > after_version)
            .order_by(tables.event.c.version)
            .limit(limit)
        )
        with self._engine.connect() as connection:
            return [Event(**row) for row in connection.execute(query).mappings()]

    def states(self, attempt: int) -> Iterator[tuple[float, RolloutState]]:
        """Those that an attempt went through, oldest first, with when each began (Unix seconds); none of no attempt."""
        after = attempt - 1
        while attempt and (page := self.events(after)):
            for event in page:
                state = tables.state_from(event.state)
                if state.attempt > attempt:
                    return
                if state.attempt == attempt:  # an older release's event names none
                    yield event.at, state
            after = page[-1].version

    def record_measurement(
        self, attempt: int, run: str, metric: str, measured: Measurement, *, token: int | None = None
    ) -> None:
        """Append a measurement. Raises RolloutError `lease_lost`, and sqlalchemy's errors."""
        finite = measured.value if measured.value is not None and math.isfinite(measured.value) else None
        with writing(self._engine) as connection:
            require_token(connection, token)
            connection.execute(
                sa.insert(tables.measurement).values(
                    attempt=attempt,
                    run=run,
                    metric=metric,
                    at=measured.at,
                    phase=str(measured.phase),
                    value=finite,  # a plot has no place for the others, nor has JSON
                    detail=storable(measured.detail),
                    samples=_counted(measured.samples),
                    hits=_counted(measured.hits),
                )
            )
            crash_at("measurement_written")
        crash_at("measurement_committed")

    def measurements(self, attempt: int) -> dict[tuple[str, str], list[Measurement]]:
        """Those of one attempt by run and metric, in the order in which they were recorded."""
        taken: dict[tuple[str, str], list[Measurement]] = {}
        for run, metric, measured in self.recorded(attempt):
            taken.setdefault((run, metric), []).append(measured)
        return taken

    def recorded(self, attempt: int) -> list[tuple[str, str, Measurement]]:
        """Run, metric and measurement, in the order in which they were recorded."""
        table = tables.measurement.c
        query = sa.select(tables.measurement).where(table.attempt == attempt).order_by(table.id)
        with self._engine.connect() as connection:
            return [(row.run, row.metric, _measured(row)) for row in connection.execute(query)]

    def close(self) -> None:
        self._engine.dispose()

    def _commit(
        self, before_version: int, after: RolloutState, change: Change, plan: Plan, *, token: int | None
    ) -> bool:
        """False when another writer changed the state in between; nothing is written then."""
        crash_at("apply_begun")
        with writing(self._engine) as connection:
            require_token(connection, token)
            row = tables.rollout
            swap = sa.update(row).where(row.c.version == before_version).values(**tables.row_of(after))
            if connection.execute(swap).rowcount == 0:
                return False
            crash_at("apply_swapped")
            if change.command is Command.START:
                _freeze(connection, plan)
            event = _chained(after, change, _latest_hash(connection))
            connection.execute(sa.insert(tables.event).values(**asdict(event)))
            notify(connection, after.version)
            crash_at("apply_logged")
        crash_at("apply_committed")
        return True


def verify_chain(events: Iterable[Event]) -> bool:
    """Whether no event was altered, dropped or inserted since the first one."""
    chain = Chain()
    return all(chain.fits(event.version, asdict(event)) for event in events)


def _freeze(connection: sa.Connection, plan: Plan) -> None:
    """Under the state's lock: nobody else adds the same plan meanwhile."""
    known = sa.select(tables.plan.c.sha256).where(tables.plan.c.sha256 == plan.sha256)
    if connection.execute(known).scalar() is None:
        connection.execute(sa.insert(tables.plan).values(sha256=plan.sha256, json=plan.canonical))


def _latest_hash(connection: sa.Connection) -> str:
    latest = sa.select(tables.event.c.hash).order_by(tables.event.c.version.desc()).limit(1)
    return connection.execute(latest).scalar() or GENESIS


def _measured(row: sa.Row[Any]) -> Measurement:
    return Measurement(row.at, MeasurementPhase(row.phase), row.value, row.detail, row.samples, row.hits)


def _counted(number: int | None) -> int | None:
    """As a database can hold it: somebody's query may have counted to any number."""
    return None if number is None else min(number, MOST)


def _in_words(error: sa.exc.DatabaseError, place: Place) -> str:
    remedy = "restore it, or move it away to start anew" if isinstance(place, Path) else "mend its address or it"
    return f"{' '.join(str(error.orig).split())}; {remedy}"


def _chained(after: RolloutState, change: Change, prev_hash: str) -> Event:
    state = json.dumps(asdict(after), sort_keys=True, allow_nan=False)
    event = Event(after.version, change.now, change.actor, str(change.command), change.reason, state, prev_hash, "")
    return replace(event, hash=digest(asdict(event)))


def _stale(version: int) -> RolloutError:
    return RolloutError(
        f"the rollout changed meanwhile (now version {version}); read it and decide again",
        code="stale_version",
        retryable=True,
    )
