"""Was a live session what a backtest of its bars is, and does its log give it again? By the commands a person has."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from benchmarks.live_market import DAY
from core.errors import BrokerError
from flows.service_process import ROOT

LIMIT_S = 300.0  # of one command
PAISA = 0.01
Row = Mapping[str, Any]


def judged(environ: Mapping[str, str], book: Mapping[str, Any]) -> dict[str, Any]:
    """`hrm trade parity` and `hrm replay` of the day, and `book`, the exchange's own."""
    parity, replay = told(environ, "trade", "parity", DAY.isoformat()), told(environ, "replay", DAY.isoformat())
    tags = [order["tag"] for order in book["orders"]]
    return {
        "parity": _parity(parity["symbols"]) | {"same": parity["same"]},
        "replay": {"same": replay["same"], "decisions": replay["decisions"]} | _replays(replay["ledgers"]),
        "duplicate_orders": len(tags) - len(set(tags)),
        "trades_at_the_exchange": len(book["trades"]),
    }


def _parity(symbols: list[Row]) -> dict[str, Any]:
    """How many trades both made, at which prices. A backtest's exit has the last close, the desk's the next price."""
    rows = [row for symbol in symbols for row in symbol["rows"]]
    pairs = [(row["live"], row["backtest"]) for row in rows if row["live"]["units"] or row["backtest"]["units"]]
    exits = [pair for pair in pairs if pair[1]["decision"] == "square_off"]
    decided = [pair for pair in pairs if pair[1]["decision"] != "square_off"]
    return {
        "reasons": {symbol["symbol"]: symbol["reasons"] for symbol in symbols if symbol["reasons"]},
        "bars": len(rows),
        "trades": len(pairs),
        "same_units": sum(live["units"] == tested["units"] for live, tested in pairs),
        "decided": len(decided),
        "same_price": sum(_same_price(*pair) for pair in decided),
        "exits": len(exits),
        "exits_same_price": sum(_same_price(*pair) for pair in exits),
        "live_rupees": sum(symbol["live_rupees"] for symbol in symbols),
        "backtest_rupees": sum(symbol["backtest_rupees"] for symbol in symbols),
    }


def _same_price(live: Row, tested: Row) -> bool:
    """Several trades of an order have a mean: less than half a paisa apart is the same."""
    return None not in (live["price"], tested["price"]) and abs(live["price"] - tested["price"]) < PAISA / 2


def _replays(ledgers: Mapping[str, Row]) -> dict[str, Any]:
    return {
        "events": sum(each["events"] for each in ledgers.values()),
        "differences": sum(each["differences"] for each in ledgers.values()),
    }


def told(environ: Mapping[str, str], *command: str) -> dict[str, Any]:
    """What a command answers as JSON, whatever its verdict. Raises BrokerError without one in time."""
    try:
        done = subprocess.run(  # noqa: S603 - our own command
            [sys.executable, str(ROOT / "cli.py"), *command, "--json"],
            env=inherited() | dict(environ),
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        late = f"hrm {' '.join(command)}: not done after {LIMIT_S:g} s; give the machine less to do"
        raise BrokerError(late, code="session_stuck") from None
    if done.returncode not in (0, 1) or not done.stdout:
        raise BrokerError(f"hrm {' '.join(command)}: {done.stderr[-2000:]}", code="session_stuck")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def inherited() -> dict[str, str]:
    """What a process needs of this one's environment; no setting of a person's gets into a measurement."""
    return {name: os.environ[name] for name in ("PATH", "HOME", "TZ") if name in os.environ}
