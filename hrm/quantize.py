"""Static int8: the products of the recurrence in integers, with scales that were fixed before the first decision.

    q(x) = clip(round(x / s) + 128, 0, 255)         s: one for every place where a product reads its input
    x @ W ~ (q(x) - 128) @ Q * s * t                Q = round(W / t), |Q| <= 64, t per output

A fixed scale makes integer arithmetic exact, so a row's decision is bit by bit the same whoever shares its batch; a
scale taken from the batch at run time would not. `s` minimises the squared error of what calibration saw there, over
chained segments of real observations: the carry is what a recurrence mostly reads.

Weights keep to 7 bits because processors without VNNI add two neighbouring products in 16 bits: 2 * 255 * 64 fits, 2 *
255 * 127 would silently saturate, and the same file would decide otherwise on another machine.

The file is standard ONNX: QuantizeLinear and DequantizeLinear around MatMul, which runtimes read as one integer
product. Everything else stays float32. What a segment answers is off by a few percent of a logit's spread, so such a
file is published by the decisions it takes (flows/variants.py).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from core.errors import ModelError
from hrm.storage import channel_scale, products, rewrite

ZERO, HIGHEST = 128, 127  # of an activation, whose lowest level is -128
ZERO_NAME = "activation.zero"
WEIGHT_LEVELS = 64
SEGMENTS = 4  # a recurrence has settled by then
SAMPLE = 20_000  # activations of a place that the scale is fitted to, beside the largest one
SMALLEST_CLIP, CLIPS = 0.2, 25  # of the largest activation, and how many clips are tried from there to the whole

Arrays = Mapping[str, NDArray[Any]]
Floats = NDArray[np.float32]


def quantized(file: bytes, observed: Arrays) -> bytes:
    """The float32 segment `file` with its recurrence in static int8, calibrated with B rows `observed` by input name.

    Raises ModelError if there is nothing to quantise, or an activation is no number.
    """
    scales = {name: _best_scale(seen, name) for name, seen in _activations(file, observed).items()}
    model = onnx.load_from_string(file)
    weights = {node.input[1] for node in products(model.graph)}
    constants = [numpy_helper.from_array(np.array(ZERO, np.uint8), ZERO_NAME)]
    constants += [numpy_helper.from_array(scale, f"{name}.s") for name, scale in scales.items()]
    decoding: list[Any] = []
    for tensor in model.graph.initializer:
        if tensor.name in weights:
            tensors, node = _quantized_weight(numpy_helper.to_array(tensor), tensor.name)
            decoding.append(node)
        else:
            tensors = [tensor]
        constants += tensors
    rewrite(model.graph, [*decoding, *_rounding_activations(model.graph, weights)], constants)
    return bytes(model.SerializeToString())


def _quantized_weight(weight: Floats, name: str) -> tuple[list[Any], Any]:
    """Q, t and their zero, and the node that gives `name` [inputs, outputs] back."""
    scale = channel_scale(weight, WEIGHT_LEVELS)
    tensors = [
        numpy_helper.from_array(np.rint(weight / scale).astype(np.int8), f"{name}.q"),
        numpy_helper.from_array(scale, f"{name}.t"),
        numpy_helper.from_array(np.zeros(len(scale), np.int8), f"{name}.zero"),
    ]
    return tensors, helper.make_node("DequantizeLinear", [tensor.name for tensor in tensors], [name], axis=1)


def _rounding_activations(graph: Any, weights: set[str]) -> list[Any]:
    """The graph's nodes, and ahead of the first product that reads an activation the two that round it."""
    rounded, nodes = set[str](), []
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in weights:
            name = node.input[0]
            if name not in rounded:
                rounded.add(name)
                scale = [f"{name}.s", ZERO_NAME]
                nodes.append(helper.make_node("QuantizeLinear", [name, *scale], [f"{name}.q"]))
                nodes.append(helper.make_node("DequantizeLinear", [f"{name}.q", *scale], [f"{name}.x"]))
            node.input[0] = f"{name}.x"
        nodes.append(node)
    return nodes


def _activations(file: bytes, observed: Arrays) -> dict[str, Floats]:
    """A sample of what every product reads, its largest value included, over SEGMENTS chained segments."""
    model = onnx.load_from_string(file)
    outputs = [output.name for output in model.graph.output]
    names = list(dict.fromkeys(node.input[0] for node in products(model.graph)))
    shown = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names]
    model.graph.output.extend(shown)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    feeds, random = dict(observed) | _fresh_carry(session, observed), np.random.default_rng(0)
    samples = defaultdict[str, list[Floats]](list)
    for _ in range(SEGMENTS):
        out = dict(zip([*outputs, *names], session.run([*outputs, *names], feeds), strict=True))
        for name in names:
            samples[name].append(_sample(out[name].ravel(), random))
        feeds |= {"z_H": out["z_H_next"], "z_L": out["z_L_next"], "reset": np.zeros_like(feeds["reset"])}
    return {name: np.concatenate(parts) for name, parts in samples.items()}


def _fresh_carry(session: onnxruntime.InferenceSession, observed: Arrays) -> dict[str, NDArray[Any]]:
    rows = len(next(iter(observed.values())))
    shapes = {node.name: node.shape[1:] for node in session.get_inputs() if node.name in {"z_H", "z_L"}}
    carry = {name: np.zeros((rows, *shape), np.float32) for name, shape in shapes.items()}
    return carry | {"reset": np.ones(rows, np.bool_)}


def _sample(values: Floats, random: np.random.Generator) -> Floats:
    """Some of `values` by size, and the largest."""
    sizes = np.abs(values)
    return np.append(random.choice(sizes, min(len(sizes), SAMPLE // SEGMENTS), replace=False), sizes.max())


def _best_scale(sizes: Floats, name: str) -> Floats:
    """s of least squared error for activations of these sizes. Raises ModelError if one is not finite."""
    largest = sizes.max()
    if not np.isfinite(largest):
        raise ModelError(f"{name} is not finite on what was observed; nothing was exported", code="export_failed")
    if largest == 0:
        return np.array(1.0, np.float32)
    scales = (np.geomspace(SMALLEST_CLIP, 1.0, CLIPS) * largest / HIGHEST).astype(np.float32)
    errors = [np.square(np.minimum(np.rint(sizes / scale), HIGHEST) * scale - sizes).sum() for scale in scales]
    return np.array(scales[np.argmin(errors)])
