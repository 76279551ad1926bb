"""The local Prefect server of `hrm up`: its password, its settings, and what is asked of it.

It is the desk's own: its home is <state_dir>/prefect, not the user's ~/.prefect, it listens on loopback and asks for
a password even there, since whoever may start a deployment runs code.
"""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx

from core.errors import ConfigError
from core.files import write_atomically

AUTH_FILE = "auth"
USER = "hrm"
POOL = "hrm"
WORKER = "hrm-up"
ROOT = Path(__file__).resolve().parent.parent
TIMEOUT_S = 5.0
HEARTBEAT_S = 30  # flow runs say that they live; one that does not any more is crashed (flows/up_deployments.py)
# A loaded machine shares one SQLite file between the server's services: they wait for each other this long.
DATABASE_WAIT_S = 60


@dataclass(frozen=True)
class Control:
    """A Prefect server on loopback, and how its home lets one in."""

    home: Path
    port: int
    auth: str  # "user:password"

    def __repr__(self) -> str:
        return f"Control({self.url})"

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"{self.address}/api"

    def ask(self, method: str, path: str, **body: Any) -> httpx.Response:
        """One request, with the password. Raises httpx.TransportError."""
        user, _, password = self.auth.partition(":")
        return httpx.request(
            method,
            self.url + path,
            auth=(user, password),
            timeout=TIMEOUT_S,
            trust_env=False,
            json=body if method != "GET" else None,
        )

    def is_up(self) -> bool:
        return self._found("GET", "/health") is not None

    def has_worker(self, since: float) -> bool:
        """Whether the worker has said after `since` (Unix seconds) that it is there: one before it had its name too."""
        answer = self._found("POST", f"/work_pools/{POOL}/workers/filter")
        workers = [] if answer is None else [one for one in answer.json() if one["name"] == WORKER]
        return any(datetime.fromisoformat(one["last_heartbeat_time"]).timestamp() > since for one in workers)

    def _found(self, method: str, path: str) -> httpx.Response | None:
        try:
            answer = self.ask(method, path)
        except httpx.TransportError:
            return None
        return answer if answer.is_success else None

    def client_environment(self) -> dict[str, str]:
        """For whoever speaks to this server and to no other."""
        return {
            "PREFECT_HOME": str(self.home),
            "PREFECT_API_URL": self.url,
            "PREFECT_API_AUTH_STRING": self.auth,
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "DO_NOT_TRACK": "1",
        }

    def server_environment(self) -> dict[str, str]:
        return self.client_environment() | {
            "PREFECT_SERVER_API_AUTH_STRING": self.auth,
            "PREFECT_SERVER_API_HOST": "127.0.0.1",
            "PREFECT_SERVER_API_PORT": str(self.port),
            "PREFECT_UI_API_URL": self.url,
            "PREFECT_UI_STATIC_DIRECTORY": str(self.home / "ui"),  # written at the start; the package may be read-only
            "PREFECT_SERVER_DATABASE_TIMEOUT": str(DATABASE_WAIT_S),
            "PREFECT_LOGGING_LEVEL": "WARNING",
        }

    def worker_environment(self) -> dict[str, str]:
        return self.client_environment() | {
            "PREFECT_WORKER_QUERY_SECONDS": "2",
            "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_S),
        }


def control_of(state_dir: Path, port: int) -> Control:
    """The server of a state directory; its password is made on first use and stays. Raises ConfigError."""
    home = state_dir / "prefect"
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    file = home / AUTH_FILE
    if not file.exists():
        write_atomically(file, f"{USER}:{secrets.token_urlsafe(24)}\n".encode(), mode=0o600)
    try:
        auth = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: not readable ({error}); check its owner and mode") from None
    if ":" not in auth:
        raise ConfigError(f"{file}: no 'user:password'; delete it for a new one")
    return Control(home, port, auth)


def clean_environment(state_dir: Path, service_port: int) -> dict[str, str]:
    """What every part inherits: this environment without another Prefect's settings, and this desk's own."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    return inherited | {
        "HRM_ROOT": str(ROOT),
        "HRM_PATHS__STATE_DIR": str(state_dir),
        "HRM_SERVING__HOST": "127.0.0.1",
        "HRM_SERVING__PORT": str(service_port),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
    }
