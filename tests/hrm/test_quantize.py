"""Static int8: integers that are exact on every processor, and a row that is the same whoever shares its batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hrm_planted import HRM, as_loaded, model, settings
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from core.errors import ModelError
from hrm.export import MarketSegment, export_model, export_segment
from hrm.model import HierarchicalReasoningModel
from hrm.quantize import WEIGHT_LEVELS, ZERO, quantized
from hrm.segment import random_inputs, run_onnx
from hrm.storage import RECURRENCE, products

ROWS = 12
CONTRACTION = 0.5  # as training makes it: a random recurrence is chaotic, and any rounding grows in it
SHALLOW = {f"{HRM}HIERARCHICAL__{name}": "1" for name in ("N_CYCLES", "T_TIMESTEPS")}  # exported in a third of the time


@pytest.fixture(scope="module")
def compact() -> HierarchicalReasoningModel:
    net = model().eval()
    with torch.no_grad():
        for parameter in net.recurrence.parameters():
            parameter.mul_(CONTRACTION)
    return net


@pytest.fixture(scope="module")
def plain(compact: HierarchicalReasoningModel) -> bytes:
    return export_segment(compact)


@pytest.fixture(scope="module")
def observed(compact: HierarchicalReasoningModel) -> dict[str, NDArray[np.float32]]:
    return MarketSegment(compact).drawn(32, np.random.default_rng(7))


@pytest.fixture(scope="module")
def file(plain: bytes, observed: dict[str, NDArray[np.float32]]) -> bytes:
    return quantized(plain, observed)


@pytest.fixture(scope="module")
def session(file: bytes) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def feeds(compact: HierarchicalReasoningModel) -> dict[str, NDArray[np.float32]]:
    return random_inputs(MarketSegment(compact), ROWS, seed=3)


def constants(file: bytes) -> dict[str, NDArray[np.generic]]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load_from_string(file).graph.initializer}


def test_every_product_of_the_recurrence_is_one_of_integers(plain: bytes, file: bytes, tmp_path: Path) -> None:
    onnx.checker.check_model(onnx.load_from_string(file), full_check=True)
    loaded = as_loaded(file, tmp_path / "loaded.onnx")
    of_integers = [node for node in loaded.node if node.op_type == "MatMulIntegerToFloat"]
    assert len(of_integers) == len(products(onnx.load_from_string(plain).graph))
    assert sum(node.op_type == "QuantizeLinear" for node in loaded.node) == len({node.input[0] for node in of_integers})
    assert not any(node.op_type == "DequantizeLinear" for node in loaded.node)
    assert len(file) < 0.5 * len(plain)


def test_a_product_is_the_formula(file: bytes, feeds: dict[str, NDArray[np.float32]]) -> None:
    graph = onnx.load_from_string(file)
    node = next(node for node in graph.graph.node if node.op_type == "MatMul" and node.input[1].startswith(RECURRENCE))
    rounded, weight = node.input
    name = rounded.removesuffix(".x")
    for shown in (f"{name}.q", node.output[0]):
        kind = TensorProto.UINT8 if shown.endswith(".q") else TensorProto.FLOAT
        graph.graph.output.append(helper.make_tensor_value_info(shown, kind, None))
    levels, product = run_onnx(graph.SerializeToString(), feeds, [f"{name}.q", node.output[0]]).values()
    stored = constants(file)
    scale = stored[f"{name}.s"].astype(np.float64) * stored[f"{weight}.t"]
    expected = (levels.astype(np.int64) - ZERO) @ stored[f"{weight}.q"].astype(np.int64) * scale
    np.testing.assert_allclose(product, expected, rtol=1e-6, atol=1e-6)


def test_it_answers_what_the_float_model_does_but_for_rounding(
    plain: bytes, file: bytes, feeds: dict[str, NDArray[np.float32]], compact: HierarchicalReasoningModel
) -> None:
    outputs = MarketSegment(compact).outputs
    ours, theirs = (run_onnx(each, feeds, outputs) for each in (file, plain))
    for name in ("z_H_next", "z_L_next"):  # of the size of 1
        assert 0 < np.sqrt(np.mean((ours[name] - theirs[name]) ** 2)) < 0.05, name


@hypothesis_settings(max_examples=40, deadline=None)
@given(rows=st.lists(st.integers(0, ROWS - 1), min_size=1, max_size=2 * ROWS), size=st.sampled_from([1.0, 1e3, 1e6]))
def test_a_row_is_bit_by_bit_the_same_whoever_shares_its_batch(
    session: onnxruntime.InferenceSession, feeds: dict[str, NDArray[np.float32]], rows: list[int], size: float
) -> None:
    mates = {name: array[rows].copy() for name, array in feeds.items()}
    mates["bars"][1:] *= size  # whatever range they have
    first = {name: array[rows[:1]] for name, array in feeds.items()}
    names = [node.name for node in session.get_outputs()]
    for _ in range(3):
        alone, together = (dict(zip(names, session.run(names, each), strict=True)) for each in (first, mates))
        for name in names:
            np.testing.assert_array_equal(alone[name][0], together[name][0], err_msg=name)
        first, mates = (next_inputs(each, out) for each, out in ((first, alone), (mates, together)))


def next_inputs(
    feeds: dict[str, NDArray[np.float32]], out: dict[str, NDArray[np.float32]]
) -> dict[str, NDArray[np.float32]]:
    return feeds | {"z_H": out["z_H_next"], "z_L": out["z_L_next"], "reset": np.zeros_like(feeds["reset"])}


def test_threads_change_nothing(file: bytes, feeds: dict[str, NDArray[np.float32]]) -> None:
    answers = []
    for threads in (1, 2):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        answers.append(session.run(None, feeds))
    for one, two in zip(*answers, strict=True):
        np.testing.assert_array_equal(one, two)


def test_weights_keep_to_seven_bits(file: bytes) -> None:
    weights = [array for name, array in constants(file).items() if name.endswith(".q")]
    assert len(weights) == 2 * 6
    for weight in weights:
        assert weight.dtype == np.int8
        assert np.abs(weight).max() == WEIGHT_LEVELS


@given(seed=st.integers(0, 2**32 - 1), inputs=st.integers(1, 64))
def test_seven_bits_never_saturate_where_neighbours_are_added_in_sixteen(seed: int, inputs: int) -> None:
    random = np.random.default_rng(seed)
    x = random.choice([0, 128, 255], 2 * inputs).astype(np.int64)
    weight = random.choice([-WEIGHT_LEVELS, 0, WEIGHT_LEVELS], 2 * inputs).astype(np.int64)
    assert without_vnni(x, weight) == x @ weight


def test_eight_bits_would() -> None:
    x, weight = np.full(8, 255), np.full(8, 127)
    assert without_vnni(x, weight) < x @ weight


def without_vnni(x: NDArray[np.int64], weight: NDArray[np.int64]) -> int:
    """AVX2's vpmaddubsw: the sum of two neighbouring products, saturated to 16 bits."""
    pairs = (x * weight).reshape(-1, 2).sum(1)
    return int(np.clip(pairs, -(2**15), 2**15 - 1).sum())


