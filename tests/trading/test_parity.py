"""A day of the desk beside a backtest of the same decisions: what is the same says so, what differs says why."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from desk_world import DAY, OPENED_NS, World, traded

from core.errors import DataError
from trading import backtest
from trading.backtest import BacktestResult
from trading.costs import nse_index_future_costs
from trading.features import FeatureSettings, schema
from trading.instruments import instrument
from trading.journal import Plan
from trading.market import SECOND_NS, market_of
from trading.parity import LiveDay, Parity, compare, live_day, symbols_of

MODEL = "ppo/v1"
TARGETS = (1, 1, -1, 0, 1)
LOT = 65.0


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    world.ready()
    yield world
    world.close()


def settle(world: World) -> None:
    while world.sends:
        world.fill(world.place())


def trade(world: World, targets: Sequence[int] = TARGETS) -> None:
    """A day, and its end."""
    for target in targets:
        world.decide("NIFTY", target)
        settle(world)
    end(world)


def end(world: World) -> None:
    world.bar("NIFTY", last=True)
    settle(world)


def on_record(world: World) -> LiveDay:
    assert world.ledger is not None
    return live_day(world.ledger, DAY, "NIFTY")


def backtested(world: World, live: LiveDay, targets: Sequence[int] = TARGETS) -> BacktestResult:
    """A backtest that decides the same, whatever the bars."""
    seen = schema(world.settings.observation, interval_s=300)
    rules = world.settings.hierarchical_reasoning_model.complexity_detection
    market = market_of(live.bars, FeatureSettings.of(rules, bars_per_session=75, capital=1e8), seen).between(DAY, DAY)
    wanted = np.zeros((len(live.bars), 3), dtype=np.int64)
    for at, target in zip(market.decision_bars, targets, strict=True):
        wanted[at] = target
    plan = Plan(wanted, np.full(len(live.bars), LOT))
    cost = nse_index_future_costs(0.0, instrument("NIFTY"))
    return backtest.run(plan, market, seen, cost=cost, initial_capital=1e8, lot_units=lambda _: LOT)


def compared(world: World, targets: Sequence[int] = TARGETS) -> Parity:
    live = on_record(world)
    return compare(live, backtested(world, live, targets), MODEL)


def whys(found: Parity) -> list[str]:
    return [row.why for row in found.rows]


def test_a_day_that_went_as_the_backtest_does_is_the_same_and_its_profits_add_up(world: World) -> None:
    trade(world)
    found = compared(world)
    assert found.same
    assert found.reasons() == {}
    assert [row.live.units for row in found.rows] == [LOT, 0, -2 * LOT, LOT, LOT, -LOT]
    assert [row.live.decision for row in found.rows][-1] == "square_off"
    assert found.live_rupees == pytest.approx(world.desk.equity.now - 1e8)
    assert found.live_rupees == pytest.approx(sum(row.live.net_rupees for row in found.rows))
    live = on_record(world)
    assert found.backtest_rupees == pytest.approx(float(backtested(world, live).net[0]))
    assert live.models == {MODEL: 5}


def test_prices_are_measured_against_what_the_market_asked_and_what_the_backtest_paid(world: World) -> None:
    trade(world)
    first = compared(world).rows[0]
    assert first.live.price is not None
    assert first.backtest.price is not None
    assert first.slippage_bps == pytest.approx(1e4 * (first.live.price / 24_000.0 - 1))
    assert first.from_backtest_bps == pytest.approx(1e4 * (first.live.price / first.backtest.price - 1))
    third = compared(world).rows[2]  # sold: a lower price is the worse one
    assert third.live.price is not None
    assert third.slippage_bps == pytest.approx(-1e4 * (third.live.price / 24_000.0 - 1))


def test_another_decision_is_named_and_what_follows_from_it(world: World) -> None:
    trade(world, (1, 1, 1, 1, 1))
    found = compared(world)
    assert not found.same
    assert whys(found) == ["", "", "unexplained", "held_something_else", "held_something_else", ""]


def test_a_bar_without_an_answer_says_so(world: World) -> None:
    world.bar("NIFTY")
    world.answer(world.asks.pop(), None)
    for target in TARGETS[1:]:
        world.decide("NIFTY", target)
        settle(world)
    end(world)
    found = compared(world)
    assert whys(found)[0].startswith("HOLD")
    assert "answer" in whys(found)[0]
    assert found.rows[3].why == ""  # both held the same again


def test_an_order_that_was_filled_in_part_or_not_at_all_says_what_became_of_it(world: World) -> None:
    world.decide("NIFTY", 1)
    broker_id = world.place()
    world.exchange.end(broker_id, "rejected")
    world.tick(1)
    world.snapshot()
    for target in (0, 0, 0, 0):
        world.decide("NIFTY", target)
        settle(world)
    end(world)
    found = compared(world, (1, 0, 0, 0, 0))
    assert whys(found)[0].startswith("rejected")
    assert found.rows[0].live.price is None
    assert found.rows[0].slippage_bps is None


def test_another_model_is_named(world: World) -> None:
    trade(world, (1, 1, 1, 0, 1))
    live = on_record(world)
    found = compare(live, backtested(world, live), "hrm/v9")
    assert whys(found)[2] == "other_model:ppo/v1"


def test_a_day_that_is_not_over_says_so_where_the_backtest_closes(world: World) -> None:
    for target in TARGETS:
        world.decide("NIFTY", target)
        settle(world)
    live = on_record(world)
    found = compare(live, backtested(world, live, TARGETS[:-1]), MODEL)
    assert whys(found) == ["", "", "", "", "day_not_over"]
    assert found.live_rupees == pytest.approx(world.desk.equity.now - 1e8)


def test_bars_after_the_one_that_squares_off_are_not_compared(world: World) -> None:
    trade(world)
    world.bar("NIFTY")
    found = compared(world)
    assert found.same
    assert len(found.rows) == len(TARGETS) + 1


def test_trades_by_hand_are_not_the_same(world: World) -> None:
    """They are in the position when they are adopted."""
    trade(world)
    adopting = world.settings.live.manual_positions == "adopt"
    world.exchange.trade_by_hand(traded("NIFTY"), 65, OPENED_NS + 3600 * SECOND_NS)
    world.snapshot()
    found = compared(world)
    assert (found.by_hand > 0) == adopting
    assert found.same != adopting


def test_a_day_without_bars_is_refused(world: World) -> None:
    assert world.ledger is not None
    assert symbols_of(world.ledger, DAY) == []
    with pytest.raises(DataError) as refused:
        live_day(world.ledger, DAY, "NIFTY")
    assert refused.value.code == "no_events"
    trade(world)
    assert symbols_of(world.ledger, DAY) == ["NIFTY"]
