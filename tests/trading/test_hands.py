"""What a person says of a live ledger, and what a broker closed while nobody looked."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from desk_world import DAY, Exchange, World, make_desk
from typer.testing import CliRunner

from flows.trade_commands import app
from trading import hands
from trading.effects import Alert
from trading.event_replay import replay
from trading.instruments import instrument
from trading.market import SECOND_NS, day_of

NIFTY = instrument("NIFTY").traded_symbol(DAY)
NIGHT_S = 24 * 3600.0


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    world.ready()
    world.decide("NIFTY", 1)
    world.fill(world.place())
    yield world
    world.close()


def told(world: World) -> list[str]:
    return [each.text for each in world.all_effects if isinstance(each, Alert)]


def next_day(world: World) -> None:
    """Another process on another day; the broker begins with empty books."""
    world.now_ns += int(NIGHT_S * SECOND_NS)
    world.exchange = Exchange()
    world.begin()
    for _ in range(2):
        world.ready()


def test_what_the_broker_closed_today_while_no_process_ran_is_booked_at_the_next_start(world: World) -> None:
    world.exchange.trade_by_hand(NIFTY, -65, world.now_ns + 60 * SECOND_NS)
    world.now_ns += 120 * SECOND_NS
    world.begin()
    world.ready()
    world.ready()
    assert world.units("NIFTY") == 0.0
    assert world.ledger is not None
    assert world.ledger.discrepancies() == []
    assert world.desk.blocked("NIFTY") is None
    assert world.desk.equity.now != 1e8  # at the broker's price, with its charges


def test_what_it_closed_on_a_day_before_blocks_the_symbol_until_a_person_says_the_price(world: World) -> None:
    next_day(world)
    assert world.desk.blocked("NIFTY") == "disagrees"
    assert world.desk.blocked("BANKNIFTY") is None
    assert any("position_unknown" in text for text in told(world))
    world.tell("command", {"command": "closed", "price": 24_100.0, "by": "a test"}, symbol="NIFTY")
    assert world.units("NIFTY") == 0.0
    world.ready()
    assert world.desk.blocked("NIFTY") is None
    assert world.ledger is not None
    last = world.ledger.fills("NIFTY")[-1]
    assert (last.units, last.price, last.cost > 0.0) == (-65.0, 24_100.0, True)
    assert world.ledger.discrepancies() == []


def test_it_is_booked_once_and_the_log_gives_it_again(world: World) -> None:
    next_day(world)
    for _ in range(2):
        world.tell("command", {"command": "closed", "price": 24_100.0, "by": "a test"}, symbol="NIFTY")
        world.tick(1)
    assert world.ledger is not None
    assert len(world.ledger.fills("NIFTY")) == 2
    assert replay(world.ledger, day_of(world.now_ns), world.settings, make_desk).differences == ()


def test_what_was_traded_today_is_not_taken_from_a_person(world: World) -> None:
    world.tell("command", {"command": "closed", "price": 24_100.0, "by": "a test"}, symbol="NIFTY")
    assert world.units("NIFTY") == 65.0
    assert any("was traded today" in text for text in told(world))


def test_a_command_waits_until_it_was_taken_up_and_is_given_again_until_then(tmp_path: Path) -> None:
    ledger = tmp_path / "live.db"
    assert list(hands.new(ledger, ["NIFTY"])) == []
    hands.ask(ledger, "NIFTY", {"command": "release"})
    hands.ask(ledger, "NIFTY", {"command": "closed", "price": 1.0})
    first = list(hands.new(ledger, ["NIFTY"]))
    assert [body["command"] for _, body, _ in first] == ["release", "closed"]
    first[0][2]()
    assert [body["command"] for _, body, _ in hands.new(ledger, ["NIFTY"])] == ["closed"]


NONE = (
    "{",
    "[]",
    '{"symbol": "NIFTY"}',
    '{"symbol": "NIFTY", "body": {"command": "buy"}}',
    '{"symbol": "NIFTY", "body": {"command": "closed"}}',
    '{"symbol": "NIFTY", "body": {"command": "closed", "price": NaN}}',
    '{"symbol": "NIFTY", "body": {"command": "closed", "price": -1.0}}',
)


@pytest.mark.parametrize("text", NONE)
def test_what_is_no_command_is_put_aside_and_the_next_one_given(tmp_path: Path, text: str) -> None:
    ledger = tmp_path / "live.db"
    hands.ask(ledger, "RELIANCE", {"command": "release"})
    (tmp_path / "live.commands" / "0.json").write_text(text)
    hands.ask(ledger, "NIFTY", {"command": "release"})
    assert [symbol for symbol, _, _ in hands.new(ledger, ["NIFTY"])] == ["NIFTY"]
    assert len(list((tmp_path / "live.commands").glob("*.refused"))) == 2


def run(*arguments: str) -> tuple[int, Any]:
    result = CliRunner().invoke(app, [*arguments, "--json"])
    return result.exit_code, json.loads(result.stdout.splitlines()[-1]) if result.exit_code == 0 else result.exception


@pytest.mark.parametrize("command", [("release", "NIFTY"), ("closed", "NIFTY", "--price", "24100")])
def test_a_person_leaves_it_for_the_live_process(
    world: World, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    monkeypatch.setenv("HRM_PATHS__STATE_DIR", str(world.path.parent))
    code, document = run(*command, "--ledger", "live.db")
    assert (code, document["taken_up"], document["units"]) == (0, "when the next live process begins", 65.0)
    ((symbol, body, _),) = hands.new(world.path, ["NIFTY"])
    assert (symbol, body["command"]) == ("NIFTY", command[0])
    assert body["by"]


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("closed", "NIFTY", "--price", "nan", "--ledger", "live.db"), "usage"),
        (("closed", "NIFTY", "--price", "0", "--ledger", "live.db"), "usage"),
        (("closed", "NIFTY", "--price", "1"), "usage"),
        (("release", "NIFTY", "--ledger", "other.db"), "no_ledger"),
        (("release", "RELIANCE", "--ledger", "live.db"), "unknown_symbol"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    world: World, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], code: str
) -> None:
    monkeypatch.setenv("HRM_PATHS__STATE_DIR", str(world.path.parent))
    _, error = run(*arguments)
    assert error.code == code
    assert list(hands.new(world.path, ["NIFTY"])) == []
