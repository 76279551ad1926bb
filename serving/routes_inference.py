"""Open Inference Protocol 2: a loaded model asked by its name (serving/protocol.py).

No rollout, no fall-back, no guard: the answer is the named model's, or an error. Without a version it is the one that
decides now, if that has the name, else the newest that is loaded. B rows become B rows of the continuous batch, and one
record (serving/inferences.py), whose id is among the response's `parameters`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from core.errors import DataError
from serving import examples, protocol
from serving.batcher import Run
from serving.health import ready
from serving.inferences import Inference, infer, put_on_record
from serving.openapi import RAW_BODY, described, failures, json_of, path_parameters
from serving.plain import JSON, RAW, media_type, parsed
from serving.problems import UNAVAILABLE_CODES, problem
from serving.protocol import ProtocolRoute, named
from serving.schemas import MAX_BATCH
from serving.schemas_v2 import (
    IndexEntry,
    IndexRequest,
    InferRequest,
    InferResponse,
    InferResponseParameters,
    LoadRequest,
    ModelConfig,
    ModelMetadata,
    ModelReady,
    ServerLive,
    ServerMetadata,
    ServerReady,
)
from serving.scopes import Scope, needs
from serving.service import Service
from serving.store import list_versions
from serving.tensors import decode, encode

MODEL, STORED = "/v2/models/{name}", "/v2/repository/models/{name}"
VERSION = MODEL + "/versions/{version}"
HEADER_LENGTH = "Inference-Header-Content-Length"
LONGEST_LENGTH = 20  # digits: Python refuses to read thousands
EXTENSIONS = ["binary_tensor_data", "model_configuration", "model_repository"]
CONFIG_TYPES = {"BYTES": "TYPE_STRING"}  # the others: TYPE_ before the protocol's name
LATE_CODES = UNAVAILABLE_CODES | {"inference_timeout"}
INFER_BODY = json_of(InferRequest, one_row=examples.INFER) | RAW_BODY
BODIES = (InferRequest, IndexRequest, LoadRequest)
FAILURES: dict[str, tuple[int, ...]] = {"GET": (409,), "POST": (400, 409, 415, 503)}

Endpoint = Callable[[Request], Coroutine[Any, Any, Response]]

router = APIRouter(route_class=ProtocolRoute, tags=["inference"])


def serves(
    method: str, *paths: str, answers: object, content: dict[str, Any] | None = None, required: bool = True
) -> Callable[[Endpoint], Endpoint]:
    """One endpoint under all its paths: with and without a version."""

    def add(endpoint: Endpoint) -> Endpoint:
        for path in paths:
            parameters = path_parameters(path)
            router.add_api_route(
                path,
                endpoint,
                methods=[method],
                response_model=answers,
                responses=failures(*FAILURES[method], *((404,) if parameters else ())),
                openapi_extra=described(content, parameters=parameters, required=required),
            )
        return endpoint

    return add


@serves("GET", "/v2", answers=ServerMetadata)
@needs(Scope.METRICS_READ, local=True)
async def get_server(_request: Request) -> Response:
    """The server, and what it can do beyond the protocol's core."""
    return JSONResponse({"name": "hrm", "version": "1", "extensions": EXTENSIONS})


@serves("GET", "/v2/health/live", answers=ServerLive)
@needs(Scope.METRICS_READ, local=True)
async def get_live(_request: Request) -> Response:
    """Whether the process answers."""
    return JSONResponse({"live": True})


@serves("GET", "/v2/health/ready", answers=ServerReady)
@needs(Scope.METRICS_READ, local=True)
async def get_ready(request: Request) -> Response:
    """Whether the model that decides is loaded, warm, and matches its golden outputs."""
    if ready(request.app.state.service):
        return JSONResponse({"ready": True})
    return problem(503, "not_ready", "no champion is loaded; start the service with one, or a rollout")


@serves("GET", MODEL, VERSION, answers=ModelMetadata)
@needs(Scope.INFER)
async def get_model(request: Request) -> Response:
    """Inputs and outputs of a loaded model, and the versions of it that are loaded."""
    service: Service = request.app.state.service
    manifest = named(service, **request.path_params).engine.manifest
    versions = [model.engine.manifest.version for model in protocol.loaded(service, manifest.name)]
    about = {"name": manifest.name, "versions": versions, "platform": "onnxruntime"}
    return JSONResponse(about | protocol.tensors(manifest.market))


@serves("GET", MODEL + "/ready", VERSION + "/ready", answers=ModelReady)
@needs(Scope.INFER)
async def get_model_ready(request: Request) -> Response:
    """Whether the model is loaded: whatever is loaded is warm."""
    manifest = named(request.app.state.service, **request.path_params).engine.manifest
    return JSONResponse({"name": manifest.name, "ready": True})


@serves("GET", MODEL + "/config", VERSION + "/config", answers=ModelConfig)
@needs(Scope.INFER)
async def get_config(request: Request) -> Response:
    """The model as Triton would configure it: dimensions without the batch."""
    manifest = named(request.app.state.service, **request.path_params).engine.manifest
    tensors = protocol.tensors(manifest.market)
    about = {"name": manifest.name, "backend": "onnxruntime", "max_batch_size": MAX_BATCH}
    return JSONResponse(about | {kind[:-1]: list(map(_configured, tensors[kind])) for kind in tensors})


