"""The rollout as pure functions: a state, a command, the next state.

    idle | rolled_back ──install──> the same, once, with the first champion
    idle ──start──> shadow ──promote──> canary (each stage of the plan) ──promote──> promoted
    shadow | canary | promoted ──abort | rollback──> rolled_back (latched)
    promoted | rolled_back ──start──> shadow, after the cool-down and with another challenger

A stage is left by `promote` when its gates are passed: `advance` passes a timed pause or an analysis, and is the
controller's; a pause without an end is passed by whoever promotes. The last promotion may need approvals.

The stable model is never replaced before the last stage passed, and stays as `fallback` after that. So a start names
the acting champion, or is refused; only a service without one takes its first from a start. What was rejected stays so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum

from core.errors import RolloutError
from delivery.plan import Analysis, Pause, Plan


class Phase(StrEnum):
    IDLE = "idle"
    SHADOW = "shadow"
    CANARY = "canary"
    PROMOTED = "promoted"
    ROLLED_BACK = "rolled_back"


class Command(StrEnum):
    INSTALL = "install"  # the first champion of an empty service
    START = "start"
    ADVANCE = "advance"  # a gate is passed
    APPROVE = "approve"
    PROMOTE = "promote"
    PAUSE = "pause"
    RESUME = "resume"
    ABORT = "abort"
    ROLLBACK = "rollback"


UNSTOPPABLE = frozenset({Command.ABORT, Command.ROLLBACK})
ACTIVE = frozenset({Phase.SHADOW, Phase.CANARY})


@dataclass(frozen=True)
class RolloutState:
    """Who decides. Models are `name/version`; `weight` is the challenger's percentage; times are Unix seconds."""

    version: int = 0  # of this record: grows by one with every change
    epoch: int = 0  # grows whenever who decides changes; fences orders
    phase: Phase = Phase.IDLE
    champion: str | None = None
    challenger: str | None = None
    fallback: str | None = None  # the champion before a promotion
    attempt: int = 0  # the version its start led to: what measurements belong to
    plan_sha256: str | None = None
    step: int = 0  # stage of the plan; 0 is the shadow
    gate: int = 0  # of the stage: so many are passed
    weight: int = 0
    stage_at: float = 0.0  # when this stage began, and when its current gate did
    gate_at: float = 0.0
    watched_since: float = 0.0  # the start, or the latest resume: what the background analysis counts from
    paused: bool = False
    started_by: str = ""
    approved_by: tuple[str, ...] = ()
    reason: str = ""
    trigger: str = ""  # what ended the last attempt that was rolled back
    rejected: tuple[str, ...] = ()  # every model that was ever rolled back, the latest last
    rolled_back_at: float | None = None
    rolled_back_from: Phase | None = None
    handover_sha256: str | None = None  # the plan of the attempt that was rolled back
    challenger_sha256: str | None = None  # of the candidate's manifest, as it was loaded for the start

    @property
    def latched(self) -> bool:
        return self.phase is Phase.ROLLED_BACK

    @property
    def taken_back(self) -> str | None:
        """The role whose positions a rollback has left without their model; None where there are none.

        The next attempt's shadow holds nothing: what a challenger holds then is still the one's before.
        """
        if self.rolled_back_from is None or not (self.latched or self.phase is Phase.SHADOW):
            return None
        return "champion" if self.rolled_back_from is Phase.PROMOTED else "challenger"

    @property
    def candidate(self) -> str | None:
        """The model a rollback would take away: the challenger, or the newly promoted champion."""
        if self.phase is Phase.PROMOTED:
            return self.champion if self.fallback else None
        return self.challenger


@dataclass(frozen=True)
class Change:
    """A command with its arguments. `now` is Unix time in seconds; `actor` whoever was authenticated."""

    command: Command
    now: float
    reason: str = ""
    actor: str = "api"
    champion: str | None = None
    challenger: str | None = None
    plan: Plan | None = None  # of a start
    challenger_sha256: str | None = None  # of a start: the manifest of what was loaded for it
    trigger: str = "manual"  # of a rollback: what hand-over policies are chosen by
    attempt: int | None = None  # of a rollback: the only one it may take back; None: whatever there is


