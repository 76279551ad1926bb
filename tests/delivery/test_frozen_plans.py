"""A plan that was started can be read again, whatever is in it, and by a release that would refuse it today."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from desk import LEVEL, Desk
from hypothesis import given
from hypothesis import strategies as st

from core.errors import RolloutError
from delivery import tables
from delivery.plan import Plan, frozen_plan
from delivery.store import RolloutStore

NUMBERS = st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from([1e-05, 5e-05, 1e22, -0.0])
TEXTS = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=20)


def with_limit(limit: float, symbol: str = "NIFTY", pauses: int = 1) -> Plan:
    metric: dict[str, Any] = LEVEL | {"name": "level", "failureCondition": "result > args.limit"}
    return Plan.model_validate(
        {
            "steps": [*[{"pause": {}}] * pauses, {"setWeight": 10}, {"analysis": {"templates": [{"name": "level"}]}}],
            "analysisTemplates": {"level": {"args": {"limit": limit}, "metrics": [metric]}},
            "symbols": {"deny": [symbol]},
        }
    )


@given(NUMBERS, TEXTS)
def test_a_frozen_plan_is_the_plan(limit: float, symbol: str) -> None:
    plan = with_limit(limit, symbol)
    again = frozen_plan(plan.canonical, plan.sha256)
    assert again == plan
    assert (again.canonical, again.sha256) == (plan.canonical, plan.sha256)


def test_a_plan_that_grows_as_it_is_written_out_is_read_again(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    plan = with_limit(1.0, pauses=9000)
    state = desk.start(plan)
    assert len(plan.canonical) > 256 * 1024
    store = RolloutStore(tmp_path / "rollout.db", desk.rollout)
    assert store.plan(state) == plan


def test_a_plan_that_today_s_rules_refuse_goes_on_as_it_was_started() -> None:
    plan = with_limit(1.0)
    tree = json.loads(plan.canonical)
    tree["steps"] = [{"setWeight": 50}, {"setWeight": 50}]
    text = json.dumps(tree)
    again = frozen_plan(text, hashlib.sha256(text.encode()).hexdigest())
    assert [stage.weight for stage in again.stages] == [0, 50, 50]


@pytest.mark.parametrize("command", ["abort", "rollback"])
def test_an_altered_plan_is_noticed_and_stops_no_abort(tmp_path: Path, command: str) -> None:
    desk = Desk(tmp_path)
    state = desk.start(with_limit(1.0))
    with desk.store.engine.begin() as connection:
        connection.execute(sa.update(tables.plan).values(json=with_limit(9.0).canonical))
    store = RolloutStore(tmp_path / "rollout.db", desk.rollout)
    with pytest.raises(RolloutError) as refusal:
        store.plan(state)
    assert refusal.value.code == "plan_altered"
    desk.store = store
    assert desk.ask(command).latched