@serves("POST", MODEL + "/infer", VERSION + "/infer", answers=InferResponse, content=INFER_BODY)
@needs(Scope.INFER)
async def post_infer(request: Request) -> Response:
    """Ask the model itself. Tensors as JSON, or binary after it; outputs as the request says."""
    service: Service = request.app.state.service
    media_type(request, JSON, RAW)
    model = named(service, **request.path_params)
    asked, binary = _split(await request.body(), request.headers.get(HEADER_LENGTH))
    made = await infer(service, model, asked, decode(asked, binary))
    return _failure(made.failed) if made.failed is not None else _answer(made, await put_on_record(service, made))


@serves("POST", "/v2/repository/index", answers=list[IndexEntry], content=json_of(IndexRequest), required=False)
@needs(Scope.MODELS_READ)
async def post_index(request: Request) -> Response:
    """What the store holds, and what of it is loaded."""
    service: Service = request.app.state.service
    only_ready = parsed(IndexRequest, await request.body() or b"{}").ready
    stored = await asyncio.to_thread(list_versions, service.settings.paths.state_dir / "models")
    reasons = {str(row["id"]): str(row["problem"] or "not loaded") for row in stored}
    entries = [_entry(model_id, service, reasons) for model_id in sorted({*reasons, *service.live.models})]
    return JSONResponse([entry for entry in entries if entry["state"] == "READY" or not only_ready])


@serves(
    "POST",
    STORED + "/load",
    STORED + "/{version}/load",
    answers=dict[str, str],
    content=json_of(LoadRequest),
    required=False,
)
@needs(Scope.MODELS_WRITE)
async def post_load(request: Request) -> Response:
    """Load a version beside the rollout's models; without one, the newest that the store holds."""
    service: Service = request.app.state.service
    parsed(LoadRequest, await request.body() or b"{}")
    name, version = request.path_params["name"], request.path_params.get("version")
    model_id = f"{name}/{version}" if version else await asyncio.to_thread(protocol.newest_published, service, name)
    await service.load(model_id)
    return JSONResponse({})


@serves(
    "POST",
    STORED + "/unload",
    STORED + "/{version}/unload",
    answers=dict[str, str],
    content=json_of(LoadRequest),
    required=False,
)
@needs(Scope.MODELS_WRITE)
async def post_unload(request: Request) -> Response:
    """Let go of a version that the rollout does not need; without one, of all versions that are loaded."""
    service: Service = request.app.state.service
    parsed(LoadRequest, await request.body() or b"{}")
    name, version = request.path_params["name"], request.path_params.get("version")
    models = [named(service, name, version)] if version else protocol.loaded(service, name)
    if not models:
        raise protocol.not_loaded(name)
    for model in models:
        await service.unload(model.engine.id)
    return JSONResponse({})


def _split(body: bytes, header_length: str | None) -> tuple[InferRequest, bytes]:
    """The request's JSON, and what follows it. Raises DataError or RequestValidationError."""
    if header_length is None:
        return parsed(InferRequest, body), b""
    size = int(header_length) if header_length.isdecimal() and len(header_length) <= LONGEST_LENGTH else 0
    if not 0 < size <= len(body):
        raise DataError(f"{HEADER_LENGTH}: must be a length within the {len(body)} bytes of the body")
    return parsed(InferRequest, body[:size]), body[size:]


def _failure(run: Run) -> Response:
    """One row without an answer leaves the request without one: the protocol has no half of it."""
    code = run.error_code or "inference_failed"
    late = code in LATE_CODES
    return problem(503 if late else 500, code, run.error or code, retryable=late)


def _answer(made: Inference, record: InferResponseParameters) -> Response:
    manifest, asked = made.by.manifest, made.asked
    about: dict[str, object] = {"model_name": manifest.name, "model_version": manifest.version}
    about |= ({"id": asked.id} if asked.id else {}) | {"parameters": record.model_dump()}
    binary = {name for name, travels in made.wanted.items() if travels}
    body, head_size = encode(about, [(name, made.outputs[name]) for name in made.wanted], binary)
    if not binary:
        return Response(body, media_type=JSON)
    return Response(body, media_type=RAW, headers={HEADER_LENGTH: str(head_size)})


def _configured(tensor: dict[str, Any]) -> dict[str, Any]:
    datatype = tensor["datatype"]
    return {
        "name": tensor["name"],
        "data_type": CONFIG_TYPES.get(datatype, f"TYPE_{datatype}"),
        "dims": tensor["shape"][1:],
    }


def _entry(model_id: str, service: Service, reasons: dict[str, str]) -> dict[str, str]:
    name, _, version = model_id.partition("/")
    if model_id in service.live.models:
        return {"name": name, "version": version, "state": "READY", "reason": ""}
    return {"name": name, "version": version, "state": "UNAVAILABLE", "reason": reasons[model_id]}
