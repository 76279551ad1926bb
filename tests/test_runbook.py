"""The runbook's commands, run beside a service as somebody on duty would, each at a moment at which it makes sense.

A command that is new in the runbook belongs into one of the two tables, or this fails.
"""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from test_documents import DOCS, _commands

import cli
from backend.metrics import GAUGES
from core.settings import load_settings
from flows.drill_models import SCHEMA, publish_policy
from flows.service_process import ServiceProcess, service_process
from serving import calls
from serving.client import ServiceClient
from serving.question import Account, Question
from serving.telemetry import Telemetry

# What stands in the runbook -> what is run for it, and the exit code that it ends with here. In this order.
RUN: dict[str, tuple[str, int]] = {
    "hrm trade status": ("hrm trade status", 0),
    "hrm ps": ("hrm ps", 0),
    "hrm rollout status": ("hrm rollout status", 0),
    "hrm rollout start --challenger hrm/VERSION": ("hrm rollout start --challenger hrm/v1", 0),
    "hrm rollout watch": ("hrm rollout watch --once", 0),
    "hrm rollout events": ("hrm rollout events", 0),
    "hrm rollout resume --reason why": ("hrm rollout resume --reason why", 0),
    "hrm rollout abort": ("hrm rollout abort", 0),
    "hrm rollout abort --reason why": ("hrm rollout abort --reason why", 0),  # again: nothing changes
    "hrm rollout rollback": ("hrm rollout rollback", 0),
    "hrm rollout export": ("hrm rollout export log.jsonl", 0),
    "hrm rollout export log.jsonl": ("hrm rollout export again.jsonl", 0),
    "hrm rollout verify log.jsonl": ("hrm rollout verify log.jsonl", 0),
    "hrm rollout judge --attempt N --plan other.yaml": ("hrm rollout judge --attempt 2", 0),
    "hrm keys create": ("hrm keys create desk --scope decide", 0),
    "hrm keys create NAME --scope rollout:approve": ("hrm keys create second --scope rollout:approve", 0),
    "hrm keys create NAME --scope metrics:read": ("hrm keys create probe --scope metrics:read", 0),
    "hrm keys show": ("hrm keys show", 0),
    "hrm keys revoke ID": ("hrm keys revoke {key}", 0),
    "hrm models sign NAME/VERSION": ("hrm models sign ppo/v1", 0),
    "hrm replay DECISION_ID": ("hrm replay {decision}", 0),
    "hrm replay --all --since DATE": ("hrm replay --all --since 2026-01-01", 0),
    "hrm replay --all --since 2026-01-31": ("hrm replay --all --since 2026-01-31", 0),
    "hrm replay --records FOLDER": ("hrm replay {decision} --records {records}", 0),
    "hrm data check FILE": ("hrm data check bars.parquet", 0),
    "hrm trade kill": ("hrm trade kill", 0),
    "hrm trade resume --reason why": ("hrm trade resume --reason why", 0),
    "hrm trade kill --flatten": ("hrm trade kill --flatten", 0),
    "hrm trade resume --flatten --reason why": ("hrm trade resume --flatten --reason why", 0),
}
# Run by tests of their own, or not at all.
ELSEWHERE = {
    "hrm serve": "tests/serving, tests/test_readme.py",
    "hrm migrate": "tests/flows/test_migration_live.py",
    "hrm rollout rehearse": "tests/flows/test_trading_day.py",
    "hrm rollout --key FILE approve": "tests/flows/test_rollout_commands.py",
    "hrm trade --live": "tests/trading/test_live_process.py",
    "hrm trade parity DATE": "tests/chaos/test_live_session.py",
    "hrm replay DATE": "tests/chaos/test_live_session.py",
    "hrm trade release SYMBOL": "tests/flows/test_trade_commands.py",
    "hrm trade release NIFTY --ledger live.db": "tests/flows/test_trade_commands.py",
    "hrm trade closed NIFTY --price 24310.5 --ledger live.db": "tests/flows/test_trade_commands.py",
    "hrm fyers login": "tests/trading/test_fyers_login.py",
}

Hrm = Callable[[str], tuple[int, str]]


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[ServiceProcess]:
    for model in ("ppo/v1", "hrm/v1"):
        publish_policy(tmp_path / "models", model)
    settings = load_settings(environ={"HRM_PATHS__STATE_DIR": str(tmp_path)})
    with service_process(settings, champion="ppo/v1") as service:
        yield service


