"""One decision: route, run, fall back, record, answer. No decision is ever lost.

    routed model ──fails, too slow, or rolled back meanwhile──> stable model ──fails──> HOLD, 1.0

The stable model of a fall-back decides on the account of the arm that was routed: that is the position at stake.
A decision is made and given out under one epoch. If who decides changes in between it is made anew, on that account.
The other arm runs at the same time, on its own threads; the answer waits for it no longer than the inference time
limit. On the lower rungs of the ladder (serving/ladder.py) others are asked, and no shadow adds to the load.
"""

from __future__ import annotations

import asyncio
import math
import time
from dataclasses import dataclass
from typing import Literal

import structlog

from core.errors import ModelError
from delivery.handover import mode_for
from delivery.routing import Role
from serving import tracing
from serving.answers import Arm, Facts, by_model, by_rule, record
from serving.attempts import Attempt, arms, attempts, rungs
from serving.batcher import Observation, Run
from serving.ladder import Rung
from serving.live import Live
from serving.question import Question
from serving.reasoning import UNLIMITED
from serving.schemas import Decision, DecisionResponse, HandoverTerms
from serving.service import Service

log = structlog.get_logger()

SHED = frozenset({"overloaded", "shutting_down"})  # 503: late would be worse than not at all
SHADOW_QUEUE = 32  # waiting shadow runs beyond which new ones are skipped: they only help while they are fresh


@dataclass(frozen=True)
class _Asked:
    """On whose account a model is asked, on which rung, and what its run is counted as."""

    at_stake: Role
    rung: Rung
    label: str


@dataclass(frozen=True)
class _Answer:
    """Who was asked, under which epoch and on which rung; nobody where a rule decides."""

    epoch: int
    rung: Rung
    tried: tuple[tuple[Attempt, Run], ...]

    @property
    def run(self) -> Run | None:
        return self.tried[-1][1] if self.tried else None

    @property
    def by(self) -> Attempt | None:
        """The model that decided: the last that was asked, or none did."""
        return self.tried[-1][0] if self.run is not None and self.run.decisions is not None else None


@dataclass(frozen=True)
class _Outcome:
    """All there is to say of one question."""

    question: Question
    started: float  # perf_counter, s
    epoch: int  # when it came
    routed: Attempt
    other: Attempt | None
    answer: _Answer
    shadow: Run | None
    waited_ms: float


async def decide(service: Service, question: Question) -> DecisionResponse:
    """Raises ModelError `not_ready` without a champion, `overloaded` where the answer would come too late, and
    DataError on shapes that are not the model's.
    """
    outcome = await _ask(service, question)
    answer, other = outcome.answer, outcome.other
    _show_ladder(service, outcome)
    if answer.run is not None and answer.run.error_code in SHED:
        raise ModelError(str(answer.run.error), code=answer.run.error_code, retryable=True)
    decision, shadowed = _decision(outcome), _shadow_decision(outcome)
    trace_id = tracing.decided(decision, answer.run)
    handover = _handover(service, service.live, outcome)
    decision_id, recorded = await _put_on_record(
        service, outcome, (decision, shadowed), trace_id=trace_id, handover=handover
    )
    response = DecisionResponse.model_construct(  # of what is validated already
        **dict(decision),
        account=outcome.routed.role,
        decision_id=decision_id,
        recorded=recorded,
        rung=answer.rung.label,
        shadow=shadowed,
        promoted=other is not None and other.role == "challenger" and other.id == service.live.state.fallback,
        shadow_missing=_why_missing(answer.rung, outcome.shadow) if other is not None and shadowed is None else None,
        shadow_latency_ms=_shadow_ms(outcome) if other is not None and answer.rung is Rung.FULL else None,
        handover=handover,
    )
    _tell(service, response, trace_id)
    return response


async def _ask(service: Service, question: Question) -> _Outcome:
    started = time.perf_counter()
    live = service.live
    routed, other = arms(service, live, question)
    question.require(routed.model.engine.manifest.market, routed.id)
    available = _step(service)
    _start_probe(service, available, routed, question)
    failed_too: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
    shadow = _start_shadow(service, other, question, failed_too)
    try:
        answer = await _answer(service, question, routed.role, failed_too)
    finally:
        if not failed_too.done():  # the request broke off: nothing excuses a failure of the shadow
            failed_too.set_result(False)
    shadow_run = await _await_shadow(service, shadow, started)
    while service.live.state.epoch != answer.epoch:  # at most once per change, and changes are rare
        _step(service)
        answer = await _answer(service, question, routed.role)
    waited_ms = (time.perf_counter() - started) * 1e3
    return _Outcome(question, started, live.state.epoch, routed, other, answer, shadow_run, waited_ms)


