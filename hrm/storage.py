"""How a model file stores its weights: float32, float16, or 8-bit integers with one scale per output channel.

Whatever is lost is lost in torch, before the export: `rounded` puts the matrices of the recurrence (99 % of the
model) on the grid of the format, so the rounded model can be run, checked and judged like any other. `encode`
then rewrites the exported file without loss: a matrix is replaced exactly where decoding gives its very bits.

    float16   w = cast(half)
    int8      w = cast(q) * scale,  |q| <= 127,  scale = max |w| / 127 per output channel

Decoding is ordinary ONNX ahead of the arithmetic, which stays in float32; runtimes do it once, while loading. No
activation is quantised, so a row's decision cannot depend on the rows it shares a batch with.
"""

from __future__ import annotations

import copy
from typing import Any, TypeVar

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from core.manifest import Storage
from hrm.model import ReasoningModel

LEVELS = 127

Floats = NDArray[np.float32]
Model = TypeVar("Model", bound=ReasoningModel)


def rounded(model: Model, storage: Storage) -> Model:
    """A copy whose recurrence has only weights that `storage` can hold; the first and last layers stay as they are."""
    copied = copy.deepcopy(model)
    for layer in copied.recurrence.modules():
        if isinstance(layer, nn.Linear):
            layer.weight.data = _rounded(layer.weight.data, storage)
    return copied


def encode(onnx_file: bytes, storage: Storage) -> bytes:
    """The same graph with every matrix that `storage` can hold exactly stored so, decoded ahead of its use."""
    if storage == "fp32":
        return onnx_file
    model = onnx.load_from_string(onnx_file)
    stored, decoding = [], []
    for initializer in model.graph.initializer:
        tensors, nodes = _encoded(initializer, storage) or ([initializer], [])
        stored += tensors
        decoding += nodes
    nodes = [*decoding, *model.graph.node]
    del model.graph.initializer[:], model.graph.node[:]
    model.graph.initializer.extend(stored)
    model.graph.node.extend(nodes)
    return bytes(model.SerializeToString())


def _rounded(weight: Tensor, storage: Storage) -> Tensor:
    """`weight` [outputs, inputs] on the grid of `storage`."""
    if storage == "fp32":
        return weight
    if storage == "fp16":
        return weight.half().float()
    # A bfloat16 scale leaves room for 127 * scale in float32: the scale can be read back off the weights exactly.
    scale = (weight.abs().amax(1, keepdim=True) / LEVELS).bfloat16().float()
    scale[scale == 0] = 1.0
    return (weight / scale).round() * scale


def _encoded(initializer: Any, storage: Storage) -> tuple[list[Any], list[Any]] | None:
    """Tensors and nodes that give `initializer` back bit by bit; None where there are none."""
    if initializer.data_type != TensorProto.FLOAT or len(initializer.dims) != 2:
        return None
    weight, name = numpy_helper.to_array(initializer), initializer.name
    return _as_half(weight, name) if storage == "fp16" else _as_int8(weight, name)


def _as_half(weight: Floats, name: str) -> tuple[list[Any], list[Any]] | None:
    with np.errstate(over="ignore"):
        half = weight.astype(np.float16)
    if not np.array_equal(half.astype(np.float32), weight):
        return None
    node = helper.make_node("Cast", [f"{name}.fp16"], [name], to=TensorProto.FLOAT)
    return [numpy_helper.from_array(half, f"{name}.fp16")], [node]


def _as_int8(weight: Floats, name: str) -> tuple[list[Any], list[Any]] | None:
    """Per row, or per column where the exporter has transposed the matrix."""
    for inputs_axis in (1, 0):
        scale = np.abs(weight).max(axis=inputs_axis, keepdims=True) / np.float32(LEVELS)
        scale[scale == 0] = 1.0
        levels = np.rint(weight / scale).astype(np.int8)
        if np.array_equal(levels * scale, weight):
            return _int8_tensors(levels, scale, name)
    return None


def _int8_tensors(levels: NDArray[np.int8], scale: Floats, name: str) -> tuple[list[Any], list[Any]]:
    tensors = [numpy_helper.from_array(levels, f"{name}.int8"), numpy_helper.from_array(scale, f"{name}.scale")]
    nodes = [
        helper.make_node("Cast", [f"{name}.int8"], [f"{name}.levels"], to=TensorProto.FLOAT),
        helper.make_node("Mul", [f"{name}.levels", f"{name}.scale"], [name]),
    ]
    return tensors, nodes
