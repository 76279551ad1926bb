"""Is a rollback there, for everybody, soon, whatever dies meanwhile?

kills    writers of the state are killed with kill -9 at random instants (benchmarks/rollback_kills.py)
seen     by how many milliseconds the other workers of a service are behind (benchmarks/rollback_seen.py)
blind    by how many seconds they are behind in knowing that the database is gone
orders   of an epoch that is over, sent among changes of the epoch (benchmarks/orders.py)
resume   by how many seconds a rollout stands still when its controller is killed (benchmarks/rollback_resume.py)
drill    from a trigger to the challenger's last decision (flows/drill.py)
statistics   false aborts, and samples until a fault is found (benchmarks/rollback_statistics.py)

What has a state has it on SQLite and on a Postgres server that is started for it, on this machine and its disk.
"""

from __future__ import annotations

import signal
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import orders, rollback_kills, rollback_resume, rollback_seen
from benchmarks.machine import described
from benchmarks.postgres import PostgresServer, postgres_server
from benchmarks.rollback_goals import GOALS
from benchmarks.rollback_statistics import statistics
from benchmarks.serving_goals import judged
from core.errors import ConfigError
from core.settings import load_settings
from delivery.state_database import Place
from flows.drill import run_drill

ORDER_PROCESSES = 2
CONTROLLERS_KILLED = 10
SMALL = "compact"  # the preset of services whose models are made for them
TRIALS = 400  # of each fault at each rate
TOLD_AS = {"kills": "kills_by_database"}  # `kills` is how many there were


@dataclass(frozen=True)
class Bench:
    """`kills` of writers on each database, `rollbacks` to be seen, `orders` to be sent, `months` to be simulated."""

    folder: Path
    kills: int
    rollbacks: int
    orders: int
    months: int


def run(*, kills: int, rollbacks: int, orders: int, months: int = 1, only: str | None = None) -> dict[str, Any]:
    """The parts that `only` names, or all, and `goals`. Raises ConfigError, also where there is no Postgres."""
    parts = tuple(name.strip() for name in only.split(",")) if only else tuple(PARTS)
    unknown = sorted(set(parts) - set(PARTS))
    if unknown:
        raise ConfigError(f"{', '.join(unknown)}: unknown; choose from {', '.join(PARTS)}", code="usage")
    with tempfile.TemporaryDirectory(prefix="hrm-bench-") as folder:
        bench = Bench(Path(folder), kills, rollbacks, orders, months)
        found = {TOLD_AS.get(name, name): PARTS[name](bench) for name in PARTS if name in parts}
    return described(1) | flat(found) | found | {"goals": judged(found, "", gpu=False, goals=GOALS)}


def flat(found: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of all databases in `backend` together: sums, and the slowest; None for a part that was not run."""
    kills, seen = found.get(TOLD_AS["kills"], {}), found.get("seen", {})
    return {
        "backend": "+".join(kills or seen) or None,
        "workers": max((each["workers"] for each in seen.values()), default=None),
        "propagation_p99_ms": max((each["latency_ms"]["p99"] for each in seen.values()), default=None),
        "last_challenger_ms": found.get("drill", {}).get("last_challenger_ms"),
        **{
            name: sum(each[name] for each in kills.values()) if kills else None
            for name in ("kills", "lost", "duplicated")
        },
        "stale_epoch_orders": found.get("orders", {}).get("stale_accepted"),
    }


def _kills(bench: Bench) -> dict[str, Any]:
    with _places(bench, "kills") as places:
        return {name: rollback_kills.kills(place, bench.kills) for name, place in places.items()}


def _seen(bench: Bench) -> dict[str, Any]:
    with _places(bench, "seen") as places:
        return {name: rollback_seen.seen(place, bench.rollbacks) for name, place in places.items()}


def _blind(bench: Bench) -> dict[str, Any]:
    file, away = bench.folder / "blind.db", bench.folder / "away.db"
    found = {"file_moved": rollback_seen.blind(file, lambda: _moved(file, away))}
    with postgres_server() as server:
        place = server.new_database()
        found["server_silent"] = rollback_seen.blind(place, server.freeze)
        server.thaw()
        found["server_gone"] = rollback_seen.blind(place, lambda: _killed(server))
    return found


def _orders(bench: Bench) -> dict[str, Any]:
    return orders.interleaved(bench.folder, orders=bench.orders, processes=ORDER_PROCESSES)


def _resume(bench: Bench) -> dict[str, Any]:
    return rollback_resume.resume(load_settings(preset=SMALL, environ={}), bench.folder / "resume", CONTROLLERS_KILLED)


def _drill(bench: Bench) -> dict[str, Any]:
    drilled = run_drill(load_settings(preset=SMALL, environ={}), bench.folder / "drill")
    return {"triggers": drilled} | {
        name: max(float(one[name]) for one in drilled) for name in ("last_challenger_ms", "lost_decisions")
    }


def _statistics(bench: Bench) -> dict[str, Any]:
    return statistics(load_settings(environ={}), months=bench.months, trials=TRIALS)


PARTS: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "kills": _kills,
    "seen": _seen,
    "blind": _blind,
    "orders": _orders,
    "resume": _resume,
    "drill": _drill,
    "statistics": _statistics,
}


@contextmanager
def _places(bench: Bench, name: str) -> Iterator[dict[str, Place]]:
    with postgres_server() as server:
        yield {"sqlite": bench.folder / f"{name}.db", "postgres": server.new_database()}


def _moved(file: Path, away: Path) -> None:
    file.rename(away)


def _killed(server: PostgresServer) -> None:
    if server.process is not None:
        server.process.send_signal(signal.SIGQUIT)
