"""What the service tells about the rollout: a view of its state, its plan and its guard."""

from __future__ import annotations

from delivery import words
from delivery.transitions import ACTIVE
from serving.live import Live
from serving.schemas_rollout import ApprovalsResponse, RolloutResponse
from serving.service import Service


def rollout(service: Service, live: Live) -> RolloutResponse:
    state, plan = live.state, live.plan
    stage = plan.stages[min(state.step, len(plan.stages) - 1)]
    return RolloutResponse(
        phase=state.phase,
        champion=state.champion,
        challenger=state.challenger,
        fallback=state.fallback,
        weight=state.weight,
        step=state.step,
        steps=[stage.weight for stage in plan.stages[1:]],
        gate=state.gate,
        gates=[words.gate(gate) for gate in stage.gates] if state.phase in ACTIVE else [],
        waits_for=words.waits_for(state, plan),
        approvals=ApprovalsResponse(
            required=plan.approvals.required,
            given=list(state.approved_by),
            missing=max(0, plan.approvals.required - len(state.approved_by)) if state.phase in ACTIVE else 0,
        ),
        stage_at=state.stage_at,
        gate_at=state.gate_at,
        attempt=state.attempt,
        started_by=state.started_by,
        plan_sha256=state.plan_sha256,
        epoch=state.epoch,
        version=state.version,
        paused=state.paused,
        latched=state.latched,
        durable=live.durable,
        reason=state.reason,
        trigger=state.trigger,
        statistics=service.guard.statistics(),
    )
