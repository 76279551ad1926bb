"""kill -9 at every edge of what is written: before it, all of it is missing; after it, all of it is there."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from crashing import ROLLOUT, applies, dies_at, holds, measures, opens

from delivery.analysis import Measurement, MeasurementPhase
from delivery.lease import Lease
from delivery.state_database import Place
from delivery.store import RolloutStore, verify_chain
from delivery.transitions import Change, Command, RolloutState

DELIVERY = Path(__file__).resolve().parents[2] / "delivery"
APPLY = {"apply_begun": 0, "apply_swapped": 0, "apply_logged": 0, "apply_committed": 1}  # how many changes are left
LEASE = {"lease_written": False, "lease_committed": True}  # whether it is taken
MEASUREMENT = {"measurement_written": 0, "measurement_committed": 1}


def change(command: str, **fields: str) -> Change:
    return Change(Command(command), time.time(), **fields)


@contextmanager
def opened(place: Place) -> Iterator[RolloutStore]:
    store = RolloutStore(place, ROLLOUT)
    yield store
    store.close()


def test_every_point_has_its_test() -> None:
    code = "".join(file.read_text(encoding="utf-8") for file in DELIVERY.glob("*.py"))
    points = set(re.findall(r'crash_at\("(\w+)"\)', code))
    assert points == {"schema_ready", *APPLY, *LEASE, *MEASUREMENT}


@pytest.mark.parametrize("point", APPLY)
def test_a_change_is_whole_or_not_there(place: Place, point: str) -> None:
    with opened(place) as store:
        for following in (
            change("start", champion="ppo/v1", challenger="hrm/v1"),
            change("promote"),
            change("pause"),
            change("rollback", reason="again"),
        ):
            before = store.read()
            assert dies_at(point, applies, place, following)
            after, events = store.read(), store.events()
            assert after.version == before.version + APPLY[point] == len(events)
            assert APPLY[point] or after == before
            assert verify_chain(events)
            store.plan(after)  # a start that is there has its plan
            if after == before:
                store.apply(following)  # and whoever comes next is not in its way
        assert [event.command for event in store.events()] == ["start", "promote", "pause", "rollback"]


@pytest.mark.parametrize("point", MEASUREMENT)
def test_a_measurement_is_there_or_not(place: Place, point: str) -> None:
    measured = Measurement(1.5, MeasurementPhase.FAILED, 0.25, "0.25 > 0.05")
    with opened(place) as store:
        assert dies_at(point, measures, place, 1, measured)
        expected = {("background", "errors"): [measured]} if MEASUREMENT[point] else {}
        assert store.measurements(1) == expected


@pytest.mark.parametrize("point", LEASE)
def test_a_lease_is_taken_or_free(place: Place, point: str) -> None:
    with opened(place) as store:
        assert dies_at(point, holds, place, 1.0)
        other = Lease(store.engine, ttl_s=1.0)
        assert other.hold() is not LEASE[point]
        deadline = time.monotonic() + 60
        while not other.hold():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert other.token == 1 + LEASE[point]


def test_who_dies_while_it_makes_the_tables_leaves_none(place: Place) -> None:
    assert dies_at("schema_ready", opens, place)
    with opened(place) as store:
        assert store.read() == RolloutState()
