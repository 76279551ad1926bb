"""Every failure over HTTP is problem+json (RFC 9457) with a stable `code`."""

from __future__ import annotations

import http
from collections.abc import Sequence
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from core.errors import ConfigError, DataError, HrmSystemError, ModelError, RolloutError

log = structlog.get_logger()

STATUS_OF: dict[type[HrmSystemError], int] = {
    RolloutError: 409,  # the request conflicts with the state of the rollout
    ModelError: 409,  # the named model cannot be used; the current one keeps serving
    DataError: 422,
    ConfigError: 500,
}
SECURITY_HEADERS = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}  # of every answer
UNAVAILABLE_CODES = {
    "explanation_too_slow",
    "not_ready",
    "overloaded",
    "shutting_down",
    "state_not_durable",
    "state_unreadable",
}
PRECONDITION_FAILED = "precondition_failed"  # an If-Match that is stale


def document(status: int, code: str, detail: str, **extra: object) -> dict[str, object]:
    """`error` repeats `detail`: where the Open Inference Protocol's clients look for it."""
    return {
        "type": f"urn:hrm:{code}",
        "title": http.HTTPStatus(status).phrase,
        "status": status,
        "code": code,
        "detail": detail,
        "error": detail,
        **extra,
    }


def status_of(error: HrmSystemError) -> int:
    if error.code in UNAVAILABLE_CODES:
        return 503
    if error.code == PRECONDITION_FAILED:
        return 412
    return next((status for kind, status in STATUS_OF.items() if isinstance(error, kind)), 500)


def describe(error: HrmSystemError) -> dict[str, object]:
    """The document of an error of ours."""
    return document(status_of(error), error.code, str(error), retryable=error.retryable)


def describe_invalid(errors: Sequence[Any], status: int = 422) -> dict[str, object]:
    """Of what pydantic found: names every field; never the input, which may be large or not finite."""
    problems = [
        {"field": ".".join(str(part) for part in error["loc"]), "problem": error["msg"]} for error in errors[:20]
    ]
    first = problems[0]
    return document(status, "request_invalid", f"{first['field']}: {first['problem']}", errors=problems)


def answer(content: dict[str, object]) -> JSONResponse:
    """A problem's document as a response."""
    status = content["status"]
    assert isinstance(status, int)  # noqa: S101 - as `document` made it
    headers = {"Retry-After": "1"} if status == http.HTTPStatus.SERVICE_UNAVAILABLE else None
    return JSONResponse(content, status, headers, media_type="application/problem+json")


def problem(status: int, code: str, detail: str, **extra: object) -> JSONResponse:
    return answer(document(status, code, detail, **extra))


def install(app: FastAPI) -> None:
    """Register the handlers for our errors, validation errors, HTTP errors and everything unforeseen."""
    app.add_exception_handler(HrmSystemError, _system_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _unforeseen)


async def _system_error(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HrmSystemError)  # noqa: S101 - what it is registered for
    return answer(describe(error))


async def _invalid(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)  # noqa: S101 - what it is registered for
    return answer(describe_invalid(error.errors()))


async def _http_error(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)  # noqa: S101 - what it is registered for
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "http_error")
    refusal = problem(error.status_code, code, str(error.detail))
    refusal.headers.update(error.headers or {})  # a 405 says what is allowed
    return refusal


async def _unforeseen(request: Request, error: Exception) -> JSONResponse:
    log.error("unforeseen_error", path=request.url.path, exc_info=error)
    answer_500 = problem(500, "internal_error", "unforeseen error; the service's log has the details")
    answer_500.headers.update(SECURITY_HEADERS)  # it is answered outside the door, which adds them to all others
    return answer_500
