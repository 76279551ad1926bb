"""The messages of the Open Inference Protocol 2: closed and strict. What its tensors hold: serving/tensors.py."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, StrictBool

from serving.schemas import Message, RequestId

MAX_NUMBERS = 1 << 24  # of one tensor; what a body can hold is far less

Datatype = Literal["FP32", "FP64", "INT64"]
Sized = Annotated[int, Field(strict=True, ge=1, le=MAX_NUMBERS)]


class InputParameters(Message):
    binary_data_size: int | None = Field(default=None, strict=True, ge=0)


class InferInput(Message):
    """`data` flat or nested, row-major; or binary, after the JSON."""

    name: str = Field(max_length=64)
    datatype: Datatype
    shape: list[Sized] = Field(min_length=1, max_length=4)
    parameters: InputParameters = InputParameters()
    data: list[Any] | None = None


class OutputParameters(Message):
    binary_data: StrictBool | None = None


class InferOutput(Message):
    name: str = Field(max_length=64)
    parameters: OutputParameters = OutputParameters()


class InferParameters(Message):
    """`timeout`: past it the answer is that of the best segment so far, as with `deadline_ms`."""

    binary_data_output: StrictBool = False
    timeout: int | None = Field(default=None, strict=True, gt=0, le=10_000_000, description="microseconds")


class InferRequest(Message):
    id: RequestId | None = None
    parameters: InferParameters = InferParameters()
    inputs: list[InferInput] = Field(min_length=1, max_length=16)
    outputs: list[InferOutput] | None = Field(default=None, min_length=1, max_length=16)


class InferOutputTensor(Message):
    name: str
    datatype: Literal["FP64", "INT64", "BYTES"]
    shape: list[int]
    data: list[Any] | None = None
    parameters: dict[str, int] | None = Field(default=None, description="binary_data_size, if it travels binary")


class InferResponseParameters(Message):
    """The protocol's place for what a server adds."""

    decision_id: str = Field(description="of the answer's record: `hrm replay` infers it again; sorts by time")
    recorded: bool = Field(description="false when the disk refused the record; the answer stands")


class InferResponse(Message):
    model_name: str
    model_version: str
    id: str | None = None
    parameters: InferResponseParameters
    outputs: list[InferOutputTensor]


class ServerMetadata(Message):
    name: str
    version: str
    extensions: list[str]


class TensorMetadata(Message):
    name: str
    datatype: str
    shape: list[int] = Field(description="-1: the batch")


class ModelMetadata(Message):
    name: str
    versions: list[str] = Field(description="those that are loaded")
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class TensorConfig(Message):
    name: str
    data_type: str
    dims: list[int]


class ModelConfig(Message):
    """The part of Triton's configuration that has a meaning here."""

    name: str
    backend: str
    max_batch_size: int
    input: list[TensorConfig]
    output: list[TensorConfig]


class ServerLive(Message):
    live: bool


class ServerReady(Message):
    ready: bool


class ModelReady(Message):
    name: str
    ready: bool


class IndexRequest(Message):
    ready: StrictBool = Field(default=False, description="only what is loaded")


class IndexEntry(Message):
    name: str
    version: str
    state: Literal["READY", "UNAVAILABLE"]
    reason: str


class LoadParameters(Message):
    unload_dependents: StrictBool = Field(default=False, description="there are none")


class LoadRequest(Message):
    parameters: LoadParameters = LoadParameters()
