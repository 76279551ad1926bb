"""One live process that is to be killed: `hrm trade --live` with real orders, and what is seen of it from outside."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from core.errors import BrokerError
from flows.service_process import ROOT
from tests.fyers_emulator.process import Emulator

CAPITAL_RUPEES = 1e10  # losses stop nothing
TRADING = '"event":"trading"'
UNDECIDED = "select ? - count(*) from intents where bar_ns = ?"
ON_THEIR_WAY = "select count(*) from orders where status = 'open' and broker_id is null"


@dataclass
class Victim:
    process: subprocess.Popen[bytes]
    log: Path
    ledger: Path
    began: float  # monotonic
    since: int  # bytes of the log that others wrote
    ready_s: float | None = None  # from its start until it traded
    ready_cpu_s: float = 0.0  # of that, on a processor: the rest is waiting, for others on a busy machine too

    @property
    def age_s(self) -> float:
        return time.monotonic() - self.began

    @property
    def trading_s(self) -> float:
        """For how long it has been trading; negative before."""
        return -1.0 if self.ready_s is None else self.age_s - self.ready_s

    @property
    def code(self) -> int | None:
        return self.process.poll()

    @property
    def was_killed(self) -> bool:
        return self.code == -signal.SIGKILL

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def look(self) -> bool:
        """Whether it trades. When it was first seen to is kept."""
        if self.ready_s is None and TRADING in self._words():
            self.ready_s = self.age_s
            used = psutil.Process(self.process.pid).cpu_times()
            self.ready_cpu_s = used.user + used.system
        return self.ready_s is not None

    def until_trading(self, limit_s: float) -> None:
        """Raises BrokerError (`desk_stuck`)."""
        while not self.look():
            if self.code is not None or self.age_s > limit_s:
                raise BrokerError(f"not trading after {self.age_s:.0f} s: {self.last_words()}", code="desk_stuck")
            time.sleep(0.01)

    def has_settled(self, bar_ns: int, decided: int) -> bool:
        """Whether so many symbols have an intent of a bar, and no order's answer is awaited."""
        return self._count(UNDECIDED, decided, bar_ns) <= 0 and self.waiting_orders() == 0

    def waiting_orders(self) -> int:
        """Orders that are accepted here, and not acknowledged there."""
        return self._count(ON_THEIR_WAY)

    def last_words(self) -> str:
        return f"exit code {self.code}: {self._words()[-600:]}"

    def _words(self) -> str:
        with self.log.open(encoding="utf-8") as file:
            file.seek(self.since)
            return file.read()

    def _count(self, query: str, *values: object) -> int:
        with closing(sqlite3.connect(f"file:{self.ledger}?mode=ro", uri=True, timeout=10.0)) as connection:
            return int(connection.execute(query, values).fetchone()[0])


@contextmanager
def started(client_id: str, log: Path, environ: Mapping[str, str]) -> Iterator[Victim]:
    """A new process; it does not outlive the block."""
    command = [sys.executable, str(ROOT / "cli.py"), "trade", "--live", "--confirm", client_id, "--json"]
    with log.open("ab") as file:
        since, began = file.seek(0, os.SEEK_END), time.monotonic()
        process = subprocess.Popen(command, env=dict(environ), stdout=subprocess.DEVNULL, stderr=file)  # noqa: S603 - our own
    try:
        yield Victim(process, log, log.with_name("live.db"), began, since)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def environment(emulator: Emulator, state_dir: Path, symbols: Sequence[str]) -> dict[str, str]:
    """Of a desk that may trade as much as it likes, with a login of its own."""
    inherited = {name: os.environ[name] for name in ("PATH", "HOME", "TZ") if name in os.environ}
    return inherited | {
        "HRM_PRESET": "compact",
        "HRM_PATHS__STATE_DIR": str(state_dir),
        "HRM_FYERS__BASE_URL": emulator.url,
        "HRM_LIVE__BROKER": "fyers",
        "HRM_LIVE__SYMBOLS": json.dumps(list(symbols)),
        "HRM_TRADING__INITIAL_CAPITAL": str(CAPITAL_RUPEES),
        "HRM_RISK__MAX_LOTS": "1000",
        "HRM_RISK__MAX_NOTIONAL_RUPEES": "1.0e+12",
        "HRM_RISK__MAX_GROSS_RUPEES": "1.0e+12",
        "FYERS_CLIENT_ID": emulator.client_id,
        "FYERS_ACCESS_TOKEN": emulator.login(),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }
