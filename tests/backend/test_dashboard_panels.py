"""What panels are made of: records that grow, tear and are replaced, ledgers that others write, and their figures."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import threading
import time
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import sqlalchemy as sa
from desk_stack import SYMBOLS, decided, earned, settings_in, trade
from hypothesis import given
from hypothesis import strategies as st

from backend.dashboard import decision_figures, rollout_panels, trading_panels
from backend.dashboard import tail as tail_module
from backend.dashboard.page import PANELS
from backend.dashboard.panel import MOST_POINTS, Panel, market_is_open, thinned
from backend.dashboard.panel_routes import Panels
from backend.dashboard.reading import Shared, read_only
from backend.dashboard.rollout_panels import RolloutReader
from backend.dashboard.tail import Tail
from core.settings import Settings
from delivery.store import RolloutStore
from delivery.transitions import Change, Command
from serving.audit import read
from trading.calendar import KOLKATA
from trading.costs import flat_costs
from trading.events import EventLog, bar_body, clock_body
from trading.gateway import OrderGateway
from trading.ledger import Fill, Ledger, Order
from trading.manual import Answer, ManualTrade, Requests, answer, command
from trading.market import Bars
from trading.paper import PaperBroker
from trading.stream import Bar


@pytest.fixture(scope="module")
def traded(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A day on record, and a rollout in the shadow."""
    folder = tmp_path_factory.mktemp("traded")
    settings = settings_in(folder)
    store = RolloutStore(folder / "rollout.db", settings.rollout)
    start = Change(Command.START, time.time(), "begin", "asha", champion="ppo/v1", challenger="hrm/v1")
    attempt = store.apply(start).attempt
    store.close()
    decided(folder)
    earned(folder, attempt)
    trade(settings)
    return settings


def made(settings: Settings, name: str, chosen: str = "") -> dict[str, Any]:
    found: dict[str, Any] = json.loads(asyncio.run(Panels(settings).get(name, chosen)))
    return found


@pytest.mark.parametrize("name", [panel.name for panel in PANELS])
def test_every_panel_of_the_page_is_there_and_says_in_words_why_it_is_empty(name: str, tmp_path: Path) -> None:
    told = made(settings_in(tmp_path), name)
    assert (told["figure"], told["table"], told["as_of"]) == (None, None, None)
    assert any(remedy in told["empty"] for remedy in ("hrm ", "begin"))
    assert not (tmp_path / "rollout.db").exists()  # looking makes nothing


@pytest.mark.parametrize("name", [panel.name for panel in PANELS if panel.name != "verdicts"])
def test_every_panel_shows_what_is_on_record_and_its_age(name: str, traded: Settings) -> None:
    told = made(traded, name)
    assert told["empty"] is None
    assert (told["figure"] is None) != (told["table"] is None)
    assert 0 <= told["now"] - told["as_of"] < 9 * 3600


def test_a_file_that_is_none_spoils_its_own_panel_and_no_other(traded: Settings, tmp_path: Path) -> None:
    for name in ("paper.db", "rollout.db"):
        (tmp_path / name).write_bytes(b"no database, whatever it is called" * 100)
    settings = settings_in(tmp_path)
    decided(tmp_path, 20)
    for name in ("price", "positions", "log", "timeline", "equity", "verdicts"):
        assert "cannot be read now: file is not a database" in made(settings, name)["empty"]
    assert made(settings, "latency")["figure"]


