"""What is measured, where its readings come from, and how they are judged: the analysis templates of a plan.

    analysisTemplates:
      latency:
        args: {limit_ms: 100}                       # null: must be given where the template is used
        metrics:
          - name: p95_ms
            provider: {prometheus: {address: "http://127.0.0.1:9090", query: 'quantile{arm="{{args.arm}}"}'}}
            failureCondition: result > args.limit_ms

Argo Rollouts' names and defaults, except that a metric's judge may be a statistical test (delivery/judges.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel

from core.errors import ConfigError
from delivery.conditions import compile_condition

Ratio = Annotated[float, Field(ge=0, le=1)]
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,62}$")]
Args = dict[Name, float | str]
JudgeKind = Literal["threshold", "mann_whitney", "sprt", "conf_seq"]
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_PLACEHOLDER = re.compile(r"\{\{\s*args\.([a-z][a-z0-9_]*)\s*\}\}")

# The service's own readings of the challenger, by all its workers, and the judges that can use them. Counts and pairs
# are those since the attempt began: over a window that slides, a test that may be looked at for ever would be wrong
# ever more often.
_VALUE: frozenset[JudgeKind] = frozenset({"threshold"})
_COUNTS: frozenset[JudgeKind] = frozenset({"threshold", "sprt"})
_PAIRS: frozenset[JudgeKind] = frozenset({"mann_whitney", "conf_seq"})
SERVICE_READINGS: Mapping[str, frozenset[JudgeKind]] = {
    "error_ratio": _COUNTS,  # hits: runs that failed
    "slow_ratio": _COUNTS,  # hits: runs slower than settings.triggers.latency_ms
    "p95_ms": _VALUE,
    "rss_gb": _VALUE,
    "samples": _VALUE,
    "performance_drop": _VALUE,  # how far the challenger's mean return lies below the champion's, relative to it
    "outcome_bps": _PAIRS,  # per decision, row i of both arms on the same tick
}
PROVIDER_KEYS: Mapping[str, tuple[str, ...]] = {
    "prometheus": ("address", "query"),
    "http": ("url", "key"),
    "sql": ("url_env", "query"),
}
KINDS = ("service", *PROVIDER_KEYS, "plugin")


def seconds(value: Any) -> Any:
    """30, "30s", "5m", "2h" or "1d" in seconds; anything else is left for pydantic to refuse."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", value) if isinstance(value, str) else None
    return float(match[1]) * _UNITS[match[2]] if match else value


Duration = Annotated[float, BeforeValidator(seconds), Field(ge=0, allow_inf_nan=False)]


def unknown(what: str, name: object, known: Iterable[str]) -> str:
    """What a person reads about a name that does not exist."""
    known = sorted(known)
    close = get_close_matches(str(name), known, n=1)
    return f"unknown {what} '{name}'" + (f", did you mean '{close[0]}'?" if close else f"; known: {', '.join(known)}")


