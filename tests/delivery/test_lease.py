"""One controller at a time, and nothing from one that was."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import sqlalchemy as sa
from crashing import ROLLOUT

import delivery.lease
from core.errors import RolloutError
from delivery import tables
from delivery.analysis import Measurement, MeasurementPhase
from delivery.lease import NONE, Lease
from delivery.state_database import Place, database_time
from delivery.store import RolloutStore
from delivery.transitions import Change, Command, Phase

MEASURED = Measurement(3.0, MeasurementPhase.SUCCESSFUL, 0.5, "fine")
LONG_S = 600.0


@pytest.fixture
def store(place: Place) -> Iterator[RolloutStore]:
    store = RolloutStore(place, ROLLOUT)
    yield store
    store.close()


def run_out(store: RolloutStore) -> None:
    with store.engine.begin() as connection:
        connection.execute(sa.update(tables.lease).values(expires_at=0.0))


def expires_in_s(store: RolloutStore) -> float:
    with store.engine.connect() as connection:
        left = sa.select(tables.lease.c.expires_at - database_time(connection))
        return float(connection.execute(left).scalar_one())


def start() -> Change:
    return Change(Command.START, time.time(), champion="ppo/v1", challenger="hrm/v1")


def test_it_is_one_processs_until_it_runs_out(store: RolloutStore) -> None:
    one, two = Lease(store.engine, ttl_s=LONG_S), Lease(store.engine, ttl_s=LONG_S)
    assert one.hold()
    assert not two.hold()
    assert one.hold()
    run_out(store)
    assert two.hold()
    assert not one.hold()
    assert (one.token, two.token) == (NONE, 2)


def test_a_renewal_keeps_the_token_and_moves_the_end(store: RolloutStore) -> None:
    lease = Lease(store.engine, ttl_s=LONG_S)
    assert lease.hold()
    with store.engine.begin() as connection:
        connection.execute(sa.update(tables.lease).values(expires_at=database_time(connection) + 5.0))
    assert lease.hold()
    assert lease.token == 1
    assert LONG_S - 60 < expires_in_s(store) <= LONG_S


def test_who_comes_late_but_before_anybody_else_goes_on(store: RolloutStore) -> None:
    lease = Lease(store.engine, ttl_s=LONG_S)
    lease.hold()
    run_out(store)
    assert lease.hold()
    assert lease.token == 1


def test_released_it_is_free_at_once_and_a_release_of_what_is_lost_takes_nothing_away(store: RolloutStore) -> None:
    one, two = Lease(store.engine, ttl_s=LONG_S), Lease(store.engine, ttl_s=LONG_S)
    one.hold()
    one.release()
    assert one.token == NONE
    assert two.hold()
    three = Lease(store.engine, ttl_s=LONG_S)
    three.token = 1
    three.release()
    assert two.hold()


def test_a_clock_that_was_set_back_keeps_nobody_out(store: RolloutStore) -> None:
    one, two = Lease(store.engine), Lease(store.engine)
    one.hold()
    with store.engine.begin() as connection:
        connection.execute(sa.update(tables.lease).values(expires_at=database_time(connection) + 3600.0))
    assert two.hold()
    assert two.token == 2


def test_of_many_that_ask_at_once_one_gets_it(store: RolloutStore) -> None:
    leases = [Lease(store.engine, ttl_s=LONG_S) for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        held = list(pool.map(Lease.hold, leases))
    assert sum(held) == 1
    assert {lease.token for lease in leases} == {NONE, 1}


def test_a_token_that_was_not_committed_is_nobodys(store: RolloutStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next one gets the same token: two holders of it could not be told apart."""

    def fails(_: str) -> None:
        raise OSError("the server is gone")

    one, two = Lease(store.engine, ttl_s=LONG_S), Lease(store.engine, ttl_s=LONG_S)
    with monkeypatch.context() as patched:
        patched.setattr(delivery.lease, "crash_at", fails)
        with pytest.raises(OSError, match="gone"):
            one.hold()
    assert one.token == NONE
    assert two.hold()
    assert two.token == 1


def test_who_only_waits_writes_nothing(store: RolloutStore) -> None:
    Lease(store.engine, ttl_s=LONG_S).hold()
    expires_in = expires_in_s(store)
    other = Lease(store.engine, ttl_s=LONG_S)
    with store.engine.begin() as blocker:
        blocker.execute(sa.update(tables.lease).values(holder="locked"))
        assert not other.hold()  # does not wait for the lock
    assert expires_in_s(store) <= expires_in


def test_a_lost_lease_writes_neither_measurements_nor_changes(store: RolloutStore) -> None:
    stopped, taker = Lease(store.engine, ttl_s=LONG_S), Lease(store.engine, ttl_s=LONG_S)
    stopped.hold()
    state = store.apply(start(), token=stopped.token)
    store.record_measurement(state.attempt, "background", "errors", MEASURED, token=stopped.token)
    run_out(store)
    taker.hold()
    for write in (
        lambda: store.record_measurement(state.attempt, "background", "errors", MEASURED, token=stopped.token),
        lambda: store.apply(Change(Command.PAUSE, time.time()), token=stopped.token),
        lambda: store.apply(Change(Command.ROLLBACK, time.time()), token=stopped.token),
        lambda: store.apply(Change(Command.PAUSE, time.time()), token=NONE),
    ):
        with pytest.raises(RolloutError) as error:
            write()
        assert error.value.code == "lease_lost"
    assert store.read() == state
    assert store.measurements(state.attempt) == {("background", "errors"): [MEASURED]}
    assert store.apply(Change(Command.PAUSE, time.time()), token=taker.token).paused
    assert store.apply(Change(Command.ROLLBACK, time.time())).phase is Phase.ROLLED_BACK  # a person needs no lease


def test_measurements_are_read_as_they_were_taken_by_attempt_run_and_metric(store: RolloutStore) -> None:
    later = replace(MEASURED, at=2.0, value=None, phase=MeasurementPhase.ERROR, detail="no answer \0")
    for attempt, run, metric, measured in (
        (1, "background", "errors", MEASURED),
        (1, "background", "latency", MEASURED),
        (1, "background", "errors", later),  # the clock was set back: what came later is later
        (1, "stage 1, gate 0", "errors", MEASURED),
        (2, "background", "errors", MEASURED),
    ):
        store.record_measurement(attempt, run, metric, measured)
    kept = replace(later, detail="no answer \N{REPLACEMENT CHARACTER}")
    assert store.measurements(1) == {
        ("background", "errors"): [MEASURED, kept],
        ("background", "latency"): [MEASURED],
        ("stage 1, gate 0", "errors"): [MEASURED],
    }
    assert store.measurements(3) == {}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_no_number_is_kept_as_none(store: RolloutStore, value: float) -> None:
    store.record_measurement(1, "background", "errors", replace(MEASURED, value=value))
    assert store.measurements(1)["background", "errors"][0].value is None