@dataclass(frozen=True)
class Rules:
    """What commands are judged by: the frozen plan of the attempt, and the cool-down after a rollback."""

    plan: Plan
    cool_down_s: float


def transition(state: RolloutState, change: Change, rules: Rules) -> RolloutState:
    """The next state, with version and epoch. Raises RolloutError where the command is not allowed.

    Abort and rollback are allowed wherever there is something to take back, and change nothing once latched.
    """
    step = TRANSITIONS.get((state.phase, change.command))
    if step is None:
        raise RolloutError(
            f"cannot {change.command} while {state.phase}; {_remedy(state.phase)}", code="invalid_transition"
        )
    after = step(state, change, rules)
    if after == state:
        return state
    changed = _who_decides(after) != _who_decides(state)
    return replace(after, version=state.version + 1, epoch=state.epoch + int(changed), reason=change.reason)


def current_gate(state: RolloutState, plan: Plan) -> Pause | Analysis | None:
    """The gate that is being waited for; None when the stage can be left."""
    if state.phase not in ACTIVE:
        return None
    gates = plan.stages[state.step].gates
    return gates[state.gate] if state.gate < len(gates) else None


def approvals_missing(state: RolloutState, plan: Plan) -> int:
    """How many more approvals the next promotion needs: only the last one, which replaces the champion, needs any."""
    last = state.step + 1 == len(plan.stages)
    return max(0, plan.approvals.required - len(state.approved_by)) if last else 0


def _who_decides(state: RolloutState) -> tuple[object, ...]:
    return state.champion, state.weight, state.challenger if state.weight else None


def _remedy(phase: Phase) -> str:
    commands = sorted(command for (at, command) in TRANSITIONS if at is phase)
    return f"allowed now: {', '.join(commands)}"


def _install(state: RolloutState, change: Change, rules: Rules) -> RolloutState:
    return replace(state, champion=state.champion or change.champion)


def _start(state: RolloutState, change: Change, rules: Rules) -> RolloutState:
    champion, challenger = state.champion or change.champion, change.challenger
    if champion is None or challenger is None or champion == challenger:
        raise RolloutError("start needs a champion and another challenger, as name/version", code="start_incomplete")
    if change.champion not in (None, champion):
        raise RolloutError(
            f"{champion} decides, not {change.champion}; start with it as champion and make {change.champion} the "
            f"challenger if it is to decide again",
            code="champion_mismatch",
        )
    if challenger in state.rejected:
        raise RolloutError(f"{challenger} was rolled back before; publish a new version", code="version_rejected")
    if state.latched and state.rolled_back_at is not None:
        wait_s = state.rolled_back_at + rules.cool_down_s - change.now
        if wait_s > 0:
            raise RolloutError(f"cooling down after a rollback; retry in {wait_s:.0f} s", code="cool_down")
    fresh = RolloutState(version=state.version, epoch=state.epoch, rejected=state.rejected)
    if state.taken_back is not None:  # positions may still be there
        fresh = replace(
            fresh,
            trigger=state.trigger,
            rolled_back_from=state.rolled_back_from,
            handover_sha256=state.handover_sha256,
        )
    return replace(
        _entered(fresh, change),
        phase=Phase.SHADOW,
        champion=champion,
        challenger=challenger,
        challenger_sha256=change.challenger_sha256,
        attempt=state.version + 1,
        plan_sha256=rules.plan.sha256,
        watched_since=change.now,
        started_by=change.actor,
        rolled_back_at=state.rolled_back_at,
    )


def _entered(state: RolloutState, change: Change) -> RolloutState:
    return replace(state, gate=0, stage_at=change.now, gate_at=change.now)


def _advance(state: RolloutState, change: Change, rules: Rules) -> RolloutState:
    gate = current_gate(state, rules.plan)
    _require_going(state)
    if gate is None or (isinstance(gate, Pause) and gate.indefinite):
        raise RolloutError("nothing here passes by itself; promote", code="invalid_transition")
    return replace(state, gate=state.gate + 1, gate_at=change.now)


