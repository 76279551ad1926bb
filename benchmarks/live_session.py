"""A whole session of twenty symbols, as fast as it goes: the desk, the real service and an emulated broker.

`hrm trade --live` in a process of its own, with the broker's real SDK, asks the inference service, in another one,
about every bar, and sends its orders to the emulator, in a third. The market is stepped: the next price is told once
all that follows from the last bar is done, so an order is filled at the next bar's open, as in a backtest of the same
bars. Then `hrm trade parity` and `hrm replay` say whether it was the same.

    bar t's close | bar t + 1's open closes t | a question of each symbol | orders, 10 a second | fills | t + 1 goes on

The day is the exchange's: the bar that ends at 15:10 squares off, before the broker does; later ones feed features.
Twenty orders of one bar wait a second for the exchange's order rate; `own_ms` counts from when an order may go out.
"""

from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.live_judges import inherited, judged
from benchmarks.live_market import BARS, Market, index_of, names, of_file, start_s, synthetic, write_tables
from core.errors import BrokerError
from core.settings import Settings, load_settings
from flows.service_process import ROOT, service_process
from tests.fyers_emulator.process import Emulator, running

WITHIN_BAR_S = (0.0, 100.0, 200.0, 299.0)  # when its four prices are told
CAPITAL_RUPEES = 1e9  # twenty futures at once; losses stop nothing
POLL_S = 0.05  # what is asked of the ledger is asked of the processors that are measured
STEP_LIMIT_S, DAY_LIMIT_S, END_S = 120.0, 900.0, 120.0  # on a machine that has other work as well
LAST_WORDS = 600  # characters of a log that is gone with its folder
NS = 10**9
SYMBOLS = 20
MOST_UNITS = 200.0
LAST = 70  # the bar that squares off: it ends five minutes before the broker begins to
CLI = ROOT / "cli.py"

# What a bar still has to come to: a decision of each symbol, and of each order a trade, an end, or a refusal.
KNOWN = "select count(distinct symbol) from events where kind = 'history'"
TOLD = "select count(*) from events where kind = 'bar'"
DECIDED = "select count(*) from intents where bar_ns = ?"
PENDING = """
select count(*) from intents i where i.bar_ns = ? and i.order_units != 0 and i.order_units !=
(select coalesce(sum(o.filled_units), 0) from orders o where o.symbol = i.symbol and o.bar_ns = i.bar_ns)
and not exists (select 1 from refusals r where r.order_id like i.intent_id || '%')
"""
TAKEN = """
select count(distinct symbol || bar_ns) from intents where bar_ns between ? and ?
and (reason not like 'HOLD:%' or reason = 'HOLD:session_over')
"""
OPEN = "select count(*) from orders where status in ('open', 'cancelling')"


@dataclass(frozen=True)
class Desk:
    """The live process and what it is connected to."""

    process: subprocess.Popen[str]
    emulator: Emulator
    log: Path
    ledger: Path
    give_up: float  # of the monotonic clock: when the day takes too long

    def count(self, query: str, *values: object) -> int:
        with closing(sqlite3.connect(f"file:{self.ledger}?mode=ro", uri=True, timeout=10.0)) as connection:
            return int(connection.execute(query, values).fetchone()[0])

    def until(self, true: Callable[[], bool], what: str) -> None:
        """Raises BrokerError if it does not come true in time, or the process ended."""
        began = time.monotonic()
        give_up = min(began + STEP_LIMIT_S, self.give_up)
        while not true():
            if self.process.poll() is not None or time.monotonic() > give_up:
                raise self.stuck(f"not {what} after {time.monotonic() - began:.0f} s")
            time.sleep(POLL_S)

    def stuck(self, how: str) -> BrokerError:
        said = self.log.read_text(encoding="utf-8")[-LAST_WORDS:]
        return BrokerError(f"the live process: {how}; its last words: {said}", code="session_stuck")


