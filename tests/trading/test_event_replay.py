"""The log of a day, told to a new desk over an empty ledger, comes to the same rows; what differs is named."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from desk_world import DAY, HISTORY, World, a_bar, answer, desk_settings, make_desk
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import DataError
from core.settings import Settings
from trading import events
from trading.broker import Holding
from trading.event_replay import Replayed, replay
from trading.ledger import Ledger
from trading.market import DAY_NS
from trading.opening import live_desk, seed, start_body
from trading.stream import Bar


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    world.ready()
    yield world
    world.close()


def trade_a_little(world: World) -> None:
    """A few bars, a crash in the middle, an order of unknown outcome, the end of the session."""
    for target in (1, 1, -1):
        world.decide("NIFTY", target)
        while world.sends:
            world.fill(world.place())
    world.decide("BANKNIFTY", 1, quantity=30.0)
    broker_id = world.place(acknowledged=False)
    world.exchange.fill(broker_id, 30, world.now_ns)
    world.begin()
    world.ready()
    world.bar("NIFTY")
    world.answer(world.asks.pop(), None)
    for symbol in ("NIFTY", "BANKNIFTY"):
        world.bar(symbol, last=True)
    while world.sends:
        world.fill(world.place())


def test_an_order_that_only_the_dead_process_gave_up_is_over_in_the_replay(world: World) -> None:
    world.decide("NIFTY", 1)
    order_id = world.sends.pop().ticket.order_id  # never seen at the exchange
    world.tell("unknown", events.reason_body(order_id, "no answer"))
    world.tick(10)
    world.snapshot()  # says nothing new: the next process cannot read it again
    world.begin()
    world.snapshot()
    world.decide("NIFTY", 1)
    world.fill(world.place())
    assert world.ledger is not None
    assert [each.status for each in world.ledger.orders_of(order_id)] == ["cancelled"]
    assert again(world).differences == ()


class Died(BaseException):
    """A process, in the middle."""


def die_after(world: World, commits: int, event: events.Event) -> None:
    """Handle an event as a process does that dies once so much of it is written."""
    left = iter(range(commits))

    def end(_connection: sa.Connection) -> None:
        if next(left, None) is None:
            raise Died

    assert world.ledger is not None
    sa.event.listen(world.ledger.engine, "commit", end)
    with suppress(Died):
        world.desk.handle(event)
    sa.event.remove(world.ledger.engine, "commit", end)


@pytest.mark.parametrize("commits", range(5))
def test_the_last_process_of_a_day_may_die_in_its_last_event_and_none_begin_since(world: World, commits: int) -> None:
    world.decide("NIFTY", 1)
    world.fill(world.place())
    body = events.bar_body(a_bar("NIFTY", 1, last=True), world.prices())
    die_after(world, commits, world.log.append("bar", body, at_ns=world.now_ns, symbol="NIFTY"))
    assert again(world).differences == ()


def test_a_day_whose_process_died_is_the_same_once_another_one_began_on_a_later_day(world: World) -> None:
    world.decide("NIFTY", 1)
    world.fill(world.place())
    body = events.bar_body(a_bar("NIFTY", 1, last=True), world.prices())
    die_after(world, 1, world.log.append("bar", body, at_ns=world.now_ns, symbol="NIFTY"))
    begin_tomorrow(world, restart=True)
    assert again(world).differences == ()


def test_a_replay_knows_the_orders_of_a_desk_with_a_name(tmp_path: Path) -> None:
    world = World(tmp_path, desk="a name")
    world.ready()
    trade_a_little(world)
    assert again(world).differences == ()
    world.close()


def again(world: World, day: date = DAY, settings: Settings | None = None) -> Replayed:
    return replay(world.ledger, day, settings or world.settings, make_desk)


def test_a_day_with_a_crash_comes_to_the_same_rows(world: World) -> None:
    trade_a_little(world)
    replayed = again(world)
    assert replayed.differences == ()
    assert replayed.questions == 5
    assert replayed.rows["fills"] == len(world.ledger.fills("NIFTY")) + len(world.ledger.fills("BANKNIFTY")) == 5
    assert replayed.equity_rupees == world.desk.equity.now
    assert replayed.earned_rupees == world.desk.equity.now - 1e8 < 0


def test_the_recorded_settings_are_followed_not_today_s(world: World) -> None:
    trade_a_little(world)
    other = desk_settings(world.path.parent, order_lifetime_s=0.001)
    assert again(world, settings=other).differences == ()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("UPDATE fills SET price = price + 1 WHERE seq = 1", "price was"),
        ("UPDATE orders SET units = 99 WHERE seq = 2", "units was 99"),
        ("UPDATE intents SET champion_to = 0 WHERE seq = 1", "champion_to was 0, is 1"),
        ("DELETE FROM fills WHERE seq = 2", "in the replay, and not on record"),
        (
            "INSERT INTO refusals (order_id, symbol, owner, reason, at_ns) SELECT 'x', 'NIFTY', 'y', 'z', max(at_ns) "
            "FROM orders",
            "on record, and not in the replay",
        ),
    ],
)
def test_what_was_changed_afterwards_is_named(world: World, change: str, named: str) -> None:
    trade_a_little(world)
    with world.ledger.engine.begin() as connection:
        connection.exec_driver_sql(change)
    (difference,) = again(world).differences
    assert named in difference


def test_a_question_in_other_words_is_named(world: World) -> None:
    world.bar("NIFTY")
    ask = world.asks.pop()
    world.answer(replace(ask, request=ask.request | {"complexity": 0.5}), answer(0, 1))
    (difference,) = again(world).differences
    assert "asked in other words" in difference


def test_a_day_without_events_is_refused_by_name(world: World) -> None:
    with pytest.raises(DataError) as caught:
        again(world, DAY - timedelta(days=1))
    assert caught.value.code == "no_events"


def begin_tomorrow(world: World, *, restart: bool) -> None:
    world.now_ns += DAY_NS
    if restart:
        world.begin()
        for symbol in world.settings.live.symbols:
            bars = [later(symbol, number) for number in range(-HISTORY, 0)]
            world.tell("history", events.history_body(bars), symbol=symbol)
        world.exchange.orders.clear()  # a new day of the exchange
        held, world.exchange.trades = world.exchange.units(), []
        carried = world.exchange.snapshot(world.now_ns)
        world.hear(replace(carried, holdings=tuple(Holding(name, units) for name, units in held.items())))


def later(symbol: str, number: int) -> Bar:
    bar = a_bar(symbol, number)
    return replace(bar, timestamp_ns=bar.timestamp_ns + DAY_NS, session=bar.session + 1)


@pytest.mark.parametrize("restart", [True, False], ids=["a process a day", "one process"])
def test_a_position_of_the_day_before_goes_along(world: World, restart: bool) -> None:
    world.decide("NIFTY", 1)
    world.fill(world.place())
    world.tick(100)
    begin_tomorrow(world, restart=restart)
    world.tell("bar", events.bar_body(later("NIFTY", 0), world.prices()), symbol="NIFTY")
    world.fill(world.place())
    assert world.units("NIFTY") == 0
    tomorrow = DAY + timedelta(days=1)
    assert again(world, tomorrow).differences == ()
    assert again(world, tomorrow).equity_rupees == pytest.approx(world.desk.equity.now, rel=1e-12)
    assert again(world).differences == ()


def test_an_opening_is_what_the_ledger_was(world: World, tmp_path: Path) -> None:
    trade_a_little(world)
    body = start_body(world.desk)
    other = Ledger(tmp_path / "other.db")
    seed(other, body)
    desk = make_desk(other, world.settings, DAY)
    assert desk.equity == pytest.approx(world.desk.equity) or desk.equity.now == pytest.approx(world.desk.equity.now)
    assert other.last_intent("NIFTY") == world.ledger.last_intent("NIFTY")
    assert other.discrepancies() == []
    other.close()


def test_the_live_desk_is_made_of_the_settings(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "live.db")
    desk = live_desk(ledger, desk_settings(tmp_path), DAY)
    assert {symbol: trader.session_bars for symbol, trader in desk.traders.items()} == {"NIFTY": 75, "BANKNIFTY": 75}
    assert desk.traders["NIFTY"].observation.interval_s == 300
    ledger.close()


@settings(max_examples=10, deadline=None)
@given(targets=st.lists(st.sampled_from([-1, 0, 1]), min_size=1, max_size=8), quantity=st.sampled_from([65.0, 130.0]))
def test_whatever_is_decided_replays(
    targets: list[int], quantity: float, tmp_path_factory: pytest.TempPathFactory
) -> None:
    world = World(tmp_path_factory.mktemp("replayed"))
    world.ready()
    for target in targets:
        world.decide("NIFTY", target, quantity=quantity)
        while world.sends:
            world.fill(world.place())
    assert again(world).differences == ()
    world.close()
