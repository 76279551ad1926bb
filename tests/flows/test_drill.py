from pathlib import Path

import psutil
import pytest

from core.errors import RolloutError
from core.settings import load_settings
from delivery.default_plan import default_plan
from delivery.handover import mode_for
from flows import drill
from flows.drill import SCENARIOS, run_drill

SETTINGS = load_settings(preset="compact", environ={})


def services() -> set[int]:
    """Process ids of the inference services this process started."""
    return {child.pid for child in psutil.Process().children() if "serving" in " ".join(child.cmdline())}


QUICK = {"error_rate_exceeded", "drawdown_exceeded"}  # every trigger is a service of its own: the others are slow
TRIGGERS = [pytest.param(one.trigger, marks=() if one.trigger in QUICK else pytest.mark.slow) for one in SCENARIOS]


@pytest.mark.parametrize("trigger", TRIGGERS)
def test_each_trigger_takes_a_broken_challengers_traffic_and_loses_no_decision(tmp_path: Path, trigger: str) -> None:
    before = services()
    (row,) = run_drill(SETTINGS, tmp_path, (trigger,))
    assert row["trigger"] == trigger
    assert row["lost_decisions"] == 0, row["problems"]
    assert row["challenger_decisions"] > 0
    assert row["decisions"] > row["challenger_decisions"]
    assert row["detected_ms"] > 0
    assert row["last_challenger_ms"] < 1000
    assert row["handover"] == mode_for(default_plan(SETTINGS).handover, trigger, "")
    assert services() <= before  # other tests of this process may have one of their own


def test_a_challenger_that_does_not_break_makes_the_drill_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drill, "FAULT_LIMIT_S", 1.0)
    healthy = drill.Scenario("error_rate_exceeded", "none")
    monkeypatch.setattr(drill, "SCENARIOS", (healthy,))
    with pytest.raises(RolloutError, match="did not fire"):
        run_drill(SETTINGS, tmp_path)