def _promote(state: RolloutState, change: Change, rules: Rules) -> RolloutState:
    _require_going(state)
    gate = current_gate(state, rules.plan)
    gates_left = len(rules.plan.stages[state.step].gates) - state.gate
    if gate is not None and not (isinstance(gate, Pause) and gate.indefinite):
        raise RolloutError(
            f"stage {state.step} waits for {gates_left} of its gates; let them pass, or abort", code="gates_not_passed"
        )
    if gates_left > 1:  # a wait for a person in the middle of a stage
        return replace(state, gate=state.gate + 1, gate_at=change.now)
    missing = approvals_missing(state, rules.plan)
    if missing:
        raise RolloutError(
            f"the promotion needs {missing} more approval(s), none by {state.started_by}, who started it; "
            f"hrm rollout approve",
            code="approvals_missing",
        )
    following = state.step + 1
    if following < len(rules.plan.stages):
        weight = rules.plan.stages[following].weight
        return _entered(replace(state, phase=Phase.CANARY, step=following, weight=weight), change)
    promoted = replace(
        state,
        phase=Phase.PROMOTED,
        champion=state.challenger,
        challenger=None,
        fallback=state.champion,
        weight=0,
    )
    return _entered(promoted, change)


def _require_going(state: RolloutState) -> None:
    if state.paused:
        raise RolloutError("the rollout is paused; resume it first", code="paused")


def _approve(state: RolloutState, change: Change, rules: Rules) -> RolloutState:
    if change.actor == state.started_by:
        raise RolloutError(f"{change.actor} started this rollout; somebody else must approve", code="self_approval")
    if change.actor in state.approved_by:
        return state
    return replace(state, approved_by=(*state.approved_by, change.actor))


def _pause(state: RolloutState, change: Change, rules: Rules) -> RolloutState:
    return replace(state, paused=True)


def _resume(state: RolloutState, change: Change, rules: Rules) -> RolloutState:
    """Go on; what is timed begins anew, for it was not to run meanwhile."""
    if not state.paused:
        return state
    return replace(state, paused=False, stage_at=change.now, gate_at=change.now, watched_since=change.now)


def _roll_back(state: RolloutState, change: Change, rules: Rules) -> RolloutState:
    if change.attempt not in (None, state.attempt):
        return state  # what it was decided on is over
    champion = state.fallback if state.phase is Phase.PROMOTED and state.fallback else state.champion
    return replace(
        state,
        phase=Phase.ROLLED_BACK,
        champion=champion,
        challenger=None,
        fallback=None,
        weight=0,
        paused=False,
        rejected=_with_latest(state.rejected, state.candidate),
        rolled_back_at=change.now,
        rolled_back_from=state.phase,
        handover_sha256=state.plan_sha256,
        challenger_sha256=None,
        trigger=change.trigger,
    )


def _with_latest(rejected: tuple[str, ...], model_id: str | None) -> tuple[str, ...]:
    return rejected if model_id is None else (*(other for other in rejected if other != model_id), model_id)


def _nothing_to_abort(state: RolloutState, change: Change, rules: Rules) -> RolloutState:
    raise RolloutError("no rollout is running: there is nothing to take back", code="nothing_to_abort")


def _stay(state: RolloutState, change: Change, rules: Rules) -> RolloutState:
    return state


Step = Callable[[RolloutState, Change, Rules], RolloutState]

TRANSITIONS: dict[tuple[Phase, Command], Step] = {
    (Phase.IDLE, Command.INSTALL): _install,
    (Phase.ROLLED_BACK, Command.INSTALL): _install,  # of an older log: an abort came before the first champion
    (Phase.IDLE, Command.START): _start,
    (Phase.PROMOTED, Command.START): _start,
    (Phase.ROLLED_BACK, Command.START): _start,
}
_IN_AN_ACTIVE_PHASE: dict[Command, Step] = {
    Command.ADVANCE: _advance,
    Command.APPROVE: _approve,
    Command.PROMOTE: _promote,
    Command.PAUSE: _pause,
    Command.RESUME: _resume,
}
TRANSITIONS |= {(phase, command): step for phase in ACTIVE for command, step in _IN_AN_ACTIVE_PHASE.items()}
_TAKING_BACK = {Phase.IDLE: _nothing_to_abort, Phase.ROLLED_BACK: _stay}
TRANSITIONS |= {(phase, command): _TAKING_BACK.get(phase, _roll_back) for phase in Phase for command in UNSTOPPABLE}
