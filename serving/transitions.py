"""The rollout as pure functions: a state, a command, the next state.

    idle | rolled_back ──install──> the same, once, with the first champion
    idle ──start──> shadow ──promote──> canary (each step) ──promote──> promoted
    any phase ──abort | rollback──> rolled_back (latched)
    promoted | rolled_back ──start──> shadow, after the cool-down and with another challenger

The stable model is never replaced before the last step passed, and stays as `fallback` after that. So a start names
the acting champion, or is refused; only a service without one takes its first from a start. What was rejected stays so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum

from core.errors import RolloutError
from core.settings import Rollout


class Phase(StrEnum):
    IDLE = "idle"
    SHADOW = "shadow"
    CANARY = "canary"
    PROMOTED = "promoted"
    ROLLED_BACK = "rolled_back"


class Command(StrEnum):
    INSTALL = "install"  # the first champion of an empty service
    START = "start"
    PROMOTE = "promote"
    PAUSE = "pause"
    RESUME = "resume"
    ABORT = "abort"
    ROLLBACK = "rollback"


@dataclass(frozen=True)
class RolloutState:
    """Who decides. Models are `name/version`; `weight` is the percentage of symbols of the challenger."""

    version: int = 0  # of this record: grows by one with every change
    epoch: int = 0  # grows whenever who decides changes; fences orders
    phase: Phase = Phase.IDLE
    champion: str | None = None
    challenger: str | None = None
    fallback: str | None = None  # the champion before a promotion
    step: int = 0  # 0: none yet; k: weight is steps[k - 1]
    weight: int = 0
    paused: bool = False
    reason: str = ""
    rejected: tuple[str, ...] = ()  # every model that was ever rolled back, the latest last
    rolled_back_at: float | None = None  # Unix time, s

    @property
    def latched(self) -> bool:
        return self.phase is Phase.ROLLED_BACK

    @property
    def candidate(self) -> str | None:
        """The model a rollback would take away: the challenger, or the newly promoted champion."""
        if self.phase is Phase.PROMOTED:
            return self.champion if self.fallback else None
        return self.challenger


@dataclass(frozen=True)
class Change:
    """A command with its arguments. `now` is Unix time in seconds."""

    command: Command
    now: float
    reason: str = ""
    actor: str = "api"
    champion: str | None = None
    challenger: str | None = None


def transition(state: RolloutState, change: Change, rollout: Rollout) -> RolloutState:
    """The next state, with version and epoch. Raises RolloutError where the command is not allowed.

    Abort and rollback are allowed everywhere and change nothing once latched.
    """
    step = TRANSITIONS.get((state.phase, change.command))
    if step is None:
        raise RolloutError(
            f"cannot {change.command} while {state.phase}; {_remedy(state.phase)}", code="invalid_transition"
        )
    after = step(state, change, rollout)
    if after == state:
        return state
    changed = _who_decides(after) != _who_decides(state)
    return replace(after, version=state.version + 1, epoch=state.epoch + int(changed), reason=change.reason)


def _who_decides(state: RolloutState) -> tuple[object, ...]:
    return state.champion, state.weight, state.challenger if state.weight else None


def _remedy(phase: Phase) -> str:
    commands = sorted(command for (at, command) in TRANSITIONS if at is phase)
    return f"allowed now: {', '.join(commands)}"


def _install(state: RolloutState, change: Change, rollout: Rollout) -> RolloutState:
    return replace(state, champion=state.champion or change.champion)


def _start(state: RolloutState, change: Change, rollout: Rollout) -> RolloutState:
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
        wait_s = state.rolled_back_at + rollout.cool_down_s - change.now
        if wait_s > 0:
            raise RolloutError(f"cooling down after a rollback; retry in {wait_s:.0f} s", code="cool_down")
    return replace(
        state,
        phase=Phase.SHADOW,
        champion=champion,
        challenger=challenger,
        fallback=None,
        step=0,
        weight=0,
        paused=False,
    )


def _promote(state: RolloutState, change: Change, rollout: Rollout) -> RolloutState:
    if state.paused:
        raise RolloutError("the rollout is paused; resume it first", code="paused")
    if state.step < len(rollout.steps):
        return replace(state, phase=Phase.CANARY, step=state.step + 1, weight=rollout.steps[state.step])
    return replace(
        state,
        phase=Phase.PROMOTED,
        champion=state.challenger,
        challenger=None,
        fallback=state.champion,
        weight=0,
    )


def _pause(state: RolloutState, change: Change, rollout: Rollout) -> RolloutState:
    return replace(state, paused=True)


def _resume(state: RolloutState, change: Change, rollout: Rollout) -> RolloutState:
    return replace(state, paused=False)


def _roll_back(state: RolloutState, change: Change, rollout: Rollout) -> RolloutState:
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
    )


def _with_latest(rejected: tuple[str, ...], model_id: str | None) -> tuple[str, ...]:
    return rejected if model_id is None else (*(other for other in rejected if other != model_id), model_id)


def _stay(state: RolloutState, change: Change, rollout: Rollout) -> RolloutState:
    return state


Step = Callable[[RolloutState, Change, Rollout], RolloutState]

TRANSITIONS: dict[tuple[Phase, Command], Step] = {
    (Phase.IDLE, Command.INSTALL): _install,
    (Phase.ROLLED_BACK, Command.INSTALL): _install,  # an abort may come before the first champion
    (Phase.IDLE, Command.START): _start,
    (Phase.PROMOTED, Command.START): _start,
    (Phase.ROLLED_BACK, Command.START): _start,
    (Phase.SHADOW, Command.PROMOTE): _promote,
    (Phase.CANARY, Command.PROMOTE): _promote,
    (Phase.SHADOW, Command.PAUSE): _pause,
    (Phase.CANARY, Command.PAUSE): _pause,
    (Phase.SHADOW, Command.RESUME): _resume,
    (Phase.CANARY, Command.RESUME): _resume,
}
TRANSITIONS |= {
    (phase, command): _stay if phase is Phase.ROLLED_BACK else _roll_back
    for phase in Phase
    for command in (Command.ABORT, Command.ROLLBACK)
}
