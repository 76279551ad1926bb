"""The inference service, asked with the caller's own credentials: it judges their scopes, its log names them."""

from __future__ import annotations

import time

import httpx
from fastapi import Request

from serving import calls
from serving.calls import Answer, Call, ServiceError
from serving.client import AsyncServiceClient
from serving.schemas import HealthResponse

READ_WITHIN_S = 2.0
HEALTH_FRESH_S = 15.0  # the service runs its models to answer that


class ServiceReader:
    """Reads over connections that are kept; a page asks every few seconds."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._http: httpx.AsyncClient | None = None
        self._health: tuple[float, HealthResponse] | None = None

    async def read(self, call: Call[Answer], request: Request) -> Answer:
        """Raises ServiceError."""
        if self._http is None:
            self._http = httpx.AsyncClient(base_url=self._url, trust_env=False, timeout=READ_WITHIN_S)
        headers = {"Authorization": request.headers["authorization"]}
        try:
            response = await self._http.request(call.method, call.path, params=call.params, headers=headers)
        except httpx.HTTPError as error:
            kind = type(error).__name__
            detail = f"no answer at {self._url} ({kind}); is `hrm serve` running?"
            raise ServiceError(0, kind, detail, retryable=True) from None
        return call.read(response.status_code, response.content, response.headers.get("retry-after"))

    async def health(self, request: Request) -> HealthResponse:
        """At most `HEALTH_FRESH_S` old. Raises ServiceError."""
        if self._health is None or time.monotonic() - self._health[0] > HEALTH_FRESH_S:
            self._health = time.monotonic(), await self.read(calls.health(), request)
        return self._health[1]


async def command(url: str, call: Call[Answer], request: Request) -> Answer:
    """Once, over a connection of its own: nothing that hangs can be in its way. Raises ServiceError."""
    key = request.headers["authorization"].partition(" ")[2]
    async with AsyncServiceClient(url, key) as client:
        return await client.call(call)
