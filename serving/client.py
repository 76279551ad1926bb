"""A small typed client of the service, sync and async, and the fall to HOLD.

Only GETs are retried: a decision or a command that timed out may have happened. What cannot be decided in time is
HOLD, 1.0, and says so (`fallback`, `halt_reason`).
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import httpx

from core.actions import SAFE_DECISION
from core.errors import HrmSystemError

GET_ATTEMPTS = 3
RETRY_S = 0.1
DECISION_TIMEOUT_S = 2.0  # the service answers within its own limits; this is for a service that is gone
COMMAND_TIMEOUT_S = 60.0  # a start loads and warms a model
SERVER_ERROR = 500

RolloutCommand = Literal["promote", "pause", "resume", "abort", "rollback"]


class ServiceError(HrmSystemError):
    """The service refused; `status` is HTTP's, `code` the problem's, `retryable` the service's opinion."""

    def __init__(self, status: int, code: str, detail: str, *, retryable: bool = False) -> None:
        super().__init__(detail, code=code, retryable=retryable)
        self.status = status


@dataclass(frozen=True)
class Call:
    """One request: built once, sent by either client."""

    method: Literal["GET", "POST"]
    path: str
    timeout_s: float
    body: dict[str, Any] | None = None
    params: dict[str, int] | None = None
    accept: tuple[int, ...] = (200,)


def decision(
    symbol: str,
    bars: Sequence[Sequence[float]],
    complexity: float,
    accounts: Mapping[str, Mapping[str, Any]],
    *,
    request_id: str | None = None,
) -> Call:
    """accounts: `champion` and optionally `challenger`, each {features: [A], position: -1 | 0 | 1}."""
    body = {
        "symbol": symbol,
        "bars": bars,
        "complexity": complexity,
        "accounts": accounts,
        "request_id": request_id or uuid.uuid4().hex,
    }
    return Call("POST", "/v1/decisions", DECISION_TIMEOUT_S, body)


def outcome(symbol: str, *, champion_bps: float, challenger_bps: float) -> Call:
    body = {"symbol": symbol, "champion_bps": champion_bps, "challenger_bps": challenger_bps}
    return Call("POST", "/v1/outcomes", DECISION_TIMEOUT_S, body)


def start(champion: str, challenger: str, *, reason: str = "", actor: str = "api") -> Call:
    body = {"champion": champion, "challenger": challenger, "reason": reason, "actor": actor}
    return Call("POST", "/v1/rollout/start", COMMAND_TIMEOUT_S, body)


def command(name: RolloutCommand, *, reason: str = "", actor: str = "api", version: int | None = None) -> Call:
    body: dict[str, Any] = {"reason": reason, "actor": actor, "version": version}
    return Call("POST", f"/v1/rollout/{name}", COMMAND_TIMEOUT_S, body)


def rollout() -> Call:
    return Call("GET", "/v1/rollout", DECISION_TIMEOUT_S)


def events(after: int = 0) -> Call:
    return Call("GET", "/v1/rollout/events", DECISION_TIMEOUT_S, params={"after": after})


def models() -> Call:
    return Call("GET", "/v1/models", DECISION_TIMEOUT_S)


def health() -> Call:
    """503 is an answer too: an unhealthy service describes itself."""
    return Call("GET", "/health", DECISION_TIMEOUT_S, accept=(200, 503))


class ServiceClient:
    """Synchronous. Use as a context manager; keeps connections alive; safe to share between threads."""

    def __init__(self, base_url: str, token: str) -> None:
        self._http = httpx.Client(base_url=base_url, headers=_headers(token), trust_env=False)

    def call(self, call: Call) -> dict[str, Any]:
        """Raises ServiceError when the service refuses, httpx.TransportError when it cannot be reached."""
        for attempt in range(1, _attempts(call) + 1):
            try:
                return _answer(call, self._http.request(**_arguments(call)))
            except httpx.TransportError:
                if attempt == _attempts(call):
                    raise
                time.sleep(RETRY_S * attempt)
        raise AssertionError("unreachable: the last attempt returns or raises")

    def decide(self, call: Call) -> dict[str, Any]:
        """The service's decision, or HOLD when there is none in time. A refused request (4xx) still raises."""
        try:
            return self.call(call)
        except (httpx.TransportError, ServiceError) as error:
            return _hold_unless_refused(call, error)

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncServiceClient:
    """The same for asyncio."""

    def __init__(self, base_url: str, token: str) -> None:
        self._http = httpx.AsyncClient(base_url=base_url, headers=_headers(token), trust_env=False)

    async def call(self, call: Call) -> dict[str, Any]:
        """Raises ServiceError when the service refuses, httpx.TransportError when it cannot be reached."""
        for attempt in range(1, _attempts(call) + 1):
            try:
                return _answer(call, await self._http.request(**_arguments(call)))
            except httpx.TransportError:
                if attempt == _attempts(call):
                    raise
                await asyncio.sleep(RETRY_S * attempt)
        raise AssertionError("unreachable: the last attempt returns or raises")

    async def decide(self, call: Call) -> dict[str, Any]:
        """The service's decision, or HOLD when there is none in time. A refused request (4xx) still raises."""
        try:
            return await self.call(call)
        except (httpx.TransportError, ServiceError) as error:
            return _hold_unless_refused(call, error)

    async def close(self) -> None:
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


def local_client(state_dir: Path, host: str, port: int) -> ServiceClient:
    """A client of this machine's service, with the token of its state directory."""
    token = (state_dir / "api_token").read_text(encoding="utf-8").strip()
    return ServiceClient(f"http://{host}:{port}", token)


def _headers(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def _attempts(call: Call) -> int:
    return GET_ATTEMPTS if call.method == "GET" else 1


def _arguments(call: Call) -> dict[str, Any]:
    return {
        "method": call.method,
        "url": call.path,
        "json": call.body,
        "params": call.params,
        "timeout": call.timeout_s,
    }


def _answer(call: Call, response: httpx.Response) -> dict[str, Any]:
    try:
        document: dict[str, Any] = response.json()
    except ValueError:
        raise ServiceError(response.status_code, "not_json", f"{call.path}: {response.text[:200]}") from None
    if response.status_code in call.accept:
        return document
    raise ServiceError(
        response.status_code,
        str(document.get("code", "unknown")),
        f"{call.method} {call.path}: {document.get('detail', response.reason_phrase)}",
        retryable=bool(document.get("retryable", False)),
    )


def _hold_unless_refused(call: Call, error: httpx.TransportError | ServiceError) -> dict[str, Any]:
    """HOLD in the shape of a decision. A 4xx is the caller's mistake and must not look like a quiet market."""
    if isinstance(error, ServiceError) and error.status < SERVER_ERROR:
        raise error
    body = call.body or {}
    action, quantity = SAFE_DECISION
    return {
        "request_id": body.get("request_id"),
        "symbol": body.get("symbol"),
        "action": int(action),
        "action_name": action.name,
        "quantity": quantity,
        "probabilities": [0.0, 0.0, 0.0, 0.0, 1.0],
        "value": 0.0,
        "segments": 0,
        "halt_reason": f"service_unavailable: {type(error).__name__}",
        "model": "none",
        "model_version": "none",
        "provider": None,
        "role": "safe",
        "latency_ms": None,
        "epoch": None,
        "fallback": True,
        "decision_id": None,
        "recorded": False,
        "rung": None,
        "shadow": None,
        "shadow_missing": None,
        "shadow_latency_ms": None,
    }
