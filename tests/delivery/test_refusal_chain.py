"""Refused commands on their chain: in order whoever writes, whole or not there, and never in an abort's way."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace

import pytest
import sqlalchemy as sa

from core.settings import load_settings
from delivery import tables
from delivery.chain import GENESIS, Chain
from delivery.refusals import ONE_AT_A_TIME, REASON_MAX, Refusal, RefusalLog, Refused
from delivery.state_database import Place, writing
from delivery.store import RolloutStore
from delivery.transitions import Change, Command

ONE = Refused(1.5, "anna", "promote", "the rollout is paused; resume it first", "paused", 7)


@pytest.fixture
def store(place: Place) -> Iterator[RolloutStore]:
    store = RolloutStore(place, load_settings(environ={}).rollout)
    yield store
    store.close()


def whole(rows: list[Refusal]) -> bool:
    chain = Chain()
    return all(chain.fits(row.seq, asdict(row)) for row in rows)


def test_what_is_appended_is_read_in_order_and_proves_it(store: RolloutStore) -> None:
    log = RefusalLog(store.engine)
    assert log.read() == []
    log.append([ONE, replace(ONE, actor="ben", times=3)])
    log.append([replace(ONE, reason="a\0b\ud800" + "x" * 3000)])
    rows = log.read()
    assert [(row.seq, row.actor, row.times) for row in rows] == [(1, "anna", 1), (2, "ben", 3), (3, "anna", 1)]
    assert (rows[0].prev_hash, rows[1].prev_hash) == (GENESIS, rows[0].hash)
    assert (rows[2].reason[:4], len(rows[2].reason)) == ("a\N{REPLACEMENT CHARACTER}b?", REASON_MAX)
    assert whole(rows)
    assert log.read(after=2) == rows[2:]
    assert log.read(limit=1) == rows[:1]


@pytest.mark.parametrize("name", ["actor", "reason", "code"])
def test_a_row_that_was_altered_breaks_the_chain(store: RolloutStore, name: str) -> None:
    log = RefusalLog(store.engine)
    log.append([ONE, ONE, ONE])
    with writing(store.engine) as connection:
        connection.execute(sa.update(tables.refusal).where(tables.refusal.c.seq == 2).values({name: "other"}))
    rows = log.read()
    assert not whole(rows)
    assert whole(rows[:1])
    assert not whole([rows[0], rows[2]])


def test_many_writers_make_one_chain(store: RolloutStore) -> None:
    log = RefusalLog(store.engine)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: log.append([replace(ONE, actor=f"a{n}")] * 2), range(12)))
    rows = log.read()
    assert len(rows) == 24
    assert whole(rows)


def test_an_abort_does_not_wait_for_the_writers_of_refusals(store: RolloutStore) -> None:
    if store.engine.dialect.name == "sqlite":
        pytest.skip("one writer at a time, each for the length of its transaction")
    store.apply(Change(Command.START, 1.0, champion="a/v1", challenger="b/v1"))
    with writing(store.engine) as connection:
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(ONE_AT_A_TIME)))
        with ThreadPoolExecutor(1) as pool:
            waits = pool.submit(RefusalLog(store.engine).append, [ONE])
            time.sleep(0.1)
            assert not waits.done()
            assert store.apply(Change(Command.ABORT, 2.0)).latched
            connection.rollback()
            waits.result(10)
    assert len(RefusalLog(store.engine).read()) == 1
