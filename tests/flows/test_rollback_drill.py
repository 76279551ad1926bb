"""The drill as a scheduled flow: what it keeps, and what makes it fail."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from core.errors import RolloutError
from core.settings import Settings
from flows import rollback_drill
from flows.drill import SCENARIOS

DRILLED = {"trigger": "memory_overflow", "last_challenger_ms": 3.0, "lost_decisions": 0}


def test_a_drill_keeps_its_times_as_a_service_level_indicator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HRM_PATHS__STATE_DIR", str(tmp_path))
    (row,) = rollback_drill.rollback_drill.fn(["error_rate_exceeded"])
    kept = [json.loads(line) for line in (tmp_path / rollback_drill.FILE).read_text().splitlines()]
    assert kept == [row]
    assert row["passed"]
    assert {"detected_ms", "last_challenger_ms", "lost_decisions", "handover"} <= row.keys()
    assert row["trigger"] == "error_rate_exceeded"
    assert row["last_challenger_ms"] <= rollback_drill.LAST_CHALLENGER_LIMIT_MS


def dead() -> dict[str, Any]:
    raise RolloutError("latency_violation did not fire", code="drill_failed")


@pytest.mark.parametrize(
    "bad", [lambda: DRILLED | {"last_challenger_ms": 1000.1}, lambda: DRILLED | {"lost_decisions": 1}, dead]
)
def test_a_late_lossy_or_dead_trigger_fails_the_drill_after_all_were_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: Callable[[], dict[str, Any]]
) -> None:
    monkeypatch.setenv("HRM_PATHS__STATE_DIR", str(tmp_path))

    def run_drill(_settings: Settings, _folder: Path, triggers: tuple[str, ...]) -> list[dict[str, Any]]:
        (trigger,) = triggers
        return [(bad() if trigger == "latency_violation" else DRILLED) | {"trigger": trigger}]

    monkeypatch.setattr(rollback_drill, "run_drill", run_drill)
    with pytest.raises(RolloutError, match="latency_violation late, lossy or dead"):
        rollback_drill.rollback_drill.fn()
    kept = [json.loads(line) for line in (tmp_path / rollback_drill.FILE).read_text().splitlines()]
    assert {one["trigger"]: one["passed"] for one in kept} == {
        scenario.trigger: scenario.trigger != "latency_violation" for scenario in SCENARIOS
    }