class Part(BaseModel):
    """Of a plan: frozen, camelCase in YAML, and keys nobody knows are refused with the nearest one that is known."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=True, allow_inf_nan=False
    )

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, given: Any) -> Any:
        names = {name: field.alias or name for name, field in cls.model_fields.items()}
        if isinstance(given, dict):
            strange = [key for key in given if key not in names and key not in names.values()]
            if strange:
                raise ValueError("; ".join(unknown("key", key, names.values()) for key in strange))
        return given


class Provider(Part):
    """Where a reading comes from; exactly one. Strings may hold {{args.NAME}}."""

    service: str | None = Field(default=None, description="the service's own: SERVICE_READINGS")
    prometheus: dict[str, str] | None = Field(default=None, description="{address, query}")
    http: dict[str, str] | None = Field(default=None, description="{url, key}: a number in a JSON answer")
    sql: dict[str, str] | None = Field(default=None, description="{url_env, query}: the URL's environment variable")
    plugin: dict[str, str] | None = Field(
        default=None, description="{name} of an installed function, and its arguments"
    )

    @model_validator(mode="after")
    def _one_and_whole(self) -> Self:
        if sum(getattr(self, kind) is not None for kind in KINDS) != 1:
            raise ValueError(f"a provider is one of {', '.join(KINDS)}")
        if self.service is not None and self.service not in SERVICE_READINGS:
            raise ValueError(unknown("reading of the service", self.service, SERVICE_READINGS))
        for kind, keys in PROVIDER_KEYS.items():
            given: dict[str, str] | None = getattr(self, kind)
            if given is not None and sorted(given) != sorted(keys):
                raise ValueError(f"{kind} needs exactly {' and '.join(keys)}; it has {', '.join(given) or 'nothing'}")
        if self.plugin is not None and "{{" in self.plugin.get("name", "{{"):
            raise ValueError("plugin needs a name, and one that is not an argument")
        if any("{{" in _PLACEHOLDER.sub("", text) for text in self._texts()):
            raise ValueError("a placeholder is {{args.NAME}}, with a name in lower case")
        return self

    @property
    def placeholders(self) -> frozenset[str]:
        return frozenset(name for text in self._texts() for name in _PLACEHOLDER.findall(text))

    @property
    def counts_samples(self) -> bool:
        """Whether its readings can say how many samples are behind them."""
        return self.service is not None or self.sql is not None or self.plugin is not None

    def filled(self, args: Mapping[str, float | str]) -> Provider:
        """With its placeholders replaced, once: what stands in an argument is never looked at again."""
        if not self.placeholders:
            return self
        given = self.model_dump(exclude_none=True)
        return self.model_copy(update={kind: _filled(texts, args) for kind, texts in given.items()})

    def _texts(self) -> tuple[str, ...]:
        return tuple(text for kind in KINDS[1:] for text in (getattr(self, kind) or {}).values())


def _filled(texts: Mapping[str, str], args: Mapping[str, float | str]) -> dict[str, str]:
    def written(match: re.Match[str]) -> str:
        value = args[match[1]]
        return value if isinstance(value, str) else f"{value:.15g}"

    return {key: _PLACEHOLDER.sub(written, text) for key, text in texts.items()}


class Judge(Part):
    """How a reading becomes a verdict (delivery/judges.py). Conditions are for `threshold`, the rest for the others."""

    kind: JudgeKind = "threshold"
    direction: Literal["increase", "decrease"] = "increase"  # which change of the challenger is bad
    allowed: float = Field(
        default=0.0, ge=0, description="mann_whitney, conf_seq: tolerated change, share of champion's"
    )
    alpha: float = Field(default=0.01, ge=1e-9, lt=0.5, description="how often a healthy challenger may be condemned")
    beta: float = Field(default=0.05, gt=0, lt=0.5, description="sprt: how often an unhealthy one may pass")
    healthy: Ratio = Field(default=0.01, description="sprt: the ratio that is fine")
    unhealthy: Ratio = Field(default=0.05, description="sprt: the ratio that is not")
    batch: int = Field(
        default=20, ge=1, description="mann_whitney, conf_seq: samples per batch mean, against autocorrelation"
    )

    @model_validator(mode="after")
    def _two_hypotheses(self) -> Self:
        if self.kind == "sprt" and not 0 < self.healthy < self.unhealthy < 1:
            raise ValueError(f"sprt needs 0 < healthy < unhealthy < 1, not {self.healthy:g} and {self.unhealthy:g}")
        return self


class Metric(Part):
    name: Name
    provider: Provider
    judge: Judge = Judge()
    interval: Duration = Field(default=10.0, gt=0)
    initial_delay: Duration = 0.0
    count: int = Field(default=1, ge=0, description="measurements; 0: until the analysis ends")
    success_condition: str | None = None
    failure_condition: str | None = None
    failure_limit: int = Field(default=0, ge=-1, description="failed measurements that are tolerated; -1: any number")
    inconclusive_limit: int = Field(default=0, ge=-1)
    consecutive_error_limit: int = Field(default=4, ge=0)
    consecutive_success_limit: int = Field(default=0, ge=0, description="so many in a row end it early; 0: never")
    dry_run: bool = Field(default=False, description="measured and shown, never judged: an alert level")
    critical: bool = Field(default=True, description="inconclusive past its limit aborts while weight > 0")
    on_no_data: Literal["inconclusive", "fail"] = "inconclusive"
    min_samples: int = Field(default=0, ge=0, description="fewer are no data")

    @model_validator(mode="after")
    def _can_be_judged(self) -> Self:
        kind, conditions = self.judge.kind, self.conditions
        if kind == "threshold" and not conditions:
            raise ValueError("threshold needs a successCondition, a failureCondition or both")
        if kind != "threshold" and conditions:
            raise ValueError(f"{kind} takes no conditions; delete them, or judge by threshold")
        _require_usable(self.provider, kind)
        if self.min_samples and not self.provider.counts_samples:
            raise ValueError("minSamples needs a provider that counts samples: service, sql or plugin")
        for text in conditions:
            _require_compiles(text)
        if self.count and self.consecutive_success_limit > self.count:
            raise ValueError(f"consecutiveSuccessLimit {self.consecutive_success_limit} is above count {self.count}")
        return self

    @property
    def conditions(self) -> tuple[str, ...]:
        return tuple(text for text in (self.success_condition, self.failure_condition) if text is not None)

    @property
    def numbers(self) -> frozenset[str]:
        """Arguments its conditions compare with."""
        return frozenset().union(*(compile_condition(text).args for text in self.conditions))


def _require_usable(provider: Provider, kind: JudgeKind) -> None:
    usable = _VALUE if provider.service is None else SERVICE_READINGS[provider.service]
    if kind not in usable:
        able = [name for name, kinds in SERVICE_READINGS.items() if kind in kinds]
        raise ValueError(
            f"{kind} cannot judge what this provider reads: judge it by {' or '.join(sorted(usable))}, or read "
            f"service: {' or '.join(able)}"
        )


def _require_compiles(condition: str) -> None:
    try:
        compile_condition(condition)
    except ConfigError as error:
        raise ValueError(str(error)) from None  # what pydantic collects, with its place


class Template(Part):
    args: dict[Name, float | str | None] = Field(default_factory=dict, description="defaults; null: must be given")
    metrics: tuple[Metric, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _args_exist(self) -> Self:
        for metric in self.metrics:
            for name in sorted((metric.numbers | metric.provider.placeholders) - set(self.args)):
                raise ValueError(f"{metric.name}: args has no '{name}'; give it a default there, or null")
        return self


class TemplateRef(Part):
    name: Name
    args: Args = Field(default_factory=dict)

    def arguments(self, template: Template) -> dict[str, float | str]:
        """Those given, else the defaults; what has neither is not there."""
        return {name: value for name, value in (template.args | self.args).items() if value is not None}


class Analysis(Part):
    templates: tuple[TemplateRef, ...] = Field(min_length=1)


class BackgroundAnalysis(Analysis):
    starting_step: int = Field(default=0, ge=0, description="stage from which it runs, through to the promotion")
