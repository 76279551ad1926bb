"""An account at an emulated Fyers: what trading/fyers/ is tested with. Nothing here reaches another host."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest
from pydantic import SecretStr

from tests.fyers_emulator.process import Emulator, running
from trading.calendar import KOLKATA
from trading.fyers.client import Access
from trading.fyers.login import Credentials

INDEX, FUTURE = "NSE:NIFTY50-INDEX", "NSE:NIFTY26NOVFUT"
TEN_O_CLOCK_S = datetime(2026, 11, 16, 10, 0, tzinfo=KOLKATA).timestamp()  # a Monday, a week before the roll
PRICE = 26_000.0


@pytest.fixture(scope="session")
def running_emulator() -> Iterator[Emulator]:
    pytest.importorskip("fyers_apiv3", reason="needs the extra [fyers]")
    with running() as emulator:
        yield emulator


@pytest.fixture
def emulator(running_emulator: Emulator) -> Iterator[Emulator]:
    """As just started, at ten in the morning of a session, its clock standing still."""
    running_emulator.reset()
    running_emulator.clock(now=TEN_O_CLOCK_S, speed=0.0)
    yield running_emulator
    running_emulator.heal()


@pytest.fixture
def access(emulator: Emulator, tmp_path: Path) -> Access:
    credentials = Credentials(emulator.client_id, SecretStr(emulator.login()))
    return Access(credentials, tmp_path / "state", emulator.url, paced=False)


def elsewhere(access: Access, base_url: str) -> Access:
    return replace(access, base_url=base_url)


def calls(emulator: Emulator, path: str) -> int:
    """How often a path of the API was asked for."""
    return sum(row.get("path") == path for row in emulator.get("log")["requests"])


def until(condition: Callable[[], object], within_s: float = 15.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.01)
