"""How a model file stores the weights of its recurrence (99 % of the model): float32, float16, or 8-bit integers.

    fp16    w = cast(half)
    int8    w = cast(q) * scale,  |q| <= 127,  scale = max |w| / 127 per output

Either is decoded ahead of the arithmetic, which stays in float32; runtimes do it once, while loading. No activation is
quantised, so a row's decision cannot depend on the rows it shares a batch with. `rounded` is the model in torch with
the very weights that decoding gives: it can be run, checked and judged like any other.

Integer arithmetic is another matter: hrm/quantize.py.
"""

from __future__ import annotations

import copy
from typing import Any, TypeVar

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from core.errors import ModelError
from core.manifest import Storage
from hrm.layers import Linear
from hrm.model import ReasoningModel

RECURRENCE = "model.recurrence."  # how the exporter begins the names of its weights
LEVELS = 127

Floats = NDArray[np.float32]
Model = TypeVar("Model", bound=ReasoningModel)


def rounded(model: Model, storage: Storage) -> Model:
    """A copy whose recurrence has only weights that `storage` can hold; the first and last layers stay as they are."""
    copied = copy.deepcopy(model)
    for layer in copied.recurrence.modules():
        if isinstance(layer, Linear):
            layer.weight.data = torch.from_numpy(_rounded(layer.weight.detach().numpy(), storage))
    return copied


def encode(onnx_file: bytes, storage: Storage) -> bytes:
    """The graph with the weights of its recurrence rounded and stored so, decoded ahead of use. Raises ModelError."""
    if storage not in {"fp16", "int8"}:
        return onnx_file
    model = onnx.load_from_string(onnx_file)
    weights = {node.input[1] for node in products(model.graph)}
    stored, decoding = [], []
    for initializer in model.graph.initializer:
        if initializer.name in weights:
            tensors, nodes = _encoded(numpy_helper.to_array(initializer), initializer.name, storage)
        else:
            tensors, nodes = [initializer], []
        stored += tensors
        decoding += nodes
    rewrite(model.graph, [*decoding, *model.graph.node], stored)
    return bytes(model.SerializeToString())


def products(graph: Any) -> list[Any]:
    """The nodes that multiply by a weight [inputs, outputs] of the recurrence, in order. Raises ModelError if none."""
    weights = {tensor.name for tensor in graph.initializer if tensor.name.startswith(RECURRENCE)}
    found = [node for node in graph.node if node.op_type == "MatMul" and node.input[1] in weights]
    if not found:
        raise ModelError("the graph has no product of a recurrence; trace hrm.inference.laid_out", code="export_failed")
    return found


def rewrite(graph: Any, nodes: list[Any], initializers: list[Any]) -> None:
    """Other nodes and constants for `graph`, in place."""
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(initializers)


def channel_scale(weight: Floats, levels: int) -> Floats:
    """max |w| / levels of every output of `weight` [inputs, outputs], 1 where all are 0: [outputs]."""
    scale: Floats = np.abs(weight).max(axis=0) / np.float32(levels)
    scale[scale == 0] = 1.0
    return scale


def _rounded(weight: Floats, storage: Storage) -> Floats:
    """What is left of `weight` [outputs, inputs] when `storage` has held it."""
    if storage == "fp16":
        with np.errstate(over="ignore"):  # infinite then, and the parity gate says so
            return weight.astype(np.float16).astype(np.float32)
    if storage == "int8":
        scale = channel_scale(weight.T, LEVELS)[:, None]
        return np.asarray(np.rint(weight / scale) * scale)
    return weight


def _encoded(weight: Floats, name: str, storage: Storage) -> tuple[list[Any], list[Any]]:
    """Tensors, and nodes that decode them into `name` [inputs, outputs]."""
    if storage == "fp16":
        with np.errstate(over="ignore"):
            half = numpy_helper.from_array(weight.astype(np.float16), f"{name}.fp16")
        return [half], [helper.make_node("Cast", [half.name], [name], to=TensorProto.FLOAT)]
    scale = channel_scale(weight, LEVELS)
    tensors = [
        numpy_helper.from_array(np.rint(weight / scale).astype(np.int8), f"{name}.int8"),
        numpy_helper.from_array(scale, f"{name}.scale"),
    ]
    nodes = [
        helper.make_node("Cast", [f"{name}.int8"], [f"{name}.levels"], to=TensorProto.FLOAT),
        helper.make_node("Mul", [f"{name}.levels", f"{name}.scale"], [name]),
    ]
    return tensors, nodes
