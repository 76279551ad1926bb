"""A ledger file of any older version is moved in place, whole or not at all; events are only ever added."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from core.errors import BrokerError
from core.settings import load_settings
from trading import ledger_tables
from trading.gateway import Accepted, OrderGateway, Refused
from trading.ledger import Intent, Ledger, Order, OrderState
from trading.ledger_tables import LEGACY_OWNER, events
from trading.ownership import Book, Owner

RULES = load_settings(preset="compact", environ={}).trading
PPO, HRM = "champion:ppo/v1", "challenger:hrm/v1"
FOLDER = Path(__file__).parent
VERSIONS = ("old_ledger.sql", "second_ledger.sql")


def file_of(version: str, folder: Path) -> Path:
    with sqlite3.connect(folder / "paper.db") as connection:
        connection.executescript((FOLDER / version).read_text(encoding="utf-8"))
    connection.close()
    return folder / "paper.db"


def schema_of(path: Path) -> list[tuple[str, str]]:
    with sqlite3.connect(path) as connection:
        rows = connection.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY name").fetchall()
    connection.close()
    return [(str(name), str(sql)) for name, sql in rows]


@pytest.mark.parametrize("version", VERSIONS)
def test_an_older_file_gets_the_tables_of_a_new_one(version: str, tmp_path: Path) -> None:
    path = file_of(version, tmp_path)
    for _ in range(2):  # and the second time nothing is left to do
        Ledger(path).close()
    Ledger(tmp_path / "new.db").close()
    assert schema_of(path) == schema_of(tmp_path / "new.db")


def test_a_ledger_of_the_second_version_keeps_all_that_it_held(tmp_path: Path) -> None:
    """NIFTY 3 long in its second owner's hands, after a sale that was cancelled and filled; BANKNIFTY with an order."""
    ledger = Ledger(file_of("second_ledger.sql", tmp_path))
    assert [(fill.order_id, fill.trade_id, fill.units, fill.owner) for fill in ledger.fills("NIFTY")] == [
        ("NIFTY:100", "NIFTY:100", 5.0, HRM),
        ("NIFTY:300", "NIFTY:300", -2.0, PPO),
    ]
    expected = Order("BANKNIFTY:300", "BANKNIFTY", -7.0, PPO, 2, 300, 300, "d3", "v1")
    assert ledger.unfinished() == [OrderState(expected, "open")]
    filled = ledger.order("NIFTY:100")
    assert filled is not None and (filled.status, filled.filled_units) == ("filled", 5.0)
    cancelled = ledger.order("NIFTY:200")
    assert cancelled is not None and (cancelled.status, cancelled.filled_units) == ("cancelled", 0.0)
    assert ledger.last_intent("NIFTY") == Intent("NIFTY", 300, "SELL_SHORT", -2.0, epoch=2, owner=PPO)
    assert ledger.holdings() == {("NIFTY", PPO): 3.0} and ledger.discrepancies() == []
    gateway = OrderGateway(ledger, RULES)
    assert gateway.book("NIFTY") == Book("NIFTY", Owner.parse(PPO), 3.0, "reduce_only", 900)
    late = gateway.submit(Order("x", "NIFTY", -1.0, PPO, 1, 400, 400))
    assert isinstance(late, Refused) and late.reason == "stale_epoch"
    assert gateway.submit(Order("y", "NIFTY", -1.0, PPO, 2, 400, 400)) == Accepted("y")
    assert gateway.fill("BANKNIFTY:300", 50.0, 0.0, 400) and not gateway.fill("NIFTY:100", 50.0, 0.0, 400)
    ledger.close()


def test_orders_of_the_first_version_are_as_they_were_left(tmp_path: Path) -> None:
    ledger = Ledger(file_of("old_ledger.sql", tmp_path))
    filled = ledger.order("NIFTY:300")
    assert filled is not None and (filled.status, filled.filled_units) == ("filled", -2.0)
    (waiting,) = ledger.unfinished()
    assert (waiting.order.order_id, waiting.open_units, waiting.order.owner) == ("BANKNIFTY:300", -7.0, LEGACY_OWNER)
    assert ledger.discrepancies() == []
    ledger.close()


@pytest.mark.parametrize("version", VERSIONS)
def test_a_move_that_is_interrupted_leaves_the_file_as_it_was(
    version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = file_of(version, tmp_path)
    before, copies = schema_of(path), {"old_ledger.sql": "_FIRST", "second_ledger.sql": "_SECOND"}[version]
    with monkeypatch.context() as broken:  # at the last of the copies
        wrong = {"fills": "INSERT INTO fills (no_such_column) SELECT 1"}
        broken.setattr(ledger_tables, copies, getattr(ledger_tables, copies) | wrong)
        with pytest.raises(BrokerError, match="not usable"):
            Ledger(path)
    assert schema_of(path) == before
    ledger = Ledger(path)
    assert ledger.units("NIFTY") == 3.0
    ledger.close()


def test_events_are_added_and_never_changed_nor_removed(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "live.db")
    row = {"at_ns": 1, "kind": "bar", "symbol": "NIFTY", "body": "{}"}
    with ledger.engine.begin() as connection:
        connection.execute(sa.insert(events), row)
    for change in (sa.update(events).values(body="[]"), sa.delete(events)):
        with pytest.raises(IntegrityError, match="append-only"), ledger.engine.begin() as connection:
            connection.execute(change)
    with ledger.engine.connect() as connection:
        assert [dict(each) for each in connection.execute(sa.select(events)).mappings()] == [{"seq": 1} | row]
    ledger.close()
