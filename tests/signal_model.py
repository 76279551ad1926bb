"""A published model that follows the signal, and bars of NIFTY to try it on: what backtests are tested with."""

from __future__ import annotations

import io

import numpy as np
import onnx
import onnxruntime as ort
import pandas as pd
from onnx import TensorProto, helper, numpy_helper

from core.actions import Action
from core.manifest import publish
from core.settings import Settings
from trading.features import ACCOUNT_FEATURES, BAR_FEATURES, schema

QUANTITY = 20.0


def publish_signal_follower(
    settings: Settings, model_id: str, *, sign: float = 1.0, dataset_digest: str = "none"
) -> None:
    """Long on a positive signal and short on a negative one; the other way round with `sign` -1."""
    model, golden = signal_follower(settings.observation.window, sign)
    name, version = model_id.split("/")
    publish(
        settings.paths.state_dir / "models",
        {"model.onnx": model, "golden.npz": golden},
        name=name,
        version=version,
        algorithm="ppo",
        parameters=1,
        observation=schema(settings.observation),
        quantity_max=100.0,
        dataset_digest=dataset_digest,
    )


def signal_follower(window: int, sign: float) -> tuple[bytes, bytes]:
    """ONNX of the one-pass policy, and its golden."""
    kernel = np.zeros((len(ACCOUNT_FEATURES), 5), np.float32)
    kernel[ACCOUNT_FEATURES.index("signal"), [Action.BUY_LONG, Action.SELL_SHORT]] = (sign, -sign)

    def info(name: str, *shape: int) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["B", *shape])

    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["account", "kernel"], ["action_logits"]),
            helper.make_node("ReduceMean", ["bars"], ["value"], axes=[1, 2], keepdims=0),
            helper.make_node("Mul", ["value", "zero"], ["nought"]),
            helper.make_node("Add", ["nought", "log_units"], ["log_quantity"]),
        ],
        "policy",
        [info("bars", window, len(BAR_FEATURES)), info("account", len(ACCOUNT_FEATURES))],
        [info("action_logits", 5), info("log_quantity"), info("value")],
        initializer=[
            numpy_helper.from_array(kernel, "kernel"),
            numpy_helper.from_array(np.float32(0.0), "zero"),
            numpy_helper.from_array(np.float32(np.log(QUANTITY) + 1e-3), "log_units"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10).SerializeToString()
    rng = np.random.default_rng(0)
    feeds = {
        "bars": rng.normal(size=(3, window, len(BAR_FEATURES))).astype(np.float32),
        "account": rng.normal(size=(3, len(ACCOUNT_FEATURES))).astype(np.float32),
    }
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    arrays = {f"in_{name}": array for name, array in feeds.items()}
    arrays |= {f"out_{name}": array for name, array in zip(names, session.run(names, feeds), strict=True)}
    golden = io.BytesIO()
    np.savez(golden, **arrays)
    return model, golden.getvalue()


def nifty_bars(sessions: int = 12) -> pd.DataFrame:
    days = pd.bdate_range("2023-01-02", periods=sessions, tz="Asia/Kolkata") + pd.Timedelta(hours=9, minutes=15)
    times = [day + pd.Timedelta(minutes=5 * bar) for day in days for bar in range(30)]
    close = 18000 * np.exp(np.cumsum(np.random.default_rng(0).normal(0, 5e-4, len(times))))
    return pd.DataFrame(
        {"timestamp": times, "open": close, "high": close + 1, "low": close - 1, "close": close, "volume": 0}
    )