def _step(service: Service) -> frozenset[Rung]:
    """Let the ladder take the step that is due; the rungs there are."""
    available = rungs(service.live)
    change = service.ladder.advance(available)
    if change is not None:
        service.telemetry.stepped(change)
        log.warning("ladder", before=change.before.label, after=change.after.label, reason=change.reason)
    return available


async def _answer(
    service: Service, question: Question, at_stake: Role, failed_too: asyncio.Future[bool] | None = None
) -> _Answer:
    """The answer of whoever decides now, on the account of the arm `at_stake`. Tells `failed_too` at once.

    The epoch is that of now: if who decides changes while a model thinks, the caller sees it and asks again.
    """
    live, rung = service.live, service.ladder.rung
    routed, _ = arms(service, live, question)
    tried: list[tuple[Attempt, Run]] = []
    for attempt in attempts(live, routed, rung):
        run = await _run(service, attempt, question, _Asked(at_stake, rung, attempt.role))
        tried.append((attempt, run))
        if failed_too is not None and not failed_too.done():
            failed_too.set_result(run.failed)
        if run.decisions is not None or service.live.state.epoch != live.state.epoch:
            break
    shared = len(tried) > 1 and all(run.failed for _, run in tried)
    for attempt, run in tried:
        _show_guard(service, attempt, run, excused=shared)
    return _Answer(live.state.epoch, rung, tuple(tried))


def _show_ladder(service: Service, outcome: _Outcome) -> None:
    """Let the ladder see how a decision went. Whoever left less time than it forgives has only himself to blame."""
    answer, question = outcome.answer, outcome.question
    shed = answer.run is not None and answer.run.error_code in SHED
    hurried = question.deadline - outcome.started < service.settings.ladder.latency_ms / 1e3
    if shed and hurried:
        return
    failed = answer.run is not None and answer.by is None and not shed
    waited_ms = math.inf if shed else outcome.waited_ms + service.lag_ms
    service.ladder.observe(answer.rung, outcome.started, waited_ms, symbol=question.symbol, failed=failed)


def _start_probe(service: Service, available: frozenset[Rung], routed: Attempt, question: Question) -> None:
    """Try the rung above beside this decision, if it is time to."""
    rung = service.ladder.probe(available)
    if rung is not None:
        service.spawn(_probe(service, rung, routed, question))


async def _probe(service: Service, rung: Rung, routed: Attempt, question: Question) -> None:
    started, failed = time.perf_counter(), True
    try:
        asked = attempts(service.live, routed, rung)[:1]
        for attempt in asked:
            run = await _run(service, attempt, question, _Asked(routed.role, rung, "probe"))
            failed = run.decisions is None
            _show_guard(service, attempt, run, excused=False)
        failed = failed and bool(asked)  # a rule does not fail
    finally:
        waited_ms = (time.perf_counter() - started) * 1e3
        service.ladder.probed(rung, waited_ms + service.lag_ms, failed=failed)


async def _run(service: Service, attempt: Attempt, question: Question, asked: _Asked) -> Run:
    account = question.account(asked.at_stake)
    row = Observation(question.bars, account.features, question.complexity, account.position)
    run = await attempt.model.run(row, question.deadline, attempt.cap(asked.rung, question.complexity))
    service.telemetry.ran(run, asked.label)
    if run.error is not None:
        log.warning("run_without_answer", model=run.model_id, code=run.error_code, error=run.error)
    return run


def _show_guard(service: Service, attempt: Attempt, run: Run, *, excused: bool) -> None:
    """Let the guard see a run; a verdict takes effect before this returns.

    A failure that both arms share on one request is `excused`: it tells of the input, not of one of the models. What
    was refused was not the model's to answer: neither its wait nor its haste is the model's own time.
    """
    state = service.live.state
    judged = state.champion if attempt.role == "champion" else state.challenger
    if excused or run.cached or run.error_code in SHED or run.model_id != judged:
        return
    depth = int(run.decisions.segments[0]) if run.decisions is not None else 0
    service.guard.observe(attempt.role, run.latency_ms, failed=run.failed, segments=depth)
    service.judge()


def _start_shadow(
    service: Service, other: Attempt | None, question: Question, failed_too: asyncio.Future[bool]
) -> asyncio.Task[Run] | None:
    if other is None or service.ladder.rung is not Rung.FULL:
        return None
    if other.model.waiting >= SHADOW_QUEUE:
        service.telemetry.shadow_missed.inc()
        return None
    return service.spawn(_shadow(service, other, question, failed_too))


