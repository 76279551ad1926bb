"""Several processes behind one port: they answer alike, roll back alike, come back, and end together."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from core.settings import Settings
from flows.drill_models import FAULT_LEVEL
from flows.service_process import ServiceProcess, service_process

ROOT = Path(__file__).parent.parent.parent
WORKERS = 3
CONNECTIONS = 24  # so that one worker has none of them once in 20,000 times
LIMIT_S = 60.0


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def with_workers(settings: Settings, count: int) -> Settings:
    return settings.model_copy(update={"serving": settings.serving.model_copy(update={"workers": count})})


def question(level: float = 0.5, depth: float = 1.0, symbol: str = "A") -> dict[str, Any]:
    account = {"features": [depth - 0.75] * 2, "position": 0}
    accounts = {"champion": account, "challenger": account}
    return {"symbol": symbol, "bars": [[level] * 2] * 4, "complexity": 0.0, "accounts": accounts}


@dataclass
class Everybody:
    """Connections enough to have all workers at the other end of some."""

    clients: list[httpx.Client]

    def get(self, path: str) -> list[dict[str, Any]]:
        return [client.get(path).json() for client in self.clients]

    def decide(self, **fields: Any) -> list[dict[str, Any]]:
        answers = [client.post("/v1/decisions", json=question(**fields)) for client in self.clients]
        assert {answer.status_code for answer in answers} == {200}, answers[0].text
        return [answer.json() for answer in answers]

    def all_say(self, **fields: object) -> bool:
        return all(fields.items() <= state.items() for state in self.get("/v1/rollout"))


@contextmanager
def everybody(service: ServiceProcess) -> Iterator[Everybody]:
    headers = {"Authorization": f"Bearer {service.token}"}
    with ExitStack() as stack:
        clients = [
            stack.enter_context(httpx.Client(base_url=service.url, headers=headers, trust_env=False, timeout=60))
            for _ in range(CONNECTIONS)
        ]
        yield Everybody(clients)


def workers_of(service: ServiceProcess) -> list[psutil.Process]:
    return sorted(psutil.Process(service.process.pid).children(), key=lambda process: process.pid)


def command(client: httpx.Client, name: str, **body: str) -> dict[str, Any]:
    answer = client.post(f"/v1/rollout/{name}", json=body)
    assert answer.status_code == 200, answer.text
    document: dict[str, Any] = answer.json()
    return document


@pytest.fixture
def three(settings: Settings) -> Iterator[ServiceProcess]:
    with service_process(with_workers(settings, WORKERS), champion="hrm/v1") as service:
        yield service


def test_a_decision_does_not_depend_on_the_number_of_workers(settings: Settings) -> None:
    questions = [{"level": level, "depth": depth} for level in (-1.0, 0.3, 2.0) for depth in (1, 3, 6)]
    answers = []
    for workers in (1, WORKERS):
        with service_process(with_workers(settings, workers), champion="hrm/v1") as service:
            assert len(workers_of(service)) == (workers if workers > 1 else 0)
            with everybody(service) as clients:
                answers.append([clients.decide(**fields) for fields in questions])
    facts = ("action", "quantity", "probabilities", "value", "segments", "halt_reason", "model", "role", "epoch")
    for alone, together in zip(*answers, strict=True):
        assert len({str([answer[name] for name in facts]) for answer in (*alone, *together)}) == 1


def test_a_rollout_on_one_worker_is_one_of_all_and_so_is_the_rollback(three: ServiceProcess) -> None:
    with everybody(three) as clients:
        here, elsewhere = clients.clients[0], clients.clients[-1]
        command(here, "start", champion="hrm/v1", challenger="hrm/v2")
        until(lambda: all(answer["shadow"] for answer in clients.decide()))  # loaded everywhere
        for _ in range(4):
            command(here, "promote")
        until(lambda: clients.all_say(phase="canary", weight=100))
        assert {answer["model_version"] for answer in clients.decide()} == {"v2"}
        command(elsewhere, "abort")
        until(lambda: clients.all_say(phase="rolled_back", weight=0, latched=True))
        assert {(answer["model_version"], answer["shadow"] is None) for answer in clients.decide()} == {("v1", True)}


def test_a_guard_that_fires_in_one_worker_takes_the_challenger_away_in_all(three: ServiceProcess) -> None:
    with everybody(three) as clients:
        command(clients.clients[0], "start", champion="hrm/v1", challenger="nan/v1")
        until(lambda: all(answer["shadow"] for answer in clients.decide()))

        def fired() -> bool:  # only one connection, so only one worker, ever sees the fault
            clients.clients[0].post("/v1/decisions", json=question(FAULT_LEVEL + 1))
            return bool(clients.clients[0].get("/v1/rollout").json()["latched"])

        until(fired)
        until(lambda: clients.all_say(latched=True, champion="hrm/v1", challenger=None))
        assert {answer["model"] for answer in clients.decide(level=FAULT_LEVEL + 1)} == {"hrm"}


def test_a_command_right_after_another_workers_is_judged_by_the_newest_state(three: ServiceProcess) -> None:
    with everybody(three) as clients:
        command(clients.clients[0], "start", champion="hrm/v1", challenger="hrm/v2")
        for client in clients.clients[1:5]:
            command(client, "promote")
        assert command(clients.clients[5], "promote")["phase"] == "promoted"
        until(lambda: clients.all_say(phase="promoted", champion="hrm/v2", fallback="hrm/v1"))
        assert {answer["model_version"] for answer in clients.decide()} == {"v2"}


def test_a_load_that_only_one_worker_would_hear_of_is_refused(three: ServiceProcess) -> None:
    with everybody(three) as clients:
        answer = clients.clients[0].post("/v1/models/hrm/v3/load")
        assert (answer.status_code, answer.json()["code"]) == (409, "several_workers")


def test_a_worker_that_is_killed_comes_back_with_the_state_of_the_others(three: ServiceProcess) -> None:
    with everybody(three) as clients:
        command(clients.clients[0], "start", champion="hrm/v1", challenger="hrm/v2")
        command(clients.clients[0], "promote")
    before = workers_of(three)
    before[1].kill()
    until(lambda: any(process not in before for process in workers_of(three)))
    new = next(process for process in workers_of(three) if process not in before)
    until(lambda: any(end.status == psutil.CONN_LISTEN for end in new.net_connections()))
    with everybody(three) as clients:
        assert clients.all_say(phase="canary", champion="hrm/v1", challenger="hrm/v2")
        assert new.net_connections() != []
        assert all(answer["shadow"] for answer in clients.decide())


def test_no_worker_outlives_a_parent_that_was_killed(three: ServiceProcess) -> None:
    workers = workers_of(three)
    three.process.kill()
    three.process.wait()
    _, alive = psutil.wait_procs(workers, LIMIT_S)
    assert not alive


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_parent_ends_all_workers_cleanly(three: ServiceProcess, number: signal.Signals) -> None:
    workers = workers_of(three)
    three.process.send_signal(number)
    assert three.process.wait(LIMIT_S) == 0
    assert not any(worker.is_running() for worker in workers)
    assert "worker_killed" not in three.log.read_text()
    assert not list((three.log.parent / "metrics").iterdir())


def run_serving(settings: Settings, *arguments: str) -> subprocess.CompletedProcess[str]:
    variables = os.environ | {
        "HRM_PATHS__STATE_DIR": str(settings.paths.state_dir),
        "PYTHONPATH": str(ROOT),
        "HRM_SERVING__PORT": "0",
    }
    return subprocess.run(
        [sys.executable, "-m", "serving", *arguments],
        env=variables,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_what_keeps_workers_from_starting_is_told_as_by_one(settings: Settings) -> None:
    (settings.paths.state_dir / "models/ppo/v1/model.onnx").write_bytes(b"tampered")
    result = run_serving(settings, "--champion", "ppo/v1", "--workers", "2")
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].startswith("error: ")
    assert "model.onnx" in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr


def test_a_number_of_workers_that_is_none_is_refused(settings: Settings) -> None:
    result = run_serving(settings, "--workers", "0")
    assert (result.returncode, "serving.workers" in result.stderr) == (2, True)


def supervised(tmp_path: Path, work: str) -> subprocess.CompletedProcess[str]:
    """`work` is the body of work(slot, gate), run by two workers that `supervise` keeps."""
    script = tmp_path / "supervised.py"
    body = "\n".join(f"    {line}" for line in work.splitlines())
    script.write_text(
        "import asyncio, os, pathlib, sys, time\nfrom core.errors import HrmSystemError\nfrom serving import workers\n"
        f"workers.FIRST_PAUSE_S, workers.STOP_S = 0.01, 1.0\nhere = pathlib.Path({str(tmp_path)!r})\n"
        f"def work(slot, gate):\n{body}\n"
        "try:\n    workers.supervise(work, 2, after_death=lambda slot: print('buried', slot))\n"
        "except HrmSystemError as error:\n    print(error.code, error)\n    sys.exit(2)\n"
    )
    return subprocess.run(
        [sys.executable, str(script)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_worker_that_keeps_dying_ends_the_service_with_the_reason(tmp_path: Path) -> None:
    result = supervised(tmp_path, "asyncio.run(gate.wait())\nif slot == 1: os.abort()\ntime.sleep(60)")
    assert result.returncode == 2
    assert result.stdout.count("buried 1") == 5
    assert "worker_keeps_dying" in result.stdout
    assert "SIGABRT" in result.stdout


def test_a_worker_that_dies_before_all_are_ready_ends_the_service_at_once(tmp_path: Path) -> None:
    result = supervised(tmp_path, "if slot == 1: os.abort()\nasyncio.run(gate.wait())\ntime.sleep(60)")
    assert (result.returncode, result.stdout.count("buried")) == (2, 1)
    assert "did not start: ended by SIGABRT" in result.stdout


def test_nobody_passes_the_gate_before_all_are_there(tmp_path: Path) -> None:
    result = supervised(
        tmp_path,
        "if slot == 1: time.sleep(0.5); (here / 'ready').touch()\n"
        "asyncio.run(gate.wait())\n"
        "(here / f'{slot}-{(here / \"ready\").exists()}').touch()\n"
        "if slot == 0: os.kill(os.getppid(), 15)\n"
        "time.sleep(60)",
    )
    assert result.returncode == 0
    assert (tmp_path / "0-True").exists()


def test_a_worker_that_does_not_stop_is_killed(tmp_path: Path) -> None:
    result = supervised(
        tmp_path,
        "import signal\nsignal.signal(15, signal.SIG_IGN)\n"
        "asyncio.run(gate.wait())\nif slot == 0: os.kill(os.getppid(), 15)\ntime.sleep(60)",
    )
    assert result.returncode == 0
    assert result.stdout.count("worker_killed") == 2  # structlog as it is, unconfigured
