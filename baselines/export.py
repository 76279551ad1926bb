"""A PPO network as ONNX: an MLP is five kinds of node, so the graph is written out rather than traced.

(bars [B, W, F], account [B, A]) -> action_logits [B, 5], log_quantity [B], value [B]; float32, B dynamic.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from baselines.ppo import PpoAgent, PpoNetwork
from core.errors import ModelError
from core.manifest import ModelManifest, publish
from core.observation import ObservationSchema

OPSET = 20
INPUTS = ("bars", "account")
OUTPUTS = ("action_logits", "log_quantity", "value")
PARITY_LIMIT = 1e-4
GOLDEN_ROWS = 4

Arrays = dict[str, NDArray[np.float32]]


def export(
    agent: PpoAgent,
    *,
    store: Path,
    name: str,
    version: str,
    metrics: Mapping[str, float],
    dataset_digest: str,
    git_commit: str | None = None,
) -> ModelManifest:
    """Publish `agent` as `<store>/<name>/<version>` and return its manifest.

    Raises ModelError, publishing nothing, if onnxruntime and torch differ by more than 1e-4 or the version exists.
    """
    network = agent.network
    model = to_onnx(network, agent.schema)
    inputs = _random_inputs(agent.schema)
    outputs = _run_torch(network, inputs)
    error = _parity(model, inputs, outputs)
    if not error <= PARITY_LIMIT:
        raise ModelError(
            f"{name}/{version}: onnxruntime and torch differ by {error:.2e}; nothing was published",
            code="parity_failed",
        )
    return publish(
        store,
        {"model.onnx": model, "golden.npz": _npz(inputs, outputs)},
        name=name,
        version=version,
        algorithm="ppo",
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        observation=agent.schema,
        quantity_max=agent.quantity_max,
        metrics={**metrics, "parity_max_abs_error": error, "model_mb": len(model) / 1e6},
        dataset_digest=dataset_digest,
        git_commit=git_commit,
    )


def to_onnx(network: PpoNetwork, schema: ObservationSchema) -> bytes:
    """The network's forward pass as a checked ONNX file."""
    graph = _Graph()
    graph.add("Flatten", ["bars"], "flat_bars", axis=1)
    graph.add("Concat", ["flat_bars", "account"], "flat", axis=1)
    policy = graph.mlp("flat", network.policy, "policy")
    critic = graph.mlp("flat", network.critic, "critic")
    graph.linear(policy, network.action_head, "action_logits")
    graph.linear(policy, network.quantity_head, "raw_quantity")
    graph.add("Sigmoid", ["raw_quantity"], "quantity_ratio")
    graph.constant("log_quantity_max", np.array(network.log_quantity_max, dtype=np.float32))
    graph.add("Mul", ["quantity_ratio", "log_quantity_max"], "log_quantity_column")
    graph.linear(critic, network.value_head, "value_column")
    graph.constant("last_axis", np.array([1], dtype=np.int64))
    for name in ("log_quantity", "value"):
        graph.add("Squeeze", [f"{name}_column", "last_axis"], name)
    shapes = {"bars": (schema.window, len(schema.bar_features)), "account": (len(schema.account_features),)}
    inputs = [_tensor(name, shapes[name]) for name in INPUTS]
    outputs = [_tensor("action_logits", (network.action_head.out_features,)), *map(_tensor, OUTPUTS[1:])]
    built = helper.make_graph(graph.nodes, "ppo", inputs, outputs, graph.initializers)
    model = helper.make_model(built, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


class _Graph:
    """Nodes and constants in the order they are needed."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def add(self, operator: str, inputs: list[str], output: str, **attributes: Any) -> None:
        self.nodes.append(helper.make_node(operator, inputs, [output], **attributes))

    def constant(self, name: str, value: NDArray[np.generic]) -> None:
        self.initializers.append(numpy_helper.from_array(value, name))

    def linear(self, source: str, layer: nn.Linear, output: str) -> None:
        """output = source W' + b, with torch's weight layout (out, in)."""
        for part, value in layer.named_parameters():
            self.constant(f"{output}.{part}", value.detach().numpy())
        self.add("Gemm", [source, f"{output}.weight", f"{output}.bias"], output, transB=1)

    def mlp(self, source: str, layers: nn.Sequential, prefix: str) -> str:
        """Linear and tanh layers in turn; the name of the last output."""
        for index, layer in enumerate(layers):
            output = f"{prefix}_{index}"
            if isinstance(layer, nn.Linear):
                self.linear(source, layer, output)
            else:
                self.add("Tanh", [source], output)
            source = output
        return source


def _tensor(name: str, shape: tuple[int, ...] = ()) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *shape])


def _random_inputs(schema: ObservationSchema) -> Arrays:
    rng = np.random.default_rng(1)
    bars = rng.standard_normal((GOLDEN_ROWS, schema.window, len(schema.bar_features)), dtype=np.float32)
    return {"bars": bars, "account": rng.standard_normal((GOLDEN_ROWS, len(schema.account_features)), dtype=np.float32)}


@torch.no_grad()
def _run_torch(network: PpoNetwork, inputs: Arrays) -> Arrays:
    outputs = network(*(torch.from_numpy(inputs[name]) for name in INPUTS))
    return {name: tensor.numpy() for name, tensor in zip(OUTPUTS, outputs, strict=True)}


def _parity(model: bytes, inputs: Arrays, expected: Arrays) -> float:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    answers = session.run(list(OUTPUTS), inputs)
    return max(float(np.abs(answer - expected[name]).max()) for name, answer in zip(OUTPUTS, answers, strict=True))


def _npz(inputs: Arrays, outputs: Arrays) -> bytes:
    buffer = io.BytesIO()
    arrays = {f"in_{name}": array for name, array in inputs.items()}
    arrays |= {f"out_{name}": array for name, array in outputs.items()}
    np.savez(buffer, **arrays)  # type: ignore[arg-type] # numpy types its keyword arrays as its own options
    return buffer.getvalue()
