"""Small policies for the rollback drill: a healthy one, and one for each way a model goes wrong in production.

Every fault is a property of the ONNX graph and sleeps until a bar value exceeds `FAULT_LEVEL`, so that warm-up and
golden outputs pass, as they do for real models that fail only on inputs nobody tried.

    logits = flatten(bars) @ K    value = mean(bars) + fault    bars [B, W, F], account [B, A]
"""

from __future__ import annotations

import io
import time
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from core.manifest import ModelManifest, publish
from core.observation import ObservationSchema

Numbers = NDArray[np.float32] | np.float32
Fault = Literal["none", "not_finite", "slow", "hungry", "opposite"]

FAULT_LEVEL = 50.0
SCHEMA = ObservationSchema(window=4, patch=2, bar_features=("return", "range"), account_features=("position", "time"))
HUNGRY_FLOATS = 64 * 1024 * 1024  # 256 MB, which the runtime's arena then keeps
MATRIX = 384  # of the slow chain of products
PRODUCTS_TIMED = 20


def publish_policy(
    store: Path,
    model_id: str,
    fault: Fault = "none",
    *,
    products: int = 200,
    schema: ObservationSchema = SCHEMA,
) -> ModelManifest:
    """Publish a policy with the given sleeping fault; goldens are computed by onnxruntime itself.

    `products` sizes the slow fault (see `slow_products`); `schema` must have SCHEMA's dimensions.
    """
    graph = policy_graph(fault, products=products)
    name, version = model_id.split("/")
    return publish(
        store,
        {"model.onnx": graph, "golden.npz": golden(graph)},
        name=name,
        version=version,
        algorithm="ppo",
        parameters=SCHEMA.window * len(SCHEMA.bar_features) * 5,
        observation=schema,
        quantity_max=100.0,
        dataset_digest="synthetic",
    )


