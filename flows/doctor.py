"""`hrm doctor`: is this machine able to run what the settings ask for?"""

from __future__ import annotations

import shutil
import socket
import sys
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import psutil

from core.settings import Settings

DISTRIBUTIONS = ("torch", "onnxruntime-gpu", "prefect", "fastapi", "sqlalchemy", "numpy", "pandas", "fyers-apiv3")
OPTIONAL = {"fyers-apiv3", "onnxruntime-gpu"}  # onnxruntime stands in where there is no GPU build
FREE_DISK_GB = 1.0
CALENDAR_DAYS_AHEAD = 60


def examine(settings: Settings) -> dict[str, Any]:
    """`healthy`, and for each check `ok` and what was found or what to do."""
    checks: dict[str, Callable[[], tuple[bool, str]]] = {
        "python": _python,
        "packages": _packages,
        "memory": lambda: _memory(settings.performance.memory_limit_gb),
        "disk": lambda: _disk(settings),
        "providers": lambda: _providers(settings.serving.providers),
        "calendar": lambda: _calendar(datetime.now(UTC).date()),
        "port": lambda: _port(settings.serving.host, settings.serving.port),
    }
    found = {name: dict(zip(("ok", "detail"), check(), strict=True)) for name, check in checks.items()}
    return {"healthy": all(result["ok"] for result in found.values()), "preset": settings.preset, "checks": found}


def _python() -> tuple[bool, str]:
    ok = sys.version_info >= (3, 11)
    return ok, sys.version.split()[0] + ("" if ok else ": install Python 3.11 or newer")


def _packages() -> tuple[bool, str]:
    found, missing = [], []
    for name in DISTRIBUTIONS:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            missing.append(name)
    needed = [name for name in missing if name not in OPTIONAL]
    remedy = f"; missing {', '.join(needed)}: pip install -c constraints.txt -e '.[flows]'" if needed else ""
    return not needed, ", ".join(found) + remedy


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
