"""What can be asked of the service, as values: built once, sent by either client (serving/client.py), typed answers.

client.call(calls.rollout()).phase
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Generic, Literal, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import to_json

from core.errors import HrmSystemError
from delivery.plan import Plan
from serving import schemas
from serving.question import Question
from serving.schemas_rollout import AnalysisResponse, EventsResponse, RefusalsResponse, RolloutResponse
from serving.wire import left_ms, to_raw

JSON, RAW = "application/json", "application/octet-stream"
OK, UNAVAILABLE = 200, 503
DECISION_S = 2.0  # the service answers within its own limits; this is for a service that is gone
COMMAND_S = 60.0  # a start loads and warms a model
READ_S = 30.0  # a process that is asked for the first time reads weeks of measurements
GRACE_S = 0.25  # beyond a question's deadline: then the service answers, and the answer has to travel
LATER = {408, 429}  # the service's load or the network's, not the request

Answer = TypeVar("Answer", bound=BaseModel)
Command = Literal["approve", "promote", "pause", "resume", "abort", "rollback"]


class ServiceError(HrmSystemError):
    """No answer, or a refusal.

    `status` is HTTP's, 0 where nothing came; `code` the problem's, or the kind of the failure; `unsent`: the request
    has certainly not been carried out; `retry_after_s` what the service asks to wait.
    """

    def __init__(
        self, status: int, code: str, detail: str, *, retryable: bool, unsent: bool = False, retry_after_s: float = 0.0
    ) -> None:
        super().__init__(detail, code=code, retryable=retryable)
        self.status, self.unsent, self.retry_after_s = status, unsent, retry_after_s

    @property
    def refused(self) -> bool:
        """The request is at fault, and would be again."""
        return 400 <= self.status < 500 and self.status not in LATER


@dataclass(frozen=True)
class Call(Generic[Answer]):
    """One request. `total_s` bounds all its attempts; whatever is `repeatable` may be sent again after anything."""

    method: Literal["GET", "POST"]
    path: str
    answers: type[Answer]
    total_s: float = DECISION_S
    body: bytes = b""
    media_type: str = JSON
    params: Mapping[str, str] = field(default_factory=dict)
    if_match: str | None = None
    accept: tuple[int, ...] = (OK,)
    decides: bool = False  # may be sent again if it was certainly not carried out

    @property
    def repeatable(self) -> bool:
        return self.method == "GET"

    def read(self, status: int, content: bytes, retry_after: str | None = None) -> Answer:
        """The typed answer; fields that a newer service adds are left out. Raises ServiceError."""
        if status not in self.accept:
            raise self._refusal(status, content, retry_after)
        try:
            return self.answers.model_validate_json(content, extra="ignore")
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            place = ".".join(map(str, first["loc"]))
            raise ServiceError(
                status, "answer_invalid", f"{self.path}: the answer is none ({place}: {first['msg']})", retryable=True
            ) from None

    def _refusal(self, status: int, content: bytes, retry_after: str | None) -> ServiceError:
        wait_s = float(retry_after) if retry_after is not None and retry_after.isdecimal() else 0.0
        try:
            problem = schemas.Problem.model_validate_json(content, extra="ignore")
        except ValidationError:
            text = content[:200].decode(errors="replace")
            return ServiceError(status, "no_problem_document", f"{self.path}: {status} {text}", retryable=status >= 500)
        return ServiceError(
            status,
            problem.code,
            f"{self.method} {self.path}: {problem.detail}",
            retryable=bool(problem.retryable) or status in {*LATER, UNAVAILABLE},
            unsent=status in {429, UNAVAILABLE},  # refused before anything was done
            retry_after_s=wait_s,
        )


def decision(question: Question) -> Call[schemas.DecisionResponse]:
    """One question, raw."""
    body, params = to_raw(question)
    answers = schemas.DecisionResponse
    return Call("POST", "/v1/decisions", answers, _total_s([question]), body, RAW, params, decides=True)


def decisions(questions: Sequence[Question]) -> Call[schemas.BatchResponse]:
    """At most 256; each is decided as if alone."""
    body = to_json({"decisions": [_message(question) for question in questions]})
    return Call("POST", "/v1/decisions/batch", schemas.BatchResponse, _total_s(questions), body, decides=True)


def outcome(
    symbol: str, *, champion_bps: float, challenger_bps: float, day: date | None = None
) -> Call[schemas.OutcomeResponse]:
    """`day` is the exchange's; by default today's."""
    body = to_json({"symbol": symbol, "champion_bps": champion_bps, "challenger_bps": challenger_bps, "day": day})
    return Call("POST", "/v1/outcomes", schemas.OutcomeResponse, body=body)


def rollout() -> Call[RolloutResponse]:
    return Call("GET", "/v1/rollout", RolloutResponse)


def plan() -> Call[Plan]:
    """Frozen with the current or latest attempt; else the one that a start without a plan takes."""
    return Call("GET", "/v1/rollout/plan", Plan)


def analysis(last: int = 20) -> Call[AnalysisResponse]:
    """What was measured in the current or latest attempt: of each metric the `last` measurements."""
    return Call("GET", "/v1/rollout/analysis", AnalysisResponse, READ_S, params={"last": str(last)})


def events(after: int = 0) -> Call[EventsResponse]:
    return Call("GET", "/v1/rollout/events", EventsResponse, params={"after": str(after)})


def refusals(after: int = 0) -> Call[RefusalsResponse]:
    return Call("GET", "/v1/rollout/refusals", RefusalsResponse, params={"after": str(after)})


def start(
    champion: str,
    challenger: str,
    *,
    plan: Plan | None = None,
    reason: str = "",
    actor: str | None = None,
    version: int | None = None,
) -> Call[RolloutResponse]:
    """`plan`: None for the one of the service's settings. `actor`, `version`: see `command`."""
    said = {"champion": champion, "challenger": challenger, "plan": plan, "reason": reason, "actor": actor}
    body = to_json(said, by_alias=True)
    return Call("POST", "/v1/rollout/start", RolloutResponse, COMMAND_S, body, if_match=_etag(version))


