"""Readings from elsewhere: Prometheus, JSON, one row of a database (delivery/database.py), the desk's own code.

    prometheus: {address, query}   GET <address>/api/v1/query: a scalar, or a vector of one sample, or of none: no data.
                                   How many observations are behind it the query must say: `x and on() n > 100`
    http: {url, key}               names with dots (`arms.0.error_ratio`; numbers count in lists); null or none: no data
    sql: {url_env, query}          one SELECT: no row, or one row of value[, samples]
    plugin: {name, ...}            a function of an installed package (delivery/plugins.py)

What is not finite is no data. No answer, or something else than an answer, is DataError `provider_failed`, which shows
the query as it was sent: an error of measuring, never the challenger's fault.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, Literal, Protocol
from urllib.parse import urlencode

from pydantic import BaseModel, Field, ValidationError

from core.errors import DataError
from delivery.analysis import resolved
from delivery.aside import Aside
from delivery.database import database_url, first_rows
from delivery.judges import Reading
from delivery.metrics import Metric
from delivery.outbound import Outbound
from delivery.plan import Plan
from delivery.plugins import called, installed

WITHIN_S = 5.0


class Source(Protocol):
    async def read(self, metric: Metric) -> Reading:
        """What the metric's provider, its placeholders filled, says now. Raises DataError (`provider_failed`)."""
        ...


class External:
    """The source of every metric whose provider is not the service itself."""

    def __init__(self, outbound: Outbound, environ: Mapping[str, str], *, within_s: float = WITHIN_S) -> None:
        self._outbound = outbound
        self._environ = environ
        self._within_s = within_s
        self._databases = Aside("databases of metrics")
        self._plugins = Aside("plugins of metrics")

    def require_usable(self, plan: Plan) -> None:
        """What can be known of a plan's metrics before it starts: hosts and variables. Raises DataError."""
        analyses = [step.analysis for step in plan.steps]
        analyses += [plan.background_analysis, plan.pre_promotion_analysis, plan.post_promotion_analysis]
        for analysis in filter(None, analyses):
            for metric, _ in resolved(plan, analysis):
                self._require_reachable(metric)

    async def read(self, metric: Metric) -> Reading:
        provider = metric.provider
        asked = provider.prometheus or provider.http or provider.sql or provider.plugin or {}
        try:
            if provider.prometheus is not None:
                return prometheus_reading(await self._get(_instant_query(asked, self._within_s)))
            if provider.http is not None:
                return json_reading(await self._get(asked["url"]), asked["key"])
            if provider.sql is not None:
                return await self._sql(asked)
            if provider.plugin is not None:
                return await self._plugin(asked)
            raise DataError("it is the service's own; ask the service")
        except DataError as error:
            question = ", ".join(f"{key} {text!r}" for key, text in asked.items())
            raise DataError(f"{metric.name} ({question}): {error}", code="provider_failed", retryable=True) from None

    def _require_reachable(self, metric: Metric) -> None:
        provider = metric.provider
        try:
            if provider.prometheus is not None:
                self._outbound.require_allowed(provider.prometheus["address"])
            if provider.http is not None:
                self._outbound.require_allowed(provider.http["url"])
            if provider.sql is not None:
                database_url(provider.sql["url_env"], self._environ)
            if provider.plugin is not None:
                installed(provider.plugin["name"])
        except DataError as error:
            raise DataError(f"{metric.name}: {error}", code="provider_failed") from None

    async def _get(self, url: str) -> bytes:
        return await self._outbound.get(url, timeout_s=self._within_s)

    async def _sql(self, asked: Mapping[str, str]) -> Reading:
        url = database_url(asked["url_env"], self._environ)
        return row_reading(await first_rows(url, asked["query"], self._databases, within_s=self._within_s))

    async def _plugin(self, asked: Mapping[str, str]) -> Reading:
        arguments = {key: text for key, text in asked.items() if key != "name"}
        return row_reading(await called(asked["name"], arguments, self._plugins, within_s=self._within_s))


class _Sample(BaseModel):
    value: tuple[float, str]


class _Vector(BaseModel):
    kind: Literal["vector"] = Field(alias="resultType")
    result: list[_Sample]


class _Scalar(BaseModel):
    kind: Literal["scalar"] = Field(alias="resultType")
    result: tuple[float, str]


class _Answer(BaseModel):
    status: Literal["success"]
    data: _Vector | _Scalar = Field(discriminator="kind")


def prometheus_reading(body: bytes) -> Reading:
    """Of the answer to an instant query. Raises DataError."""
    try:
        data = _Answer.model_validate_json(body).data
        values = [data.result[1]] if isinstance(data, _Scalar) else [sample.value[1] for sample in data.result]
        if len(values) > 1:
            raise DataError(f"{len(values)} samples where one is needed; aggregate them, for instance by max(...)")
        return _reading(float(values[0]) if values else None)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise DataError(f"not an answer of Prometheus with a scalar or a vector: {place}: {first['msg']}") from None
    except ValueError:
        raise DataError(f"Prometheus answered {values[0]!r}, which is no number") from None


def json_reading(body: bytes, key: str) -> Reading:
    """Of the number that `key` leads to. Raises DataError."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):  # RecursionError: of a thousand brackets
        raise DataError("the answer is not JSON") from None
    for name in key.split("."):
        if isinstance(found, list) and name.isdecimal():
            found = found[int(name)] if int(name) < len(found) else None
        else:
            found = found.get(name) if isinstance(found, dict) else None
    return _reading(_number(found, f"key '{key}'"))


def row_reading(rows: list[tuple[Any, ...]]) -> Reading:
    """Of no row, or of one row of a value and, perhaps, the number of samples behind it. Raises DataError."""
    if not rows:
        return Reading()
    if len(rows) > 1 or not 1 <= len(rows[0]) <= 2:
        raise DataError("one row of value, or of value and samples, is needed; aggregate")
    samples = _number(rows[0][1], "samples") if len(rows[0]) == 2 else None
    if samples is not None and not (math.isfinite(samples) and samples >= 0 and samples == int(samples)):
        raise DataError(f"samples is {samples:g}, which is no count")
    return _reading(_number(rows[0][0], "value"), samples=int(samples or 0))


def _instant_query(asked: Mapping[str, str], within_s: float) -> str:
    parameters = urlencode({"query": asked["query"], "timeout": f"{1000 * within_s:.0f}ms"})
    return f"{asked['address'].rstrip('/')}/api/v1/query?{parameters}"


def _reading(value: float | None, *, samples: int = 0) -> Reading:
    return Reading(value, samples) if value is not None and math.isfinite(value) else Reading()


def _number(found: Any, what: str) -> float | None:
    """None of null. Raises DataError for what is no number; a text that looks like one is none."""
    if found is None:
        return None
    if isinstance(found, bool | str | bytes):
        raise DataError(f"{what} is {type(found).__name__}, not a number")
    try:
        return float(found)
    except (TypeError, ValueError):
        raise DataError(f"{what} is {type(found).__name__}, not a number") from None
    except OverflowError:  # an integer of a thousand digits
        return math.inf
