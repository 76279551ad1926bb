"""kill -9 of the live process, as often as is asked, while the broker fails as well: is anything sent twice, or lost?

The process is `hrm trade --live` with real orders, started as a person starts it, with the broker's real SDK, against
an emulated exchange in a process of its own. It dies at every crash point and at random instants
(benchmarks/live_crashes.py), and another one takes over (benchmarks/live_arena.py). Several arenas are side by side,
each with its own exchange, ledger and market.
"""

from __future__ import annotations

import random
import shutil
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.live_arena import SYMBOLS, Arena, Tally
from benchmarks.live_crashes import Kill, kills
from benchmarks.live_decisions import deciding
from benchmarks.live_market import DAY, write_tables
from tests.fyers_emulator.process import running
from trading.instruments import lot_of

ARENAS = 2
MOST_WRONG = 50  # that are told in words


def run(count: int, *, seed: int = 0, arenas: int = ARENAS, keep: Path | None = None) -> dict[str, Any]:
    """Kill `count` live processes. `keep`: a folder for their ledgers and logs.

    Raises BrokerError (`desk_stuck`) if a process neither trades nor ends, and if several end by themselves.
    """
    planned = list(kills(count, random.Random(seed)))
    tally, began, folder = Tally(), time.monotonic(), keep or Path(tempfile.mkdtemp(prefix="hrm-kills-"))
    arenas = min(arenas, count)
    try:
        with deciding(lot_of("NIFTY", DAY)) as port, ThreadPoolExecutor(arenas) as pool:
            parts = [
                pool.submit(
                    _arena,
                    folder / str(number),
                    planned[_part(count, number, arenas)],
                    port,
                    random.Random(seed + number),
                )
                for number in range(arenas)
            ]
            for part in parts:
                tally.add(part.result())
    finally:
        if keep is None:
            shutil.rmtree(folder, ignore_errors=True)
    return _told(tally) | {"seconds": round(time.monotonic() - began, 1)}


def _part(count: int, number: int, parts: int) -> slice:
    return slice(number * count // parts, (number + 1) * count // parts)


def _told(tally: Tally) -> dict[str, Any]:
    verdict = tally.verdict
    found = {name: len(getattr(verdict, name)) for name in ("duplicate_orders", "lost_fills", "ledger_mismatches")}
    wrong = [*verdict.duplicate_orders, *verdict.lost_fills, *verdict.ledger_mismatches, *tally.ended]
    return {
        "kills": tally.counts["kills"],
        **found,
        "restart_s": round(max(tally.restarts_s), 2) if tally.restarts_s else None,
        "ended_by_themselves": len(tally.ended),
        "restarts_s": _spread(tally.restarts_s),
        "restarts_cpu_s": _spread(tally.restarts_cpu_s),
        "at_points": dict(sorted(tally.at_points.items())),
        "missed_points": dict(sorted(tally.missed.items())),
        "faults": dict(sorted(tally.faults.items())),
        "seen": dict(sorted(tally.counts.items())),
        "wrong": wrong[:MOST_WRONG],
    }


def _spread(values: list[float]) -> dict[str, float]:
    """Without any, only that there are none."""
    shares = {f"p{share}": float(np.percentile(values, share)) for share in (50, 95, 99)} if values else {}
    return {"count": len(values)} | {name: round(value, 2) for name, value in shares.items()}


def _arena(folder: Path, planned: list[Kill], port: int, draw: random.Random) -> Tally:
    folder.mkdir(parents=True)
    tables = {"HRM_INSTRUMENTS": str(write_tables(folder, SYMBOLS))}
    with running(environ=tables) as emulator:
        arena = Arena(emulator, folder, tables | {"HRM_SERVING__PORT": str(port)}, draw)
        arena.open()
        for kill in planned:
            arena.live(kill)
        arena.settle()
        arena.count_faults()
    return arena.tally
