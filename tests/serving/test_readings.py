"""What the service says of its candidate, for the analyses of a plan: what all of its workers have seen."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from canaries import canary_of, post, rollout_of
from hypothesis import given
from hypothesis import strategies as st
from test_workers import CONNECTIONS, Everybody, everybody, question, until, workers_of

from core.errors import DataError
from core.gates import Verdict
from core.settings import load_settings
from delivery import tables
from delivery.controller import Controller
from delivery.earned import Earned, Pairs
from delivery.judges import Reading, judge
from delivery.lease import Lease
from delivery.losses import Arms, Ledger, LossStore, Outcome, Page, joined
from delivery.metrics import SERVICE_READINGS, Metric
from delivery.outbound import Outbound
from delivery.plan import Plan
from delivery.providers import External
from delivery.seen import FRESH_S, Seen, SeenStore, buckets, percentile_ms, together
from delivery.state_database import Place
from delivery.store import RolloutStore
from delivery.transitions import Change, Command, Phase, RolloutState
from serving.guard import Guard
from serving.readings import PAIRED, TELL_S, Readings, Together, counted, paired

SETTINGS = load_settings(preset="compact", environ={})
TRIGGERS = SETTINGS.triggers
BATCH = TRIGGERS.performance_batch
NOBODY = (np.zeros(0), np.zeros(0))
ERRORS = {
    "name": "error_rate_exceeded",
    "provider": {"service": "error_ratio"},
    "judge": {"kind": "sprt", "healthy": 0.01, "unhealthy": 0.05, "alpha": 0.001},
    "count": 0,
    "inconclusiveLimit": -1,
    "interval": "1s",
}
WATCHED = Plan.model_validate(
    {
        "steps": [{"pause": {}}, {"setWeight": 100}, {"pause": {}}],
        "backgroundAnalysis": {"templates": [{"name": "watch"}]},
        "analysisTemplates": {"watch": {"metrics": [ERRORS]}},
    }
)


@pytest.fixture
def store(place: Place) -> Iterator[RolloutStore]:
    """With a rollout in the shadow."""
    store = RolloutStore(place, SETTINGS.rollout)
    store.apply(Change(Command.START, time.time(), champion="ppo/v1", challenger="hrm/v1", plan=WATCHED))
    yield store
    store.close()


def worker(store: RolloutStore, name: str) -> SeenStore:
    return SeenStore(store.engine, name)


def all_of(store: RolloutStore) -> Together:
    return Together(store, worker(store, "who reads"), TRIGGERS)


def age(store: RolloutStore, name: str, by_s: float) -> None:
    """As if the worker had told for the last time so long ago."""
    table = tables.reading
    with store.engine.begin() as connection:
        connection.execute(sa.update(table).where(table.c.worker == name).values(at=table.c.at - by_s))


def test_nothing_seen_is_no_data_for_every_reading() -> None:
    for name in SERVICE_READINGS:
        reading = paired(name, NOBODY, BATCH) if name in PAIRED else counted(name, Guard(TRIGGERS).seen("challenger"))
        assert not reading.value, name
        assert reading.hits == 0
        assert name == "rss_gb" or reading.samples == 0
        assert reading.champion is None or not len(reading.champion)


def test_ratios_count_all_runs_of_the_attempt_and_not_only_the_window() -> None:
    now = 0.0
    guard = Guard(TRIGGERS, clock=lambda: now)
    for number in range(1000):
        now += TRIGGERS.window_s / 10
        guard.observe("challenger", 200.0 if number % 4 == 0 else 1.0, failed=number % 10 == 0, segments=1)
    seen = guard.seen("challenger")
    assert 0 < sum(seen.latencies.values()) < 100
    errors, slow = counted("error_ratio", seen), counted("slow_ratio", seen)
    assert (errors.hits, errors.samples, errors.value) == (100, 1000, pytest.approx(0.1))
    assert (slow.hits, slow.samples) == (250, 1000)
    assert counted("samples", seen).value == 1000
    assert counted("p95_ms", seen).value == pytest.approx(200.0, rel=0.025)
    assert not counted("error_ratio", guard.seen("champion")).samples
    guard.reset()
    assert counted("error_ratio", guard.seen("challenger")).samples == 0


def test_a_drop_is_told_once_there_are_batches_enough_and_none_of_a_champion_that_earns_nothing() -> None:
    champion = np.arange(10.0 * BATCH)
    drop = paired("performance_drop", (champion, champion - 10.0), BATCH)
    assert (drop.value, drop.samples) == (pytest.approx(10.0 / champion.mean()), 10 * BATCH)
    assert paired("performance_drop", (champion[:-1], champion[:-1] - 10.0), BATCH).value is None
    assert paired("performance_drop", (0 * champion, champion), BATCH).value is None


latencies_ms = st.lists(st.floats(0.0, 1e4), min_size=1, max_size=200)


@given(latencies_ms, latencies_ms)
def test_percentiles_of_several_workers_are_those_of_all_their_runs(one: list[float], other: list[float]) -> None:
    told = [(0.0, Seen(latencies=buckets(np.array(each)))) for each in (one, other)]
    found = percentile_ms(together(told, 30.0).latencies, 0.95)
    ranked = sorted([*one, *other])
    exact = ranked[max(0, int(np.ceil(0.95 * len(ranked))) - 1)]
    assert found == pytest.approx(exact, rel=0.024, abs=1e-3)


@given(st.lists(st.sampled_from([1.0, 10.0, 99.9, 100.0]), min_size=1))
def test_what_is_never_slower_than_a_limit_of_100_ms_is_never_told_to_be(latencies: list[float]) -> None:
    told = percentile_ms(buckets(np.array(latencies)), 0.95)
    assert told is not None
    assert told <= 100.0
    slower = percentile_ms(buckets(np.full(5, 100.001)), 0.95)
    assert slower is not None
    assert slower > 100.0


def test_a_row_is_read_as_it_was_written_and_replaced_by_the_next(store: RolloutStore) -> None:
    one = worker(store, "one")
    for seen in (Seen(1, 1, 0, {200: 1}, 0.5), Seen(9, 2, 3, {-12: 4, 200: 5}, 0.25)):
        one.write(1, "challenger", seen)
        assert one.read(1, "challenger", 30.0) == seen
    assert one.read(1, "champion", 30.0) == one.read(2, "challenger", 30.0) == Seen()


def test_three_workers_with_faults_of_their_own_are_judged_by_the_sum(store: RolloutStore) -> None:
    """One sees errors, one slowness, one a leak; alone none has evidence enough, together they have."""
    workers = [worker(store, name) for name in ("one", "two", "three")]
    each = (Seen(200, 8, 0, {100: 200}, 0.2), Seen(200, 7, 30, {250: 200}, 0.3), Seen(200, 9, 0, {100: 200}, 5.0))
    for told, seen in zip(workers, each, strict=True):
        told.write(1, "challenger", seen)
    read = all_of(store).read
    errors = read("error_ratio")
    assert (errors.value, errors.samples, errors.hits) == (24 / 600, 600, 24)
    assert (read("slow_ratio").hits, read("samples").value) == (30, 600.0)
    assert (read("rss_gb").value, read("p95_ms").samples) == (5.0, 600)
    assert read("p95_ms").value == pytest.approx(10**2.5, rel=0.03)
    (metric,) = WATCHED.analysis_templates["watch"].metrics
    alone = [judge(metric, counted("error_ratio", seen), {}).verdict for seen in each]
    assert alone == [Verdict.INCONCLUSIVE] * 3
    assert look(store, all_of(store)).latched


def look(store: RolloutStore, source: Together, later_s: float = 0.0) -> RolloutState:
    """One look of a controller that reads what the workers have told."""

    class Told:
        async def read(self, metric: Metric) -> Reading:
            return source.read(str(metric.provider.service))

    lease = Lease(store.engine)

    async def act(change: Change, decided_on: RolloutState) -> None:
        store.apply(change, decided_on.version, token=lease.token)

    asyncio.run(Controller(store, lease, act, Told(), clock=lambda: time.time() + later_s).tick())
    lease.release()
    return store.read()


def test_the_death_of_the_leader_changes_no_total(store: RolloutStore) -> None:
    """The next one's samples are never fewer, so a test that was not over goes on where it was."""
    dead, alive = worker(store, "dead"), worker(store, "alive")
    dead.write(1, "challenger", Seen(500, 5, 50, {100: 30}, 3.0))
    alive.write(1, "challenger", Seen(400, 4, 0, {200: 30}, 0.5))
    first = look(store, all_of(store))
    age(store, "dead", TRIGGERS.window_s + 1)
    restarted = worker(store, "dead, started anew")
    restarted.write(1, "challenger", Seen(0, 0, 0, {}, 0.1))
    second = look(store, all_of(store), later_s=5.0)
    taken = store.measurements(1)["background", "error_rate_exceeded"]
    assert [(one.samples, one.hits) for one in taken] == [(900, 9)] * 2
    assert first.version == second.version
    read = all_of(store).read
    assert read("slow_ratio").hits == 50
    assert read("rss_gb").value == 0.5  # who is dead takes no memory
    assert read("p95_ms").samples == 30  # nor is it slow now
    restarted.write(1, "challenger", Seen(1, 1, 0, {}, 0.1))
    assert read("error_ratio").hits == 10


