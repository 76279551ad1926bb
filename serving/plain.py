"""Routes that read the request as it came: what FastAPI does for a signature costs 200 us, a decision has not that.

An endpoint is `async (Request) -> Response`. What it takes is declared beside it (serving/openapi.py), what it is given
is parsed here: strict, and refused with the field's name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar
from urllib.parse import parse_qsl

from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from core.errors import DataError

JSON, RAW = "application/json", "application/octet-stream"
UNSUPPORTED_MEDIA_TYPE = 415

Model = TypeVar("Model", bound=BaseModel)


class PlainRoute(APIRoute):
    """Nothing between the endpoint and the wire; what it raises is for the app's handlers (serving/problems.py)."""

    def __init__(self, path: str, endpoint: Callable[..., Any], **declared: Any) -> None:
        super().__init__(path, endpoint, **declared)
        self.app = self.serve

    async def serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        response: Response = await self.endpoint(Request(scope, receive))
        await response(scope, receive, send)


def media_type(request: Request, *known: str) -> str:
    """Of the body; the first one known if nothing is said. Raises HTTPException 415."""
    kind = request.headers.get("content-type", known[0]).partition(";")[0].strip().lower()
    if kind not in known or "content-encoding" in request.headers:
        raise HTTPException(UNSUPPORTED_MEDIA_TYPE, f"send {' or '.join(known)}, not compressed")
    return kind


def json(answer: BaseModel, **headers: str) -> Response:
    """What was made here needs no validation."""
    return Response(answer.model_dump_json(), headers=headers, media_type=JSON)


def parsed(model: type[Model], body: bytes) -> Model:
    """A JSON body. Raises RequestValidationError naming every field."""
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise RequestValidationError(found(error, "body")) from None


def query(model: type[Model], request: Request) -> Model:
    """The query string. Raises RequestValidationError, and DataError for what is said twice or is no UTF-8."""
    try:
        pairs = parse_qsl(request.scope["query_string"].decode(), keep_blank_values=True, errors="strict")
    except UnicodeDecodeError:  # to read on would be to decide for another symbol
        raise DataError("query: is not UTF-8", code="request_invalid") from None
    said = dict(pairs)
    if len(said) != len(pairs):
        raise DataError("query: a parameter is given twice", code="request_invalid")
    try:
        return model.model_validate(said)
    except ValidationError as error:
        raise RequestValidationError(found(error, "query")) from None


def found(error: ValidationError, place: str) -> list[dict[str, Any]]:
    """What pydantic found, and where; without the input, which may be large or not finite."""
    errors = error.errors(include_url=False, include_context=False, include_input=False)
    return [{**one, "loc": (place, *one["loc"])} for one in errors]