@cache  # a drill publishes the same few again and again
def policy_graph(fault: Fault, *, products: int = 200) -> bytes:
    """A serialised ppo-style graph (docs/architecture.md, "Model files")."""
    kernel = _kernel() * (-1.0 if fault == "opposite" else 1.0)
    nodes = [
        helper.make_node("Flatten", ["bars"], ["flat"]),
        helper.make_node("MatMul", ["flat", "kernel"], ["raw_logits"]),
        helper.make_node("ReduceMean", ["flat"], ["mean"], axes=[1], keepdims=0),
        helper.make_node("ReduceMax", ["flat"], ["largest"], axes=[1], keepdims=0),
        helper.make_node("Greater", ["largest", "level"], ["hot"]),
        helper.make_node("Cast", ["hot"], ["hot_number"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMax", ["hot_number"], ["any_hot_number"], keepdims=0),
        helper.make_node("Cast", ["any_hot_number"], ["any_hot"], to=TensorProto.BOOL),
        helper.make_node("ReduceMean", ["account"], ["account_mean"], axes=[1], keepdims=0),
        helper.make_node("Mul", ["account_mean", "zero"], ["log_quantity"]),
        *_fault_nodes(fault, products),
        helper.make_node("Add", ["mean", "fault"], ["value"]),
        helper.make_node("Identity", ["raw_logits"], ["action_logits"]),
    ]
    constants: dict[str, Numbers] = {
        "kernel": kernel,
        "level": np.float32(FAULT_LEVEL),
        "zero": np.float32(0.0),
    }
    return _serialise(nodes, constants)


@cache
def golden(graph: bytes, schema: ObservationSchema = SCHEMA) -> bytes:
    """Golden inputs and outputs of a healthy batch of three."""
    rng = np.random.default_rng(0)
    feeds = {name: rng.normal(size=(3, *shape)).astype(np.float32) for name, shape in schema.row_shapes.items()}
    session = ort.InferenceSession(graph, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    outputs = dict(zip(names, session.run(names, feeds), strict=True))
    arrays: dict[str, Any] = {f"in_{name}": array for name, array in feeds.items()}
    arrays |= {f"out_{name}": array for name, array in outputs.items()}
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def slow_products(limit_ms: float) -> int:
    """How many products take 1.5 times `limit_ms` on one idle core of this machine: slow, but not stuck.

    Timed on the graph itself, at its fastest: on a busy machine the model is then slower, never faster.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(
        policy_graph("slow", products=PRODUCTS_TIMED), options, providers=["CPUExecutionProvider"]
    )
    feeds = {
        "bars": np.full((1, SCHEMA.window, len(SCHEMA.bar_features)), FAULT_LEVEL + 1, np.float32),
        "account": np.zeros((1, len(SCHEMA.account_features)), np.float32),
    }
    tries_ms = []
    for _ in range(5):
        started = time.perf_counter()
        session.run(None, feeds)
        tries_ms.append((time.perf_counter() - started) * 1e3)
    return max(1, round(1.5 * limit_ms / min(tries_ms) * PRODUCTS_TIMED))


def _kernel() -> NDArray[np.float32]:
    """Any fixed kernel: with it, SELL_SHORT is the answer to falling bars and BUY_LONG to rising ones."""
    kernel = np.zeros((SCHEMA.window * len(SCHEMA.bar_features), 5), dtype=np.float32)
    kernel[:, 0], kernel[:, 1] = 1.0, -1.0
    return kernel


def _fault_nodes(fault: Fault, products: int) -> list[onnx.NodeProto]:
    """Nodes that compute the scalar or row `fault`, which is 0 while no bar is above the level."""
    if fault == "not_finite":
        nan = helper.make_node("Constant", [], ["nan"], value=_tensor(np.float32(np.nan)))
        return [nan, helper.make_node("Where", ["hot", "nan", "zero"], ["fault"])]
    if fault == "slow":
        return [_only_when_hot(_slow_branch(products))]
    if fault == "hungry":
        return [_only_when_hot(_hungry_branch())]
    return [helper.make_node("Identity", ["zero"], ["fault"])]


def _only_when_hot(branch: onnx.GraphProto) -> onnx.NodeProto:
    calm = helper.make_graph(
        [helper.make_node("Constant", [], ["calm"], value=_tensor(np.float32(0.0)))],
        "calm_branch",
        [],
        [helper.make_tensor_value_info("calm", TensorProto.FLOAT, [])],
    )
    return helper.make_node("If", ["any_hot"], ["fault"], then_branch=branch, else_branch=calm)


def _slow_branch(products: int) -> onnx.GraphProto:
    """A Loop of matrix products of a zero matrix with itself: work without a result."""
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["matrix_in", "matrix_in"], ["matrix_out"]),
            helper.make_node("Identity", ["go_in"], ["go_out"]),
        ],
        "product",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("go_in", TensorProto.BOOL, []),
            helper.make_tensor_value_info("matrix_in", TensorProto.FLOAT, [MATRIX, MATRIX]),
        ],
        [
            helper.make_tensor_value_info("go_out", TensorProto.BOOL, []),
            helper.make_tensor_value_info("matrix_out", TensorProto.FLOAT, [MATRIX, MATRIX]),
        ],
    )
    shape = _tensor(np.array([MATRIX, MATRIX], dtype=np.int64))
    return helper.make_graph(
        [
            helper.make_node("Constant", [], ["turns"], value=_tensor(np.int64(products))),
            helper.make_node("Constant", [], ["go"], value=_tensor(np.bool_(True))),
            helper.make_node("Constant", [], ["shape"], value=shape),
            helper.make_node("Expand", ["zero", "shape"], ["matrix"]),
            helper.make_node("Loop", ["turns", "go", "matrix"], ["product_out"], body=body),
            helper.make_node("ReduceMax", ["product_out"], ["slow_out"], keepdims=0),
        ],
        "slow_branch",
        [],
        [helper.make_tensor_value_info("slow_out", TensorProto.FLOAT, [])],
    )


def _hungry_branch() -> onnx.GraphProto:
    shape = _tensor(np.array([HUNGRY_FLOATS], dtype=np.int64))
    return helper.make_graph(
        [
            helper.make_node("Constant", [], ["shape"], value=shape),
            helper.make_node("Expand", ["any_hot_number", "shape"], ["much"]),  # not constant: not folded
            helper.make_node("ReduceMax", ["much"], ["hungry_out"], keepdims=0),
        ],
        "hungry_branch",
        [],
        [helper.make_tensor_value_info("hungry_out", TensorProto.FLOAT, [])],
    )


def _tensor(value: NDArray[np.generic] | np.generic) -> onnx.TensorProto:
    tensor: onnx.TensorProto = numpy_helper.from_array(np.asarray(value))
    return tensor


def _serialise(nodes: list[onnx.NodeProto], constants: dict[str, Numbers]) -> bytes:
    def info(name: str, *shape: int) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["B", *shape])

    graph = helper.make_graph(
        nodes,
        "policy",
        [info("bars", SCHEMA.window, len(SCHEMA.bar_features)), info("account", len(SCHEMA.account_features))],
        [info("action_logits", 5), info("log_quantity"), info("value")],
        initializer=[numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    data: bytes = model.SerializeToString()
    return data
