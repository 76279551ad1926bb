"""The messages of /v1: strict, closed and finite. How they travel: serving/wire.py."""

from __future__ import annotations

from datetime import date
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, FailFast, Field, Strict

from core.errors import DataError
from delivery.losses import Outcome, today
from delivery.plan import HandoverMode
from delivery.routing import Role
from delivery.transitions import Phase
from serving import question
from serving.ladder import RungName
from serving.question import FEATURE_MAX, Question, deadline_in, fresh_id

BPS_MAX = 1e4  # no decision earns more than all there is; one absurd outcome would blind the performance trigger
MAX_BATCH = 256
DEADLINE_MAX_MS = 10_000.0
NAME = r"^[^\x00-\x1f]+$"
PLAIN_NAME = r"^[a-z0-9][a-z0-9._-]{0,63}$"

# Strict: integers pass as numbers, texts and booleans do not.
Feature = Annotated[float, Field(strict=True, ge=-FEATURE_MAX, le=FEATURE_MAX, allow_inf_nan=False)]
Bps = Annotated[float, Field(strict=True, ge=-BPS_MAX, le=BPS_MAX, allow_inf_nan=False)]
Symbol = Annotated[str, Field(min_length=1, max_length=64, pattern=NAME)]
ModelId = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}/[a-z0-9][a-z0-9._-]{0,63}$")]
Text = Annotated[str, Field(max_length=500)]
Complexity = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False, description="of the market, in [0, 1]")]
Position = Annotated[int, Field(ge=-1, le=1, description="sign of the position held")]
RequestId = Annotated[
    str, Field(min_length=1, max_length=64, pattern=NAME, description="comes back in the answer; made up if missing")
]
DeadlineMs = Annotated[
    float,
    Field(
        gt=0,
        le=DEADLINE_MAX_MS,
        allow_inf_nan=False,
        description="after this time the answer is that of the best segment so far, `halt_reason: deadline_reached`",
    ),
]
Acting = Annotated[
    Role,
    Field(
        description="whose position the symbol really holds: the champion's, or that of the model on trial, also after "
        "it was rolled back. A symbol stays with an arm whose account is not flat, whatever the weight says"
    ),
]


