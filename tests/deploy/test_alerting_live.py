"""The shipped rules and Alertmanager's shipped configuration, run by Prometheus and Alertmanager themselves.

A real service and a real backend are scraped by two Prometheus servers, as a pair that may lose one; something is
broken, and what a webhook hears is counted. Changed for the test: addresses, the mail, and how long is waited.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from test_monitoring import ROOT, expressions

from core.settings import load_settings
from flows.drill_models import publish_policy
from flows.processes import child, free_port, wait_until_healthy
from flows.service_process import ServiceProcess, service_process
from serving import keys
from serving.scopes import Scope
from trading import drift_record, switch

CONFIG = ROOT / "deploy" / "prometheus"
PROMETHEUS = shutil.which("prometheus")
ALERTMANAGER = shutil.which("prometheus-alertmanager") or shutil.which("alertmanager")
WITHIN_S, GROUP_INTERVAL_S = 120.0, 3
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        PROMETHEUS is None or ALERTMANAGER is None,
        reason="prometheus and alertmanager are not installed (Debian: prometheus, prometheus-alertmanager)",
    ),
]


@dataclass
class Webhook:
    """What somebody was told: (alert, firing or resolved), in order."""

    port: int = 0
    told: list[tuple[str, str]] = field(default_factory=list)

    def of(self, alert: str) -> list[str]:
        return [status for name, status in self.told if name == alert]


@dataclass(frozen=True)
class Stack:
    folder: Path
    service: ServiceProcess
    backend: str
    webhook: Webhook
    prometheus: tuple[str, str]
    manager: str
    start_manager: Callable[[], None]
    end_manager: Callable[[], None]

    def firing(self) -> set[str]:
        """As both Prometheus servers see it."""
        return set.intersection(*(_firing(url) for url in self.prometheus))


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    state_dir = tmp_path / "state"
    publish_policy(state_dir / "models", "ppo/v1")
    settings = load_settings(environ={"HRM_PATHS__STATE_DIR": str(state_dir)})
    with ExitStack() as running:
        service = running.enter_context(service_process(settings, champion="ppo/v1"))
        backend = running.enter_context(_backend(state_dir, service.url))
        webhook = running.enter_context(_webhook())
        manager = f"127.0.0.1:{free_port()}"
        managers = running.enter_context(ExitStack())

        def start_manager() -> None:
            managers.enter_context(_alertmanager(tmp_path, manager, webhook.port))

        start_manager()
        _, key = keys.create(state_dir, "prometheus", (Scope.METRICS_READ,))
        (tmp_path / "probe_key").write_text(key)
        targets = {"hrm-serving": service.url, "hrm-backend": backend}
        both = tuple(
            running.enter_context(_prometheus(tmp_path / name, tmp_path / "probe_key", targets, manager))
            for name in ("one", "two")
        )
        yield Stack(state_dir, service, backend, webhook, (both[0], both[1]), manager, start_manager, managers.close)


def test_whoever_is_on_duty_is_told_once_and_told_when_it_is_over(stack: Stack) -> None:
    """Something that is critical, something else that is not, a restart of Alertmanager, and the end of a replica."""
    assert stack.firing() == set()
    drift_record.keep(stack.folder, "fail", {"signal": 0.4}, ("signal",))
    (stack.folder / switch.KILL).touch()
    _until(lambda: {name for name, _ in stack.webhook.told} >= {"HrmTradingHalted", "HrmDrift"})
    stack.end_manager()
    stack.start_manager()
    _until(lambda: _active(stack.manager) >= {"HrmTradingHalted", "HrmDrift"})
    time.sleep(3 * GROUP_INTERVAL_S)  # in which it would be told again, if it were
    assert stack.webhook.of("HrmTradingHalted") == ["firing"]
    switch.release(stack.folder, "the test", "it was one")
    _until(lambda: stack.webhook.of("HrmTradingHalted") == ["firing", "resolved"])
    stack.service.process.kill()
    _until(lambda: "firing" in stack.webhook.of("HrmNobodyServes"))
    assert stack.firing() == {"HrmNobodyServes", "HrmServiceDown", "HrmDrift"}
    time.sleep(3 * GROUP_INTERVAL_S)
    assert stack.webhook.of("HrmServiceDown") == []  # whoever knows that nobody serves need not hear of one replica
    assert stack.webhook.of("HrmNobodyServes") == stack.webhook.of("HrmDrift") == ["firing"]


def test_every_metric_of_a_rule_or_a_panel_is_told_by_a_process_that_runs(stack: Stack) -> None:
    texts = [httpx.get(f"{url}/metrics", trust_env=False).text for url in (stack.service.url, stack.backend)]
    told = {name for text in texts for name in re.findall(r"^# TYPE (\S+) ", text, re.MULTILINE)}
    for expression in expressions():
        for name in re.findall(r"\b(hrm_[a-z0-9_]+|process_[a-z_]+)\b", re.sub(r'"[^"]*"', "", expression)):
            assert name in told or re.sub("_(bucket|sum|count)$", "", name) in told, f"{name} in {expression}"
    for url in stack.prometheus:
        assert {one["health"] for one in _asked(url, "targets")["activeTargets"]} == {"up"}


@contextmanager
def _backend(state_dir: Path, service: str) -> Iterator[str]:
    url = f"http://127.0.0.1:{free_port()}"
    env = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "HRM_PATHS__STATE_DIR": str(state_dir),
        "HRM_SERVING__PORT": service.rpartition(":")[2],
    }
    command = [sys.executable, "-m", "backend", "--port", url.rpartition(":")[2]]
    with child("the backend", command, log=state_dir / "backend.log", env=env) as running:
        wait_until_healthy(running, lambda: _answers(f"{url}/health/live"), WITHIN_S)
        yield url


@contextmanager
def _webhook() -> Iterator[Webhook]:
    heard = Webhook()

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            heard.told.extend((alert["labels"]["alertname"], alert["status"]) for alert in body["alerts"])
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    heard.port = server.server_port
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield heard
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def _alertmanager(folder: Path, address: str, port: int) -> Iterator[None]:
    text = (CONFIG / "alertmanager.yml").read_text()  # `url_file` is newer than Debian's Alertmanager
    config = yaml.safe_load(re.sub("url_file: .*", f"url: http://127.0.0.1:{port}/", text))
    config["route"] |= {"group_wait": "1s", "group_interval": f"{GROUP_INTERVAL_S}s"}
    for receiver in config["receivers"]:
        receiver.pop("email_configs", None)
    file = folder / "alertmanager.yml"
    file.write_text(yaml.safe_dump(config))
    assert ALERTMANAGER is not None
    command = [
        *(ALERTMANAGER, f"--config.file={file}", f"--storage.path={folder / 'alertmanager'}"),
        *(f"--web.listen-address={address}", "--cluster.listen-address="),
    ]
    with child("Alertmanager", command, log=folder / "alertmanager.log", env={}) as running:
        wait_until_healthy(running, lambda: _answers(f"http://{address}/-/ready"), WITHIN_S)
        yield


@contextmanager
def _prometheus(folder: Path, key: Path, targets: dict[str, str], manager: str) -> Iterator[str]:
    folder.mkdir()
    rules = folder / "rules.yml"
    rules.write_text((CONFIG / "rules.yml").read_text().replace("interval: 15s", "interval: 1s"))
    config = yaml.safe_load((CONFIG / "prometheus.yml").read_text())
    config["global"] |= {"scrape_interval": "2s", "scrape_timeout": "2s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(rules)]
    config["alerting"]["alertmanagers"][0]["static_configs"][0]["targets"] = [manager]
    for job in config["scrape_configs"]:
        job["authorization"]["credentials_file"] = str(key)
        job["static_configs"] = [{"targets": [targets[job["job_name"]].removeprefix("http://")]}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    address = f"127.0.0.1:{free_port()}"
    assert PROMETHEUS is not None
    command = [
        *(PROMETHEUS, f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}"),
        *(f"--web.listen-address={address}", "--rules.alert.resend-delay=2s"),
    ]
    with child("Prometheus", command, log=folder / "log", env={}) as running:
        wait_until_healthy(running, lambda: _all_up(f"http://{address}", len(targets)), WITHIN_S)
        yield f"http://{address}"


def _all_up(url: str, count: int) -> bool:
    if not _answers(f"{url}/-/ready"):
        return False
    return [one["health"] for one in _asked(url, "targets")["activeTargets"]] == ["up"] * count


def _asked(url: str, what: str) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(f"{url}/api/v1/{what}", trust_env=False, timeout=10).raise_for_status().json()
    data: dict[str, Any] = found["data"]
    return data


def _firing(url: str) -> set[str]:
    return {one["labels"]["alertname"] for one in _asked(url, "alerts")["alerts"] if one["state"] == "firing"}


def _active(manager: str) -> set[str]:
    answer = httpx.get(f"http://{manager}/api/v2/alerts", trust_env=False, timeout=10)
    return {one["labels"]["alertname"] for one in answer.raise_for_status().json()}


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, trust_env=False, timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def _until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WITHIN_S
    while not true():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.2)
