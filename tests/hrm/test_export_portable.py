"""The portable file decides as torch does: on trained weights, under every halting rule, and safely on nonsense."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hrm_planted import COST_BPS, HRM, SCHEMA, inputs, planted_batch, planted_rows, settings

from core.actions import SAFE_DECISION, Action
from core.errors import ModelError
from core.files import sha256_hex
from core.halting import HaltingRule, minimum_segments
from core.observation import ObservationSchema
from hrm.agent import HRMAgent
from hrm.decide import Decided, decide
from hrm.export import export_model, export_segment
from hrm.model import HierarchicalReasoningModel
from hrm.portable import agreement_ratio, portable_file, run
from hrm.storage import encode, rounded

DEEP = {
    f"{HRM}HIERARCHICAL__N_CYCLES": "1",
    f"{HRM}HIERARCHICAL__T_TIMESTEPS": "1",
    f"{HRM}ACT__MAX_SEGMENTS": "6",
    f"{HRM}ACT__HALTING": "q_learning",
    "HRM_TRAINING_PARAMS__HRM__WARMUP_STEPS": "20",
    "HRM_TRAINING_PARAMS__HRM__EMA_DECAY": "0.98",
}
STEPS = 150
Rows = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def agent() -> HRMAgent:
    """Trained until it has learned the planted rule, with its halting moved to where it divides the rows."""
    made = HRMAgent(SCHEMA, settings(DEEP), COST_BPS)
    for step in range(STEPS):
        made.trainer.train_step(planted_batch(128, step))
    with torch.no_grad():
        outputs, _ = made.model(*inputs(400), made.model.initial_carry(400))
        made.model.q_head.bias[0] -= (outputs.q_halt - outputs.q_continue).median()
    return made


@pytest.fixture(scope="module", params=["fp16", "int8"])
def coarse(request: pytest.FixtureRequest, agent: HRMAgent) -> tuple[HierarchicalReasoningModel, bytes]:
    """The model rounded to a format, and its portable file."""
    made = rounded(agent.model, request.param)
    return made, portable_file(made, encode(export_segment(made), request.param))


@pytest.fixture(scope="module")
def segment(agent: HRMAgent) -> bytes:
    return export_segment(agent.model)


@pytest.fixture(scope="module")
def file(agent: HRMAgent, segment: bytes) -> bytes:
    return portable_file(agent.model, segment)


def observed(rows: int, seed: int = 10_000) -> Rows:
    planted = planted_rows(rows, seed)
    return {name: planted[name] for name in ("bars", "account", "complexity", "position")}


def require_same(ours: Decided, theirs: Decided) -> None:
    np.testing.assert_array_equal(ours.action, theirs.action)
    np.testing.assert_array_equal(ours.segments, theirs.segments)
    for name in ("action_logits", "log_quantity", "value"):
        np.testing.assert_allclose(getattr(ours, name), getattr(theirs, name), atol=5e-4)
    np.testing.assert_allclose(ours.quantity, theirs.quantity, rtol=5e-4)


def test_trained_weights_decide_alike_in_the_file_in_torch_and_in_the_agent(agent: HRMAgent, file: bytes) -> None:
    rows = observed(400)
    ours = decide(agent.model, **rows)
    assert len(set(ours.segments.tolist())) >= 3
    assert len(set(ours.action.tolist())) >= 3
    require_same(ours, run(file, rows))
    theirs = agent.decide_batch(**rows)
    np.testing.assert_array_equal(ours.action, theirs.action)
    np.testing.assert_array_equal(ours.segments, theirs.segments)
    assert agreement_ratio(agent.model, file) == 1.0


def test_a_stored_segment_makes_a_portable_file_of_the_rounded_model(
    coarse: tuple[HierarchicalReasoningModel, bytes],
) -> None:
    require_same(decide(coarse[0], **observed(200)), run(coarse[1], observed(200)))


@pytest.mark.parametrize(
    "rule",
    [
        HaltingRule(max_segments=1, min_segments=1, complexity_threshold=0.5),
        HaltingRule(max_segments=4, min_segments=2, complexity_threshold=0.3),
        HaltingRule(max_segments=5, min_segments=5, complexity_threshold=0.5, halting="single_head"),
        HaltingRule(max_segments=3, min_segments=1, complexity_threshold=0.9, halting="single_head"),
    ],
)
def test_the_rule_is_that_of_core_halting(agent: HRMAgent, segment: bytes, rule: HaltingRule) -> None:
    other = under_rule(agent.model, rule)
    rows = observed(300)
    answered = run(portable_file(other, segment), rows)
    require_same(decide(other, **rows), answered)
    assert (answered.segments >= minimum_segments(rows["complexity"], rule)).all()
    assert (answered.segments <= rule.max_segments).all()


def under_rule(model: HierarchicalReasoningModel, rule: HaltingRule) -> HierarchicalReasoningModel:
    act = model.settings.act.model_copy(update=rule.model_dump(include={"max_segments", "min_segments", "halting"}))
    threshold = {"complexity_threshold": rule.complexity_threshold}
    detection = model.settings.complexity_detection.model_copy(update=threshold)
    other = copy.deepcopy(model)
    other.settings = model.settings.model_copy(update={"act": act, "complexity_detection": detection})
    return other


def test_a_row_decides_alone_as_it_does_among_others(file: bytes) -> None:
    rows = observed(30)
    together = run(file, rows)
    for row in range(0, 30, 7):
        alone = run(file, {name: array[row : row + 1] for name, array in rows.items()})
        assert alone.action[0] == together.action[row]
        assert alone.segments[0] == together.segments[row]


def test_no_rows_give_no_decisions(file: bytes) -> None:
    assert all(len(array) == 0 for array in run(file, {name: array[:0] for name, array in observed(2).items()}))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("bars", np.nan),
        ("bars", np.inf),
        ("account", -np.inf),
        ("complexity", np.nan),
        ("position", 2),
        ("position", -9),
    ],
)
def test_nonsense_gets_the_safe_decision_and_harms_no_other_row(file: bytes, name: str, value: float) -> None:
    rows = observed(6)
    clean = run(file, rows)
    broken = {key: array.copy() for key, array in rows.items()}
    broken[name][3, ...] = value
    answered = run(file, broken)
    assert (answered.action[3], answered.quantity[3]) == SAFE_DECISION
    others = np.arange(6) != 3
    np.testing.assert_array_equal(answered.action[others], clean.action[others])
    np.testing.assert_allclose(answered.quantity[others], clean.quantity[others], rtol=1e-4)


def test_the_file_says_what_it_needs_and_is_plain_onnx(agent: HRMAgent, file: bytes) -> None:
    loaded = onnx.load_from_string(file)
    onnx.checker.check_model(loaded, full_check=True)
    assert not loaded.functions
    assert {node.domain for node in loaded.graph.node} == {""}
    facts = {entry.key: entry.value for entry in loaded.metadata_props}
    assert ObservationSchema.model_validate_json(facts["observation"]) == SCHEMA
    assert HaltingRule.model_validate_json(facts["halting"]) == agent.model.settings.halting_rule
    assert json.loads(facts["actions"]) == [action.name for action in Action]


def test_weights_are_decoded_once_and_not_in_every_iteration(coarse: tuple[HierarchicalReasoningModel, bytes]) -> None:
    loaded = onnx.load_from_string(coarse[1])
    body = next(node for node in loaded.graph.node if node.op_type == "Loop").attribute[0].g
    weights = {tensor.name for tensor in loaded.graph.initializer if len(tensor.dims) == 2}
    decoded = [node.op_type for node in body.node if node.op_type in {"Cast", "Transpose"} and node.input[0] in weights]
    assert decoded == []
    assert not body.initializer


def test_a_file_that_decides_otherwise_is_refused_and_nothing_is_published(
    tmp_path: Path, agent: HRMAgent, segment: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    hasty = under_rule(agent.model, HaltingRule(max_segments=1, min_segments=1, complexity_threshold=0.5))
    other = portable_file(hasty, segment)
    assert agreement_ratio(agent.model, other) < 0.9
    monkeypatch.setattr("hrm.export.export_segment", lambda _: segment)
    monkeypatch.setattr("hrm.export.portable_file", lambda *_: other)
    with pytest.raises(ModelError, match=r"portable\.onnx: decides as torch does in .*nothing was published"):
        export_model(
            agent.model,
            store=tmp_path,
            name="hrm",
            version="v1",
            settings=settings(DEEP),
            metrics={},
            dataset_digest="abc",
            portable=True,
        )
    assert list(tmp_path.iterdir()) == []


def test_a_portable_file_is_published_beside_the_segment_and_hashed(
    tmp_path: Path, agent: HRMAgent, segment: bytes, file: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hrm.export.export_segment", lambda _: segment)  # made already: only the time is saved
    manifest = export_model(
        agent.model,
        store=tmp_path,
        name="hrm",
        version="v1",
        settings=settings(DEEP),
        metrics={},
        dataset_digest="abc",
        portable=True,
    )
    assert manifest.files["portable.onnx"].sha256 == sha256_hex(file)
    assert (tmp_path / "hrm" / "v1" / "portable.onnx").read_bytes() == file
