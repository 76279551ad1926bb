"""Models whose truth is known, and records of what they decide: what explanations are tested with."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from tiny_models import publish_hrm

from core.manifest import ModelManifest, publish
from core.observation import ObservationSchema
from core.settings import Settings
from flows.drill_models import SCHEMA, golden
from serving.engine import Engine, load_engine
from serving.record_format import Answer, DecisionFacts, Record, encode, file_name

W, F, A = SCHEMA.window, len(SCHEMA.bar_features), len(SCHEMA.account_features)
DECIDED = "20260105T040000000-00000000-0000000{}"
Kernel = NDArray[np.float32]


def publish_linear(store: Path, model_id: str, of_bars: Kernel, of_account: Kernel) -> ModelManifest:
    """A single pass: logits = bars . of_bars [W, F, 5] + account . of_account [A, 5]."""
    node = helper.make_node
    constants = {"bars_kernel": of_bars.reshape(W * F, 5), "account_kernel": of_account, "zero": np.float32(0)}

    def info(name: str, *shape: int) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["B", *shape])

    graph = helper.make_graph(
        [
            node("Flatten", ["bars"], ["flat"]),
            node("MatMul", ["flat", "bars_kernel"], ["seen"]),
            node("MatMul", ["account", "account_kernel"], ["held"]),
            node("Add", ["seen", "held"], ["action_logits"]),
            node("ReduceMean", ["bars"], ["value"], axes=[1, 2], keepdims=0),
            node("Mul", ["value", "zero"], ["log_quantity"]),
        ],
        "policy",
        [info("bars", W, F), info("account", A)],
        [info("action_logits", 5), info("log_quantity"), info("value")],
        initializer=[numpy_helper.from_array(np.asarray(each, np.float32), name) for name, each in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    data = model.SerializeToString()
    name, version = model_id.split("/")
    return publish(
        store,
        {"model.onnx": data, "golden.npz": golden(data)},
        name=name,
        version=version,
        algorithm="ppo",
        parameters=W * F * 5,
        observation=SCHEMA,
        quantity_max=100.0,
        dataset_digest="synthetic",
    )


def linear(settings: Settings, of_bars: Kernel, of_account: Kernel, model_id: str = "lin/v1") -> Engine:
    publish_linear(settings.paths.state_dir / "models", model_id, of_bars, of_account)
    return load_engine(settings, model_id)


def counting(settings: Settings) -> Engine:
    """tests/serving/tiny_models.py: its depth is told by account[0], its logits by the bars alone."""
    publish_hrm(settings.paths.state_dir / "models", "deep/v1")
    return load_engine(settings, "deep/v1")


def record_of(engine: Engine, seed: int = 0, *, first: float | None = None, position: int = 0) -> Record:
    """A decision on noise; `first` is its account's first feature."""
    rng = np.random.default_rng(seed)
    bars, account = rng.normal(size=(W, F)).astype(np.float32), rng.normal(size=A).astype(np.float32)
    account[0] = account[0] if first is None else first
    made = engine.decide(bars[None], account[None], np.array([0.2], np.float32), np.array([position]))
    answer = Answer(
        model=engine.id,
        manifest_sha256=engine.manifest_sha256,
        onnx_sha256=engine.onnx_sha256,
        provider=engine.provider,
        storage=engine.manifest.storage,
        role="champion",
        position=position,
        segment_cap=None,
        action=int(made.action[0]),
        quantity=float(made.quantity[0]),
        probabilities=tuple(made.probabilities[0].tolist()),
        value=float(made.value[0]),
        segments=int(made.segments[0]),
        halt_reason=made.halt_reason[0],
    )
    facts = DecisionFacts(
        decision_id=DECIDED.format(seed % 10),
        at=datetime(2026, 1, 5, 4, tzinfo=UTC).timestamp(),
        deadline_ms=None,
        latency_ms=1.0,
        request_id="asked",
        symbol="NIFTY",
        complexity=0.2,
        epoch=1,
        rung="full",
        fallback=False,
        errors={},
        answer=answer,
    )
    return Record(facts, {"bars": bars, "account": account})


def put_on_disk(state_dir: Path, record: Record) -> None:
    folder = state_dir / "decisions"
    folder.mkdir(exist_ok=True)
    with (folder / file_name(record.facts.decision_id)).open("ab") as file:
        file.write(encode(record))


def schema_of(**changes: object) -> ObservationSchema:
    return ObservationSchema.model_validate(SCHEMA.model_dump() | changes)