def test_an_event_of_another_release_spoils_only_what_it_is_needed_for(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    store = RolloutStore(tmp_path / "rollout.db", settings.rollout)
    store.apply(Change(Command.START, time.time(), "", "asha", champion="ppo/v1", challenger="hrm/v1"))
    store.close()
    with sqlite3.connect(tmp_path / "rollout.db") as database:
        database.execute("UPDATE event SET state = '{}'")
    assert "cannot be read" in made(settings, "timeline")["empty"]
    assert "begin" in made(settings, "verdicts")["empty"]


def test_whoever_only_reads_cannot_write_and_holds_nobody_up(traded: Settings) -> None:
    file = traded.paths.state_dir / "live-paper.db"
    with read_only(file) as connection:
        connection.execute(sa.text("SELECT count(*) FROM fills")).scalar_one()
        with sqlite3.connect(file, timeout=0) as writer:  # while it is being read
            writer.execute("UPDATE fence SET epoch = epoch")
        with pytest.raises(sa.exc.OperationalError, match="readonly"):
            connection.execute(sa.text("DELETE FROM fills"))


def test_records_are_followed_as_they_grow_and_each_byte_is_read_once(tmp_path: Path) -> None:
    decided(tmp_path, 30)
    tail = Tail(tmp_path / "decisions")
    first = tail.decisions()
    assert len(first) == 30
    file = next((tmp_path / "decisions").glob("*.records"))
    whole, count = file.read_bytes(), len(list(read(file)))
    with file.open("ab") as stream:
        stream.write(whole[: len(whole) // 2])  # a copy, torn in the middle of a record
    grown = tail.decisions()
    assert 0 < len(grown) - 30 < count
    with file.open("ab") as stream:
        stream.write(whole[len(whole) // 2 :])  # the rest of it
    assert len(tail.decisions()) == 30 + count
    assert tail.decisions() is tail.decisions()  # nothing new: nothing is done
    assert [facts.decision_id for facts in grown] == sorted(facts.decision_id for facts in grown)


def test_a_file_that_is_gone_when_it_is_opened_takes_no_decision_of_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decided(tmp_path, 10)
    files = list((tmp_path / "decisions").glob("*.records"))  # of two days about midnight
    tail = Tail(tmp_path / "decisions")
    monkeypatch.setattr(tail, "_files", lambda: [*files, tmp_path / "gone"])
    with pytest.raises(FileNotFoundError):
        tail.decisions()
    monkeypatch.setattr(tail, "_files", lambda: files)
    assert len(tail.decisions()) == 10


def test_damaged_bytes_are_passed_over(tmp_path: Path) -> None:
    decided(tmp_path, 10)
    file = next((tmp_path / "decisions").glob("*.records"))
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 0xFF
    file.write_bytes(b"HRM\x01" + b"\xff" * 40 + data)
    assert len(Tail(tmp_path / "decisions").decisions()) == 9


def test_never_too_much_is_read_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decided(tmp_path, 200)
    size = sum(file.stat().st_size for file in (tmp_path / "decisions").glob("*.records"))
    monkeypatch.setattr(tail_module, "MOST_BYTES", size // 4)
    newest = Tail(tmp_path / "decisions").decisions()
    assert 40 <= len(newest) <= 50
    monkeypatch.setattr(tail_module, "KEPT", 7)
    assert Tail(tmp_path / "decisions").decisions() == newest[-7:]


@given(st.integers(1, 100_000))
def test_a_curve_has_its_first_and_last_point_and_never_too_many(points: int) -> None:
    drawn = thinned(points)
    assert (drawn[0], drawn[-1]) == (0, points - 1)
    assert len(drawn) <= MOST_POINTS
    assert (np.diff(drawn) > 0).all()


def test_agreement_is_counted_by_action_in_parts_of_equal_size(tmp_path: Path) -> None:
    decided(tmp_path, 90)
    decisions = Tail(tmp_path / "decisions").decisions()
    same = np.mean([facts.answer.action == facts.shadow.action for facts in decisions if facts.shadow])
    panel = decision_figures.agreement(decisions)
    assert panel.note.startswith(f"{100 * same:.1f} % of 90 decisions")
    alone = [facts.model_copy(update={"shadow": None}) for facts in decisions]
    assert decision_figures.agreement(alone).empty == decision_figures.NO_PAIRS
    assert decision_figures.depth(alone).empty == decision_figures.NO_DEPTH  # the champion thinks in one pass
    assert decision_figures.latency({})(alone).figure


def test_equity_is_exact_however_little_of_it_is_drawn(traded: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = RolloutReader(traded.paths.state_dir / "rollout.db")
    with reader.connection() as connection:
        whole = rollout_panels._curves(connection, 1)
        monkeypatch.setattr(rollout_panels, "OUTCOMES", 40)
        part = rollout_panels._curves(connection, 1)
    assert whole is not None
    assert part is not None
    assert (len(whole.at), len(part.at), whole.symbols) == (150, 40, 2)
    for arm, curve in whole.bps.items():
        np.testing.assert_allclose(part.bps[arm], curve[-40:])
        assert part.top_before_bps[arm] == pytest.approx(max(0.0, curve[:-40].max()))


def test_profit_and_owner_of_a_position_are_those_of_the_ledger(traded: Settings) -> None:
    told = made(traded, "positions")
    ledger = Ledger(traded.paths.state_dir / "live-paper.db")
    expected = {position.symbol: position for position in ledger.positions()}
    ledger.close()
    rows = [dict(zip(told["table"]["columns"], row, strict=True)) for row in told["table"]["rows"]]
    assert {row["symbol"] for row in rows} == set(expected)
    for row in rows:
        position = expected[row["symbol"]]
        assert (row["units"], row["realised"], row["costs"]) == (position.units, position.realised, position.costs)
        assert row["owner"] == ("challenger:hrm/v1" if row["symbol"] == "BANKNIFTY" else "champion:ppo/v1")


def test_positions_of_another_file_under_the_same_name_begin_anew(traded: Settings, tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    holdings = trading_panels.Holdings(tmp_path)
    trade(settings)
    first = holdings.panel()
    assert holdings.panel() == replace(first)
    for file in tmp_path.glob("live-paper.db*"):
        file.unlink()
    trade(settings)
    again = holdings.panel().table
    assert again is not None
    assert first.table is not None
    assert [row[8] for row in again.rows] == [row[8] for row in first.table.rows]


def test_an_account_that_holds_something_and_is_told_nothing_makes_the_panel_old(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    trade(settings)  # flat, and told the time a moment ago
    assert time.time() - made(settings, "positions")["as_of"] < 60
    ledger = Ledger(tmp_path / "live.db")
    gateway = OrderGateway(ledger, settings.trading)
    at_ns = time.time_ns() - 2 * 3600 * 10**9
    order = Order("1", "NIFTY", 75.0, "champion:ppo/v1", epoch=1, at_ns=at_ns, bar_ns=at_ns)
    gateway.submit(order)
    PaperBroker(gateway, flat_costs(1.5)).fill(order, 24_800.0, bar_ns=at_ns)
    ledger.close()
    told = made(settings, "positions")
    assert told["now"] - told["as_of"] == pytest.approx(7200, abs=120)
    assert told["table"]["rows"][0][:4] == ["live", "NIFTY", "champion:ppo/v1", 75.0]


def test_a_price_that_the_exchange_told_long_before_the_desks_last_word_makes_no_profit(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    ledger, now_ns = Ledger(tmp_path / "live.db"), time.time_ns()
    gateway = OrderGateway(ledger, settings.trading)
    broker = PaperBroker(gateway, flat_costs(1.5))
    for symbol in SYMBOLS:
        order = Order(symbol, symbol, 75.0, "champion:ppo/v1", epoch=1, at_ns=now_ns, bar_ns=now_ns)
        gateway.submit(order)
        broker.fill(order, 100.0, bar_ns=now_ns)
    prices = {"NIFTY": (101.0, now_ns), "BANKNIFTY": (101.0, now_ns - 1000 * 10**9)}
    EventLog(ledger).append("clock", clock_body(prices, None), at_ns=now_ns)
    ledger.close()
    rows = {row[1]: (row[6], row[7]) for row in made(settings, "positions")["table"]["rows"]}
    assert rows == {"NIFTY": (101.0, 75.0), "BANKNIFTY": (None, None)}


def test_what_is_held_on_the_replay_is_worth_its_last_bar_whatever_day_that_was(tmp_path: Path) -> None:
    settings, bar_ns = settings_in(tmp_path), 1_673_000_000_000_000_000
    ledger = Ledger(tmp_path / "paper.db")
    gateway = OrderGateway(ledger, settings.trading)
    order = Order("1", "NIFTY", -50.0, "champion:ppo/v1", epoch=1, at_ns=bar_ns, bar_ns=bar_ns)
    gateway.submit(order)
    PaperBroker(gateway, flat_costs(1.5)).fill(order, 100.0, bar_ns=bar_ns)
    for close in (99.0, 98.0):
        bar = Bar(bar_ns, 100.0, 100.0, close, close, 1.0, 0, False)
        EventLog(ledger).append("bar", bar_body(bar, {}), at_ns=bar_ns, symbol="NIFTY")
    ledger.close()
    ((*_, last, gained, _, _),) = made(settings, "positions")["table"]["rows"]
    assert (last, gained) == (98.0, 100.0)


def test_who_asked_for_what_by_hand_is_in_the_log_with_the_answer(tmp_path: Path) -> None:
    settings, at_ns = settings_in(tmp_path), time.time_ns()
    asked = ManualTrade("feed", "live.db", "NIFTY", -75, "asha", "the feed is wrong", at_ns)
    Requests(tmp_path).ask(asked)
    rows = {tuple(row[1:4]): row[4] for row in made(settings, "log")["table"]["rows"]}
    what = rows["by hand", "order asked for", "asha"]
    assert what == "-75 units of NIFTY in live.db: the feed is wrong (trade feed)"
    ledger = Ledger(tmp_path / "live.db")
    EventLog(ledger).append("command", command(asked), at_ns=at_ns, symbol="NIFTY")
    answer(ledger, Answer("feed", at_ns, "halted: trading is halted"))
    ledger.close()
    rows = {tuple(row[1:4]): row[4] for row in made(settings, "log")["table"]["rows"]}
    assert rows["live", "hand order refused", "desk"] == "halted: trading is halted (trade feed)"
    assert "units -75" in rows["live", "command", "asha"]


def test_a_request_file_that_is_none_spoils_the_log_and_says_so(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    (tmp_path / "manual_trades.db").write_bytes(b"no database" * 100)
    assert "cannot be read" in made(settings, "log")["empty"]
    assert made(settings, "positions")["empty"]


def test_the_age_of_a_replay_is_that_of_its_file_and_not_of_its_bars(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    trade(settings)
    (tmp_path / "live-paper.db").rename(tmp_path / "paper.db")
    with sqlite3.connect(tmp_path / "paper.db") as database:
        database.execute("UPDATE fills SET bar_ns = 1673000000000000000 + seq")
    for name in ("price", "positions"):
        told = made(settings, name)
        assert told["now"] - told["as_of"] < 60, name


def test_a_symbol_that_is_chosen_is_shown_and_one_that_is_not_there_is_not(traded: Settings) -> None:
    assert made(traded, "price", "live-paper/NIFTY")["chosen"] == "live-paper/NIFTY"
    for strange in ("", "live-paper/../../etc/passwd", "paper/NIFTY", "'; DROP TABLE fills"):
        assert made(traded, "price", strange)["chosen"] in {f"live-paper/{symbol}" for symbol in SYMBOLS}


def bars(prices: list[float]) -> Bars:
    times = pd.date_range("2026-11-23 09:15", periods=len(prices), freq="5min", tz="Asia/Kolkata")
    close = np.array(prices)
    zeros = np.zeros(len(prices), np.int32)
    return Bars("X", times.as_unit("ns").asi8, close, close + 1, close - 1, close, zeros)


def test_bars_of_a_file_are_drawn_only_if_they_are_those_that_were_traded() -> None:
    market = bars([100.0, 101.0, 102.0, 103.0])
    fill = Fill("1", "X", 1.0, 101.2, 0.0, int(market.timestamps[1]), "champion:ppo/v1")
    assert len(trading_panels._around(market, [fill])) == 4
    assert trading_panels._around(market, [replace(fill, price=140.0)]) == []
    assert trading_panels._around(market, [replace(fill, bar_ns=fill.bar_ns + 1)]) == []
    assert trading_panels._around(market, [replace(fill, bar_ns=fill.bar_ns + 10**15)]) == []


@pytest.mark.parametrize(
    ("moment", "is_open"),
    [
        ("2026-11-23 09:14:59", False),
        ("2026-11-23 09:15:00", True),
        ("2026-11-23 15:29:59", True),
        ("2026-11-22 12:00:00", False),
    ],
)
def test_data_goes_stale_only_while_the_exchange_is_open(moment: str, is_open: bool) -> None:
    now = datetime.fromisoformat(moment).replace(tzinfo=KOLKATA).timestamp()
    assert market_is_open(now) is is_open
    assert json.loads(Panel(as_of=now - 901).encoded(now))["stale"] is is_open
    assert json.loads(Panel(as_of=now - 899).encoded(now))["stale"] is False


def test_of_many_who_ask_at_once_one_computes() -> None:
    shared, computed, release = Shared(), [], threading.Event()

    def compute() -> bytes:
        computed.append(1)
        assert release.wait(30)
        return b"x"

    async def many() -> list[bytes]:
        asked = [asyncio.create_task(shared.get("a", compute)) for _ in range(50)]
        await asyncio.sleep(0)
        asked[0].cancel()  # one who leaves takes nothing with them
        release.set()
        return await asyncio.gather(*asked[1:])

    assert asyncio.run(many()) == [b"x"] * 49
    assert computed == [1]


def test_what_failed_is_tried_again() -> None:
    shared = Shared()

    async def twice() -> bytes:
        with pytest.raises(ZeroDivisionError):
            await shared.get("a", lambda: bytes(1 // 0))
        return await shared.get("a", lambda: b"x")

    assert asyncio.run(twice()) == b"x"