def test_calibration_sees_the_carry_and_makes_the_same_file_again(
    plain: bytes, file: bytes, observed: dict[str, NDArray[np.float32]]
) -> None:
    assert quantized(plain, observed) == file
    wider = quantized(plain, observed | {"bars": observed["bars"] * 10})
    scales, wider_scales = ({k: v for k, v in constants(each).items() if k.endswith(".s")} for each in (file, wider))
    assert all(scale > 0 for scale in scales.values())
    assert any(wider_scales[name] > 1.5 * scale for name, scale in scales.items())


def test_a_weight_that_does_nothing_and_a_state_that_is_zero_are_quantised(
    compact: HierarchicalReasoningModel, observed: dict[str, NDArray[np.float32]]
) -> None:
    silent = model(SHALLOW).eval()
    silent.recurrence.f_L.blocks[0].mlp.gate_up.weight.data.zero_()
    silent.recurrence.f_L.blocks[0].attention.out.weight.data[3] = 0.0
    answers = run_onnx(
        quantized(export_segment(silent), observed),
        random_inputs(MarketSegment(silent), 2, seed=0),
        MarketSegment(silent).outputs,
    )
    assert all(np.isfinite(array).all() for array in answers.values())


def test_a_model_that_answers_no_numbers_is_not_quantised(
    plain: bytes, observed: dict[str, NDArray[np.float32]]
) -> None:
    broken = {name: np.full_like(array, np.nan) for name, array in observed.items()}
    with pytest.raises(ModelError, match="is not finite on what was observed"):
        quantized(plain, broken)


def test_without_observations_nothing_is_published(
    compact: HierarchicalReasoningModel, plain: bytes, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match="give observations") as error:
        export_model(
            compact,
            store=tmp_path / "models",
            name="hrm",
            version="v1",
            settings=settings(),
            metrics={},
            dataset_digest="abc",
            storage="static_int8",
            traced=plain,
        )
    assert error.value.code == "not_calibrated"
    assert not (tmp_path / "models").exists()
