"""The form for a GPU: 16-bit arithmetic in fused operators, held here against torch in float32."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from hrm_planted import HRM, model
from onnx import TensorProto

from core.settings import load_settings
from hrm.export import MarketSegment, export_model
from hrm.half import in_half
from hrm.model import HierarchicalReasoningModel
from hrm.segment import max_abs_error, onnx_file, random_inputs
from serving.engine import Engine
from serving.store import load_version

HALF_LIMIT = (
    0.15  # the worst of numbers around 1, three segments into an untrained model; a wrong sign costs 1 and more
)
SHAPES = {
    "two widths, hard reset": {
        f"{HRM}ARCHITECTURE__H_MODULE_DIM": "128",
        f"{HRM}HIERARCHICAL__RESET_MECHANISM": "hard",
    },
    "learned positions and reset": {
        f"{HRM}ARCHITECTURE__POSITIONS": "learned",
        f"{HRM}HIERARCHICAL__RESET_MECHANISM": "learned",
    },
}
ONE_STEP = {f"{HRM}HIERARCHICAL__T_TIMESTEPS": "1"}  # a cycle: exported in two thirds of the time


@pytest.fixture(scope="module")
def compact() -> HierarchicalReasoningModel:
    return model().eval()


@pytest.fixture(scope="module")
def file(compact: HierarchicalReasoningModel) -> bytes:
    return onnx_file(MarketSegment(in_half(compact)))


def test_the_half_form_computes_the_model_but_for_rounding(compact: HierarchicalReasoningModel, file: bytes) -> None:
    assert 0 < max_abs_error(MarketSegment(compact), file) < HALF_LIMIT


@pytest.mark.parametrize("shape", SHAPES)
def test_other_shapes_are_computed_but_for_rounding_too(shape: str) -> None:
    trained = model(SHAPES[shape] | ONE_STEP).eval()
    file = onnx_file(MarketSegment(in_half(trained)))
    assert 0 < max_abs_error(MarketSegment(trained), file) < HALF_LIMIT


def test_a_block_is_a_handful_of_fused_operators_and_everything_outside_is_float32(
    compact: HierarchicalReasoningModel, file: bytes
) -> None:
    graph = onnx.load_from_string(file).graph
    depth = compact.settings.hierarchical
    levels = depth.N_cycles * (depth.T_timesteps + 1)  # of one block each in this preset
    count = Counter(node.op_type for node in graph.node)
    assert count["MultiHeadAttention"] == levels
    assert count["SkipSimplifiedLayerNormalization"] == count["RotaryEmbedding"] == 2 * levels
    assert {value.type.tensor_type.elem_type for value in graph.output} == {TensorProto.FLOAT}
    halves = [tensor for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT16]
    assert sum(np.prod(tensor.dims) for tensor in halves) > 0.5 * compact.parameter_count


def test_a_row_is_what_it_is_alone(compact: HierarchicalReasoningModel, file: bytes) -> None:
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    feeds = random_inputs(MarketSegment(compact), rows=9, seed=4)
    together = session.run(None, feeds)
    for row in range(9):
        alone = session.run(None, {name: array[row : row + 1] for name, array in feeds.items()})
        for ours, theirs in zip(together, alone, strict=True):
            np.testing.assert_allclose(ours[row : row + 1], theirs, atol=1e-5)


def test_a_model_in_half_is_published_with_its_own_goldens_and_served_on_a_cpu_too(tmp_path: Path) -> None:
    settings = load_settings(environ={})
    trained = model(ONE_STEP | {f"{HRM}HIERARCHICAL__N_CYCLES": "1"}).eval()
    manifest = export_model(
        trained,
        store=tmp_path,
        name="hrm",
        version="half",
        settings=settings,
        metrics={},
        dataset_digest="none",
        storage="half",
    )
    assert manifest.storage == "half"
    engine = Engine(load_version(tmp_path, "hrm/half", size_limit_mb=10), settings.serving)
    assert engine.golden_max_abs_error < 1e-4  # the same provider that made them