@pytest.mark.parametrize("by_s", [FRESH_S + 1, -(FRESH_S + 1)])
def test_memory_is_that_of_the_living_also_where_clocks_were_set_back(store: RolloutStore, by_s: float) -> None:
    worker(store, "gone").write(1, "challenger", Seen(rss_gb=9.0))
    age(store, "gone", by_s)
    assert all_of(store).read("rss_gb").value is None


def test_after_a_promotion_the_counts_and_the_pairs_begin_anew(store: RolloutStore) -> None:
    told, losses, read = worker(store, "one"), LossStore(store.engine), all_of(store).read
    told.write(1, "challenger", Seen(100, 1, 0, {}, 0.1))
    earn(losses, [1.0, 2.0], at=time.time())
    assert (read("samples").value, read("outcome_bps").samples) == (100.0, 2)
    for _ in range(2):
        promoted = store.apply(Change(Command.PROMOTE, time.time()))
    assert promoted.phase is Phase.PROMOTED
    assert (read("samples").value, read("outcome_bps").samples) == (0.0, 0)
    told.write(1, "champion", Seen(7, 0, 0, {}, 0.1))
    earn(losses, [3.0], at=promoted.stage_at)
    assert (read("samples").value, read("outcome_bps").samples) == (7.0, 1)


