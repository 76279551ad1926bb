"""Where flow runs are recorded: the user's own Prefect server, or a private one while the migration runs.

The private server listens on loopback only, asks for a random password, keeps its SQLite file under
<state_dir>/prefect and reports to nobody. Background services that only deployments need are off.
"""

from __future__ import annotations

import base64
import logging
import os
import secrets
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import prefect
from prefect.settings import (
    PREFECT_API_AUTH_STRING,
    PREFECT_API_URL,
    PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
    PREFECT_HOME,
    PREFECT_LOGGING_TO_API_ENABLED,
    temporary_settings,
)

from flows.processes import Child, child, free_port, wait_until_healthy

START_DEADLINE_S = 120.0
UNUSED_SERVICES = ("SCHEDULER", "LATE_RUNS", "FOREMAN", "PAUSE_EXPIRATIONS", "CANCELLATION_CLEANUP")
PRIVATE = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_UI_ENABLED": "false",
    "PREFECT_LOGGING_LEVEL": "ERROR",
    **{f"PREFECT_SERVER_SERVICES_{name}_ENABLED": "false" for name in UNUSED_SERVICES},
}


@contextmanager
def control_plane(state_dir: Path, log: Path) -> Iterator[str]:
    """Prefect's API while the block runs; yields its URL.

    Raises ConfigError with the server's last lines if it does not start.
    """
    own = PREFECT_API_URL.value()
    if own:
        yield str(own)
        return
    home, auth = state_dir.resolve() / "prefect", f"hrm:{secrets.token_urlsafe(24)}"
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _server(home, auth, log) as url, _client_settings(home, auth, url):
        yield url


@contextmanager
def _server(home: Path, auth: str, log: Path) -> Iterator[str]:
    port = free_port()
    url = f"http://127.0.0.1:{port}/api"
    env = os.environ | PRIVATE | {"PREFECT_HOME": str(home), "PREFECT_SERVER_API_AUTH_STRING": auth}
    with child("the Prefect server", _command(port), log=log, env=env) as server:
        _wait(server, url, auth)
        yield url


def _command(port: int) -> list[str]:
    folder = str(Path(prefect.__file__).parent)
    application = ["--app-dir", folder, "--factory", "prefect.server.api.server:create_app"]
    address = ["--host", "127.0.0.1", "--port", str(port), "--log-level", "error", "--lifespan", "on"]
    return [sys.executable, "-m", "uvicorn", *application, *address]


def _wait(server: Child, url: str, auth: str) -> None:
    credentials = base64.b64encode(auth.encode()).decode()
    request = urllib.request.Request(f"{url}/health", headers={"Authorization": f"Basic {credentials}"})  # noqa: S310 - loopback

    def healthy() -> bool:
        try:
            with urllib.request.urlopen(request, timeout=2) as answer:  # noqa: S310 - loopback
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    wait_until_healthy(server, healthy, START_DEADLINE_S)


@contextmanager
def _client_settings(home: Path, auth: str, url: str) -> Iterator[None]:
    values = {
        PREFECT_HOME: home,
        PREFECT_API_URL: url,
        PREFECT_API_AUTH_STRING: auth,
        PREFECT_LOGGING_TO_API_ENABLED: False,  # structlog has them; a sender outliving the server complains
        PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None,  # its thread delays the end of every flow by a second
    }
    with temporary_settings(values), _quiet():
        yield


@contextmanager
def _quiet() -> Iterator[None]:
    """The progress display says what happens, and errors reach the caller; Prefect's own lines would break both."""
    loggers = [logging.getLogger(f"prefect.{name}") for name in ("flow_runs", "task_runs")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
