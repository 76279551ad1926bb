"""The event log keeps what it was told, bit for bit, in order, and for ever."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest
import sqlalchemy as sa
from desk_world import a_bar, answer
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.exc import DatabaseError

from core.errors import DataError
from trading import events
from trading.broker import Holding, OrderReport, Snapshot, Trade
from trading.events import Event, EventLog
from trading.ledger import Ledger
from trading.market import DAY_NS
from trading.switch import Switch

TRADE = Trade("t1", "b1", "HRMX", "NSE:NIFTY26MARFUT", -65, 24_000.05, 17)
SNAPSHOT = Snapshot(5, (OrderReport("b1", "", "X", 65, 0, "open"),), (TRADE,), (Holding("X", -65),), 1e6)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    ledger = Ledger(tmp_path / "live.db")
    yield ledger
    ledger.close()


def test_events_come_back_in_order_from_another_process(ledger: Ledger) -> None:
    log = EventLog(ledger)
    told = [log.append("clock", events.clock_body({"NIFTY": (0.1 + 0.2, 3)}, None), at_ns=at) for at in (1, 2, 5)]
    again = Ledger(ledger.path)
    assert list(EventLog(again).of_day(date(1970, 1, 1))) == told
    assert events.quotes_of(told[0]) == {"NIFTY": (0.1 + 0.2, 3)}
    again.close()


def test_time_never_goes_back_not_even_in_a_new_process(ledger: Ledger) -> None:
    EventLog(ledger).append("epoch", {"epoch": 1}, at_ns=100)
    assert EventLog(ledger).append("epoch", {"epoch": 2}, at_ns=50).at_ns == 100


@pytest.mark.parametrize("change", ["UPDATE events SET at_ns = 0", "DELETE FROM events"])
def test_what_is_written_stays(ledger: Ledger, change: str) -> None:
    EventLog(ledger).append("epoch", {"epoch": 1}, at_ns=100)
    with pytest.raises(DatabaseError), ledger.engine.begin() as connection:
        connection.execute(sa.text(change))


@pytest.mark.parametrize("body", [{"price": math.nan}, {"price": math.inf}, {"price": object()}])
def test_what_is_no_json_is_refused_by_name(ledger: Ledger, body: dict[str, object]) -> None:
    with pytest.raises(DataError) as caught:
        EventLog(ledger).append("clock", body, at_ns=1)
    assert caught.value.code == "event_invalid"
    assert EventLog(ledger).last() is None


def test_a_body_of_another_form_is_refused_by_its_number() -> None:
    with pytest.raises(DataError, match="event 7, trade"):
        events.trade_of(Event(7, 1, "trade", "", {"trade_id": "t"}))


def test_features_are_the_newest_history_and_the_bars_since(ledger: Ledger) -> None:
    log = EventLog(ledger)
    bars = [a_bar("NIFTY", number) for number in range(4)]
    for number in (0, 1):
        log.append("history", events.history_body(bars[: number + 1]), at_ns=1, symbol="NIFTY")
        log.append("bar", events.bar_body(bars[number + 2], {}), at_ns=1, symbol="NIFTY")
        log.append("bar", events.bar_body(a_bar("BANKNIFTY", number), {}), at_ns=1, symbol="BANKNIFTY")
    shown = [[bar.timestamp_ns for bar in events.bars_of(event)] for event in log.features("NIFTY")]
    assert shown == [[bars[0].timestamp_ns, bars[1].timestamp_ns], [bars[3].timestamp_ns]]


def test_a_day_is_a_utc_day(ledger: Ledger) -> None:
    log = EventLog(ledger)
    for at_ns in (DAY_NS - 1, DAY_NS, 2 * DAY_NS - 1, 2 * DAY_NS):
        log.append("epoch", {"epoch": 1}, at_ns=at_ns)
    assert [event.at_ns for event in log.of_day(date(1970, 1, 2))] == [DAY_NS, 2 * DAY_NS - 1]


def read_again(ledger: Ledger, kind: events.Kind, body: events.Body) -> Event:
    EventLog(ledger).append(kind, body, at_ns=1, symbol="NIFTY")
    found = EventLog(ledger).last()
    assert found is not None
    return found


def test_every_form_comes_back_as_it_was(ledger: Ledger) -> None:
    bar = replace(a_bar("NIFTY", 3), close=24_000.1 + 0.2, last_of_session=True)
    (back,) = events.bars_of(read_again(ledger, "bar", events.bar_body(bar, {})))
    assert repr(back) == repr(bar)  # as text: a NaN is no number
    said = answer(0, 1)
    body = events.answer_body(3, said, asked=events.digest_of({"a": 1}), elapsed_ms=1.5, prices={})
    assert events.answer_of(read_again(ledger, "answer", body)) == said
    assert events.trade_of(read_again(ledger, "trade", events.trade_body(TRADE))) == TRADE
    report = OrderReport("b", "HRM", "X", 65, 0, "rejected", "no funds")
    assert events.report_of(read_again(ledger, "order", events.report_body(report))) == report
    switch = Switch("reducing", "me", "why", 3, 4, True)
    assert events.switch_of(read_again(ledger, "state", events.state_body(switch))) == switch


def test_of_a_snapshot_that_changed_nothing_only_time_and_funds_are_written(ledger: Ledger) -> None:
    later = replace(SNAPSHOT, at_ns=9, funds_rupees=2.0)
    whole = read_again(ledger, "snapshot", events.snapshot_body(SNAPSHOT, None))
    assert events.snapshot_of(whole, None) == SNAPSHOT
    short = read_again(ledger, "snapshot", events.snapshot_body(later, SNAPSHOT))
    assert "trades" not in short.body
    assert events.snapshot_of(short, SNAPSHOT) == later
    assert events.snapshot_of(short, None) is None
    other = replace(later, trades=())
    assert events.snapshot_of(read_again(ledger, "snapshot", events.snapshot_body(other, later)), later) == other


@given(st.floats(allow_nan=False, allow_infinity=False), st.floats(min_value=1.0, max_value=1e12))
def test_floats_keep_every_bit(price: float, close: float) -> None:
    trade = replace(TRADE, price=price)
    body = json.loads(json.dumps(events.trade_body(trade)))
    assert events.trade_of(Event(1, 1, "trade", "", body)) == trade
    assert events.digest_of({"close": close}) == events.digest_of(json.loads(json.dumps({"close": close})))
