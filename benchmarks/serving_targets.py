"""What is loaded, each as processes of its own: our service, whole-request batching, and other people's servers.

A `Target` is ready when its block begins and gone, with all its descendants, when it ends. Ours takes /v1/decisions as
JSON or as raw float32. The others take one raw body, `raw_body`: they have no rollout, no accounts, nothing to log.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlencode

import numpy as np
import psutil

from benchmarks.peers import ONE_THREAD, PEERS, SCRIPTS, PeerError, installed
from benchmarks.serving_load import ROOT, request
from benchmarks.serving_model import Questions
from core.errors import ConfigError
from core.manifest import ModelManifest
from core.settings import Settings
from flows.processes import Child, child, free_port, wait_until_healthy
from flows.service_process import service_process

Form = Literal["json", "binary"]

START_S = 120.0  # Ray starts a dozen processes
END_S = 10.0
OCTETS = {"Content-Type": "application/octet-stream"}
JSON = {"Content-Type": "application/json"}


@dataclass(frozen=True)
class Target:
    """A server: where it listens, the process it began as, and the questions as it wants them asked."""

    port: int
    pid: int
    requests: tuple[bytes, ...]
    token: str = ""  # of our service


@dataclass(frozen=True)
class Model:
    """A published version: `settings` have the store it lies in."""

    settings: Settings
    manifest: ModelManifest

    @property
    def id(self) -> str:
        return f"{self.manifest.name}/{self.manifest.version}"

    @property
    def folder(self) -> Path:
        return self.settings.paths.state_dir / "models" / self.id


def raw_body(asked: Questions, which: int) -> bytes:
    """Little-endian float32: bars [W, F], account [A], complexity, position."""
    numbers = (asked.bars[which].ravel(), asked.account[which], asked.complexity[which : which + 1])
    return np.concatenate([*numbers, asked.position[which : which + 1]]).astype("<f4").tobytes()


@contextmanager
def our_service(model: Model, asked: Questions, form: Form = "binary") -> Iterator[Target]:
    with service_process(model.settings, champion=model.id) as running:
        wait_until_served(running.url)
        port = int(running.url.rsplit(":", 1)[1])
        requests = tuple(decision_request(asked, which, running.token, form) for which in range(len(asked)))
        yield Target(port, running.process.pid, requests, running.token)


def decision_request(asked: Questions, which: int, token: str, form: Form) -> bytes:
    """`POST /v1/decisions` as it goes over the wire."""
    authorization = {"Authorization": f"Bearer {token}"}
    if form == "json":
        body = json.dumps(decision_document(asked, which)).encode()
        return request("POST", "/v1/decisions", body, authorization | JSON)
    said = {
        "symbol": _symbol(which),
        "complexity": float(asked.complexity[which]),
        "position": int(asked.position[which]),
    }
    raw = asked.bars[which].astype("<f4").tobytes() + asked.account[which].astype("<f4").tobytes()
    return request("POST", f"/v1/decisions?{urlencode(said)}", raw, authorization | OCTETS)


def decision_document(asked: Questions, which: int) -> dict[str, Any]:
    account = {"features": asked.account[which].tolist(), "position": int(asked.position[which])}
    return {
        "symbol": _symbol(which),
        "bars": asked.bars[which].tolist(),
        "complexity": float(asked.complexity[which]),
        "accounts": {"champion": account},
    }


def _symbol(which: int) -> str:
    return f"BENCH{which}"


@contextmanager
def echo(asked: Questions) -> Iterator[Target]:
    """A server that costs next to nothing (serving_echo.py)."""
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.serving_echo", str(port)]
    with _server("the echo server", command, {"PYTHONPATH": str(ROOT)}, port, b"?") as running:
        yield Target(port, running.process.pid, _raw_requests(asked, "/predict"))


@contextmanager
def whole_requests(model: Model, asked: Questions) -> Iterator[Target]:
    """Our engine, batched the usual way (serving_whole.py)."""
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.serving_whole", model.id, str(port)]
    environ = _settings_for(model) | {"PYTHONPATH": str(ROOT)}
    with _server("whole-request batching", command, environ, port, raw_body(asked, 0)) as running:
        yield Target(port, running.process.pid, _raw_requests(asked, "/predict"))


@contextmanager
def peer(name: str, model: Model, asked: Questions, *, tuning: Mapping[str, Any], state_dir: Path) -> Iterator[Target]:
    """A peer's server with the same model.onnx. Raises PeerError where it cannot be installed or does not start."""
    python, port = installed(PEERS[name], state_dir) / "bin" / "python", free_port()
    with tempfile.TemporaryDirectory(prefix="peer-") as folder:
        told = {"root": str(ROOT), "model": model.id, "port": port, "folder": folder}
        options = {key: value for key, value in tuning.items() if not key.startswith("RAY_")}
        command = [str(python), "-I", str(SCRIPTS / f"{name}.py"), json.dumps(told | options)]
        environ = _settings_for(model) | {key: str(value) for key, value in tuning.items() if key.startswith("RAY_")}
        try:
            with _server(name, command, environ, port, raw_body(asked, 0)) as running:
                yield Target(port, running.process.pid, _raw_requests(asked, "/predict"))
        except ConfigError as error:
            raise PeerError(f"peers/{name}.py: {error}") from error


