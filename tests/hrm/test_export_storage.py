"""Weights in 16 and 8 bits: lost once, in torch; stored without loss; and what is too far off is not published."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hrm_planted import HRM, model
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from core.errors import ModelError
from core.manifest import Storage
from hrm.export import export_segment, parity_max_abs_error
from hrm.inference import laid_out
from hrm.layers import Linear
from hrm.model import HierarchicalReasoningModel
from hrm.segment import PARITY_LIMIT
from hrm.storage import RECURRENCE, encode, rounded

INPUTS = ("bars", "account", "z_H", "z_L", "reset")
OUTPUTS = ("action_logits", "log_quantity", "value", "q_halt", "q_continue", "z_H_next", "z_L_next")
SHALLOW = {
    f"{HRM}HIERARCHICAL__N_CYCLES": "1",
    f"{HRM}HIERARCHICAL__T_TIMESTEPS": "1",
}  # exports in a third of the time
VARIANTS: list[Storage] = ["fp16", "int8"]
SIZE_RATIO = {"fp16": 0.62, "int8": 0.42}  # of fp32; a tiny model is half graph and first and last layers


@pytest.fixture(scope="module")
def compact() -> HierarchicalReasoningModel:
    return model(SHALLOW).eval()


@pytest.fixture(scope="module")
def plain(compact: HierarchicalReasoningModel) -> bytes:
    return export_segment(compact)


@pytest.fixture(scope="module", params=VARIANTS)
def variant(request: pytest.FixtureRequest, plain: bytes) -> tuple[Storage, bytes]:
    """(format, the model stored in it)."""
    return request.param, encode(plain, request.param)


def run(file: bytes, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return session.run(list(OUTPUTS), feed)


def feed_of(compact: HierarchicalReasoningModel, rows: int) -> dict[str, np.ndarray]:
    random, schema = np.random.default_rng(5), compact.schema
    state = (rows, compact.tokens, 64)
    shapes = {"bars": (rows, schema.window, 2), "account": (rows, 3), "z_H": state, "z_L": state}
    feed = {name: random.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}
    return feed | {"reset": np.ones(rows, np.bool_)}


def stored_types(file: bytes) -> set[int]:
    return {tensor.data_type for tensor in onnx.load_from_string(file).graph.initializer if len(tensor.dims) == 2}


def test_a_stored_file_is_much_smaller_and_a_complete_onnx_file(variant: tuple[Storage, bytes], plain: bytes) -> None:
    storage, stored = variant
    assert len(stored) < SIZE_RATIO[storage] * len(plain)
    onnx.checker.check_model(onnx.load_from_string(stored), full_check=True)
    assert (TensorProto.FLOAT16 if storage == "fp16" else TensorProto.INT8) in stored_types(stored)


def test_the_rounded_model_in_torch_is_the_one_that_is_stored(
    compact: HierarchicalReasoningModel, variant: tuple[Storage, bytes]
) -> None:
    storage, stored = variant
    coarse = rounded(compact, storage)
    ours = {name: tensor.numpy() for name, tensor in laid_out(coarse).state_dict().items()}
    decoded = decoded_weights(stored)
    assert len(decoded) == 2 * 6  # one block each in the two levels of this preset
    for name, weight in decoded.items():
        np.testing.assert_array_equal(weight, ours[name.removeprefix("model.")], err_msg=name)
    assert 0 < parity_max_abs_error(coarse, stored) <= PARITY_LIMIT
    assert parity_max_abs_error(compact, stored) > 1e-6  # it was lossy: the trained weights are others


def decoded_weights(stored: bytes) -> dict[str, np.ndarray]:
    """What onnxruntime makes of the weights before the first product."""
    model = onnx.load_from_string(stored)
    names = [node.output[0] for node in model.graph.node if node.output[0].startswith(RECURRENCE)]
    names = [name for name in names if name.endswith(".weight")]
    del model.graph.output[:]
    model.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    shapes = {node.name: [2, *node.shape[1:]] for node in session.get_inputs()}
    feed = {name: np.zeros(shape, np.bool_ if name == "reset" else np.float32) for name, shape in shapes.items()}
    return dict(zip(names, session.run(names, feed), strict=True))


def test_a_row_is_computed_alike_whoever_shares_its_batch(
    compact: HierarchicalReasoningModel, variant: tuple[Storage, bytes]
) -> None:
    feed = feed_of(compact, 8)
    feed["bars"][1:] *= 100.0  # mates that would stretch any range shared by the batch
    alone = run(variant[1], {name: feed[name][:1] for name in INPUTS})
    together = run(variant[1], feed)
    for one, many in zip(alone, together, strict=True):
        np.testing.assert_allclose(one[0], many[0], atol=2e-5)


def test_rounding_is_of_the_recurrence_only_and_of_a_copy(compact: HierarchicalReasoningModel) -> None:
    before = {name: tensor.clone() for name, tensor in compact.state_dict().items()}
    coarse = rounded(compact, "int8").state_dict()
    changed = {name for name in before if not torch.equal(before[name], coarse[name])}
    layers = {name for name, layer in compact.named_modules() if isinstance(layer, nn.Linear)}
    assert changed == {f"{name}.weight" for name in layers if name.startswith("recurrence.")}
    assert all(torch.equal(before[name], tensor) for name, tensor in compact.state_dict().items())


def test_float32_is_stored_as_it_is(compact: HierarchicalReasoningModel) -> None:
    assert encode(b"any file", "fp32") == b"any file"
    same = rounded(compact, "fp32").state_dict()
    assert all(torch.equal(same[name], tensor) for name, tensor in compact.state_dict().items())


@settings(max_examples=25)
@given(
    outputs=st.integers(1, 6),
    inputs=st.integers(1, 6),
    seed=st.integers(0, 2**32 - 1),
    size=st.sampled_from([1e-20, 1.0, 1e20]),
)
def test_every_matrix_is_stored_in_8_bits_as_torch_rounds_it(
    compact: HierarchicalReasoningModel, outputs: int, inputs: int, seed: int, size: float
) -> None:
    layer = Linear(inputs, outputs)
    layer.weight.data = torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(seed)) * size
    layer.weight.data[0] = 0.0
    holder = copy.deepcopy(compact)
    holder.recurrence.f_L.blocks[0].mlp.down = layer
    weight = rounded(holder, "int8").recurrence.f_L.blocks[0].mlp.down.weight.detach().numpy()
    stored = encode(product(layer.weight.detach().numpy().T, f"{RECURRENCE}w"), "int8")
    assert stored_types(stored) == {TensorProto.INT8}
    session = onnxruntime.InferenceSession(stored, providers=["CPUExecutionProvider"])
    answer = session.run(None, {"x": np.eye(inputs, dtype=np.float32)})[0]
    np.testing.assert_array_equal(answer, weight.T)


def product(weight: np.ndarray, name: str) -> bytes:
    """A graph that multiplies by one matrix."""
    given, answer = (helper.make_tensor_value_info(each, TensorProto.FLOAT, [None, None]) for each in ("x", "answer"))
    tensor = numpy_helper.from_array(np.ascontiguousarray(weight), name)
    graph = helper.make_graph([helper.make_node("MatMul", ["x", name], ["answer"])], "g", [given], [answer], [tensor])
    return bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString()
    )


@pytest.mark.parametrize("storage", VARIANTS)
def test_a_graph_without_a_recurrence_is_refused_rather_than_left_as_it_is(storage: Storage) -> None:
    with pytest.raises(ModelError, match="no product of a recurrence"):
        encode(product(np.ones((8, 8), np.float32), "model.output_network.hidden.weight"), storage)


def test_weights_beyond_the_range_of_16_bits_fail_the_parity_gate(
    variant: tuple[Storage, bytes], compact: HierarchicalReasoningModel
) -> None:
    huge = copy.deepcopy(compact)
    huge.recurrence.f_L.blocks[0].mlp.down.weight.data[0, 0] = 1e6
    assert not parity_max_abs_error(rounded(huge, "fp16"), variant[1]) <= PARITY_LIMIT


def test_an_exported_file_does_not_say_where_it_was_made(variant: tuple[Storage, bytes]) -> None:
    assert str(Path(__file__).resolve().parents[2]).encode() not in variant[1]
    assert b".py" not in variant[1]
