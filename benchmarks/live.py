"""Is the live process to be trusted with real orders? Figures of one JSON object, and the goals they are held to.

kills     of the process, at every crash point and at random instants, while the broker fails (benchmarks/live_kills.py)
session   a whole day of twenty symbols, from the decision to the order (benchmarks/live_session.py)

Both trade against an emulated exchange on loopback; no account, no real order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import live_kills, live_session
from benchmarks.live_goals import GOALS
from benchmarks.machine import described
from benchmarks.serving_goals import judged
from core.errors import ConfigError


@dataclass(frozen=True)
class Bench:
    """`kills` of the process, drawn from `seed`. `keep`: a folder for ledgers and logs, for whoever looks closer."""

    kills: int
    seed: int
    keep: Path | None
    data: Path | None  # bars of the session, instead of made-up ones


def run(
    *, kills: int, seed: int = 0, only: str | None = None, keep: Path | None = None, data: Path | None = None
) -> dict[str, Any]:
    """The figures of the parts that `only` names, or of all, and `goals`.

    Raises ConfigError for an unknown part, and for a folder to keep that is there already.
    """
    parts = tuple(name.strip() for name in only.split(",")) if only else tuple(PARTS)
    unknown = sorted(set(parts) - set(PARTS))
    if unknown:
        raise ConfigError(f"{', '.join(unknown)}: unknown; choose from {', '.join(PARTS)}", code="usage")
    if keep is not None and keep.exists():
        raise ConfigError(f"{keep}: is there already; name a folder that is not, or remove it", code="usage")
    bench, found = Bench(kills, seed, keep, data), dict[str, Any]()
    for name, part in PARTS.items():
        if name in parts:
            found |= part(bench)
    return described(1) | flat(found) | found | {"goals": judged(found, "", gpu=False, goals=GOALS)}


def flat(found: dict[str, Any]) -> dict[str, Any]:
    """The figures that are always told; None for a part that was not run."""
    return {name: found.get(name) for name in (*OF_KILLS, *SHOWN)}


def _kills(bench: Bench) -> dict[str, Any]:
    return live_kills.run(bench.kills, seed=bench.seed, keep=bench.keep)


def _session(bench: Bench) -> dict[str, Any]:
    found = live_session.run(seed=bench.seed, data=bench.data, keep=bench.keep and bench.keep / "session")
    return {name: found.pop(name) for name in SHOWN} | {"session": found}


PARTS: dict[str, Callable[[Bench], dict[str, Any]]] = {"kills": _kills, "session": _session}
OF_KILLS = ("kills", "duplicate_orders", "lost_fills", "ledger_mismatches", "restart_s")
SHOWN = ("decision_to_order_p99_ms", "bars", "undecided_bars")  # beside the kills' figures
