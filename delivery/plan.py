"""The declarative plan of a rollout: Argo Rollouts' vocabulary, and what a model that holds positions needs beside it.

    steps:                                    # what stands before the first setWeight happens in shadow
      - setWeight: 5                          # percent; grows
      - pause: {sessions: 1}                  # market time; {duration: 30m} is wall time, {} waits for a promote
      - analysis: {templates: [{name: errors}]}
      - setWeight: 100
    analysisTemplates:
      errors: {metrics: [{name: error_ratio, provider: {service: error_ratio}, failureCondition: result > 0.05}]}

A plan is checked as a whole before anything starts, frozen with the attempt it is for, and known by its SHA-256.
A step with a weight and the pauses and analyses that follow it are a stage; stage 0 is the shadow.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import Field, ValidationError, ValidationInfo, model_validator

from core.errors import ConfigError, RolloutError
from core.settings_file import in_words
from delivery import lint
from delivery.metrics import (
    Analysis,
    BackgroundAnalysis,
    Duration,
    Judge,
    Metric,
    Name,
    Part,
    Provider,
    Template,
    TemplateRef,
)

__all__ = [
    "Analysis",
    "BackgroundAnalysis",
    "Judge",
    "Metric",
    "Plan",
    "Provider",
    "Template",
    "TemplateRef",
    "frozen_plan",
    "plan_from",
    "plan_of_steps",
    "promoted_by_hand",
]

WEEK_S = 7 * 86400.0
FROZEN = "frozen"  # read again under whatever rules there are by now
LONGEST = 256 * 1024  # characters of a plan's text
Pct = Annotated[float, Field(gt=0, le=100)]
HandoverMode = Literal["adopt", "reduce_only", "flatten", "freeze"]
WeightBasis = Literal["requests", "symbols", "notional", "var"]


class Pause(Part):
    """Wall time, market time, or until somebody promotes (neither)."""

    duration: Duration | None = None
    sessions: int | None = Field(default=None, ge=1, description="whole trading sessions that must end meanwhile")

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if self.duration is not None and self.sessions is not None:
            raise ValueError("a pause has a duration or sessions, not both; write two pauses")
        return self

    @property
    def indefinite(self) -> bool:
        return self.duration is None and self.sessions is None


class Step(Part):
    set_weight: int | None = Field(default=None, ge=0, le=100)
    pause: Pause | None = None
    analysis: Analysis | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if sum(part is not None for part in (self.set_weight, self.pause, self.analysis)) != 1:
            raise ValueError("a step is one of setWeight, pause, analysis")
        return self


class Symbols(Part):
    """Which symbols the challenger may have, and what each counts for weightBasis notional or var."""

    allow: tuple[str, ...] | None = None
    deny: tuple[str, ...] = ()
    notional: dict[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    volatility: dict[str, Annotated[float, Field(gt=0)]] = Field(
        default_factory=dict, description="of a day, ratio: for weightBasis var, of every symbol in notional"
    )

    def shares(self, basis: WeightBasis) -> dict[str, float]:
        """What each symbol counts, in any unit.

        var: what it can lose by itself, notional times volatility. Nothing is taken off for symbols that do not fall
        together, so the challenger never has more than its weight.
        """
        if basis == "var":
            return {name: size * self.volatility[name] for name, size in self.notional.items()}
        return dict(self.notional)


class LossLimits(Part):
    max_drawdown_pct: Pct | None = None
    max_daily_loss_pct: Pct | None = None


class Limits(Part):
    """Of the challenger's own ledger, in percent of an arm's capital per symbol; the book is the mean over symbols."""

    symbol: LossLimits = LossLimits()
    book: LossLimits = LossLimits()


# Positions of a model that loses or answers wrongly are brought down; those of one that is merely slow are kept.
LOSING: dict[str, HandoverMode] = {
    "drawdown_exceeded": "reduce_only",
    "daily_loss_exceeded": "reduce_only",
    "performance_degradation": "reduce_only",
    "error_rate_exceeded": "reduce_only",
}


class Handover(Part):
    """What becomes of the positions the challenger holds when it is rolled back."""

    default: HandoverMode = "adopt"
    triggers: dict[str, HandoverMode] = Field(
        default_factory=lambda: dict(LOSING), description="by trigger, which for an analysis is the metric's name"
    )
    symbols: dict[str, HandoverMode] = Field(default_factory=dict, description="wins over the trigger's")
    flatten_after: Duration = Field(default=900.0, description="a reduce_only that is not flat by then is flattened")
    flatten_before_close: Duration = 900.0


class Session(Part):
    """One trading session, Unix seconds; `expiry`: a contract that is traded here expires at its close."""

    day: date
    open: float
    close: float
    expiry: bool = False

    @model_validator(mode="after")
    def _opens_before_it_closes(self) -> Self:
        if self.open >= self.close:
            raise ValueError(f"the session of {self.day} closes before it opens")
        return self


class MarketTime(Part):
    """When steps may be taken. `sessions` are filled in by who starts the rollout, from the exchange's calendar."""

    quiet: Duration = Field(default=900.0, description="no step within this of an open, a close or on an expiry day")
    sessions: tuple[Session, ...] = ()


class Approvals(Part):
    required: int = Field(default=0, ge=0, le=5, description="distinct keys, not the starter's, before the promotion")


