"""ONNX against torch, on real onnxruntime, and the gate that stands between them and the store."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from hrm_planted import HRM, UNEQUAL_WIDTHS, inputs, model, settings

from core.errors import ModelError
from core.files import sha256_hex
from hrm.export import MarketSegment, export_model, export_segment, parity_max_abs_error
from hrm.model import HierarchicalReasoningModel
from hrm.segment import PARITY_LIMIT, golden_file

INPUTS = ("bars", "account", "z_H", "z_L", "reset")
OUTPUTS = ("action_logits", "log_quantity", "value", "q_halt", "q_continue", "z_H_next", "z_L_next")
LEARNED = {f"{HRM}HIERARCHICAL__RESET_MECHANISM": "learned", f"{HRM}ARCHITECTURE__POSITIONS": "learned"}
ONE_STEP = {f"{HRM}HIERARCHICAL__T_TIMESTEPS": "1"}  # a cycle: exported in two thirds of the time


@pytest.fixture(scope="module")
def compact() -> HierarchicalReasoningModel:
    return model().eval()


@pytest.fixture(scope="module")
def compact_file(compact: HierarchicalReasoningModel) -> bytes:
    return export_segment(compact)


def session(file: bytes) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])


def test_the_graph_has_the_promised_names_and_dynamic_rows(compact_file: bytes) -> None:
    graph = session(compact_file)
    assert [node.name for node in graph.get_inputs()] == list(INPUTS)
    assert [node.name for node in graph.get_outputs()] == list(OUTPUTS)
    assert {str(node.shape[0]) for node in graph.get_inputs()} == {"batch"}
    assert [node.type for node in graph.get_inputs()] == ["tensor(float)"] * 4 + ["tensor(bool)"]


def test_onnxruntime_computes_what_torch_does(compact: HierarchicalReasoningModel, compact_file: bytes) -> None:
    assert 0 < parity_max_abs_error(compact, compact_file) <= PARITY_LIMIT


def test_parity_holds_with_unequal_widths_learned_positions_and_a_learned_reset() -> None:
    net = model(UNEQUAL_WIDTHS | LEARNED | ONE_STEP).eval()
    assert 0 < parity_max_abs_error(net, export_segment(net)) <= PARITY_LIMIT


def test_reset_starts_a_row_from_the_fixed_state_whatever_came_in(
    compact: HierarchicalReasoningModel, compact_file: bytes
) -> None:
    bars, account = (tensor.numpy() for tensor in inputs(2))
    garbage = np.full((2, compact.tokens, 64), 7.0, np.float32)
    feed = {"bars": bars, "account": account, "z_H": garbage, "z_L": garbage, "reset": np.array([True, False])}
    answered = dict(zip(OUTPUTS, session(compact_file).run(list(OUTPUTS), feed), strict=True))
    with torch.inference_mode():
        expected, carry = compact(*inputs(2), compact.initial_carry(2))
    np.testing.assert_allclose(answered["action_logits"][0], expected.action_logits[0], atol=1e-4)
    np.testing.assert_allclose(answered["z_H_next"][0], carry.z_H[0], atol=1e-4)
    assert np.abs(answered["z_H_next"][1] - carry.z_H[1].numpy()).max() > 1e-2


def test_golden_values_are_reproduced_by_onnxruntime(compact: HierarchicalReasoningModel, compact_file: bytes) -> None:
    arrays = np.load(io.BytesIO(golden_file(MarketSegment(compact))), allow_pickle=False)
    feed = {name: arrays[f"in_{name}"] for name in INPUTS}
    assert feed["reset"].any()
    assert not feed["reset"].all()
    for name, value in zip(OUTPUTS, session(compact_file).run(list(OUTPUTS), feed), strict=True):
        np.testing.assert_allclose(value, arrays[f"out_{name}"], atol=PARITY_LIMIT)


def test_a_published_model_has_a_true_manifest(
    tmp_path: Path, compact: HierarchicalReasoningModel, compact_file: bytes
) -> None:
    manifest = export_model(
        compact,
        store=tmp_path,
        name="hrm",
        version="v1",
        settings=settings(),
        metrics={"regret_bps": 1.25},
        dataset_digest="abc",
        traced=compact_file,
    )
    assert manifest.metrics["regret_bps"] == 1.25
    assert manifest.metrics["parity_max_abs_error"] <= PARITY_LIMIT
    assert manifest.carry == {"z_H": (compact.tokens, 64), "z_L": (compact.tokens, 64)}
    assert manifest.halting == settings().hierarchical_reasoning_model.halting_rule
    for name, digest in manifest.files.items():
        data = (tmp_path / "hrm" / "v1" / name).read_bytes()
        assert (sha256_hex(data), len(data)) == (digest.sha256, digest.bytes)
    assert manifest.metrics["model_mb"] * 1e6 == manifest.files["model.onnx"].bytes


def test_a_graph_of_other_weights_fails_the_gate_and_publishes_nothing(
    tmp_path: Path,
    compact: HierarchicalReasoningModel,
    compact_file: bytes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other = model(seed=1).eval()
    assert parity_max_abs_error(other, compact_file) > PARITY_LIMIT
    monkeypatch.setattr("hrm.export.export_segment", lambda _: compact_file)
    with pytest.raises(ModelError, match=r"differ by .*nothing was published"):
        export_model(
            other,
            store=tmp_path,
            name="hrm",
            version="v1",
            settings=settings(),
            metrics={},
            dataset_digest="abc",
        )
    assert list(tmp_path.iterdir()) == []


def test_weights_that_are_not_finite_fail_the_gate(compact_file: bytes) -> None:
    broken = model().eval()
    with torch.no_grad():
        broken.output_network.policy.weight[0, 0] = np.nan
    assert not parity_max_abs_error(broken, compact_file) <= PARITY_LIMIT
