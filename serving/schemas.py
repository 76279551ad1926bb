"""The wire format of /v1: strict, closed and finite."""

from __future__ import annotations

import uuid
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from core.errors import DataError
from serving import question
from serving.question import FEATURE_MAX, Question
from serving.transitions import Phase

BPS_MAX = 1e4  # no decision earns more than all there is; one absurd outcome would blind the performance trigger
# Strict: integers pass as numbers, texts and booleans do not.
Feature = Annotated[float, Field(strict=True, ge=-FEATURE_MAX, le=FEATURE_MAX, allow_inf_nan=False)]
Bps = Annotated[float, Field(strict=True, ge=-BPS_MAX, le=BPS_MAX, allow_inf_nan=False)]
Symbol = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[^\x00-\x1f]+$")]
ModelId = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}/[a-z0-9][a-z0-9._-]{0,63}$")]
Text = Annotated[str, Field(max_length=500)]


class Message(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Account(Message):
    """One arm's own portfolio: features [A] in the order of the model's schema, and the sign of its position."""

    features: list[Feature] = Field(min_length=1, max_length=1024)
    position: int = Field(strict=True, ge=-1, le=1)

    def arrays(self) -> question.Account:
        return question.Account(np.array(self.features, dtype=np.float32), self.position)


class Accounts(Message):
    """Without a challenger's own account both arms decide on the champion's."""

    champion: Account
    challenger: Account | None = None


class DecisionRequest(Message):
    """bars [W, F], oldest first, newest closed."""

    symbol: Symbol
    bars: list[list[Feature]] = Field(min_length=1, max_length=4096)
    complexity: float = Field(strict=True, ge=0, le=1, allow_inf_nan=False)
    accounts: Accounts
    request_id: str | None = Field(default=None, min_length=1, max_length=64)

    def question(self) -> Question:
        """Raises DataError when the bars differ in length."""
        if len({len(bar) for bar in self.bars}) > 1:
            raise DataError("bars: all bars must have the same number of features", code="shape_mismatch")
        accounts = self.accounts
        return Question(
            request_id=self.request_id or uuid.uuid4().hex,
            symbol=self.symbol,
            bars=np.array(self.bars, dtype=np.float32),
            complexity=self.complexity,
            champion=accounts.champion.arrays(),
            challenger=accounts.challenger.arrays() if accounts.challenger else None,
        )


class Decision(Message):
    """`fallback`: another model than the routed one answered, or HOLD because none could. `epoch` fences orders."""

    request_id: str
    symbol: str
    action: int = Field(ge=0, le=4)
    action_name: str
    quantity: float
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


class DecisionResponse(Decision):
    shadow: Decision | None = Field(description="the other arm's decision; no order may follow from it")
    shadow_missing: Literal["late", "failed"] | None = Field(
        description="why the other arm has no decision: not within the inference time limit, or the model failed"
    )
    shadow_latency_ms: float | None = Field(
        description="the other arm's own time, or of a late one the time it has had so far; null without another arm"
    )


class OutcomeRequest(Message):
    """What one decision earned in each arm's own virtual portfolio, bps."""

    symbol: Symbol
    champion_bps: Bps
    challenger_bps: Bps


class OutcomeResponse(Message):
    outcomes: int
    phase: Phase


class RolloutRequest(Message):
    """`version`, when given, must be the current one: nothing changes if somebody else was faster."""

    reason: Text = ""
    actor: Annotated[str, Field(min_length=1, max_length=64)] = "api"
    version: int | None = Field(default=None, strict=True, ge=0)


class EventsQuery(Message):
    after: int = Field(default=0, ge=0)


class StartRequest(RolloutRequest):
    champion: ModelId
    challenger: ModelId


class RolloutResponse(Message):
    phase: Phase
    champion: str | None
    challenger: str | None
    fallback: str | None
    weight: int
    step: int
    steps: list[int]
    epoch: int
    version: int
    paused: bool
    latched: bool
    durable: bool
    reason: str
    statistics: dict[str, object]
