"""A tiny model of books whose answer and depth are known (as tiny_models.py's hrm of one instrument).

target = sign(mu) but for ties;  halts at segment ceil(sum_k loadings[k, 0] + 0.5);  fails where variances sum to more
than FAULT_LEVEL

counter = 0 if reset else z_H[:, 0, 0];  counter_next = counter + 1;  q_halt = counter_next - sum_k loadings[k, 0]
"""

from __future__ import annotations

import io
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from core.halting import HaltingRule
from core.manifest import ModelManifest, publish
from core.observation import BookSchema

RULE = HaltingRule(max_segments=6, min_segments=1, complexity_threshold=0.5)
SCHEMA = BookSchema(instruments=4, factors=2)
WIDTH = 3
FAULT_LEVEL = 10.0


@cache
def book_graph(schema: BookSchema = SCHEMA) -> bytes:
    node = helper.make_node
    nodes = [
        node("Cast", ["reset"], ["reset_number"], to=TensorProto.FLOAT),
        node("Sub", ["one", "reset_number"], ["keep"]),
        node("Unsqueeze", ["keep", "axes12"], ["keep3"]),
        node("Mul", ["z_H", "keep3"], ["z_H_now"]),
        node("Mul", ["z_L", "keep3"], ["z_L_next"]),
        node("Add", ["z_H_now", "one"], ["z_H_next"]),
        node("ReduceMean", ["z_H_next"], ["count"], axes=[1, 2], keepdims=0),
        node("Gather", ["instruments", "first_loading"], ["deep"], axis=2),
        node("ReduceSum", ["deep", "axis1"], ["wanted"], keepdims=0),
        node("Sub", ["count", "wanted"], ["q_halt"]),
        node("Gather", ["instruments", "variance"], ["variances"], axis=2),
        node("ReduceSum", ["variances", "axis1"], ["variance_sum"], keepdims=0),
        node("Sub", ["fault_level", "variance_sum"], ["room"]),
        node("Sqrt", ["room"], ["root"]),  # not a number where there is none
        node("Mul", ["root", "zero"], ["fault"]),
        node("Add", ["fault", "half"], ["q_continue"]),
        node("Gather", ["instruments", "first_column"], ["mu"], axis=2),
        node("Gather", ["instruments", "last_column"], ["position"], axis=2),
        node("Neg", ["mu"], ["short"]),
        node("Mul", ["mu", "zero"], ["flat"]),
        node("Mul", ["mu", "position"], ["hold"]),
        node("Concat", ["mu", "short", "flat", "flat", "hold"], ["action_logits"], axis=2),
    ]
    constants = {
        "one": np.float32(1),
        "zero": np.float32(0),
        "half": np.float32(0.5),
        "fault_level": np.float32(FAULT_LEVEL),
        "variance": np.int64(-3),
        "first_loading": np.int64(1),
        "first_column": np.array([0]),
        "last_column": np.array([-1]),
        "axes12": np.array([1, 2]),
        "axis1": np.array([1]),
    }

    def info(name: str, *shape: int, dtype: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, dtype, ["B", *shape])

    state = (schema.instruments + 4, WIDTH)
    graph = helper.make_graph(
        nodes,
        "segment",
        [
            *(info(name, *shape) for name, shape in schema.row_shapes.items()),
            info("z_H", *state),
            info("z_L", *state),
            info("reset", dtype=TensorProto.BOOL),
        ],
        [
            info("action_logits", schema.instruments, 5),
            info("q_halt"),
            info("q_continue"),
            info("z_H_next", *state),
            info("z_L_next", *state),
        ],
        initializer=[numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


def publish_book(store: Path, model_id: str, schema: BookSchema = SCHEMA) -> ModelManifest:
    graph, (name, version) = book_graph(schema), model_id.split("/")
    state = (schema.instruments + 4, WIDTH)
    return publish(
        store,
        {"model.onnx": graph, "golden.npz": _golden(graph, schema)},
        name=name,
        version=version,
        algorithm="hrm_book",
        preset="compact",
        parameters=0,
        observation=schema,
        halting=RULE,
        carry={"z_H": state, "z_L": state},
        quantity_max=1.0,
        dataset_digest="synthetic",
    )


@cache
def _golden(graph: bytes, schema: BookSchema) -> bytes:
    rng, state = np.random.default_rng(2), (3, schema.instruments + 4, WIDTH)
    feeds = {
        "instruments": rng.normal(size=(3, *schema.row_shapes["instruments"])).astype(np.float32),
        "limits": np.ones((3, 2), np.float32),
        "z_H": np.zeros(state, np.float32),
        "z_L": np.zeros(state, np.float32),
        "reset": np.array([True, False, True]),
    }
    session = ort.InferenceSession(graph, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    arrays = {f"in_{name}": array for name, array in feeds.items()}
    arrays |= {f"out_{name}": array for name, array in zip(names, session.run(names, feeds), strict=True)}
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()
