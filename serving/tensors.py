"""Tensors of the Open Inference Protocol 2, as JSON and in its binary extension; both ways, strict.

    body   JSON of `Inference-Header-Content-Length` bytes | data of each tensor with `binary_data_size`, in order

Fixed-size types are little-endian and row-major; BYTES elements carry their length in four bytes before them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic_core import to_json

from core.errors import DataError
from serving.schemas_v2 import InferInput, InferRequest

DTYPES: dict[str, np.dtype[Any]] = {"FP32": np.dtype("<f4"), "FP64": np.dtype("<f8"), "INT64": np.dtype("<i8")}
JSON_TYPES: dict[str, set[type]] = {"FP32": {int, float}, "FP64": {int, float}, "INT64": {int}}

Array = NDArray[Any]


def decode(request: InferRequest, binary: bytes) -> dict[str, Array]:
    """The inputs by name, `binary` being what follows the JSON. Raises DataError."""
    arrays: dict[str, Array] = {}
    rest = memoryview(binary)
    for tensor in request.inputs:
        if tensor.name in arrays:
            raise DataError(f"inputs.{tensor.name}: is given twice")
        size = tensor.parameters.binary_data_size
        if (size is None) == (tensor.data is None):
            raise DataError(f"inputs.{tensor.name}: needs either data or parameters.binary_data_size")
        if size is None:
            arrays[tensor.name] = _from_json(tensor)
        else:
            arrays[tensor.name] = _from_binary(tensor, rest[:size])
            rest = rest[size:]
    if rest:
        raise DataError(f"body: {len(rest)} bytes follow the last tensor; binary_data_size must add up")
    return arrays


def _from_json(tensor: InferInput) -> Array:
    flat = _flattened(tensor)
    if len(flat) != math.prod(tensor.shape):
        raise _wrong_size(tensor, f"{len(flat)} numbers")
    if not set(map(type, flat)) <= JSON_TYPES[tensor.datatype]:
        raise DataError(f"inputs.{tensor.name}.data: holds what is no {tensor.datatype}")
    try:
        with np.errstate(over="ignore"):  # an infinity: refused with its place by whoever reads the tensor
            return np.array(flat, dtype=DTYPES[tensor.datatype]).reshape(tensor.shape)
    except OverflowError:
        raise DataError(f"inputs.{tensor.name}.data: holds an integer beyond 64 bits") from None


def _flattened(tensor: InferInput) -> list[Any]:
    """Row-major. Raises DataError for lists in lists that are not of the tensor's shape."""
    flat: list[Any] = tensor.data or []
    if not flat or type(flat[0]) is not list:
        return flat
    for length in tensor.shape[1:]:
        if not all(type(part) is list and len(part) == length for part in flat):
            raise DataError(f"inputs.{tensor.name}.data: is neither flat nor nested as shape {tensor.shape}")
        flat = list(chain.from_iterable(flat))
    return flat


def _from_binary(tensor: InferInput, data: memoryview) -> Array:
    dtype = DTYPES[tensor.datatype]
    if len(data) != tensor.parameters.binary_data_size or len(data) != math.prod(tensor.shape) * dtype.itemsize:
        raise _wrong_size(tensor, f"{len(data)} bytes")
    return np.frombuffer(data, dtype).reshape(tensor.shape)


def _wrong_size(tensor: InferInput, got: str) -> DataError:
    return DataError(f"inputs.{tensor.name}: shape {tensor.shape} of {tensor.datatype} does not fit {got}")


def encode(answer: Mapping[str, object], outputs: Sequence[tuple[str, Array]], binary: set[str]) -> tuple[bytes, int]:
    """A response's body and the length of its JSON part; tensors named in `binary` follow it."""
    tensors: list[dict[str, object]] = []
    tail: list[bytes] = []
    for name, array in outputs:
        tensor: dict[str, object] = {"name": name, "datatype": datatype_of(array), "shape": list(array.shape)}
        if name in binary:
            tail.append(_to_binary(array))
            tensor["parameters"] = {"binary_data_size": len(tail[-1])}
        else:
            tensor["data"] = array.ravel().tolist()
        tensors.append(tensor)
    head = to_json({**answer, "outputs": tensors})
    return head + b"".join(tail), len(head)


def datatype_of(array: Array) -> str:
    """Of what is answered: numbers in 64 bits, or texts."""
    return {"i": "INT64", "f": "FP64"}.get(array.dtype.kind, "BYTES")


def _to_binary(array: Array) -> bytes:
    if array.dtype.kind in "if":
        return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
    texts = [text.encode() for text in array.ravel().tolist()]
    return b"".join(len(text).to_bytes(4, "little") + text for text in texts)
