"""What to do now with a book of instruments, decided jointly."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from serving import examples
from serving.book_decisions import decide_book
from serving.openapi import described, failures, json_of
from serving.plain import JSON, PlainRoute, json, media_type, parsed
from serving.schemas_book import BookRequest, BookResponse
from serving.scopes import Scope, needs
from serving.service import Service

router = APIRouter(route_class=PlainRoute, tags=["decisions"])
BODIES = (BookRequest,)


@router.post(
    "/v1/books/decisions",
    response_model=BookResponse,
    responses=failures(409, 415, 422, 503),
    openapi_extra=described(json_of(BookRequest, pair=examples.BOOK)),
)
@needs(Scope.DECIDE)
async def post_book(request: Request) -> Response:
    """Decide all instruments of a book jointly, within its limits.

    By a loaded model that was trained on books of this size. An answer that breaks a limit never leaves the service:
    `feasible_by` says what stands in for it.
    """
    service: Service = request.app.state.service
    media_type(request, JSON)
    return json(await decide_book(service, parsed(BookRequest, await request.body()).question()))
