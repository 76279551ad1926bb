"""An imported policy as ONNX: what baselines/sb3/policy.py computes, node by node."""

from __future__ import annotations

import math

import numpy as np
from onnx import TensorProto
from torch import nn

from baselines.graph import Graph
from baselines.sb3.actions import Bins, Choices, Constant
from baselines.sb3.policy import ImportedPolicy
from core.observation import ObservationSchema

OPERATORS = {nn.Tanh: "Tanh", nn.ReLU: "Relu", nn.ELU: "Elu", nn.LeakyReLU: "LeakyRelu"}  # ONNX's defaults are torch's


def to_onnx(policy: ImportedPolicy, schema: ObservationSchema) -> bytes:
    """The checked file."""
    graph = Graph()
    seen = {"bars": graph.add("Flatten", "bars", axis=1), "account": "account"}
    x = _normalized(graph, policy, graph.add("Concat", *(seen[part] for part in policy.layout.parts), axis=1))
    outputs = _mlp(graph, x, policy.actor)
    scores = graph.add("Unsqueeze", _scores(graph, policy, outputs), graph.constant([1]))  # [B, 1, K]
    penalty = graph.add("Gather", graph.constant(policy.penalty), _position_index(graph, policy), axis=0)  # [B, 5, K]
    masked = graph.add("Add", scores, penalty)
    graph.add("ReduceMax", masked, graph.constant([2]), output="action_logits", keepdims=0)
    graph.column(_mlp(graph, x, policy.critic), 0, output="value")
    _log_quantity(graph, policy, outputs)
    return graph.file(schema)


def _normalized(graph: Graph, policy: ImportedPolicy, x: str) -> str:
    if policy.normalization is None:
        return x
    mean, std, limit = (part.numpy() for part in policy.normalization)
    centred = graph.add("Sub", graph.add("Cast", x, to=TensorProto.DOUBLE), graph.constant(mean, np.float64))
    scaled = graph.add("Div", centred, graph.constant(std, np.float64))
    above = graph.add("Max", scaled, graph.constant(-limit, np.float64))
    return graph.add("Cast", graph.add("Min", above, graph.constant(limit, np.float64)), to=TensorProto.FLOAT)


def _mlp(graph: Graph, source: str, layers: nn.Sequential) -> str:
    for layer in layers:
        if isinstance(layer, nn.Linear):
            source = graph.linear(source, layer.weight, layer.bias)
        else:
            source = graph.add(OPERATORS[type(layer)], source)
    return source


def _scores(graph: Graph, policy: ImportedPolicy, outputs: str) -> str:
    action = policy.actions.action
    if isinstance(action, Choices):
        return graph.columns(outputs, 0, action.table.shape[2])
    toward = np.array([[-1.0, 0.0, 1.0]])
    directed = graph.add("Mul", graph.columns(outputs, 0, 1), graph.constant(toward))
    return graph.add("Sub", directed, graph.constant(action.dead_zone * np.abs(toward)))


def _position_index(graph: Graph, policy: ImportedPolicy) -> str:
    """[B] int64 in 0..2."""
    position = graph.add("Round", graph.column("account", policy.layout.position))
    bounded = graph.add("Clip", position, graph.constant(-1.0), graph.constant(1.0))
    return graph.add("Cast", graph.add("Add", bounded, graph.constant(1.0)), to=TensorProto.INT64)


def _log_quantity(graph: Graph, policy: ImportedPolicy, outputs: str) -> None:
    quantity, name = policy.actions.quantity, "log_quantity"
    if isinstance(quantity, Constant):
        graph.add("Expand", graph.constant(math.log(quantity.quantity)), graph.add("Shape", "value"), output=name)
    elif isinstance(quantity, Bins):
        first = policy.actions.outputs - len(quantity.quantities)
        scores = graph.columns(outputs, first, policy.actions.outputs)
        best = graph.add("ArgMax", scores, axis=1, keepdims=0)
        graph.add("Gather", graph.constant(np.log(quantity.quantities)), best, output=name, axis=0)
    else:
        bounds = (graph.constant(quantity.low), graph.constant(quantity.high))
        above = graph.add("Sub", graph.add("Clip", graph.column(outputs, 1), *bounds), bounds[0])
        units = graph.add("Mul", above, graph.constant(policy.actions.quantity_max / (quantity.high - quantity.low)))
        graph.add("Log", graph.add("Max", units, graph.constant(1.0)), output=name)
