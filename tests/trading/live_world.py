"""A whole world for the live process: an emulated broker, a service that decides by a rule, a market that is stepped.

The live process is the command itself, `hrm trade --live`, in a process of its own, with the broker's real SDK.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from decision_service import RuleService

from tests.fyers_emulator.process import Emulator
from trading.calendar import KOLKATA, sessions
from trading.events import EventLog
from trading.instruments import instrument
from trading.ledger import Ledger

ROOT = Path(__file__).resolve().parents[2]
DAY = date(2026, 11, 18)
BAR_S = 300
BARS = 75
DEADLINE_S = 60.0


def eventually(true: Callable[[], Any], what: str) -> Any:
    """What `true` answers, once it does."""
    give_up = time.monotonic() + DEADLINE_S
    while not (found := true()):
        assert time.monotonic() < give_up, f"after {DEADLINE_S:g} s: not {what}"
        time.sleep(0.02)
    return found


def start_s(bar: int, day: date = DAY) -> int:
    """Epoch seconds at which a bar of the session begins."""
    opens = datetime.combine(day, datetime.min.time(), KOLKATA) + timedelta(hours=9, minutes=15)
    return int(opens.timestamp()) + BAR_S * bar


def walk(name: str, bars: int) -> np.ndarray:
    """Closes of a made-up index: long swings, so that a follower of momentum trades."""
    generator = np.random.default_rng(sum(name.encode()))
    swing = 2e-3 * np.sin(np.arange(bars) / 6.0 + generator.uniform(0, 6))
    return 24000.0 * np.exp(swing + np.cumsum(generator.normal(0, 2e-4, bars)))


@dataclass
class World:
    emulator: Emulator
    service: RuleService
    state_dir: Path
    symbols: tuple[str, ...] = ("NIFTY",)
    broker: str = "fyers"
    history_days: int = 6
    prices: dict[str, np.ndarray] = field(default_factory=dict)  # by symbol: one for each bar of the day, at its close

    def prepare(self) -> None:
        """The market before the open, with some days of history."""
        self.emulator.reset()
        self.emulator.clock(now=float(start_s(0) - 60), speed=0.0)
        days = sessions(DAY - timedelta(days=20), DAY - timedelta(days=1))[-self.history_days :]
        for symbol in self.symbols:
            closes = walk(symbol, BARS * (len(days) + 1))
            opens = np.concatenate([closes[:1], closes[:-1]])
            starts = [start_s(bar, day) for day in days for bar in range(BARS)]
            self.emulator.history(
                str(instrument(symbol).index),
                [
                    [at, one, max(one, two) + 1, min(one, two) - 1, two, 0]
                    for at, one, two in zip(starts, opens, closes, strict=False)
                ],
            )
            self.prices[symbol] = closes[len(starts) :]

    def traded(self, symbol: str) -> str:
        return instrument(symbol).traded_symbol(DAY)

    def step(self, bar: int, parts: tuple[int, ...] = (0, 1, 2, 3)) -> None:
        """Four ticks of each symbol within a bar, the last at its close."""
        for part in parts:
            second = (1, 100, 200, 299)[part]
            at = float(start_s(bar) + second)
            self.emulator.ticks(
                {str(instrument(symbol).index): self._price(symbol, bar, part) for symbol in self.symbols}, at=at
            )

    def _price(self, symbol: str, bar: int, part: int) -> float:
        closes = self.prices[symbol]
        before = closes[bar - 1] if bar else closes[0]
        return round(float(before + (closes[bar] - before) * part / 3), 2)

    @property
    def ledger_file(self) -> Path:
        return self.state_dir / ("live.db" if self.broker == "fyers" else "live-paper.db")

    @contextmanager
    def ledger(self) -> Iterator[Ledger]:
        ledger = Ledger(self.ledger_file)
        try:
            yield ledger
        finally:
            ledger.close()

    def intents(self, symbol: str) -> list[Any]:
        query = "select bar_ns, reason, order_units from intents where symbol = ? order by seq"
        with self.ledger() as ledger, ledger.engine.connect() as connection:
            return list(connection.exec_driver_sql(query, (symbol,)))

    def unfinished(self) -> list[Any]:
        with self.ledger() as ledger:
            return ledger.unfinished()

    def units(self, symbol: str) -> float:
        with self.ledger() as ledger:
            return ledger.units(symbol)

    def events(self, kind: str) -> list[Any]:
        with self.ledger() as ledger:
            return [each for each in EventLog(ledger).of_day(DAY) if each.kind == kind]

    def environment(self, **more: str) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"],
            "HOME": os.environ.get("HOME", "/"),
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "HRM_PRESET": "compact",
            "HRM_PATHS__STATE_DIR": str(self.state_dir),
            "HRM_FYERS__BASE_URL": self.emulator.url,
            "HRM_SERVING__PORT": self.service.url.rsplit(":", 1)[1],
            "HRM_LIVE__BROKER": self.broker,
            "HRM_LIVE__SYMBOLS": json.dumps(self.symbols),
            "FYERS_CLIENT_ID": self.emulator.client_id,
            "FYERS_ACCESS_TOKEN": self.emulator.login(),
            **more,
        }

    def command(self, *arguments: str) -> list[str]:
        confirmed = ["--confirm", self.emulator.client_id] if self.broker == "fyers" else []
        return [sys.executable, str(ROOT / "cli.py"), "trade", "--live", *confirmed, "--json", *arguments]

    @contextmanager
    def live(self, *arguments: str, **environ: str) -> Iterator[LiveProcess]:
        self.state_dir.mkdir(exist_ok=True)
        log = (self.state_dir / "live.log").open("ab")
        process = subprocess.Popen(
            self.command(*arguments), env=self.environment(**environ), stdout=subprocess.PIPE, stderr=log
        )
        live = LiveProcess(process, self.state_dir / "live.log", log.tell())
        try:
            yield live
        finally:
            log.close()
            if process.poll() is None:
                process.kill()
            process.wait(DEADLINE_S)
            if process.stdout is not None:
                process.stdout.close()


@dataclass
class LiveProcess:
    process: subprocess.Popen[bytes]
    log: Path
    since: int  # of the log: where this process begins

    def lines(self, event: str) -> list[dict[str, Any]]:
        assert self.process.poll() is None, self.log.read_text()[self.since :][-3000:]
        text = self.log.read_text(encoding="utf-8")[self.since :]
        found = [json.loads(line) for line in text.splitlines() if line.startswith("{") and line.endswith("}")]
        return [each for each in found if each.get("event") == event]

    def trading(self) -> dict[str, Any]:
        """Once it has said so."""
        said: dict[str, Any] = eventually(lambda: self.lines("trading"), "trading")[0]
        return said

    def stop(self) -> dict[str, Any]:
        """As a person or a supervisor ends it; the summary."""
        self.process.send_signal(signal.SIGTERM)
        return self.wait()

    def wait(self) -> dict[str, Any]:
        """Until it ends by itself; the summary."""
        out, _ = self.process.communicate(timeout=DEADLINE_S)
        assert self.process.returncode == 0, self.log.read_text()[self.since :][-3000:]
        summary: dict[str, Any] = json.loads(out.decode().splitlines()[-1])
        return summary

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(DEADLINE_S)