class Webhook(Part):
    """Flagger's gates: HMAC-signed POST; anything but 2xx in time says no."""

    name: Name
    type: Literal[
        "confirm-rollout",
        "pre-rollout",
        "rollout",
        "confirm-traffic-increase",
        "confirm-promotion",
        "post-rollout",
        "rollback",
        "event",
    ]
    url: str = Field(pattern=r"^https?://")
    timeout: Duration = Field(default=5.0, gt=0, le=30, description="nothing is decided meanwhile but a rollback")


@dataclass(frozen=True)
class Stage:
    weight: int  # percent
    gates: tuple[Pause | Analysis, ...]  # passed in this order


class Plan(Part):
    steps: tuple[Step, ...] = Field(min_length=1)
    analysis_templates: dict[Name, Template] = Field(default_factory=dict)
    background_analysis: BackgroundAnalysis | None = None
    pre_promotion_analysis: Analysis | None = None
    post_promotion_analysis: Analysis | None = None
    rollback_window: Duration = Field(
        default=86400.0, description="after the promotion; the champion before stays warm"
    )
    weight_basis: WeightBasis = "symbols"
    symbols: Symbols = Symbols()
    limits: Limits = Limits()
    handover: Handover = Handover()
    market: MarketTime | None = Field(default=None, description="null: any time will do")
    approvals: Approvals = Approvals()
    webhooks: tuple[Webhook, ...] = ()
    progress_deadline_seconds: Duration = Field(default=WEEK_S, description="of every stage")
    progress_deadline_abort: bool = Field(default=True, description="false: pause instead")

    @model_validator(mode="after")
    def _makes_sense(self, info: ValidationInfo) -> Self:
        problems = [] if info.context == FROZEN else list(lint.problems(self))
        if problems:
            raise ValueError("\n".join(problems))
        return self

    @cached_property
    def stages(self) -> tuple[Stage, ...]:
        """Stage 0 is the shadow, stage k the k-th weight; each with the gates to pass before it is left."""
        found = [Stage(0, ())]
        for step in self.steps:
            if step.set_weight is not None:
                found.append(Stage(step.set_weight, ()))
            else:
                gate = step.pause or step.analysis
                assert gate is not None  # noqa: S101 - Step has exactly one
                found[-1] = Stage(found[-1].weight, (*found[-1].gates, gate))
        if self.pre_promotion_analysis is not None:
            found[-1] = Stage(found[-1].weight, (*found[-1].gates, self.pre_promotion_analysis))
        return tuple(found)

    @cached_property
    def canonical(self) -> str:
        """JSON that is the same for the same plan."""
        return json.dumps(self.model_dump(mode="json", by_alias=True), sort_keys=True)

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.canonical.encode()).hexdigest()


class _Loader(yaml.SafeLoader):
    """Without what YAML has for people who want to be surprised: keys given twice, aliases."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases are not allowed; write it out")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        times = Counter((key.tag, str(key.value)) for key, _ in node.value)
        twice = next((key for (_, key), count in times.items() if count > 1), None)
        if twice is not None:
            raise yaml.MarkedYAMLError(problem=f"'{twice}' is there twice; keep one", problem_mark=node.start_mark)
        return super().construct_mapping(node, deep)


def plan_from(text: str) -> Plan:
    """A plan in YAML or JSON. Raises ConfigError with every problem and its place."""
    if len(text) > LONGEST:
        raise _invalid([f"{len(text)} characters, at most {LONGEST} are read"])
    try:
        tree = yaml.load(text, _Loader)  # noqa: S506 - a SafeLoader
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: of a date that there is not
        raise _invalid([f"not readable as YAML: {error}"]) from None
    if not isinstance(tree, dict):
        raise _invalid([f"a plan is a mapping with steps, not {type(tree).__name__}"])
    try:
        return Plan.model_validate(tree)
    except ValidationError as error:
        details = [one for one in error.errors(include_url=False) if not (one["type"] == "too_short" and one["input"])]
        told = (in_words(detail).removeprefix(": ") for detail in details)  # "too short": only items that are invalid
        raise _invalid([line for text in told for line in text.splitlines()]) from None


def frozen_plan(canonical: str, sha256: str) -> Plan:
    """A plan that was frozen as `canonical`. Raises RolloutError `plan_altered` unless it is still that one."""
    if hashlib.sha256(canonical.encode()).hexdigest() != sha256:
        raise _altered(sha256, "its text has another digest")
    try:
        plan = Plan.model_validate_json(canonical, context=FROZEN)
    except ValidationError as error:
        raise _altered(sha256, in_words(error.errors(include_url=False)[0])) from None
    plan.__dict__["canonical"] = canonical  # a later release would write out what it has added
    return plan


def _altered(sha256: str, why: str) -> RolloutError:
    return RolloutError(
        f"the frozen plan {sha256[:12]} is not what was started: {why}; abort, and restore the state database",
        code="plan_altered",
    )


def _invalid(problems: list[str]) -> ConfigError:
    listing = "\n".join(f"  - {problem}" for problem in problems)
    return ConfigError(f"the plan is not valid, nothing was started:\n{listing}", code="plan_invalid")


def plan_of_steps(weights: tuple[int, ...]) -> Plan:
    """The plan of someone who promotes by hand: each weight, and then a wait."""
    return Plan.model_validate({"steps": promoted_by_hand(weights)})


def promoted_by_hand(weights: tuple[int, ...]) -> list[dict[str, Any]]:
    waits: list[dict[str, Any]] = [{"pause": {}}]
    return waits + [step for weight in weights for step in ({"setWeight": weight}, *waits)]