class Message(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Problem(BaseModel):
    """RFC 9457, with a stable `code`. `error` repeats `detail` for clients of the Open Inference Protocol."""

    type: str
    title: str
    status: int
    code: str
    detail: str
    error: str
    retryable: bool | None = Field(default=None, description="the same request may succeed later")
    errors: list[dict[str, str]] | None = Field(default=None, description="`field` and `problem` of each mistake")


class Account(Message):
    """One arm's own portfolio: features [A] in the order of the model's schema, and the sign of its position."""

    features: Annotated[list[Feature], FailFast()] = Field(min_length=1, max_length=1024)
    position: Annotated[Position, Strict()]

    def arrays(self) -> question.Account:
        return question.Account(np.array(self.features, dtype=np.float32), self.position)


class Accounts(Message):
    """Without a challenger's own account both arms decide on the champion's."""

    champion: Account
    challenger: Account | None = None


class DecisionRequest(Message):
    """One question. Sizes and meaning of the features are those of the model: `GET /v1/models`, `observation`."""

    symbol: Symbol
    bars: Annotated[list[Annotated[list[Feature], FailFast()]], FailFast()] = Field(
        min_length=1, max_length=4096, description="[W, F], oldest first, newest closed"
    )
    complexity: Annotated[Complexity, Strict()]
    accounts: Accounts
    acting: Acting | None = None
    request_id: RequestId | None = None
    deadline_ms: Annotated[DeadlineMs, Strict()] | None = None

    def question(self) -> Question:
        """Raises DataError when the bars differ in length."""
        if len({len(bar) for bar in self.bars}) > 1:
            raise DataError("bars: all bars must have the same number of features", code="shape_mismatch")
        accounts = self.accounts
        return Question(
            symbol=self.symbol,
            bars=np.array(self.bars, dtype=np.float32),
            complexity=self.complexity,
            champion=accounts.champion.arrays(),
            challenger=accounts.challenger.arrays() if accounts.challenger else None,
            acting=self.acting,
            request_id=self.request_id or fresh_id(),
            deadline=deadline_in(self.deadline_ms),
        )


class RawFields(Message):
    """What a question of raw float32 says in its query string."""

    symbol: Symbol
    complexity: Complexity
    position: Position
    challenger_position: Position | None = Field(default=None, description="of the challenger's own account")
    acting: Acting | None = None
    request_id: RequestId | None = None
    deadline_ms: DeadlineMs | None = None


class BatchRequest(Message):
    """Questions that are decided together, each as if it were alone."""

    decisions: list[Any] = Field(
        min_length=1,
        max_length=MAX_BATCH,
        description="each as the body of POST /v1/decisions; what is none gets a problem of its own",
        json_schema_extra={"items": {"anyOf": [{"$ref": "#/components/schemas/DecisionRequest"}, {}]}},
    )


class Decision(Message):
    """`fallback`: another model than the routed one answered, or HOLD because none could. `epoch` fences orders."""

    request_id: str
    symbol: str
    action: int = Field(ge=0, le=4)
    action_name: str
    quantity: float = Field(gt=0, allow_inf_nan=False, description="units")
    probabilities: list[float]
    value: float
    segments: int
    halt_reason: str
    model: str
    model_version: str
    provider: str | None = Field(description="onnxruntime's provider that ran the model; null where none did")
    role: Literal["champion", "challenger", "safe"]
    latency_ms: float
    epoch: int
    fallback: bool


class HandoverTerms(Message):
    """What trading does with a position whose arm was rolled back; flattening is timed by trading."""

    mode: HandoverMode
    flatten_after_s: float = Field(description="a reduce_only that is not flat by then is flattened")
    flatten_before_close_s: float = Field(description="and one that comes this near to the session's close")


class DecisionResponse(Decision):
    account: Literal["champion", "challenger"] = Field(
        description="the arm on whose account it was decided, also where `role` answers for one that failed"
    )
    decision_id: str = Field(description="of the decision's record: `hrm replay` decides it again; sorts by time")
    recorded: bool = Field(description="false when the disk refused the record; the decision stands")
    rung: RungName = Field(description="of the ladder: full, or who decided instead while the service could not do so")
    shadow: Decision | None = Field(description="the other arm's decision; no order may follow from it")
    promoted: bool = Field(
        default=False, description="the champion is on trial, the other arm is the one before it; nobody is challenger"
    )
    shadow_missing: Literal["late", "failed", "degraded"] | None = Field(
        description="why the other arm has no decision: not within the inference time limit, the model failed, or the "
        "service is on a lower rung and asks nobody twice"
    )
    shadow_latency_ms: float | None = Field(
        description="the other arm's own time, or of a late one the time it has had so far; null without another arm"
    )
    handover: HandoverTerms | None = Field(
        default=None, description="after a rollback, while `acting` is the challenger and its account is not flat"
    )


class BatchItem(Message):
    """Exactly one of the two."""

    decision: DecisionResponse | None = None
    problem: Problem | None = None


class BatchResponse(Message):
    results: list[BatchItem] = Field(description="in the order of the questions")


class OutcomeRequest(Message):
    """What one decision earned in each arm's own virtual portfolio, bps."""

    symbol: Symbol
    champion_bps: Bps
    challenger_bps: Bps
    day: Annotated[date, Strict()] | None = Field(default=None, description="of the exchange; null: today in India")

    def earned(self) -> Outcome:
        day = today() if self.day is None else self.day.isoformat()
        return Outcome(self.symbol, day, self.champion_bps, self.challenger_bps)


class OutcomeResponse(Message):
    outcomes: int
    phase: Phase
    durable: bool = Field(
        default=True, description="false: it counts, and is written when the state database can be written to again"
    )


class LoadedModel(Message):
    provider: str
    algorithm: str
    observation: dict[str, Any] = Field(description="what the model looks at: sizes, and features by name, in order")


class ModelsResponse(Message):
    store: list[dict[str, Any]] = Field(description="every published version; `problem` where it cannot be read")
    loaded: dict[str, LoadedModel] = Field(description="by name/version")


class Status(Message):
    status: str


class HealthCheck(Message):
    status: Literal["healthy", "unhealthy", "error"]
    details: dict[str, Any] = Field(default_factory=dict, description="what was found; nothing where the check broke")
    error: str | None = Field(default=None, description="why the check broke, where its status is error")


class HealthResponse(BaseModel):
    overall_health: Literal["healthy", "unhealthy"]
    individual_checks: dict[str, HealthCheck]
    warnings: list[str]
    timestamp: str
