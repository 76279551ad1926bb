"""One decision: route, run, fall back, answer. No decision is ever lost.

    routed model ──fails, too slow, or rolled back meanwhile──> stable model ──fails──> HOLD, 1.0

The stable model of a fall-back decides on the account of the arm that was routed: that is the position at stake.
A decision is made and given out under one epoch. If who decides changes in between it is made anew, on that account.
The other arm runs at the same time, on its own threads; the answer waits for it no longer than the inference time
limit.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any, Literal

import structlog

from core.actions import SAFE_DECISION, Action
from core.errors import ModelError
from serving import tracing
from serving.batcher import Batcher, Observation, Run
from serving.question import Account, Question
from serving.routing import Role, route
from serving.schemas import Decision, DecisionResponse
from serving.service import Live, Service

log = structlog.get_logger()

Facts = dict[str, Any]  # fields of a Decision

SHED = frozenset({"overloaded", "shutting_down"})  # 503: late would be worse than not at all
SHADOW_QUEUE = 32  # waiting shadow runs beyond which new ones are skipped: they only help while they are fresh


@dataclass(frozen=True)
class _Try:
    """A model that may answer, and in which role."""

    model: Batcher
    role: Role

    @property
    def id(self) -> str:
        return self.model.engine.id


@dataclass(frozen=True)
class _Answer:
    """Who answered, under which epoch; the last run tried has no decisions when no model could."""

    epoch: int
    role: Role
    run: Run

    @property
    def made(self) -> bool:
        return self.run.decisions is not None


async def decide(service: Service, question: Question) -> DecisionResponse:
    """Raises ModelError `not_ready` without a champion, `overloaded` where the answer would come too late, and
    DataError on shapes that are not the model's.
    """
    started = time.perf_counter()
    live = service.live
    routed, other = _arms(service, live, question.symbol)
    question.require(routed.model.engine.manifest.market, routed.id)
    facts: Facts = {"request_id": question.request_id, "symbol": question.symbol}
    failed_too: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
    shadow = _start_shadow(service, other, question, failed_too)
    try:
        answer = await _answer(service, live, routed.role, question, failed_too)
    finally:
        if not failed_too.done():  # the request broke off: nothing excuses a failure of the shadow
            failed_too.set_result(False)
    shadow_run = await _await_shadow(service, shadow, started)
    while service.live.state.epoch != answer.epoch:  # at most once per change, and changes are rare
        answer = await _answer(service, service.live, routed.role, question)
    if answer.run.error_code in SHED:
        raise ModelError(str(answer.run.error), code=answer.run.error_code, retryable=True)
    waited_ms = (time.perf_counter() - started) * 1e3
    shadowed = _shadow_decision(other, shadow_run, facts | {"fallback": False, "epoch": live.state.epoch})
    facts |= {
        "latency_ms": waited_ms,
        "epoch": answer.epoch,
        "fallback": not answer.made or answer.run.model_id != routed.id,
    }
    decision = _decision(answer.run, answer.role, facts) if answer.made else _safe(facts)
    _record(service, decision, shadowed, tracing.decided(decision, answer.run))
    return DecisionResponse(
        **decision.model_dump(),
        shadow=shadowed,
        shadow_missing=_why_missing(shadow_run) if other is not None and shadowed is None else None,
        shadow_latency_ms=_shadow_ms(shadow_run, waited_ms) if other is not None else None,
    )


def _arms(service: Service, live: Live, symbol: str) -> tuple[_Try, _Try | None]:
    """The routed arm and, while there is a challenger, the other one."""
    champion, challenger = live.champion, live.model(live.state.challenger)
    if champion is None:
        raise ModelError("no champion is loaded; start the service with one, or a rollout", code="not_ready")
    stable = _Try(champion, "champion")
    if challenger is None:
        return stable, None
    candidate = _Try(challenger, "challenger")
    weight = 0 if service.blind else live.state.weight
    if route(symbol, weight, service.settings.rollout.salt) == "challenger":
        return candidate, stable
    return stable, candidate


def _stable(live: Live, routed: _Try) -> _Try | None:
    """Who answers when the routed model does not: the champion, or after a promotion the one before it."""
    if routed.role == "challenger":
        return _Try(live.champion, "champion") if live.champion else None
    fallback = live.model(live.state.fallback)
    return _Try(fallback, "champion") if fallback not in (None, routed.model) else None


async def _answer(
    service: Service,
    live: Live,
    at_stake: Role,
    question: Question,
    failed_too: asyncio.Future[bool] | None = None,
) -> _Answer:
    """The answer of whoever decides under `live`, on the account of the arm `at_stake`. Tells `failed_too` at once.

    The epoch is that of `live`: if who decides changes while a model thinks, the caller sees it and asks again.
    """
    routed, _ = _arms(service, live, question.symbol)
    account = question.account(at_stake)
    tried: list[tuple[_Try, Run]] = []
    for attempt in (routed, _stable(live, routed)):
        if attempt is None:
            continue
        run = await _run(service, attempt, account, question, attempt.role)
        tried.append((attempt, run))
        if failed_too is not None and not failed_too.done():
            failed_too.set_result(run.failed)
        if run.decisions is not None or service.live.state.epoch != live.state.epoch:
            break
    shared = len(tried) > 1 and all(run.failed for _, run in tried)
    for attempt, run in tried:
        _show_guard(service, attempt, run, excused=shared)
    attempt, run = tried[-1]
    return _Answer(live.state.epoch, attempt.role, run)


async def _run(service: Service, attempt: _Try, account: Account, question: Question, label: str) -> Run:
    row = Observation(question.bars, account.features, question.complexity, account.position)
    run = await attempt.model.run(row, question.deadline)
    service.telemetry.ran(run, label)
    if run.error is not None:
        log.warning("run_without_answer", model=run.model_id, code=run.error_code, error=run.error)
    return run


def _show_guard(service: Service, attempt: _Try, run: Run, *, excused: bool) -> None:
    """Let the guard see a run; a verdict takes effect before this returns.

    A failure that both arms share on one request is `excused`: it tells of the input, not of one of the models.
    """
    state = service.live.state
    if excused or run.cached or run.model_id != (state.champion if attempt.role == "champion" else state.challenger):
        return
    depth = int(run.decisions.segments[0]) if run.decisions is not None else 0
    service.guard.observe(attempt.role, run.latency_ms, failed=run.failed, segments=depth)
    service.judge()


def _start_shadow(
    service: Service, other: _Try | None, question: Question, failed_too: asyncio.Future[bool]
) -> asyncio.Task[Run] | None:
    if other is None:
        return None
    if other.model.waiting >= SHADOW_QUEUE:
        service.telemetry.shadow_missed.inc()
        return None
    return service.spawn(_shadow(service, other, question, failed_too))


async def _shadow(service: Service, other: _Try, question: Question, failed_too: asyncio.Future[bool]) -> Run:
    run = await _run(service, other, question.account(other.role), question, "shadow")
    _show_guard(service, other, run, excused=run.failed and await failed_too)
    return run


async def _await_shadow(service: Service, shadow: asyncio.Task[Run] | None, started: float) -> Run | None:
    """The shadow's run if it is done in time; a late one is still counted when it ends."""
    if shadow is None:
        return None
    limit_s = service.settings.performance.inference_timeout_ms / 1e3
    left_s = max(0.0, limit_s - (time.perf_counter() - started))
    done, _ = await asyncio.wait({shadow}, timeout=left_s)
    if not done:
        service.telemetry.shadow_missed.inc()
        return None
    return shadow.result()


