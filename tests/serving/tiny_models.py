"""A tiny hrm graph whose depth is known: q_halt grows by one per segment, so depth follows `account[:, 0]`.

counter = 0 if reset else z_H[:, 0, 0];  counter_next = counter + 1
q_halt = counter_next - account[:, 0];   q_continue = 0.5:  halts at segment ceil(account[:, 0] + 0.5 + tiny)
action_logits = flatten(bars) @ K (as flows/drill_models), value = counter_next
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
from core.settings import Settings, load_settings
from flows.drill_models import SCHEMA, publish_policy

RULE = HaltingRule(max_segments=6, min_segments=1, complexity_threshold=0.5)
TOKENS, WIDTH = 2, 3


@cache
def hrm_graph() -> bytes:
    node = helper.make_node
    nodes = [
        node("Cast", ["reset"], ["reset_number"], to=TensorProto.FLOAT),
        node("Sub", ["one", "reset_number"], ["keep"]),
        node("Unsqueeze", ["keep", "axes12"], ["keep3"]),
        node("Mul", ["z_H", "keep3"], ["z_H_now"]),
        node("Mul", ["z_L", "keep3"], ["z_L_next"]),
        node("Add", ["z_H_now", "one"], ["z_H_next"]),
        node("ReduceMean", ["z_H_next"], ["value"], axes=[1, 2], keepdims=0),
        node("Gather", ["account", "first"], ["wanted"], axis=1),
        node("Sub", ["value", "wanted"], ["q_halt"]),
        node("Mul", ["value", "zero"], ["nought"]),
        node("Add", ["nought", "half"], ["q_continue"]),
        node("Identity", ["nought"], ["log_quantity"]),
        node("Flatten", ["bars"], ["flat"]),
        node("MatMul", ["flat", "kernel"], ["action_logits"]),
    ]
    rng = np.random.default_rng(1)
    constants = {
        "one": np.float32(1),
        "zero": np.float32(0),
        "half": np.float32(0.5),
        "first": np.int64(0),
        "axes12": np.array([1, 2]),
        "kernel": rng.normal(size=(SCHEMA.window * len(SCHEMA.bar_features), 5)).astype(np.float32),
    }

    def info(name: str, *shape: int, dtype: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, dtype, ["B", *shape])

    graph = helper.make_graph(
        nodes,
        "segment",
        [
            info("bars", SCHEMA.window, len(SCHEMA.bar_features)),
            info("account", len(SCHEMA.account_features)),
            info("z_H", TOKENS, WIDTH),
            info("z_L", TOKENS, WIDTH),
            info("reset", dtype=TensorProto.BOOL),
        ],
        [
            info("action_logits", 5),
            *(info(name) for name in ("log_quantity", "value", "q_halt", "q_continue")),
            info("z_H_next", TOKENS, WIDTH),
            info("z_L_next", TOKENS, WIDTH),
        ],
        initializer=[numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


@cache  # made for almost every test
def hrm_golden(graph: bytes, *, shift: float = 0.0) -> bytes:
    rng = np.random.default_rng(2)
    feeds = {
        "bars": rng.normal(size=(3, SCHEMA.window, len(SCHEMA.bar_features))).astype(np.float32),
        "account": rng.normal(size=(3, len(SCHEMA.account_features))).astype(np.float32),
        "z_H": np.zeros((3, TOKENS, WIDTH), np.float32),
        "z_L": np.zeros((3, TOKENS, WIDTH), np.float32),
        "reset": np.array([True, False, True]),
    }
    session = ort.InferenceSession(graph, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    arrays = {f"in_{name}": array for name, array in feeds.items()}
    arrays |= {
        f"out_{name}": array + np.float32(shift) for name, array in zip(names, session.run(names, feeds), strict=True)
    }
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def publish_hrm(store: Path, model_id: str, *, shift: float = 0.0, graph: bytes | None = None) -> ModelManifest:
    graph = graph or hrm_graph()
    name, version = model_id.split("/")
    return publish(
        store,
        {"model.onnx": graph, "golden.npz": hrm_golden(graph, shift=shift)},
        name=name,
        version=version,
        algorithm="hrm",
        preset="compact",
        parameters=40,
        observation=SCHEMA,
        halting=RULE,
        carry={"z_H": (TOKENS, WIDTH), "z_L": (TOKENS, WIDTH)},
        quantity_max=100.0,
        dataset_digest="synthetic",
    )


def publish_all(store: Path) -> None:
    publish_policy(store, "ppo/v1")
    publish_hrm(store, "hrm/v1")
    publish_hrm(store, "hrm/v2")
    publish_hrm(store, "hrm/v3")
    publish_policy(store, "nan/v1", "not_finite")


def settings_in(folder: Path, **changes: dict[str, object]) -> Settings:
    """The shipped settings with another state directory and changed sections."""
    settings = load_settings(preset="compact", environ={})
    sections = {
        name: getattr(settings, name).model_copy(update=values)
        for name, values in ({"paths": {"state_dir": folder}} | changes).items()
    }
    return settings.model_copy(update=sections)
