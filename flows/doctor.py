"""`hrm doctor`: is this machine able to run what the settings ask for, and what would make it able to do more?

A check fails where something needed is missing; optional ones only tell what cannot be done without them. Each names
how to get what it misses.
"""

from __future__ import annotations

import shutil
import socket
import sys
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

import psutil
from packaging.requirements import Requirement
from rich.markup import escape
from rich.table import Table

from core.errors import ConfigError, HrmSystemError
from core.settings import Settings

PROJECT, EXTRAS = "hrm-trading", ("serving", "trade", "research", "train", "flows")  # what `make` installs for a user
INSTALL = "pip install -c constraints.txt -e '.[flows]'"
TOOLS = {
    "chromium": "the dashboard's tests drive it: apt install chromium",
    "promtool": "checks the alert rules: apt install prometheus",
    "docker": "builds the images of the Dockerfile: your system's package",
}
FREE_DISK_GB = 1.0
CALENDAR_DAYS_AHEAD = 60


def examine(settings: Settings) -> dict[str, Any]:
    """`healthy`, and for each check `ok` (None: optional, and not there) and what was found or what to do."""
    store = settings.paths.state_dir / "models"
    checks: dict[str, Callable[[], tuple[bool | None, str]]] = {
        "python": _python,
        "packages": _packages,
        "memory": lambda: _memory(settings.performance.memory_limit_gb),
        "disk": lambda: _disk(settings),
        "providers": lambda: _providers(settings.serving.providers),
        "calendar": lambda: _calendar(datetime.now(UTC).date()),
        "port": lambda: _port(settings.serving.host, settings.serving.port),
        "models": lambda: _models(store),
        "broker": lambda: _broker(settings.paths.state_dir),
        "tools": _tools,
    }
    found = {name: dict(zip(("ok", "detail"), check(), strict=True)) for name, check in checks.items()}
    failed = any(result["ok"] is False for result in found.values())
    return {"healthy": not failed, "preset": settings.preset, "checks": found}


def screen(findings: dict[str, Any]) -> Table:
    """For a person: what is well, what is missing and needed, what is missing and may be."""
    rows = Table("", "check", "found, or what to do", box=None, pad_edge=False)
    marks = {True: "[green]ok[/]", False: "[red]MISSING[/]", None: "[yellow]optional[/]"}
    for name, check in findings["checks"].items():
        rows.add_row(marks[check["ok"]], name, escape(check["detail"]))
    return rows


def _python() -> tuple[bool, str]:
    ok = sys.version_info >= (3, 11)
    return ok, sys.version.split()[0] + ("" if ok else ": install Python 3.11 or newer")


def _packages() -> tuple[bool, str]:
    """Of what is declared, all is there and in the tested range: some newer ones break Prefect's server."""
    declared = [Requirement(line) for line in requires(PROJECT) or []]
    wanted = [one for one in declared if one.marker is None or any(one.marker.evaluate({"extra": e}) for e in EXTRAS)]
    wrong = sorted({problem for one in wanted if one.name != PROJECT and (problem := _unmet(one)) is not None})
    if wrong:
        return False, f"{'; '.join(wrong)}: {INSTALL}"
    return True, f"{len({one.name for one in wanted})} packages in the ranges that were tested together"


def _unmet(wanted: Requirement) -> str | None:
    try:
        found = version(wanted.name)
    except PackageNotFoundError:
        return f"{wanted.name} is not installed"
    return None if wanted.specifier.contains(found, prereleases=True) else f"{wanted} is needed, not {found}"


def _memory(limit_gb: float) -> tuple[bool, str]:
    available = psutil.virtual_memory().available / 1e9
    return available > 1.0, f"{available:.1f} GB available, the service may use {limit_gb:g} GB"


def _disk(settings: Settings) -> tuple[bool, str]:
    folder = settings.paths.state_dir.resolve()
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(existing).free / 1e9
    remedy = "" if free > FREE_DISK_GB else "; free some space or choose another --state-dir"
    return free > FREE_DISK_GB, f"{free:.1f} GB free for {folder}{remedy}"


def _providers(wanted: tuple[str, ...]) -> tuple[bool, str]:
    import onnxruntime

    built = onnxruntime.get_available_providers()
    usable = [provider for provider in wanted if provider in built]
    remedy = "" if usable else f"; serving.providers names none of {built}"
    return bool(usable), f"onnxruntime {onnxruntime.__version__} was built with {', '.join(built)}{remedy}"


def _calendar(today: date) -> tuple[bool, str]:
    """Trading days end with the calendar: better told weeks before than on the day."""
    from trading.calendar import bounds

    last = bounds()[1]
    soon = last - today < timedelta(days=CALENDAR_DAYS_AHEAD)
    remedy = "; install a newer exchange_calendars before then" if soon else ""
    return last >= today, f"trading days are known until {last}{remedy}"


def _port(host: str, port: int) -> tuple[bool, str]:
    """A port in use is fine if it is our service's; that cannot be told from here, so it is only said."""
    with socket.socket() as probe:
        probe.settimeout(0.5)
        busy = probe.connect_ex((host, port)) == 0
    return True, f"{host}:{port} " + ("is in use (by the service, or set HRM_SERVING__PORT)" if busy else "is free")


def _models(store: Path) -> tuple[bool | None, str]:
    from serving.store import list_versions

    try:
        rows = list_versions(store)
    except HrmSystemError as error:
        return False, str(error)
    refused = [f"{row['id']}: {row['problem']}" for row in rows if row["problem"]]
    if refused:
        return None, "; ".join(refused)
    names = ", ".join(str(row["id"]) for row in rows[-3:])
    return bool(rows) or None, f"{len(rows)} published, {names}" if rows else "none published yet: make migrate"


def _broker(state_dir: Path) -> tuple[bool | None, str]:
    from trading.fyers.login import credentials

    try:
        version("fyers-apiv3")
    except PackageNotFoundError:
        return None, "no fyers-apiv3; paper trading does without: pip install --no-deps fyers-apiv3==3.2.0"
    try:
        client_id = credentials(state_dir).client_id
    except ConfigError as error:
        return None, f"{error}; without an account: hrm fyers emulate"
    return True, f"logged in as {client_id}"


def _tools() -> tuple[bool | None, str]:
    missing = [f"no {name} ({why})" for name, why in TOOLS.items() if shutil.which(name) is None]
    return not missing or None, "; ".join(missing) or ", ".join(TOOLS)