async def _shadow(service: Service, other: Attempt, question: Question, failed_too: asyncio.Future[bool]) -> Run:
    run = await _run(service, other, question, _Asked(other.role, Rung.FULL, "shadow"))
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


def _why_missing(rung: Rung, shadow_run: Run | None) -> Literal["late", "failed", "degraded"]:
    if rung is not Rung.FULL:
        return "degraded"
    return "failed" if shadow_run is not None and shadow_run.failed else "late"


def _shadow_ms(outcome: _Outcome) -> float:
    """The model's own time; of a late one the time it has had, so that percentiles are not cut off."""
    return outcome.waited_ms if outcome.shadow is None else outcome.shadow.latency_ms


def _handover(service: Service, live: Live, outcome: _Outcome) -> HandoverTerms | None:
    """What becomes of a position that the model held that was rolled back; maybe while this was decided.

    That of a promoted one is the champion's, and the champion before it decides again: whoever says that the champion
    acts is told, and acts on it once, for what another model's orders made (trading/intents.py).
    """
    question = outcome.question
    taken_back, holder = live.state.taken_back, question.acting or outcome.routed.role
    unsaid = taken_back == "champion" and question.acting is None
    if taken_back != holder or unsaid or not question.account(holder).position:
        return None
    policy = service.store.handover(live.state)
    return HandoverTerms(
        mode=mode_for(policy, live.state.trigger, question.symbol),
        flatten_after_s=policy.flatten_after,
        flatten_before_close_s=policy.flatten_before_close,
    )


def _decision(outcome: _Outcome) -> Decision:
    answer, question = outcome.answer, outcome.question
    facts: Facts = {
        "request_id": question.request_id,
        "symbol": question.symbol,
        "latency_ms": outcome.waited_ms,
        "epoch": answer.epoch,
        "fallback": answer.by is None or answer.by.id != outcome.routed.id,
    }
    if answer.by is None or answer.run is None:
        return by_rule(answer.rung, question.account(outcome.routed.role).position, facts)
    return by_model(answer.run, answer.by.role, facts)


def _shadow_decision(outcome: _Outcome) -> Decision | None:
    other, run = outcome.other, outcome.shadow
    if other is None or run is None or run.decisions is None:
        return None
    facts: Facts = {
        "request_id": outcome.question.request_id,
        "symbol": outcome.question.symbol,
        "latency_ms": run.latency_ms,
        "epoch": outcome.epoch,
        "fallback": False,
    }
    return by_model(run, other.role, facts)


async def _put_on_record(
    service: Service,
    outcome: _Outcome,
    made: tuple[Decision, Decision | None],
    *,
    trace_id: str | None,
    handover: HandoverTerms | None,
) -> tuple[str, bool]:
    """The decision's id, and whether it is on record. What is recorded is given out, under the epoch it was made in."""
    question, answer, other = outcome.question, outcome.answer, outcome.other
    decision, shadowed = made
    cap = answer.by.cap(answer.rung, question.complexity) if answer.by is not None else UNLIMITED
    decision_id, at = service.records.new_id()
    kept = record(
        question,
        Arm(decision, answer.by, outcome.routed.role, cap),
        Arm(shadowed, other, other.role) if shadowed is not None and other is not None else None,
        decision_id=decision_id,
        at=at,
        trace_id=trace_id,
        handover=handover.mode if handover is not None else None,
        rung=answer.rung.label,
        deadline_ms=None if question.deadline == math.inf else (question.deadline - outcome.started) * 1e3,
        errors={attempt.id: run.error_code for attempt, run in answer.tried if run.error_code is not None},
    )
    recorded = await service.turns.write(kept)
    service.telemetry.recorded(recorded)
    return decision_id, recorded


def _tell(service: Service, answer: DecisionResponse, trace_id: str | None) -> None:
    model_id = f"{answer.model}/{answer.model_version}"
    service.telemetry.answered(model_id, answer.role, fallback=answer.fallback)
    if answer.shadow is not None and answer.shadow.action != answer.action:
        service.telemetry.disagreements.inc()
    log.info(
        "decision",
        decision_id=answer.decision_id,
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
        rung=answer.rung,
        fallback=answer.fallback,
        recorded=answer.recorded,
        shadow_action=answer.shadow.action_name if answer.shadow else None,
        **({"handover": answer.handover.mode} if answer.handover else {}),
        **({"trace_id": trace_id} if trace_id else {}),
    )
