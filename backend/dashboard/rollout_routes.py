"""`POST /api/rollout/{command}`: a person's command, passed on to the inference service as that person.

The service judges it by its own scopes and its newest state, and its log names the caller. `version` is the one that
the person was looking at: whoever was faster is not overwritten (412). An abort and a rollback look at none.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Any

import structlog
from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from backend.dashboard import service
from core.settings import Settings
from serving import calls, problems
from serving.calls import Command, ServiceError
from serving.openapi import failures
from serving.schemas_rollout import REASON_MAX, VERSION_MAX, RolloutResponse, last_words
from serving.scopes import Scope, needs

SCOPES: dict[Command, Scope] = {
    "approve": Scope.ROLLOUT_APPROVE,
    "promote": Scope.ROLLOUT_PROMOTE,
    "pause": Scope.ROLLOUT_PROMOTE,
    "resume": Scope.ROLLOUT_PROMOTE,
    "abort": Scope.ROLLOUT_ABORT,
    "rollback": Scope.ROLLOUT_ABORT,
}
UNSTOPPABLE = ("abort", "rollback")

log = structlog.get_logger(__name__)


class CommandRequest(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    reason: Annotated[str, Field(max_length=REASON_MAX)] = ""
    version: Annotated[int, Field(strict=True, ge=0, le=VERSION_MAX)]


def router(settings: Settings) -> APIRouter:
    routes = APIRouter(prefix="/api/rollout", tags=["rollout"])
    for command, scope in SCOPES.items():
        endpoint = needs(scope)(_endpoint(command, settings.serving.url))
        described = {"requestBody": {"content": {"application/json": {"schema": CommandRequest.model_json_schema()}}}}
        routes.add_api_route(
            f"/{command}",
            endpoint,
            methods=["POST"],
            response_model=RolloutResponse,
            responses=failures(409, 412, 502, 503),
            openapi_extra=described,
        )
    return routes


def _endpoint(command: Command, url: str) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        """The rollout as it is after the command."""
        try:
            after = await service.command(url, _call(command, await request.body()), request)
        except ValidationError as error:
            return problems.answer(problems.describe_invalid(error.errors()))
        except ServiceError as error:
            return refused(error)
        return JSONResponse(after.model_dump(mode="json"))

    endpoint.__name__ = command
    return endpoint


def _call(command: Command, body: bytes) -> calls.Call[Any]:
    """No abort is refused for its words. Raises ValidationError for any other command."""
    if command in UNSTOPPABLE:
        return calls.command(command, reason=last_words(body).reason)
    said = CommandRequest.model_validate_json(body or b"{}")
    return calls.command(command, reason=said.reason, version=said.version)


def refused(error: ServiceError) -> Response:
    """What the service said, as it said it; that it said nothing is 502, and then nobody knows what was done."""
    if error.status:
        return problems.problem(error.status, error.code, str(error))
    log.warning("service_did_not_answer", kind=error.code)
    known = "nothing was done" if error.unsent else "it may have been carried out: look before you repeat it"
    return problems.problem(502, "service_unavailable", f"the inference service does not answer; {known}")
