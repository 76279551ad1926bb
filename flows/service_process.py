"""The inference service as a child process with exactly the given settings, ready when the block begins."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import yaml

from core.settings import Settings
from flows.processes import child, wait_until_healthy

READY_LIMIT_S = 60.0
ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class ServiceProcess:
    """A running service. `process` may be killed; leaving the block ends it in any case."""

    url: str
    token: str
    process: subprocess.Popen[bytes]
    log: Path


@contextmanager
def service_process(
    settings: Settings, *, champion: str | None = None, environ: Mapping[str, str] | None = None
) -> Iterator[ServiceProcess]:
    """Run `python -m serving` on a free port, whatever `settings.serving.port` says. Raises ConfigError.

    `environ` adds variables; nothing is inherited, so that no drill tells anybody about its rollbacks.
    """
    state_dir = settings.paths.state_dir
    log = state_dir / "service.log"
    log.unlink(missing_ok=True)
    command = [sys.executable, "-m", "serving", *(["--champion", champion] if champion else [])]
    with child("the inference service", command, log=log, env=_environment(settings) | dict(environ or {})) as running:
        wait_until_healthy(running, lambda: _answers(_listening_at(log)), READY_LIMIT_S)
        token = (state_dir / "api_token").read_text(encoding="utf-8").strip()
        yield ServiceProcess(_listening_at(log), token, running.process, log)


def _environment(settings: Settings) -> dict[str, str]:
    """A settings file for the child, which tells nobody, and the few variables that must win over inherited ones."""
    file = settings.paths.state_dir / "service-settings.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    tree = settings.model_dump(mode="json") | {"presets": {settings.preset: {}}}
    tree["delivery"]["notifications"] |= {"webhooks": [], "email": None}
    file.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return {
        "HRM_SETTINGS": str(file),
        "HRM_PRESET": settings.preset,
        "HRM_PATHS__STATE_DIR": str(settings.paths.state_dir),
        "HRM_SERVING__PORT": "0",
        "HRM_ROLLOUT__DATABASE_URL_ENV": "null",  # a state of its own, unless `environ` says otherwise
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
    }


def _listening_at(log: Path) -> str:
    """The address from the service's own `listening` line, or an empty string."""
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        if '"listening"' in line:
            entry = json.loads(line)
            return f"http://{entry['host']}:{entry['port']}"
    return ""


def _answers(url: str) -> bool:
    """Live is enough: a service without a champion is started to be given one."""
    if not url:
        return False
    try:
        return httpx.get(f"{url}/health/live", timeout=2.0, trust_env=False).status_code == httpx.codes.OK
    except httpx.TransportError:
        return False
