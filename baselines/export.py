"""A policy of one pass as a published ONNX model: written, held against torch, published (docs/architecture.md)."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import nn

from baselines.agent import PpoAgent
from baselines.graph import INPUTS, OUTPUTS, Graph
from baselines.ppo import PpoNetwork
from core.actions import N_ACTIONS
from core.errors import ModelError
from core.manifest import ModelManifest, publish
from core.observation import ObservationSchema

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
    return publish_checked(
        to_onnx(agent.network, agent.schema),
        agent.network,
        agent.schema,
        store=store,
        name=name,
        version=version,
        quantity_max=agent.quantity_max,
        metrics=metrics,
        dataset_digest=dataset_digest,
        git_commit=git_commit,
    )


def publish_checked(
    file: bytes,
    reference: nn.Module,
    schema: ObservationSchema,
    *,
    store: Path,
    metrics: Mapping[str, float],
    **fields: object,
) -> ModelManifest:
    """Publish an ONNX `file` that answers as `reference(bars, account)` does; `fields` are the manifest's.

    Raises ModelError, publishing nothing, if the two differ by more than 1e-4 or the version exists.
    """
    inputs = _random_inputs(schema)
    outputs = _run_torch(reference, inputs)
    error = _parity(file, inputs, outputs)
    if not error <= PARITY_LIMIT:
        raise ModelError(
            f"{fields['name']}/{fields['version']}: onnxruntime and torch differ by {error:.2e}; nothing was published",
            code="parity_failed",
        )
    return publish(
        store,
        {"model.onnx": file, "golden.npz": _npz(inputs, outputs)},
        algorithm="ppo",
        parameters=sum(parameter.numel() for parameter in reference.parameters()),
        observation=schema,
        metrics={**metrics, "parity_max_abs_error": error, "model_mb": len(file) / 1e6},
        **fields,
    )


def to_onnx(network: PpoNetwork, schema: ObservationSchema) -> bytes:
    """The network's forward pass as a checked ONNX file."""
    graph, body = Graph(), network.body
    flat = graph.add("Concat", graph.add("Flatten", "bars", axis=1), "account", axis=1)
    hidden = graph.add("Tanh", graph.linear(flat, body.first.weight, body.first.bias))
    width = body.second.shape[1]
    actor, critic = (
        graph.add("Tanh", graph.linear(graph.columns(hidden, start, start + width), weight.T, bias[0]))
        for start, weight, bias in zip((0, width), body.second, body.second_bias, strict=True)
    )
    outputs = graph.linear(actor, body.actor_head.weight, body.actor_head.bias)
    graph.add("Identity", graph.columns(outputs, 0, N_ACTIONS), output="action_logits")
    ratio = graph.add("Sigmoid", graph.column(outputs, N_ACTIONS))
    graph.add("Mul", ratio, graph.constant(network.log_quantity_max), output="log_quantity")
    graph.column(graph.linear(critic, body.value_head[None], body.value_bias[None]), 0, output="value")
    return graph.file(schema)


def _random_inputs(schema: ObservationSchema) -> Arrays:
    rng = np.random.default_rng(1)
    bars = rng.standard_normal((GOLDEN_ROWS, schema.window, len(schema.bar_features)), dtype=np.float32)
    return {"bars": bars, "account": rng.standard_normal((GOLDEN_ROWS, len(schema.account_features)), dtype=np.float32)}


@torch.no_grad()
def _run_torch(network: nn.Module, inputs: Arrays) -> Arrays:
    outputs = network(*(torch.from_numpy(inputs[name]) for name in INPUTS))
    return {name: tensor.numpy() for name, tensor in zip(OUTPUTS, outputs, strict=True)}


def _parity(model: bytes, inputs: Arrays, expected: Arrays) -> float:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    answers = session.run(list(OUTPUTS), inputs)
    with np.errstate(invalid="ignore"):  # infinite in both: no number, which no limit allows
        errors = [np.abs(answer - expected[name]).max() for name, answer in zip(OUTPUTS, answers, strict=True)]
    return float(np.max(errors))


def _npz(inputs: Arrays, outputs: Arrays) -> bytes:
    buffer = io.BytesIO()
    arrays = {f"in_{name}": array for name, array in inputs.items()}
    arrays |= {f"out_{name}": array for name, array in outputs.items()}
    np.savez(buffer, **arrays)  # type: ignore[arg-type] # numpy types its keyword arrays as its own options
    return buffer.getvalue()
