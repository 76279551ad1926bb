"""Money lost: curves that join, pages that many processes write, and limits that are the plan's."""

from __future__ import annotations

import contextlib
import multiprocessing
import random
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import DataError
from core.settings import load_settings
from delivery import losses
from delivery.losses import BOOK, EVER, Arms, BreachKind, Equity, Ledger, LossStore, Outcome, Page, joined
from delivery.plan import Limits
from delivery.state_database import Place, open_engine
from delivery.store import RolloutStore

DAY, NEXT = "2026-03-02", "2026-03-03"
whole_bps = st.integers(-300, 300).map(float)  # sums of these are exact: what is compared is the logic
outcomes = st.builds(Outcome, st.sampled_from("ABC"), st.sampled_from([DAY, NEXT]), whole_bps, whole_bps)


def limits(**fields: Any) -> Limits:
    return Limits.model_validate(fields)


def outcome(challenger_bps: float, symbol: str = "A", day: str = DAY, champion_bps: float = 0.0) -> Outcome:
    return Outcome(symbol, day, champion_bps, challenger_bps)


def ledger_of(taken: Sequence[Outcome], within: Limits | None = None) -> Ledger:
    ledger = Ledger(1, within or Limits())
    for each in taken:
        ledger.add(each)
    return ledger


def curve(values: Sequence[float]) -> Equity:
    sums = list(accumulate(values, initial=0.0))
    return Equity(sums[-1], max(sums))


@given(st.lists(whole_bps, max_size=30), st.lists(whole_bps, max_size=30), st.lists(whole_bps, max_size=30))
def test_curves_in_a_row_are_one_curve_however_they_are_cut(
    one: list[float], two: list[float], three: list[float]
) -> None:
    a, b, c = curve(one), curve(two), curve(three)
    assert a.then(b).then(c) == a.then(b.then(c)) == curve([*one, *two, *three])
    assert Equity().then(a) == a == a.then(Equity())


@given(st.lists(outcomes, max_size=40))
def test_every_page_is_the_curve_of_its_own_outcomes(taken: list[Outcome]) -> None:
    ledger = ledger_of(taken)
    for day in (EVER, DAY, NEXT):
        for symbol in (BOOK, "A", "B", "C"):
            mine = [each for each in taken if day in (EVER, each.day) and symbol in (BOOK, each.symbol)]
            page = ledger.page(Page(1, day, symbol))
            assert page.outcomes == len(mine)
            assert page.champion == curve([each.champion_bps for each in mine])
            assert page.challenger == curve([each.challenger_bps for each in mine])


def breached(taken: Sequence[Outcome], within: Limits) -> bool:
    """Whether any outcome passed a limit, written down a second time without any of the ledger's shortcuts."""
    for n in range(1, len(taken) + 1):
        seen = taken[:n]
        symbols = sorted({each.symbol for each in seen})
        books = [(symbol, within.symbol, 1) for symbol in symbols]
        if n > len(symbols):
            books.append((BOOK, within.book, len(symbols)))
        for symbol, allowed, share in books:
            mine = [each for each in seen if symbol in (BOOK, each.symbol)]
            ever = curve([each.challenger_bps for each in mine])
            if allowed.max_drawdown_pct and ever.drawdown_bps / share > 100 * allowed.max_drawdown_pct:
                return True
            for day in {each.day for each in mine}:
                lost_bps = -sum(each.challenger_bps for each in mine if each.day == day)
                if allowed.max_daily_loss_pct and lost_bps / share > 100 * allowed.max_daily_loss_pct:
                    return True
    return False


pct = st.none() | st.integers(1, 8).map(float)
some_limits = st.builds(
    lambda *four: limits(
        symbol={"maxDrawdownPct": four[0], "maxDailyLossPct": four[1]},
        book={"maxDrawdownPct": four[2], "maxDailyLossPct": four[3]},
    ),
    pct, pct, pct, pct,
)  # fmt: skip


