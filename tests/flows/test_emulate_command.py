"""`hrm fyers emulate`: what a person starts to try everything without an account."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import typer
from typer.testing import CliRunner

from core.errors import ConfigError
from core.settings import load_settings
from flows.emulate_command import emulate
from tests.fyers_emulator.server import bound
from trading.files import load_bars, to_frame, write_bars
from trading.synthetic import simulate

COMMAND = "import typer; from flows.emulate_command import emulate; typer.run(emulate)"
ROOT = Path(__file__).resolve().parents[2]
DEADLINE_S = 60.0


@contextmanager
def emulating(*options: str) -> Iterator[tuple[subprocess.Popen[str], str, str]]:
    """The process, its address, and all that it said first."""
    command = [sys.executable, "-c", COMMAND, *options]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    try:
        said = "".join(iter(process.stdout.readline, "Nothing here is real. Ctrl-C ends it.\n"))
        yield process, said.split("export HRM_FYERS__BASE_URL=")[1].split()[0], said
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def asked(url: str, path: str, **query: str) -> Any:
    token = httpx.post(f"{url}/emulator/login", json={}).json()["access_token"]
    return httpx.get(url + path, params=query, headers={"Authorization": f"EMULATOR-100:{token}"}).json()


def test_a_file_is_played_as_ticks_that_make_the_same_bars(tmp_path: Path) -> None:
    law = load_settings(preset="compact", environ={}).synthetic_market.model_copy(update={"bars_per_session": 20})
    file = tmp_path / "BANKNIFTY_5MIN.csv"
    write_bars(to_frame(simulate(law, sessions=3, seed=1).bars), file)
    with emulating("--data", str(file), "--speed", "3600") as (_, url, said):
        assert "NSE:NIFTYBANK-INDEX of 2014-01-08" in said
        deadline = time.monotonic() + DEADLINE_S
        while asked(url, "/data/marketStatus")["marketStatus"][0]["status"] == "OPEN":
            assert time.monotonic() < deadline, "the session did not end"
            time.sleep(0.05)
        days = {"range_from": "2014-01-01", "range_to": "2014-01-31", "date_format": "1", "cont_flag": "1"}
        candles = asked(url, "/data/history", symbol="NSE:NIFTYBANK-INDEX", resolution="5", **days)["candles"]
    bars = load_bars(file)[["open", "high", "low", "close"]].round(2)
    assert [candle[1:5] for candle in candles] == bars.to_numpy().tolist()


def test_it_plays_a_made_up_market_until_ctrl_c() -> None:
    with emulating("--speed", "600") as (process, url, said):
        assert "FYERS_CLIENT_ID=EMULATOR-100" in said
        deadline = time.monotonic() + DEADLINE_S
        while (quote := asked(url, "/data/quotes", symbols="NSE:NIFTY50-INDEX")["d"][0])["s"] != "ok":
            assert time.monotonic() < deadline, "no price came"
            time.sleep(0.05)
        assert quote["v"]["lp"] > 0
        process.send_signal(signal.SIGINT)
        assert process.wait(DEADLINE_S) == 0


def test_a_port_that_is_taken_and_a_file_that_is_not_there_are_said(tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(emulate)
    with bound(0) as taken:
        for options, code in [
            (["--port", str(taken.getsockname()[1])], "port"),
            (["--data", str(tmp_path / "none.csv")], "no_such_file"),
        ]:
            refused = CliRunner().invoke(app, options).exception
            assert isinstance(refused, ConfigError)
            assert refused.code == code


def test_without_its_extra_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tests.fyers_emulator.server", None)
    with pytest.raises(ConfigError, match=r"extra \[fyers\]"):
        emulate()
