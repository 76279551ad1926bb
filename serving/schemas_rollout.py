"""The messages of /v1/rollout: who decides, the commands that change it, its plan, measurements and log."""

from __future__ import annotations

import json
from typing import Annotated, Any

from pydantic import Field

from delivery.analysis import MeasurementPhase, RunPhase
from delivery.plan import Plan
from delivery.transitions import Phase
from serving.schemas import Message, ModelId, Text

VERSION_MAX = 2**63 - 1  # as rollout.db counts
REASON_MAX, ACTOR_MAX = 500, 64  # characters
MEASUREMENTS_MAX = 1000  # of a metric that are told at once


class RolloutRequest(Message):
    """`version`, when given, must be the current one: nothing changes if somebody else was faster. So must If-Match."""

    reason: Text = ""
    actor: Annotated[str, Field(min_length=1, max_length=ACTOR_MAX)] | None = Field(
        default=None,
        description="for whom, in the caller's words: it is noted behind the reason. Who acted is always the "
        "authenticated caller",
    )
    version: int | None = Field(default=None, strict=True, ge=0)

    @property
    def noted_reason(self) -> str:
        return f"{self.reason} (for {self.actor})".lstrip() if self.actor else self.reason


def last_words(body: bytes) -> RolloutRequest:
    """What can be read of the body of an abort: no abort is refused for its words, nor for how they are wrapped."""
    try:
        said = json.loads(body)
    except (ValueError, RecursionError):  # ValueError: bytes that are no text, too
        said = {}
    words = {name: text for name, text in said.items() if isinstance(text, str)} if isinstance(said, dict) else {}
    reason, actor = words.get("reason", "")[:REASON_MAX], words.get("actor", "")[:ACTOR_MAX]
    return RolloutRequest(reason=reason, actor=actor or None)


class StartRequest(RolloutRequest):
    champion: ModelId
    challenger: ModelId
    plan: Plan | None = Field(default=None, description="null: the one that the service's settings say")


class EventsQuery(Message):
    after: int = Field(default=0, ge=0, le=VERSION_MAX)


class AnalysisQuery(Message):
    last: int = Field(default=20, ge=0, le=MEASUREMENTS_MAX, description="measurements of each metric, the latest ones")


class ApprovalsResponse(Message):
    required: int = Field(description="distinct callers, none of them who started, before the promotion")
    given: list[str] = Field(description="by whom: identities of callers")
    missing: int


class RolloutResponse(Message):
    phase: Phase
    champion: str | None
    challenger: str | None
    fallback: str | None
    weight: int
    step: int = Field(description="stage of the plan; 0 is the shadow")
    steps: list[int] = Field(description="weights of the stages that follow the shadow")
    gate: int = Field(description="how many of the stage's gates are passed")
    gates: list[str] = Field(description="of this stage, in words, in the order in which they are passed")
    waits_for: str = Field(description="what has to happen before the rollout goes on; empty where none is running")
    approvals: ApprovalsResponse
    stage_at: float = Field(description="when this stage began, Unix time, s")
    gate_at: float = Field(description="when the current gate did, Unix time, s")
    attempt: int = Field(description="the version that its start led to; 0 before the first")
    started_by: str
    plan_sha256: str | None
    epoch: int
    version: int
    paused: bool
    latched: bool
    durable: bool
    reason: str
    trigger: str = Field(description="what ended the last attempt that was rolled back")
    statistics: dict[str, Any] = Field(description="the guard's windows by role, the paired performance, memory")


class Event(Message):
    """One change: the state it led to (canonical JSON), and the hash that chains it to the one before."""

    version: int
    at: float = Field(description="Unix time, s")
    actor: str
    command: str
    reason: str
    state: str
    prev_hash: str
    hash: str


class EventsResponse(Message):
    events: list[Event]


class Refusal(Message):
    """A command that was refused, and the hash that chains it to the refusal before."""

    seq: int
    at: float = Field(description="Unix time, s, of the first time")
    actor: str = Field(description="the caller; `unknown` where the door did not know it")
    command: str
    reason: str
    code: str = Field(description="of the problem that was answered")
    version: int = Field(description="of the rollout, as the process knew it")
    times: int = Field(description="within a moment, by the same caller and for the same code")
    prev_hash: str
    hash: str


class RefusalsResponse(Message):
    refusals: list[Refusal]


class Measured(Message):
    at: float = Field(description="Unix time, s")
    phase: MeasurementPhase
    value: float | None
    detail: str = Field(description="what was compared with what")
    samples: int | None = Field(description="behind the value; null of an error, and where an older release measured")
    hits: int | None = Field(description="of the samples, where they are counted")


class MetricAnalysis(Message):
    name: str
    phase: RunPhase
    dry_run: bool = Field(description="an alert level: measured and shown, never judged")
    critical: bool
    taken: int = Field(description="how many measurements there are")
    measurements: list[Measured] = Field(description="the latest ones, oldest first")


class AnalysisRun(Message):
    run: str = Field(description="background, post_promotion, or the stage and the gate")
    since: float = Field(description="when it began, or a resume let it begin anew; Unix time, s")
    ended: bool = Field(description="no more is measured")
    phase: RunPhase = Field(description="the worst of the metrics that count")
    metrics: list[MetricAnalysis]


class AnalysisResponse(Message):
    attempt: int
    runs: list[AnalysisRun]
