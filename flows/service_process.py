"""The inference service as a child process: started with the given settings, ready, and always ended."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import httpx
import yaml

from core.errors import ConfigError
from core.settings import ENV_PREFIX, Settings

READY_LIMIT_S = 30.0
STOP_LIMIT_S = 10.0


class ServiceProcess:
    """Context manager around `python -m serving`. Port 0 picks a free port; `url` and `token` are set once ready."""

    url: str
    token: str

    def __init__(self, settings: Settings, *, champion: str | None = None) -> None:
        self._settings = settings
        self._state_dir = settings.paths.state_dir
        self._champion = champion
        self.log_file = self._state_dir / "service.log"

    def __enter__(self) -> Self:
        self._state_dir.mkdir(parents=True, exist_ok=True)
        arguments = ["--champion", self._champion] if self._champion else []
        self._log: IO[bytes] = self.log_file.open("wb")
        self.process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
            [sys.executable, "-m", "serving", *arguments],
            stdout=self._log,
            stderr=self._log,
            env=_environment(self._settings),
            cwd=Path(__file__).resolve().parent.parent,
        )
        try:
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise
        self.token = (self._state_dir / "api_token").read_text(encoding="utf-8").strip()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> int:
        """SIGTERM, then SIGKILL if it does not end. Returns the exit code."""
        if self.process.poll() is None:
            self.process.terminate()
        try:
            return self.process.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()
        finally:
            self._log.close()

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + READY_LIMIT_S
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                break
            self.url = _listening_at(self.log_file)
            if self.url and _answers(self.url):
                return
            time.sleep(0.05)
        log = self.log_file.read_text(encoding="utf-8", errors="replace")
        raise ConfigError(f"the service did not start ({self.log_file}):\n{log[-2000:]}")


def _environment(settings: Settings) -> dict[str, str]:
    """The parent's environment with exactly these settings in place of its own HRM_ variables."""
    file = settings.paths.state_dir / "service-settings.yaml"
    tree = settings.model_dump(mode="json") | {"presets": {settings.preset: {}}}
    file.write_text(yaml.safe_dump(tree), encoding="utf-8")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(ENV_PREFIX)}
    return inherited | {"HRM_SETTINGS": str(file)}


def _listening_at(log_file: Path) -> str:
    """The address from the service's own `listening` line, or an empty string."""
    for line in log_file.read_text(encoding="utf-8", errors="replace").splitlines():
        if '"listening"' in line:
            entry = json.loads(line)
            return f"http://{entry['host']}:{entry['port']}"
    return ""


def _answers(url: str) -> bool:
    """Live is enough: a service without a champion is started to be given one."""
    try:
        return httpx.get(f"{url}/health/live", timeout=2.0, trust_env=False).status_code == httpx.codes.OK
    except httpx.TransportError:
        return False