def wait_until_served(url: str, poll_s: float = 0.02) -> None:
    """Until /health/ready says 200. Raises ConfigError after START_S."""
    deadline = time.monotonic() + START_S
    while not _answers(f"{url}/health/ready", None):
        if time.monotonic() > deadline:
            raise ConfigError(f"{url} was not ready within {START_S:g} s; see the service's log")
        time.sleep(poll_s)


def _raw_requests(asked: Questions, path: str) -> tuple[bytes, ...]:
    return tuple(request("POST", path, raw_body(asked, which), OCTETS) for which in range(len(asked)))


def _settings_for(model: Model) -> dict[str, str]:
    """The file that `service_process` wrote is private to it; ours says the same."""
    import yaml

    settings = model.settings
    file = settings.paths.state_dir / "bench-settings.yaml"
    tree = settings.model_dump(mode="json") | {"presets": {settings.preset: {}}}
    file.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return {"HRM_SETTINGS": str(file), "HRM_PRESET": settings.preset}


@contextmanager
def _server(name: str, command: list[str], environ: Mapping[str, str], port: int, body: bytes) -> Iterator[Child]:
    log = Path(os.environ.get("TMPDIR", "/tmp")) / f"hrm-bench-{os.getpid()}-{port}.log"  # noqa: S108 - our own name
    env = _plain_environment() | ONE_THREAD | dict(environ)
    with ExitStack() as stack:
        stack.callback(log.unlink, missing_ok=True)
        running = stack.enter_context(child(name, command, log=log, env=env))
        stack.enter_context(_no_orphans(running.process.pid))
        url = f"http://127.0.0.1:{port}/predict"
        wait_until_healthy(running, lambda: _answers(url, body), START_S)
        yield running


def _plain_environment() -> dict[str, str]:
    """What a program needs to run at all; nothing that would tell a server to behave otherwise."""
    kept = ("PATH", "HOME", "LANG", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "TMPDIR")
    return {name: os.environ[name] for name in kept if name in os.environ}


def _answers(url: str, body: bytes | None) -> bool:
    asked = urllib.request.Request(url, data=body, headers=OCTETS if body else {})  # noqa: S310 - loopback
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(asked, timeout=5.0) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


@contextmanager
def _no_orphans(pid: int) -> Iterator[None]:
    """End `pid`, and then those of its descendants that outlive it: daemons become nobody's children."""
    try:
        yield
    finally:
        with suppress(psutil.NoSuchProcess):  # it has ended by itself, and whoever waits for it says so
            root = psutil.Process(pid)
            family = root.children(recursive=True)
            root.terminate()
            psutil.wait_procs([root], timeout=END_S)
            _, left = psutil.wait_procs(family, timeout=1)
            for each in left:
                each.kill()
            psutil.wait_procs(left, timeout=END_S)
