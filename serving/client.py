"""The client of the service, sync and async: typed answers, retries only where they are safe, and the fall to HOLD.

Sent again is what cannot have happened: anything that only reads; a decision that never left, or that the service
refused for load (503, 429), as long as its time allows. Never a command. Whoever calls `decide` gets a decision: the
service's, or HOLD, 1.0, which says so (`role: safe`, `halt_reason: service_unavailable: ...`). A request that is
refused because it is wrong (another 4xx) still raises: a mistake must not look like a quiet market.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import structlog

from core.actions import SAFE_DECISION, Action
from serving import calls
from serving.calls import Answer, Call, ServiceError
from serving.question import Question
from serving.schemas import BatchItem, DecisionResponse
from serving.schemas_rollout import RolloutResponse

ATTEMPTS = 3
PAUSE_S = 0.1  # before the second attempt, and as much more before each later one
CONNECT_S = 1.0
NO_EPOCH = -1  # of a decision that no service made: older than every epoch
UNSENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)

log = structlog.get_logger()


class Holds:
    """How often HOLD stood in for a decision, by kind of failure. Each kind is logged once."""

    def __init__(self) -> None:
        self.count: Counter[str] = Counter()
        self._lock = threading.Lock()

    def instead(self, question: Question, error: ServiceError) -> DecisionResponse:
        """HOLD in the shape of a decision, or the error if the request is at fault."""
        if error.refused:
            raise error
        with self._lock:
            self.count[error.code] += 1
            first = self.count[error.code] == 1
        if first:
            log.warning("held_without_answer", kind=error.code, symbol=question.symbol, error=str(error))
        return hold(question, error.code)


class ServiceClient:
    """Synchronous; keeps connections alive; safe to share between threads. A context manager."""

    def __init__(self, base_url: str, key: str | Path) -> None:
        """`key`: an API key, or a file that holds one."""
        self._base_url, self._headers = base_url, _credentials(key)
        self._http = self._connections()
        self.holds = Holds()

    def call(self, call: Call[Answer]) -> Answer:
        """Raises ServiceError: refused, or no answer."""
        return self._attempts(self._http, call)

    def decide(self, question: Question) -> DecisionResponse:
        """The service's decision, or HOLD where there is none in time. ServiceError only for a wrong request."""
        try:
            return answered(question, self.call(calls.decision(question)))
        except ServiceError as error:
            return self.holds.instead(question, error)

    def decide_all(self, questions: Sequence[Question]) -> list[DecisionResponse | ServiceError]:
        """Of each question what `decide` gives, or the error that it raises: one takes none with it. At most 256."""
        try:
            return each(questions, self.call(calls.decisions(questions)).results, self.holds)
        except ServiceError as error:
            return [self.holds.instead(question, error) for question in questions]

    def abort(self, reason: str, actor: str | None = None) -> RolloutResponse:
        """Take all traffic from the challenger, over a connection of its own: nothing that hangs can be in its way."""
        with self._connections() as own:
            return self._attempts(own, calls.command("abort", reason=reason, actor=actor))

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._base_url!r})"

    def _connections(self) -> httpx.Client:
        return httpx.Client(base_url=self._base_url, headers=self._headers, trust_env=False)

    def _attempts(self, http: httpx.Client, call: Call[Answer]) -> Answer:
        until = time.perf_counter() + call.total_s
        for attempt in range(1, ATTEMPTS):
            try:
                return self._once(http, call, until)
            except ServiceError as error:
                time.sleep(_pause_s(call, error, attempt, until))
        return self._once(http, call, until)

    def _once(self, http: httpx.Client, call: Call[Answer], until: float) -> Answer:
        with _failures(call), http.stream(**_request(call, until)) as response:
            return _read(call, response, b"".join(_in_time(response.iter_bytes(), until)))


class AsyncServiceClient:
    """The same for asyncio."""

    def __init__(self, base_url: str, key: str | Path) -> None:
        self._base_url, self._headers = base_url, _credentials(key)
        self._http = self._connections()
        self.holds = Holds()

    async def call(self, call: Call[Answer]) -> Answer:
        """Raises ServiceError: refused, or no answer."""
        return await self._attempts(self._http, call)

    async def decide(self, question: Question) -> DecisionResponse:
        """The service's decision, or HOLD where there is none in time. ServiceError only for a wrong request."""
        try:
            return answered(question, await self.call(calls.decision(question)))
        except ServiceError as error:
            return self.holds.instead(question, error)

    async def decide_all(self, questions: Sequence[Question]) -> list[DecisionResponse | ServiceError]:
        """Of each question what `decide` gives, or the error that it raises: one takes none with it. At most 256."""
        try:
            return each(questions, (await self.call(calls.decisions(questions))).results, self.holds)
        except ServiceError as error:
            return [self.holds.instead(question, error) for question in questions]

    async def abort(self, reason: str, actor: str | None = None) -> RolloutResponse:
        """Take all traffic from the challenger, over a connection of its own: nothing that hangs can be in its way."""
        async with self._connections() as own:
            return await self._attempts(own, calls.command("abort", reason=reason, actor=actor))

    async def close(self) -> None:
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._base_url!r})"

    def _connections(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=self._base_url, headers=self._headers, trust_env=False)

    async def _attempts(self, http: httpx.AsyncClient, call: Call[Answer]) -> Answer:
        until = time.perf_counter() + call.total_s
        for attempt in range(1, ATTEMPTS):
            try:
                return await self._once(http, call, until)
            except ServiceError as error:
                await asyncio.sleep(_pause_s(call, error, attempt, until))
        return await self._once(http, call, until)

    async def _once(self, http: httpx.AsyncClient, call: Call[Answer], until: float) -> Answer:
        with _failures(call):
            async with asyncio.timeout(_left_s(until)):
                response = await http.request(**_request(call, until))
            return _read(call, response, response.content)


