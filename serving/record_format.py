"""What is on record of an answer, and how it is written down: three kinds of facts in one frame.

    kind        arrays
    decision    bars [W, F], account [A] of the arm at stake; with a shadow its shadow_account [A]
    book        instruments [K, 4 + F], limits [2]; where a model answered its probabilities [K, 5], float64
    inference   bars [B, W, F], account [B, A], complexity [B], position [B] int64, as they came; what was answered:
                action, segments int64 [B], quantity, value float64 [B], probabilities float64 [B, 5]

    file     frame, frame, ...
    frame    b"HRM\\x01" | u32 length of the body | u32 CRC-32 of the body | body
    body     u32 length of the header | header, JSON | arrays, little-endian, in the order of `shapes`

Arrays are float32 unless `dtypes` says otherwise. Format 1 knew decisions only, and neither `kind` nor `dtypes`: it is
read as what it was. Writing: serving/records.py, reading: serving/audit.py.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

from delivery.plan import HandoverMode
from delivery.routing import Role
from serving.book import FeasibleBy
from serving.ladder import RungName

MAGIC = b"HRM\x01"
FRAME, LENGTH = struct.Struct("<4sII"), struct.Struct("<I")
FLOAT, OTHERS = np.dtype("<f4"), frozenset({"<f8", "<i8"})
ID_PATTERN = r"^\d{8}T\d{9}-[0-9a-f]{8}-[0-9a-f]{8}$"
NO_MODEL = "no_model_answered"  # the halt_reason of an answer that is a rule's because none did

Array = NDArray[Any]


class _Closed(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Origin(_Closed):
    """The bytes that answered, and on what; all None where no model decided."""

    model: str | None = Field(description="name/version")
    manifest_sha256: str | None
    onnx_sha256: str | None
    provider: str | None
    storage: str | None


class Answer(Origin):
    """What one arm answered."""

    role: Literal["champion", "challenger", "safe"]
    position: int = Field(description="sign, of the account it was decided on")
    segment_cap: int | None = Field(description="at most so many segments, by the ladder's rung")
    action: int
    quantity: float
    probabilities: tuple[float, ...]
    value: float
    segments: int
    halt_reason: str


class BookAnswer(Origin):
    """[K] in the order of the symbols; what stood in for a model's answer is in `target` too."""

    action: tuple[int, ...]
    target: tuple[int, ...]
    utility: float
    feasible_by: FeasibleBy
    segments: int
    halt_reason: str


class InferenceAnswer(Origin):
    halt_reason: tuple[str, ...] = Field(description="[B]")


class Facts(_Closed):
    """Of every answer that was given out."""

    decision_id: str = Field(pattern=ID_PATTERN)
    at: float = Field(description="Unix time, s")
    deadline_ms: float | None = Field(description="after arrival; None without one")
    latency_ms: float


class DecisionFacts(Facts):
    """One instrument's, and its shadow, which decided on the other arm's account."""

    kind: Literal["decision"] = "decision"
    request_id: str
    symbol: str
    complexity: float
    epoch: int
    rung: RungName
    fallback: bool
    errors: dict[str, str] = Field(description="models that were asked and did not answer, and the code of why")
    trace_id: str | None = None
    acting: Role | None = Field(default=None, description="whose position the symbol held, as the question said")
    handover: HandoverMode | None = Field(default=None, description="what is to become of it after a rollback")
    answer: Answer
    shadow: Answer | None = None


class BookFacts(Facts):
    """A book's, jointly."""

    kind: Literal["book"] = "book"
    request_id: str
    book_id: str
    symbols: tuple[str, ...] = Field(description="[K], ascending: the order of the arrays")
    errors: dict[str, str] = Field(description="as a decision's")
    answer: BookAnswer


class InferenceFacts(Facts):
    """Of B rows that a model was asked by its name, over the Open Inference Protocol."""

    kind: Literal["inference"] = "inference"
    request_id: str | None = Field(description="None where the caller gave no `id`")
    outputs: tuple[str, ...] = Field(description="that were asked for, in this order; on record are all")
    answer: InferenceAnswer


AnyFacts = DecisionFacts | BookFacts | InferenceFacts


def _kind(facts: Any) -> Any:
    """Of facts, or of JSON that should be; of format 1 there is one kind."""
    return facts.get("kind", "decision") if isinstance(facts, dict) else getattr(facts, "kind", None)


@dataclass(frozen=True, eq=False)
class Record:
    """Everything an answer follows from, and the answer."""

    facts: AnyFacts
    arrays: Mapping[str, Array]


class Header(_Closed):
    format: Literal[1, 2] = 2
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, Literal["<f8", "<i8"]] = {}
    facts: Annotated[
        Annotated[DecisionFacts, Tag("decision")]
        | Annotated[BookFacts, Tag("book")]
        | Annotated[InferenceFacts, Tag("inference")],
        Discriminator(_kind),
    ]


def encode(record: Record) -> bytes:
    """The record as one frame. Raises TypeError for arrays that no reader would know."""
    arrays = {name: array.astype(array.dtype.newbyteorder("<"), copy=False) for name, array in record.arrays.items()}
    shapes = {name: array.shape for name, array in arrays.items()}
    dtypes = {name: array.dtype.str for name, array in arrays.items() if array.dtype != FLOAT}
    if not OTHERS.issuperset(dtypes.values()):
        raise TypeError(f"{record.facts.decision_id}: arrays of {dtypes}; records hold float32, float64 and int64")
    text = Header.model_construct(shapes=shapes, dtypes=dtypes, facts=record.facts).model_dump_json().encode()
    body = b"".join((LENGTH.pack(len(text)), text, *(array.tobytes() for array in arrays.values())))
    return FRAME.pack(MAGIC, len(body), zlib.crc32(body)) + body


def decode(body: bytes) -> Record:
    """The record in a frame's body. Raises ValueError where whole bytes are no record of a version that is known."""
    (length,) = LENGTH.unpack_from(body)
    start = LENGTH.size + length
    header = Header.model_validate_json(body[LENGTH.size : start])
    arrays: dict[str, Array] = {}
    for name, shape in header.shapes.items():
        dtype = np.dtype(header.dtypes.get(name, FLOAT))
        size = math.prod(shape)
        arrays[name] = np.frombuffer(body, dtype, size, start).reshape(shape)
        start += size * dtype.itemsize
    return Record(header.facts, arrays)


def file_name(decision_id: str) -> str:
    """Of the file that the decision is in: day and worker are parts of the id."""
    time_, worker, _ = decision_id.split("-")
    return f"{time_[:8]}-{worker}.records"