def run(*, seed: int = 0, data: Path | None = None, keep: Path | None = None) -> dict[str, Any]:
    """Publish a small model of random weights, which trades at nearly every bar, and trade a session with it.

    Args:
        seed: of the market. data: a file of five-minute bars instead: each symbol is another of its days.
        keep: a new folder for the ledger and logs.

    Raises BrokerError (`session_stuck`) if the desk stops deciding, DataError for bars that are none of a session.
    """
    from benchmarks.serving_model import publish_model

    symbols = names(SYMBOLS)
    market = synthetic(symbols, seed) if data is None else of_file(data, symbols)
    with TemporaryDirectory(prefix="hrm-session-") as scratch:
        folder = keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        settings = small_settings(folder)
        manifest = publish_model(settings, folder / "models", None)
        return session(folder, settings, market, f"{manifest.name}/{manifest.version}")


def small_settings(folder: Path) -> Settings:
    """The compact preset; a decision is of a few lots, so that flips are sometimes sent in one order, never in ten."""
    told = {"HRM_PATHS__STATE_DIR": str(folder), "HRM_TRADING__MAX_QUANTITY": str(MOST_UNITS)}
    return load_settings(preset="compact", environ=told)


def session(folder: Path, settings: Settings, market: Market, model_id: str) -> dict[str, Any]:
    """Trade the market's last day with a published model; figures, and what differs from the backtest and the replay.

    `folder` is the state folder of the settings; `model_id` is in its store.
    """
    environ = {"HRM_INSTRUMENTS": str(write_tables(folder, list(market.prices)))}
    with running(environ=environ) as emulator, service_process(settings, champion=model_id) as service:
        _open(emulator, market)
        environ |= _environment(settings, emulator, list(market.prices), service.url)
        began = time.monotonic()
        summary = _trade(emulator, market, folder, environ)
        book, took_s = emulator.book(), time.monotonic() - began
    found = {"symbols": len(market.prices), "bars": BARS * len(market.prices), "session_s": round(took_s, 1)}
    return found | _figures(summary) | {"undecided_bars": _undecided(folder, market)} | judged(environ, book)


def _open(emulator: Emulator, market: Market) -> None:
    """A minute before the open, with the days before."""
    emulator.clock(now=float(start_s(0) - 60), speed=0.0)
    emulator.post("funds", {"rupees": CAPITAL_RUPEES})
    for symbol in market.prices:
        emulator.history(index_of(symbol), market.candles(symbol))


def _environment(settings: Settings, emulator: Emulator, symbols: list[str], url: str) -> dict[str, str]:
    """Of a desk whose limits bind nobody: a backtest has none."""
    return {
        "HRM_SETTINGS": str(settings.paths.state_dir / "service-settings.yaml"),
        "HRM_PRESET": settings.preset,
        "HRM_PATHS__STATE_DIR": str(settings.paths.state_dir),
        "HRM_SERVING__PORT": url.rsplit(":", 1)[1],
        "HRM_FYERS__BASE_URL": emulator.url,
        "HRM_LIVE__BROKER": "fyers",
        "HRM_LIVE__SYMBOLS": json.dumps(symbols),
        "HRM_TRADING__MAX_QUANTITY": str(settings.trading.max_quantity),
        "HRM_TRADING__INITIAL_CAPITAL": str(CAPITAL_RUPEES),
        "HRM_TRADING__SLIPPAGE_BPS": "0.0",  # of the backtest: here the fills have it
        "HRM_LIVE__MAX_CLOCK_SKEW_S": "600.0",  # a stepped clock jumps between two looks at it
        "HRM_RISK__MAX_LOTS": "1000",
        "HRM_RISK__MAX_NOTIONAL_RUPEES": "1.0e+12",
        "HRM_RISK__MAX_GROSS_RUPEES": "1.0e+12",
        "FYERS_CLIENT_ID": emulator.client_id,
        "FYERS_ACCESS_TOKEN": emulator.login(),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }


