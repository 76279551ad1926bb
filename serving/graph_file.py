"""What an ONNX file may not make onnxruntime do: open other files, or run operators from elsewhere.

A tensor may say that its numbers lie in another file, which onnxruntime then opens, and an EPContext node names a
compiled engine to load. Neither is among the bytes that were hashed. This walks the protobuf (onnx.proto, encoding:
protobuf.dev/programming-guides/encoding) without the onnx package, which a service does not need, and without copying
the weights: it steps over what it does not descend into.
"""

from __future__ import annotations

from collections.abc import Iterator

from core.errors import ModelError

DOMAINS = {"", "ai.onnx", "ai.onnx.ml", "com.microsoft"}  # onnxruntime's own operators
LOADS_FILES = {"EPContext"}
MAX_FIELDS = 1_000_000  # a graph of this system has some ten thousand
MAX_TAG = 0xFFFF_FFFF  # onnxruntime keeps 32 bits of a tag: what is beyond them would be another field to it
# By message: the fields through which tensors and nodes can be reached, and what they hold.
INSIDE = {
    "Model": {7: "Graph", 20: "Training", 25: "Function"},
    "Training": {1: "Graph", 2: "Graph"},
    "Graph": {1: "Node", 5: "Tensor", 15: "SparseTensor"},
    "Function": {7: "Node", 11: "Attribute"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "SparseTensor", 23: "SparseTensor"},
    "SparseTensor": {1: "Tensor", 2: "Tensor"},
    "Tensor": {},
}
NODE_OPERATOR, NODE_DOMAIN = 4, 7
TENSOR_EXTERNAL_DATA, TENSOR_DATA_LOCATION = 13, 14
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
ORT_FORMAT = b"ORTM"  # at byte 4: onnxruntime's own format, which it would read in place of ONNX


class _MalformedError(Exception):
    """No protobuf, or one that nobody writes."""


def require_self_contained(onnx: bytes, what: str) -> None:
    """Raises ModelError if the graph needs anything beside these bytes; `what` names the file."""
    if onnx[4:8] == ORT_FORMAT:
        raise ModelError(f"{what}: onnxruntime's own format; publish ONNX", code="graph_invalid")
    try:
        problem = next(_problems(onnx), None)
    except _MalformedError as error:
        raise ModelError(f"{what}: not an ONNX file ({error}); export it again", code="graph_invalid") from None
    if problem:
        raise ModelError(f"{what}: {problem}; export it in one file of standard operators", code="graph_unsafe")


def _problems(onnx: bytes) -> Iterator[str]:
    seen = 0
    waiting = [("Model", memoryview(onnx))]
    while waiting:
        message, data = waiting.pop()
        for field, value in _fields(data):
            seen += 1
            if seen > MAX_FIELDS:
                raise _MalformedError(f"more than {MAX_FIELDS} fields")
            if field in INSIDE[message] and isinstance(value, memoryview):
                waiting.append((INSIDE[message][field], value))
            elif message == "Tensor" and (field == TENSOR_EXTERNAL_DATA or (field == TENSOR_DATA_LOCATION and value)):
                yield "a tensor's numbers lie in another file"
            elif message == "Node":
                yield from _node_problem(field, value)


def _node_problem(field: int, value: memoryview | int) -> Iterator[str]:
    if field not in (NODE_OPERATOR, NODE_DOMAIN) or isinstance(value, int):
        return
    name = bytes(value).decode(errors="replace")
    if field == NODE_DOMAIN and name not in DOMAINS:
        yield f"an operator of the domain '{name[:64]}', which onnxruntime does not have"
    if field == NODE_OPERATOR and name in LOADS_FILES:
        yield f"the operator {name} loads another file"


def _fields(data: memoryview) -> Iterator[tuple[int, memoryview | int]]:
    """(number, value) of each field in turn: a view of what has a length, else the number."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        if tag > MAX_TAG:
            raise _MalformedError("a field's number of more than 29 bits")
        field, kind = tag >> 3, tag & 7
        if kind == VARINT:
            value, at = _varint(data, at)
            yield field, value
            continue
        if kind == BYTES:
            length, at = _varint(data, at)
        elif kind in (FIXED64, FIXED32):
            length = 8 if kind == FIXED64 else 4
        else:
            raise _MalformedError(f"field {field} of kind {kind}")
        if at + length > len(data):
            raise _MalformedError("cut off")
        yield field, data[at : at + length]
        at += length


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """The number that starts at `at`, and where it ends."""
    value = 0
    for position in range(10):
        if at + position >= len(data):
            raise _MalformedError("cut off")
        byte = data[at + position]
        value |= (byte & 0x7F) << (7 * position)
        if byte < 0x80:
            return value, at + position + 1
    raise _MalformedError("a number of more than ten bytes")
