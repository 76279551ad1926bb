"""The graph that is exported: standard operators, in phrases that onnxruntime fuses while it loads."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hrm_planted import HRM, UNEQUAL_WIDTHS, as_loaded, inputs, model

from hrm.export import export_segment, parity_max_abs_error
from hrm.inference import laid_out
from hrm.model import HierarchicalReasoningModel
from hrm.segment import PARITY_LIMIT

SHAPES = {
    "one width": {},
    "two widths": UNEQUAL_WIDTHS,
    "two widths, hard reset": UNEQUAL_WIDTHS | {f"{HRM}HIERARCHICAL__RESET_MECHANISM": "hard"},
    "learned reset, learned positions": {
        f"{HRM}HIERARCHICAL__RESET_MECHANISM": "learned",
        f"{HRM}ARCHITECTURE__POSITIONS": "learned",
    },
}


@pytest.fixture(scope="module")
def compact() -> HierarchicalReasoningModel:
    return model().eval()


@pytest.fixture(scope="module")
def file(compact: HierarchicalReasoningModel) -> bytes:
    return export_segment(compact)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_layout_changes_nothing_but_rounding(shape: str) -> None:
    trained = model(SHAPES[shape]).eval()
    carry = trained.initial_carry(3)
    with torch.inference_mode():
        expected, next_carry = trained(*inputs(3), carry)
        said, carried = laid_out(trained)(*inputs(3), carry)
    for ours, theirs in zip((*said, *carried), (*expected, *next_carry), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def test_the_trained_model_is_left_as_it_was(compact: HierarchicalReasoningModel) -> None:
    before = {name: tensor.clone() for name, tensor in compact.state_dict().items()}
    laid_out(compact)
    assert all(torch.equal(before[name], tensor) for name, tensor in compact.state_dict().items())


def test_the_file_has_standard_operators_only(file: bytes) -> None:
    graph = onnx.load_from_string(file)
    assert {node.domain for node in graph.graph.node} == {""}
    onnx.checker.check_model(graph, full_check=True)


def test_onnxruntime_recognises_what_it_can_fuse(
    file: bytes, compact: HierarchicalReasoningModel, tmp_path: Path
) -> None:
    count = Counter(node.op_type for node in as_loaded(file, tmp_path / "loaded.onnx").node)
    depth = compact.settings.hierarchical
    blocks = depth.N_cycles * (depth.T_timesteps + 1)  # one block a level in this preset
    assert count["RotaryEmbedding"] == blocks
    assert count["RMSNormalization"] == count["FusedMatMul"] == 2 * blocks
    assert count["QuickGelu"] == blocks + 1  # and the output network's
    assert count["MatMul"] == 6 * blocks + 1  # and the patches'
    assert count["Transpose"] == blocks + 6  # one of each attention; tokens and states in, states out, one to be read
    assert not {"ReduceMean", "Sqrt", "Sin", "Cos"} & set(count)


def test_every_row_is_bit_by_bit_the_same_in_any_batch(file: bytes, compact: HierarchicalReasoningModel) -> None:
    random = np.random.default_rng(0)
    bars, account = (tensor.numpy() for tensor in inputs(9))
    state = random.standard_normal((2, 9, compact.tokens, 64), dtype=np.float32)
    feeds = {"bars": bars, "account": account, "z_H": state[0], "z_L": state[1], "reset": np.zeros(9, np.bool_)}
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    together = session.run(None, feeds)
    for rows in ([0], [8, 0], [3, 4, 5], [7, 7, 1, 0, 2]):
        part = session.run(None, {name: array[rows] for name, array in feeds.items()})
        for ours, theirs in zip(part, together, strict=True):
            np.testing.assert_array_equal(ours, theirs[rows])


def test_positions_reach_the_file(compact: HierarchicalReasoningModel, file: bytes) -> None:
    """A file without the rotation would be another model."""
    blind = model().eval()
    for level in (blind.recurrence.f_H, blind.recurrence.f_L):
        level.rotary = False
    assert parity_max_abs_error(compact, file) <= PARITY_LIMIT < parity_max_abs_error(blind, file)
