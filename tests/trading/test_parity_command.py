"""`hrm trade parity`: a published model over the bars that a desk has on record."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from desk_world import DAY, World
from signal_model import publish_signal_follower
from typer.testing import CliRunner

from core.errors import DataError
from flows.trade_commands import app


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setenv("HRM_PATHS__STATE_DIR", str(tmp_path))
    monkeypatch.setenv("HRM_PRESET", "compact")
    monkeypatch.setenv("HRM_LIVE__BROKER", "fyers")
    world = World(tmp_path)
    publish_signal_follower(world.settings, "ppo/v1")  # without a signal: buy, close, buy
    world.ready()
    yield world
    world.close()


def trade(world: World, *targets: int) -> None:
    for target in targets:
        world.decide("NIFTY", target)
        while world.sends:
            world.fill(world.place())
    world.bar("NIFTY", last=True)
    while world.sends:
        world.fill(world.place())


def told(*arguments: str) -> tuple[int, dict[str, Any]]:
    result = CliRunner().invoke(app, ["parity", DAY.isoformat(), "--json", *arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, json.loads(result.stdout.splitlines()[-1])


def test_a_day_as_the_model_decides_it_again_exits_with_0(world: World) -> None:
    trade(world, 1, 0, 1)
    code, document = told()
    assert (code, document["same"]) == (0, True)
    (symbol,) = document["symbols"]
    assert (symbol["symbol"], symbol["model"], symbol["bars"], symbol["reasons"]) == ("NIFTY", "ppo/v1", 4, {})
    page = world.path.parent / "parity" / f"{DAY}-live.html"
    assert document["page"] == str(page)
    assert "<h1>The same</h1>" in page.read_text(encoding="utf-8")


def test_what_the_model_does_not_decide_exits_with_1_and_is_shown(world: World) -> None:
    trade(world, 1, 0, 0)
    code, document = told("--ledger", str(world.path))
    assert (code, document["same"]) == (1, False)
    (symbol,) = document["symbols"]
    assert symbol["different"] == 2  # no order, and no exit to follow from it
    assert [row["live"]["units"] for row in symbol["rows"]] == [65, -65, 0, 0]
    assert [row["backtest"]["units"] for row in symbol["rows"]] == [65, -65, 65, -65]
    assert symbol["reasons"] == {"unexplained": 1, "HOLD:session_over": 1}
    shown = CliRunner().invoke(app, ["parity", DAY.isoformat()])
    assert shown.exit_code == 1
    assert "2 of 4 bars differ" in shown.stdout


def test_without_a_ledger_a_day_or_an_answer_nothing_is_compared(world: World, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no bar of"):
        told()
    with pytest.raises(DataError, match="does not exist"):
        told("--ledger", str(tmp_path / "other.db"))
    world.bar("NIFTY")
    world.answer(world.asks.pop(), None)
    with pytest.raises(DataError, match="no model answered"):
        told()
