"""The seed's agent interface, and adaptive computation in batches."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hrm_planted import COST_BPS, HRM, SCHEMA, SMALL, planted_rows, settings

from core.actions import legal_actions
from core.errors import DataError, ModelError
from core.observation import Observation
from hrm.agent import Experience, HRMAgent

DEEP = SMALL | {f"{HRM}ACT__MAX_SEGMENTS": "6", f"{HRM}ACT__HALTING": "q_learning"}


def agent(environ: dict[str, str] | None = None, seed: int = 0) -> HRMAgent:
    """An agent whose halting depends on the row: the q head is not at its start any more."""
    made = HRMAgent(SCHEMA, settings(environ or DEEP), COST_BPS, seed=seed)
    generator = torch.Generator().manual_seed(1)
    q_head = made.model.q_head
    q_head.weight.copy_(torch.randn(q_head.weight.shape, generator=generator))
    q_head.bias.zero_()
    return made


def observation(row: int = 0) -> Observation:
    rows = planted_rows(row + 1, 3)
    return Observation(
        rows["bars"][row], rows["account"][row], float(rows["complexity"][row]), int(rows["position"][row])
    )


def decide(made: HRMAgent, rows: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return made.decide_batch(*(rows[name] for name in ("bars", "account", "complexity", "position")))


def test_an_action_is_legal_and_its_quantity_within_bounds() -> None:
    rows = planted_rows(200, 0)
    decisions = agent().decide_batch(rows["bars"], rows["account"], rows["complexity"], rows["position"])
    assert legal_actions(rows["position"])[np.arange(200), decisions.action].all()
    assert ((decisions.quantity >= 1) & (decisions.quantity <= settings().trading.max_quantity)).all()


def test_rows_leave_as_they_halt_and_decide_as_they_would_alone() -> None:
    made, rows = agent(), planted_rows(40, 0)
    together = decide(made, rows)
    assert len(set(together[2].tolist())) > 2  # segments: rows halt at different depths
    for row in range(40):
        alone = decide(made, {name: value[row : row + 1] for name, value in rows.items()})
        assert alone[0][0] == together[0][row]
        assert alone[1][0] == pytest.approx(together[1][row], rel=1e-4)
        assert alone[2][0] == together[2][row]


def test_more_complex_markets_get_at_least_the_minimum_of_segments() -> None:
    made, rows = agent(), planted_rows(100, 0)
    for complexity, minimum in ((0.1, 1), (0.5, 2), (0.9, 3)):
        segments = decide(made, rows | {"complexity": np.full(100, complexity)})[2]
        assert segments.min() == minimum
        assert segments.max() <= 6


def test_large_batches_are_decided_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    made, rows = agent(), planted_rows(50, 0)
    whole = decide(made, rows)
    monkeypatch.setattr("hrm.agent.ROWS_AT_ONCE", 7)
    for part, expected in zip(decide(made, rows), whole, strict=True):
        np.testing.assert_allclose(part, expected, rtol=1e-4)


def test_select_action_is_the_batch_of_one_and_greedy() -> None:
    made = agent()
    first, again = made.select_action(observation()), made.select_action(observation())
    assert first == again
    assert isinstance(first[0], int)
    assert isinstance(first[1], float)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["bars", "account", "complexity"])
def test_an_observation_that_is_not_finite_gets_the_safe_decision_and_is_counted(where: str, value: float) -> None:
    made, seen = agent(), observation()
    broken = np.array(getattr(seen, where), dtype=np.float32)
    broken.flat[-1] = value
    assert made.select_action(replace(seen, **{where: broken})) == (4, 1.0)
    assert made.invalid_observations == 1


def test_an_invalid_row_does_not_touch_its_batch_mates() -> None:
    made, rows = agent(), planted_rows(5, 0)
    clean = decide(made, rows)
    bars = rows["bars"].copy()
    bars[2, 0, 0] = np.nan
    action, quantity, segments = decide(made, rows | {"bars": bars})
    assert (action[2], quantity[2], segments[2]) == (4, 1.0, 0)
    others = [0, 1, 3, 4]
    np.testing.assert_array_equal(action[others], clean[0][others])
    np.testing.assert_allclose(quantity[others], clean[1][others], rtol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bars": np.zeros((5, 2), np.float32)}, r"bars \[1, 5, 2\], expected \[1, 12, 2\]"),
        ({"account": np.zeros(2, np.float32)}, r"account \[1, 2\], expected \[1, 3\]"),
        ({"position": 2}, "position must be"),
    ],
)
def test_an_observation_of_another_schema_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        agent().select_action(replace(observation(), **change))  # type: ignore[arg-type]  # wrong on purpose


def test_learning_from_experiences_changes_the_decider_and_an_empty_list_does_not() -> None:
    made = agent()
    before = {name: value.clone() for name, value in made.model.state_dict().items()}
    made.learn([])
    assert all(torch.equal(value, before[name]) for name, value in made.model.state_dict().items())
    made.learn([Experience(observation(row), np.array([3.0, 0.0, -6.0], np.float32), 2.0) for row in range(4)])
    assert made.trainer.step == 1
    assert not all(torch.equal(value, before[name]) for name, value in made.model.state_dict().items())


def test_an_agent_begins_with_saved_weights_and_nothing_else_of_them(tmp_path: Path) -> None:
    old, new = agent(), agent(seed=5)
    old.learn([Experience(observation(row), np.array([3.0, 0.0, -6.0], np.float32), 2.0) for row in range(4)])
    old.save_model(tmp_path)
    new.begin_with(tmp_path)
    for weights in (new.model, new.trainer.model):
        for name, tensor in old.model.state_dict().items():
            assert torch.equal(weights.state_dict()[name], tensor), name
    assert new.trainer.step == 0
    smaller = agent(DEEP | {f"{HRM}ARCHITECTURE__H_MODULE_DIM": "24"})
    before = smaller.model.state_dict()
    with pytest.raises(ModelError, match="train from scratch"):
        smaller.begin_with(tmp_path)
    assert smaller.model.state_dict().keys() == before.keys()


def test_a_saved_agent_decides_the_same_after_loading(tmp_path: Path) -> None:
    made, rows = agent(), planted_rows(20, 0)
    made.save_model(str(tmp_path / "hrm"))
    other = HRMAgent(SCHEMA, settings(DEEP), COST_BPS, seed=8)
    other.load_model(str(tmp_path / "hrm"))
    for loaded, original in zip(decide(other, rows), decide(made, rows), strict=True):
        np.testing.assert_array_equal(loaded, original)


def test_loading_what_is_not_there_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"absent.checkpoint\.json"):
        agent().load_model(tmp_path / "absent")
