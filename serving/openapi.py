"""What the service says of itself: OpenAPI that is complete although the fastest routes parse their own bodies.

FastAPI reads a route's signature; a `PlainRoute` (serving/plain.py) has none to read, so it states its body and
parameters with `described`. What holds for every route (credentials, failures as problem+json) is added here, once.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import iter_route_contexts
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.routing import Route

from serving.schemas import PLAIN_NAME, Problem
from serving.scopes import Access, needs

Document = dict[str, Any]
Tag = dict[str, str]

REF = "#/components/schemas/{model}"
PROBLEM_JSON = "application/problem+json"
RAW_BODY: Document = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
WHY = {
    400: "the request breaks the protocol",
    401: "no credentials, or none that are valid",
    403: "the credentials do not allow this",
    404: "there is no such thing",
    408: "the body did not arrive in time",
    409: "not possible in the present state; nothing was changed",
    412: "If-Match names another version than the current one; nothing was changed",
    413: "the body is larger than allowed",
    415: "no media type that is understood here",
    422: "the request is not understood; `errors` names the fields",
    429: "too many requests; Retry-After says when to come again",
    500: "unforeseen; the service's log has the details",
    502: "the inference service does not answer; `detail` says whether it may have been carried out",
    503: "not now; Retry-After says when to come again",
}
ALWAYS = (401, 403, 429, 500)
FASTAPIS_OWN = {"HTTPValidationError", "ValidationError"}  # its form of a 422, which nobody gets
TAGS: list[Tag] = [
    {"name": "decisions", "description": "What to do now: one decision, a batch, and what a decision earned."},
    {"name": "rollout", "description": "Who decides: from shadow over canary to promoted, and back at once."},
    {"name": "models", "description": "What the store holds and what is loaded."},
    {"name": "inference", "description": "Open Inference Protocol 2: a named model asked directly, without routing."},
    {"name": "health", "description": "Liveness, readiness, the five health checks, metrics."},
]
DESCRIPTION = """
Decides for live money: an answer is a model's own, or says that it is not (`fallback`, `role: safe`, `halt_reason`).

Failures are `application/problem+json` (RFC 9457) with a stable `code`; `error` repeats `detail` for clients of the
Open Inference Protocol. Credentials travel as `Authorization: Bearer`.
"""


def failures(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """`responses=` of a route: these statuses, each with a problem."""
    schema = {"$ref": REF.format(model=Problem.__name__)}
    return {status: {"description": WHY[status], "content": {PROBLEM_JSON: {"schema": schema}}} for status in statuses}


def described(
    content: Mapping[str, Document] | None = None, *, parameters: Sequence[Document] = (), required: bool = True
) -> dict[str, Any]:
    """`openapi_extra=` of a plain route: its body by media type, and its parameters."""
    extra: dict[str, Any] = {"requestBody": {"content": dict(content), "required": required}} if content else {}
    return extra | ({"parameters": list(parameters)} if parameters else {})


def json_of(model: type[BaseModel], **examples: object) -> dict[str, Document]:
    """The content of a JSON body, with named examples."""
    content: Document = {"schema": {"$ref": REF.format(model=model.__name__)}}
    if examples:
        content["examples"] = {name: {"value": value} for name, value in examples.items()}
    return {"application/json": content}


def query_of(model: type[BaseModel]) -> list[Document]:
    """The fields of a model as query parameters, all optional: the route's own description says when they are not."""
    fields = model.model_json_schema()["properties"]
    return [
        {"name": name, "in": "query", "required": False, "schema": schema, "description": schema.get("description", "")}
        for name, schema in fields.items()
    ]


def path_parameters(path: str) -> list[Document]:
    """Every `{name}` in the path: a model's name or version."""
    schema = {"type": "string", "pattern": PLAIN_NAME}
    return [{"name": name, "in": "path", "required": True, "schema": schema} for name in re.findall(r"{(\w+)}", path)]


def install(
    app: FastAPI, bodies: Sequence[type[BaseModel]] = (), *, description: str = DESCRIPTION, tags: Sequence[Tag] = TAGS
) -> None:
    """Make the app's OpenAPI whole, for whoever has credentials. `bodies`: what plain routes parse by themselves."""
    pages = {app.openapi_url, app.docs_url, app.redoc_url, app.swagger_ui_oauth2_redirect_url}  # FastAPI's own
    for route in app.routes:
        if isinstance(route, Route) and route.path in pages:
            needs(None)(route.endpoint)

    def openapi() -> Document:
        if app.openapi_schema is None:
            app.openapi_schema = _document(app, bodies, description, tags)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign] # the way FastAPI documents


def _document(app: FastAPI, bodies: Sequence[type[BaseModel]], description: str, tags: Sequence[Tag]) -> Document:
    document = get_openapi(
        title=app.title, version=app.version, description=description, routes=app.routes, tags=list(tags)
    )
    models: list[type[BaseModel]] = [*bodies, Problem]
    _, definitions = models_json_schema([(model, "validation") for model in models], ref_template=REF)
    components = document.setdefault("components", {})
    schemas = components.get("schemas", {}) | definitions["$defs"]
    components["schemas"] = {name: schema for name, schema in schemas.items() if name not in FASTAPIS_OWN}
    components["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer"}}
    document["security"] = [{"bearer": []}]
    for route in iter_route_contexts(app.routes):
        for method in route.methods or ():
            operation = document["paths"].get(route.path, {}).get(method.lower())
            if operation is not None:
                _complete(operation, getattr(route.endpoint, "__access__", None))
    return document


def _complete(operation: Document, access: Access | None) -> None:
    """What holds for every route: who may ask, and how it fails."""
    if access is not None and access.scope is not None:
        operation["description"] = f"{operation.get('description', '')}\n\nScope: `{access.scope}`.".lstrip()
    if access is not None and access.local:
        operation["security"] = [{}, {"bearer": []}]  # none needed on loopback
    responses = operation["responses"]
    statuses = (*ALWAYS, *((408, 413) if "requestBody" in operation else ()), *((422,) if "422" in responses else ()))
    for status, response in failures(*statuses).items():  # also in place of FastAPI's own form of a 422
        responses[str(status)] = response