def command(
    name: Command, *, reason: str = "", actor: str | None = None, version: int | None = None
) -> Call[RolloutResponse]:
    """`actor`: for whom, noted behind the reason; who acted is whose key it is.

    `version`: only if the rollout is still at it, else ServiceError `precondition_failed` (412); an abort and a
    rollback are carried out at any.
    """
    body = to_json({"reason": reason, "actor": actor})
    return Call("POST", f"/v1/rollout/{name}", RolloutResponse, COMMAND_S, body, if_match=_etag(version))


def models() -> Call[schemas.ModelsResponse]:
    return Call("GET", "/v1/models", schemas.ModelsResponse)


def load(model_id: str) -> Call[schemas.LoadedModel]:
    """`name/version`, beside the rollout's models."""
    return Call("POST", f"/v1/models/{model_id}/load", schemas.LoadedModel, COMMAND_S)


def unload(model_id: str) -> Call[schemas.Status]:
    return Call("POST", f"/v1/models/{model_id}/unload", schemas.Status, COMMAND_S)


def health() -> Call[schemas.HealthResponse]:
    """503 is an answer too: an unhealthy service describes itself."""
    return Call("GET", "/health", schemas.HealthResponse, accept=(OK, UNAVAILABLE))


def _etag(version: int | None) -> str | None:
    return None if version is None else f'"{version}"'


def _total_s(questions: Sequence[Question]) -> float:
    left_s = max((question.deadline for question in questions), default=math.inf) - time.perf_counter()
    return min(DECISION_S, max(left_s, 0.0) + GRACE_S)


def _message(question: Question) -> dict[str, object]:
    accounts = {"champion": question.champion, "challenger": question.challenger}
    return {
        "symbol": question.symbol,
        "bars": question.bars.tolist(),
        "complexity": question.complexity,
        "accounts": {
            role: {"features": account.features.tolist(), "position": account.position}
            for role, account in accounts.items()
            if account is not None
        },
        "acting": question.acting,
        "request_id": question.request_id,
        "deadline_ms": left_ms(question),
    }