def _why_missing(shadow_run: Run | None) -> Literal["late", "failed"]:
    return "failed" if shadow_run is not None and shadow_run.failed else "late"


def _shadow_ms(shadow_run: Run | None, waited_ms: float) -> float:
    """The model's own time; of a late one the time it has had, so that percentiles are not cut off."""
    return waited_ms if shadow_run is None else shadow_run.latency_ms


def _shadow_decision(other: _Try | None, shadow_run: Run | None, facts: Facts) -> Decision | None:
    if other is None or shadow_run is None or shadow_run.decisions is None:
        return None
    return _decision(shadow_run, other.role, facts | {"latency_ms": shadow_run.latency_ms})


def _decision(run: Run, role: Role, facts: Facts) -> Decision:
    assert run.decisions is not None  # noqa: S101 - callers checked; for the type checker
    made = run.decisions
    name, version = run.model_id.split("/")
    action = Action(int(made.action[0]))
    answer: Facts = {
        "action": int(action),
        "action_name": action.name,
        "quantity": float(made.quantity[0]),
        "probabilities": made.probabilities[0].tolist(),
        "value": float(made.value[0]),
        "segments": int(made.segments[0]),
        "halt_reason": made.halt_reason[0],
        "model": name,
        "model_version": version,
        "provider": run.provider,
        "role": role,
    }
    return Decision.model_validate(answer | facts)


def _safe(facts: Facts) -> Decision:
    """HOLD, 1.0: what is answered when no model could (seed 2.4.1). It names no model, because none decided."""
    action, quantity = SAFE_DECISION
    answer: Facts = {
        "action": int(action),
        "action_name": action.name,
        "quantity": quantity,
        "probabilities": [float(other is action) for other in Action],
        "value": 0.0,
        "segments": 0,
        "halt_reason": "no_model_answered",
        "model": "none",
        "model_version": "none",
        "provider": None,
        "role": "safe",
    }
    return Decision.model_validate(answer | facts)


def _record(service: Service, answer: Decision, shadow: Decision | None, trace_id: str | None) -> None:
    model_id = f"{answer.model}/{answer.model_version}"
    service.telemetry.answered(model_id, answer.role, fallback=answer.fallback)
    if shadow is not None and shadow.action != answer.action:
        service.telemetry.disagreements.inc()
    log.info(
        "decision",
        request_id=answer.request_id,
        symbol=answer.symbol,
        model=model_id,
        role=answer.role,
        action=answer.action_name,
        quantity=answer.quantity,
        segments=answer.segments,
        halt_reason=answer.halt_reason,
        latency_ms=round(answer.latency_ms, 3),
        epoch=answer.epoch,
        fallback=answer.fallback,
        shadow_action=shadow.action_name if shadow else None,
        **({"trace_id": trace_id} if trace_id else {}),
    )