@given(st.lists(outcomes, max_size=25), some_limits)
def test_a_breach_is_found_with_the_very_outcome_that_passes_a_limit(taken: list[Outcome], within: Limits) -> None:
    ledger = Ledger(1, within)
    for n, each in enumerate(taken, 1):
        ledger.add(each)
        assert (ledger.breach is not None) == breached(taken[:n], within)


@pytest.mark.parametrize(
    ("within", "kind"),
    [
        (limits(symbol={"maxDrawdownPct": 1}), BreachKind.DRAWDOWN),
        (limits(symbol={"maxDailyLossPct": 1}), BreachKind.DAILY_LOSS),
        (limits(book={"maxDrawdownPct": 1}), BreachKind.DRAWDOWN),
        (limits(book={"maxDailyLossPct": 1}), BreachKind.DAILY_LOSS),
    ],
)
def test_the_limit_itself_is_allowed_and_one_basis_point_more_is_not(within: Limits, kind: BreachKind) -> None:
    ledger = ledger_of([outcome(-40.0), outcome(-60.0)], within)
    assert ledger.breach is None
    ledger.add(outcome(-1.0))
    assert ledger.breach is not None
    assert (ledger.breach.kind, ledger.breach.lost_pct, ledger.breach.limit_pct) == (kind, 1.01, 1.0)


def test_a_drawdown_goes_on_over_days_and_a_daily_loss_does_not() -> None:
    taken = [outcome(-90.0), outcome(-90.0, day=NEXT)]
    assert ledger_of(taken, limits(symbol={"maxDailyLossPct": 1})).breach is None
    found = ledger_of(taken, limits(symbol={"maxDrawdownPct": 1})).breach
    assert found is not None
    assert found.symbol == "A"


def test_a_drawdown_is_from_the_highest_point_and_a_daily_loss_from_the_days_beginning() -> None:
    taken = [outcome(150.0), outcome(-140.0)]
    assert ledger_of(taken, limits(symbol={"maxDailyLossPct": 1})).breach is None
    assert ledger_of(taken, limits(symbol={"maxDrawdownPct": 1})).breach is not None


def test_what_comes_late_counts_for_its_own_day() -> None:
    taken = [outcome(-90.0), outcome(5.0, day=NEXT), outcome(-11.0)]
    found = ledger_of(taken, limits(symbol={"maxDailyLossPct": 1})).breach
    assert found is not None
    assert found.lost_pct == pytest.approx(1.01)


def test_a_losing_champion_breaches_nothing() -> None:
    taken = [outcome(0.0, champion_bps=-5000.0)] * 5
    tight = {"maxDrawdownPct": 0.1, "maxDailyLossPct": 0.1}
    ledger = ledger_of(taken, limits(symbol=tight, book=tight))
    assert ledger.breach is None
    assert ledger.of_book("champion")["drawdown_bps"] == 25_000.0


def test_the_book_is_the_mean_over_symbols_and_waits_until_one_has_come_round_again() -> None:
    within = limits(book={"maxDailyLossPct": 1})
    ledger = ledger_of([outcome(-150.0, "A"), *(outcome(0.0, name) for name in "BCD")], within)
    assert ledger.breach is None  # the first of four symbols is not the book
    ledger.add(outcome(-260.0, "A"))
    assert ledger.breach is not None
    assert (ledger.breach.symbol, ledger.breach.lost_pct) == (BOOK, 1.025)


def test_without_limits_everything_may_be_lost() -> None:
    assert ledger_of([outcome(-10_000.0)] * 3).breach is None


def test_a_ledger_that_is_full_takes_what_it_knows_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "MAX_PAGES", 4)
    ledger = ledger_of([outcome(-1.0), outcome(-1.0)])
    for other in (outcome(1.0, "B"), outcome(1.0, day=NEXT)):
        with pytest.raises(DataError, match="has 4 of them"):
            ledger.add(other)
    assert ledger.book().outcomes == 2