@pytest.fixture
def hrm(desk: ServiceProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hrm:
    """The command line in this process: exit code and everything that was said."""
    monkeypatch.setenv("HRM_PATHS__STATE_DIR", str(tmp_path))
    monkeypatch.setenv("HRM_SERVING__PORT", desk.url.rpartition(":")[2])
    monkeypatch.chdir(tmp_path)

    def run(line: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", shlex.split(line))
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said), pytest.raises(SystemExit) as ended:
            cli.main()
        return int(ended.value.code or 0), said.getvalue()

    return run


def said() -> list[str]:
    """Every command of the runbook, in its order."""
    return list(dict.fromkeys(" ".join(each.split()) for each in _commands(DOCS / "runbook.md")))


def test_every_command_of_the_runbook_is_run_somewhere() -> None:
    assert set(said()) == set(RUN) | set(ELSEWHERE)
    root = DOCS.parent
    for command, where in ELSEWHERE.items():
        for place in where.split(", "):
            assert (root / place).exists(), f"{command}: {place} is not there"


def test_every_command_does_what_whoever_is_on_duty_needs(desk: ServiceProcess, hrm: Hrm, tmp_path: Path) -> None:
    decision = decided(desk)
    assert hrm("hrm data fetch --sessions 70 --out bars.parquet")[0] == 0
    known = {"decision": decision, "records": str(tmp_path / "decisions"), "key": ""}
    for written, (command, expected) in RUN.items():
        code, told = hrm(command.format(**known))
        assert code == expected, f"`{written}`: exit code {code}\n{told}"
        assert "Traceback" not in told
        if code:
            assert "error: " in told, written
        if command.startswith("hrm keys create"):
            known["key"] = re.findall(r"\b[0-9a-z]{8,}\b", told)[0] if not known["key"] else known["key"]


def test_what_curl_is_asked_for_answers(desk: ServiceProcess) -> None:
    """The runbook's addresses, on the port that this service has."""
    decided(desk)
    for address in re.findall(r"`curl localhost:8100(/\S*?)(?:`| )", (DOCS / "runbook.md").read_text(encoding="utf-8")):
        answer = httpx.get(f"{desk.url}{address}", trust_env=False, timeout=60)
        assert answer.status_code == 200, address
    assert "hrm_inference_duration" in httpx.get(f"{desk.url}/metrics", trust_env=False).text


def test_every_setting_and_metric_that_the_runbook_names_is_there() -> None:
    text = (DOCS / "runbook.md").read_text(encoding="utf-8")
    overrides = dict(re.findall(r"`(HRM_\w+__\w+)=([^`]+)`", text))
    changed, usual = load_settings(environ=overrides), load_settings(environ={})
    assert changed != usual
    known = set(_places(usual.model_dump(mode="json")))
    sections = {place.partition(".")[0] for place in known}
    for name in re.findall(r"`([a-z_]+(?:\.[a-z_]+)+)`", text):
        if name.partition(".")[0] in sections and not name.endswith((".db", ".json", ".yaml")):
            assert name in known, f"no such setting: {name}"
    collectors = Telemetry().registry._names_to_collectors
    for name in set(re.findall(r"\b(?:hrm|process)_[a-z_]+\b", text)):
        assert any(found.startswith(name) for found in (*collectors, *GAUGES)), f"no such metric: {name}"


def _places(tree: dict[str, Any], before: str = "") -> Iterator[str]:
    """`section.name` of everything in settings; what is in a section of a section also without the outer one's name."""
    for name, value in tree.items():
        yield f"{before}{name}"
        if isinstance(value, dict):
            yield from _places(value, f"{before}{name}.")
            yield from _places(value, f"{name}.")


def decided(desk: ServiceProcess) -> str:
    """One decision of the service; its id."""
    bars = np.ones((SCHEMA.window, len(SCHEMA.bar_features)), np.float32)
    flat = Account(np.zeros(len(SCHEMA.account_features), np.float32), 0)
    with ServiceClient(desk.url, desk.token) as client:
        return str(client.call(calls.decision(Question("NIFTY", bars, 0.2, flat, flat))).decision_id)