def _trade(emulator: Emulator, market: Market, folder: Path, environ: Mapping[str, str]) -> dict[str, Any]:
    """The day; the summary of the live process."""
    with _desk(emulator, folder, environ) as desk:
        desk.until(lambda: '"trading"' in desk.log.read_text(encoding="utf-8"), "trading")
        desk.until(lambda: desk.count(KNOWN) >= len(market.prices), "shown the days before")
        for bar in range(BARS):
            _tell(desk, market, bar, parts=(0,))
            _settle(desk, market, bar - 1)
            _tell(desk, market, bar, parts=(1, 2, 3))
        emulator.clock(now=float(start_s(BARS) + 5))
        _settle(desk, market, BARS - 1)
        out = _end(desk)
    summary: dict[str, Any] = json.loads(out.splitlines()[-1])
    return summary


@contextmanager
def _desk(emulator: Emulator, folder: Path, environ: Mapping[str, str]) -> Iterator[Desk]:
    log = folder / "live.log"
    command = [sys.executable, str(CLI), "trade", "--live", "--confirm", emulator.client_id, "--json"]
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(  # noqa: S603 - our own command
            command, env=inherited() | dict(environ), stdout=subprocess.PIPE, stderr=file, text=True
        )
    try:
        yield Desk(process, emulator, log, folder / "live.db", time.monotonic() + DAY_LIMIT_S)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def _end(desk: Desk) -> str:
    """As a supervisor ends it; what it printed."""
    desk.process.send_signal(signal.SIGTERM)
    try:
        out, _ = desk.process.communicate(timeout=END_S)
    except subprocess.TimeoutExpired:
        raise desk.stuck(f"not over {END_S:g} s after SIGTERM") from None
    if desk.process.returncode:
        raise desk.stuck(f"ended with {desk.process.returncode}")
    return out


def _tell(desk: Desk, market: Market, bar: int, parts: tuple[int, ...]) -> None:
    for part in parts:
        prices = {index_of(symbol): market.path(symbol, bar)[part] for symbol in market.prices}
        desk.emulator.ticks(prices, at=start_s(bar) + WITHIN_BAR_S[part])


def _settle(desk: Desk, market: Market, bar: int) -> None:
    """Until all that follows from a bar is done."""
    bar_ns = start_s(bar) * NS

    def done() -> bool:
        if bar > LAST:
            return desk.count(TOLD) >= (bar + 1) * len(market.prices)
        decided = bar < 0 or desk.count(DECIDED, bar_ns) >= len(market.prices)
        return decided and not desk.count(OPEN) and not desk.count(PENDING, bar_ns)

    desk.until(done, f"done with bar {bar}")


def _undecided(folder: Path, market: Market) -> int:
    """Bars up to the one that squares off that no intent, or one that says why not, is on record of."""
    with closing(sqlite3.connect(folder / "live.db")) as connection:
        decided = connection.execute(TAKEN, (start_s(0) * NS, start_s(LAST) * NS)).fetchone()[0]
    return (min(LAST, BARS - 1) + 1) * len(market.prices) - int(decided)


def _figures(summary: Mapping[str, Any]) -> dict[str, Any]:
    counts = summary["counts"]
    return {
        "told": counts["bars"],
        "decided": counts.get("decided", 0),
        "not_decided": {name: count for name, count in counts.items() if name.startswith(("held:", "refused:"))},
        "orders": counts.get("orders", 0),
        "answer_ms": _percentiles(summary["answer_ms"]),
        "decision_to_order_ms": _percentiles(summary["decision_to_order_ms"]),
        "own_ms": _percentiles(summary["own_ms"]),
        "decision_to_order_p99_ms": summary["own_ms"]["p99_ms"],
        "left": {"orders": summary["open_orders"], "positions": summary["positions"]},
    }


def _percentiles(histogram: Mapping[str, Any]) -> dict[str, Any]:
    return {name: histogram[name] for name in ("count", "p50_ms", "p99_ms", "max_ms")}