def earn(losses: LossStore, challenger_bps: Sequence[float], at: float, attempt: int = 1) -> None:
    """Outcomes of one batch, in which the champion earned one more."""
    ledger, earned = Ledger(attempt), []
    pages: dict[Page, Arms] = {}
    for bps in challenger_bps:
        outcome = Outcome("A", "2026-03-02", bps + 1.0, bps)
        pages = joined(pages, ledger.add(outcome))
        earned.append(Earned(attempt, at, outcome))
    losses.write(pages, earned)


def test_pairs_are_numbered_in_the_order_of_their_commits_and_read_once(store: RolloutStore) -> None:
    losses, pairs = LossStore(store.engine), Pairs(store.engine, 1)
    assert [len(arm) for arm in pairs.read()] == [0, 0]
    earn(losses, [5.0, 4.0], at=20.0)
    earn(losses, [-1.0], at=30.0, attempt=2)
    assert pairs.read()[1].tolist() == [5.0, 4.0]
    earn(losses, [3.0, 2.0, 1.0], at=10.0)  # of a worker whose clock is late
    assert pairs.read()[1].tolist() == Pairs(store.engine, 1).read()[1].tolist() == [5.0, 4.0, 3.0, 2.0, 1.0]
    assert (pairs.read()[0] - pairs.read()[1]).tolist() == [1.0] * 5
    with store.engine.connect() as connection:
        ids = connection.execute(sa.select(tables.outcome.c.id).where(tables.outcome.c.attempt == 1)).scalars()
        assert sorted(ids) == [1, 2, 3, 4, 5]


def test_of_what_was_lost_one_by_one_the_numbers_are_left_out(store: RolloutStore) -> None:
    losses, ledger = LossStore(store.engine), Ledger(1)
    for bps in (1.0, 2.0, 3.0):
        outcome = Outcome("A", "2026-03-02", 0.0, bps)
        losses.write(ledger.add(outcome), [Earned(1, 1.0, outcome)] if bps != 2.0 else [])
    assert Pairs(store.engine, 1).read()[1].tolist() == [1.0, 3.0]


def source_of(store: RolloutStore, rss_gb: float = 0.5) -> Readings:
    guard = Guard(TRIGGERS)
    guard.rss_gb = rss_gb
    return Readings(all_of(store), guard, External(Outbound(SETTINGS.delivery), {}), lambda: asyncio.sleep(0))


def metric_of(name: str) -> Metric:
    kinds = SERVICE_READINGS[name]
    judged: dict[str, Any] = (
        {"failureCondition": "result > 1"} if "threshold" in kinds else {"judge": {"kind": "conf_seq"}}
    )
    return Metric.model_validate({"name": name, "provider": {"service": name}} | judged)


def test_a_process_knows_its_own_memory_before_it_has_told(store: RolloutStore) -> None:
    assert asyncio.run(source_of(store).read(metric_of("rss_gb"))).value == 0.5
    worker(store, "larger").write(1, "challenger", Seen(rss_gb=2.0))
    assert asyncio.run(source_of(store).read(metric_of("rss_gb"))).value == 2.0


@pytest.mark.parametrize("name", SERVICE_READINGS)
def test_without_the_database_nothing_is_measured_and_ones_own_counts_least_of_all(
    store: RolloutStore, name: str
) -> None:
    source = source_of(store)
    with store.engine.begin() as connection:
        for table in (tables.reading, tables.outcome):
            table.drop(connection)
    with pytest.raises(DataError, match="what the workers have seen cannot be read") as error:
        asyncio.run(source.read(metric_of(name)))
    assert (error.value.code, error.value.retryable) == ("provider_failed", True)


def test_a_row_that_nobody_could_have_written_is_an_error_of_measuring(store: RolloutStore) -> None:
    worker(store, "one").write(1, "challenger", Seen(1, 0, 0, {1: 1}, 0.1))
    for text in ("", "[]", '{"a": 1}', '{"1": null}'):
        with store.engine.begin() as connection:
            connection.execute(sa.update(tables.reading).values(latency_buckets=text))
        with pytest.raises(DataError, match="of one in table `reading`"):
            asyncio.run(source_of(store).read(metric_of("samples")))


def rows(folder: Path, query: str) -> list[Any]:
    with closing(sqlite3.connect(folder / "rollout.db")) as connection:
        return connection.execute(query).fetchall()


def told(folder: Path) -> dict[str, int]:
    """Runs by worker."""
    return dict(rows(folder, "SELECT worker, runs FROM reading"))


def decide_each(clients: Everybody, first: int) -> None:
    """Questions that no worker has heard before: what is known already is not run."""
    for number, client in enumerate(clients.clients, first):
        client.post("/v1/decisions", json=question(level=number / 100)).raise_for_status()


def test_what_workers_have_seen_outlives_them_and_is_judged_with_what_others_see(tmp_path: Path) -> None:
    with canary_of(WATCHED, tmp_path, serving={"workers": 2}) as service:
        with everybody(service) as clients:
            decide_each(clients, 0)
        until(lambda: sum(told(tmp_path).values()) == CONNECTIONS)
        before = told(tmp_path)
        assert len(before) == 2
        for process in workers_of(service):  # one of them is the controller
            process.kill()
        until(lambda: len(told(tmp_path)) == 4)
        with everybody(service) as clients:
            decide_each(clients, CONNECTIONS)
        until(lambda: sum(told(tmp_path).values()) == 2 * CONNECTIONS)
        assert before.items() <= told(tmp_path).items()
        samples = "SELECT samples FROM measurement WHERE phase != 'error' ORDER BY id"
        until(lambda: rows(tmp_path, samples)[-1:] == [(2 * CONNECTIONS,)])
        assert rows(tmp_path, samples) == sorted(rows(tmp_path, samples))


def test_nothing_is_told_any_more_once_there_is_nothing_to_judge(tmp_path: Path) -> None:
    with canary_of(WATCHED, tmp_path) as process:
        until(lambda: bool(told(tmp_path)))
        post(process, "/v1/rollout/abort", {})
        assert rollout_of(process)["latched"]
        silent_s = "SELECT (julianday('now') - 2440587.5) * 86400 - max(at) FROM reading"
        until(lambda: rows(tmp_path, silent_s)[0][0] > 3 * TELL_S)