@pytest.fixture
def engine(place: Place) -> Iterator[sa.Engine]:
    """Of a state database on SQLite, and of one on Postgres."""
    store = RolloutStore(place, load_settings(environ={}).rollout)
    yield store.engine
    store.close()


@settings(max_examples=30)
@given(st.lists(st.lists(outcomes, min_size=1, max_size=6), max_size=8))
def test_the_database_joins_batches_as_the_ledger_does(batches: list[list[Outcome]]) -> None:
    engine = sa.create_engine("sqlite://", poolclass=sa.StaticPool, connect_args={"isolation_level": None})
    losses.metadata.create_all(engine)
    require_joined(LossStore(engine), batches)
    engine.dispose()


def test_each_database_joins_batches_as_the_ledger_does(engine: sa.Engine) -> None:
    rng = random.Random(1)
    bps = [[rng.randint(-300, 300) for _ in range(rng.randint(1, 6))] for _ in range(20)]
    require_joined(LossStore(engine), [[outcome(x, "ABC"[x % 3], (DAY, NEXT)[x % 2], -x) for x in row] for row in bps])


def require_joined(store: LossStore, batches: list[list[Outcome]]) -> None:
    expected: dict[Page, Arms] = {}
    for batch in batches:
        new: dict[Page, Arms] = {}
        for each in batch:
            new = joined(new, dict.fromkeys(each.pages(7), each.arms))
        expected = joined(expected, new)
        now, symbols = store.write(new)
        assert now == {page: expected[page] for page in new}
        assert symbols == {7: len({page.symbol for page in expected if page.symbol})}
    assert store.read(7) == expected
    assert store.read(8) == {}


def test_what_is_on_the_disk_is_there_for_the_next_process_and_breaches_again(engine: sa.Engine) -> None:
    within = limits(symbol={"maxDrawdownPct": 1})
    store, ledger = LossStore(engine), Ledger(3, within)
    for bps in (-60.0, -50.0):
        store.write(ledger.add(outcome(bps)))
    again = Ledger(3, within)
    again.know(LossStore(engine).read(3))
    assert again.breach == ledger.breach is not None
    assert again.statistics() == ledger.statistics()


def test_a_transaction_that_fails_leaves_no_page(engine: sa.Engine) -> None:
    store = LossStore(engine)
    pages = Ledger(1).add(outcome(-5.0))
    last = dict(sorted(pages.items())) | {max(pages): Arms(outcomes=None)}  # type: ignore[arg-type] # to be refused
    with pytest.raises(sa.exc.IntegrityError):
        store.write(last)
    assert store.read(1) == {}


def test_two_attempts_have_ledgers_of_their_own(engine: sa.Engine) -> None:
    store = LossStore(engine)
    store.write(joined(Ledger(1).add(outcome(-5.0)), Ledger(2).add(outcome(7.0))))
    assert [store.read(n)[Page(n, EVER, BOOK)].challenger.bps for n in (1, 2)] == [-5.0, 7.0]


WRITERS, EACH = 3, 20


def _write(place: Place, number: int, together: Any) -> None:
    engine = open_engine(place)
    pages, written = LossStore(engine), 0
    together.wait(60)
    while written < EACH:
        with contextlib.suppress(sa.exc.OperationalError):  # a busy machine; as the service does, once more
            pages.write(Ledger(1).add(outcome(-1.0, symbol=f"S{number % 2}")))
            written += 1
    engine.dispose()


def test_processes_that_write_at_once_lose_nothing(engine: sa.Engine, place: Place) -> None:
    store, spawn = LossStore(engine), multiprocessing.get_context("spawn")
    together = spawn.Barrier(WRITERS)
    writers = [spawn.Process(target=_write, args=(place, n, together)) for n in range(WRITERS)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(120)
    assert [writer.exitcode for writer in writers] == [0] * WRITERS
    book = store.read(1)[Page(1, EVER, BOOK)]
    assert (book.outcomes, book.challenger) == (WRITERS * EACH, Equity(-float(WRITERS * EACH), 0.0))