def hold(question: Question, kind: str) -> DecisionResponse:
    """HOLD, 1.0 (seed 2.4.1): what is done when the service does not answer."""
    action, quantity = SAFE_DECISION
    return DecisionResponse(
        request_id=question.request_id,
        symbol=question.symbol,
        action=int(action),
        action_name=action.name,
        quantity=quantity,
        probabilities=[float(other is action) for other in Action],
        value=0.0,
        segments=0,
        halt_reason=f"service_unavailable: {kind}",
        model="none",
        model_version="none",
        provider=None,
        role="safe",
        latency_ms=0.0,
        epoch=NO_EPOCH,
        fallback=True,
        account=question.acting or "champion",
        decision_id="",
        recorded=False,
        rung="hold",
        shadow=None,
        shadow_missing=None,
        shadow_latency_ms=None,
    )


def answered(question: Question, answer: DecisionResponse) -> DecisionResponse:
    """Raises ServiceError for the answer to another question."""
    if (answer.request_id, answer.symbol) != (question.request_id, question.symbol):
        detail = f"asked {question.request_id} about {question.symbol}, told {answer.request_id} about {answer.symbol}"
        raise ServiceError(calls.OK, "answer_to_another", detail, retryable=False)
    return answer


def each(
    questions: Sequence[Question], items: Sequence[BatchItem], holds: Holds
) -> list[DecisionResponse | ServiceError]:
    """What became of every question of a batch."""
    if len(items) != len(questions):
        detail = f"{len(questions)} questions got {len(items)} answers"
        raise ServiceError(calls.OK, "answer_invalid", detail, retryable=False)
    return [_result(question, item, holds) for question, item in zip(questions, items, strict=True)]


def _result(question: Question, item: BatchItem, holds: Holds) -> DecisionResponse | ServiceError:
    try:
        if item.decision is not None:
            return answered(question, item.decision)
        raise _refused(item)
    except ServiceError as error:
        return error if error.refused else holds.instead(question, error)


def _refused(item: BatchItem) -> ServiceError:
    problem = item.problem
    if problem is None:
        return ServiceError(calls.OK, "answer_invalid", "neither a decision nor a problem", retryable=False)
    return ServiceError(problem.status, problem.code, problem.detail, retryable=bool(problem.retryable))


def _credentials(key: str | Path) -> dict[str, str]:
    """Read once; httpx keeps the header out of its own repr."""
    text = key.read_text(encoding="utf-8") if isinstance(key, Path) else key
    return {"Authorization": f"Bearer {text.strip()}"}


def _pause_s(call: Call[Any], error: ServiceError, attempt: int, until: float) -> float:
    """How long to wait before the same request is sent again. Raises the error where it must not be, or not in time."""
    safe = call.repeatable or (call.decides and error.unsent)
    pause_s = max(error.retry_after_s, PAUSE_S * attempt)
    if not (safe and error.retryable) or time.perf_counter() + pause_s >= until:
        raise error
    return pause_s


@contextmanager
def _failures(call: Call[Any]) -> Iterator[None]:
    """What httpx raises, as a ServiceError."""
    try:
        yield
    except (httpx.HTTPError, TimeoutError) as error:
        kind = type(error).__name__
        detail = f"{call.method} {call.path}: no answer ({kind}: {error}); is the service running?"
        raise ServiceError(0, kind, detail, retryable=True, unsent=isinstance(error, UNSENT)) from None


def _request(call: Call[Any], until: float) -> dict[str, Any]:
    left_s = _left_s(until)
    return {
        "method": call.method,
        "url": call.path,
        "content": call.body,
        "params": call.params,
        "headers": {"Content-Type": call.media_type} | ({"If-Match": call.if_match} if call.if_match else {}),
        "timeout": httpx.Timeout(left_s, connect=min(CONNECT_S, left_s)),
    }


def _left_s(until: float) -> float:
    return max(until - time.perf_counter(), 0.001)


def _in_time(chunks: Iterator[bytes], until: float) -> Iterator[bytes]:
    """An answer that comes byte by byte does not get around the time limit."""
    for chunk in chunks:
        if time.perf_counter() > until:
            raise httpx.ReadTimeout("the answer did not end in time")
        yield chunk


def _read(call: Call[Answer], response: httpx.Response, content: bytes) -> Answer:
    return call.read(response.status_code, content, response.headers.get("retry-after"))
