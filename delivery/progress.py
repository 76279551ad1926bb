"""What a rollout waits for, and what the controller does about it: pure functions of state, plan, measurements, time.

    analysis failed ─────────────────────────> rollback, in every active phase and in the watch after a promotion
    inconclusive or in error past its limit ──> rollback where a critical metric watches a weight above 0, else pause
    deadline of the stage passed ────────────> rollback, or pause if the plan says so
    gate passed ─────────────────────────────> advance
    no gate left, and background analysis, approvals and market speak for it ─> promote

Nothing here decides for a person: a pause without an end ends by `promote`, a paused rollout by `resume`. A hard
trigger (serving/guard.py) does not wait for any of this.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from delivery.analysis import Measurement, RunPhase, Tally, resolved, run_phase, tallied
from delivery.judges import Args
from delivery.metrics import Analysis, Metric
from delivery.plan import MarketTime, Pause, Plan, Session
from delivery.transitions import ACTIVE, Change, Command, Phase, RolloutState, approvals_missing, current_gate

ACTOR = "controller"
BACKGROUND, WATCH = "background", "post_promotion"
DEADLINE = "progress_deadline"
_ENDED_BADLY = (RunPhase.FAILED, RunPhase.INCONCLUSIVE, RunPhase.ERROR)


@dataclass(frozen=True)
class Run:
    """An analysis that is under way: `name` is unique within the attempt, `since` in Unix seconds."""

    name: str
    since: float
    metrics: tuple[tuple[Metric, Args], ...]


Taken = Mapping[tuple[str, str], Sequence[Measurement]]  # by run and metric, oldest first
Tallies = Callable[[Run, Metric], Tally]


def runs(state: RolloutState, plan: Plan, now: float) -> tuple[Run, ...]:
    """The analyses that belong to this state. While a rollout is paused they go on: it still decides."""
    if state.phase is Phase.PROMOTED:
        watching = state.fallback is not None and now < state.stage_at + plan.rollback_window
        after = plan.post_promotion_analysis
        return (_run(WATCH, state.stage_at, after, plan),) if after is not None and watching else ()
    if state.phase not in ACTIVE:
        return ()
    found = []
    background, gate = plan.background_analysis, current_gate(state, plan)
    if background is not None and state.step >= background.starting_step:
        found.append(_run(BACKGROUND, state.watched_since, background, plan))
    if isinstance(gate, Analysis):
        found.append(_run(f"stage {state.step}, gate {state.gate}", state.gate_at, gate, plan))
    return tuple(found)


def tallies_of(taken: Taken) -> Tallies:
    """From all measurements of an attempt."""
    return lambda run, metric: tallied(metric, measurements(run, metric, taken))


def next_change(state: RolloutState, plan: Plan, tallies: Tallies, now: float) -> Change | None:
    """What to do now, or None. `tallies` is asked about the metrics of `runs(state, plan, now)`."""
    judged = [(run, metric, tallies(run, metric)) for run in runs(state, plan, now) for metric, _ in run.metrics]
    ended = [each for each in judged if not each[1].dry_run and each[2].phase in _ENDED_BADLY]
    change = _judged(ended, state, now)
    if change is not None or state.phase not in ACTIVE:
        return change
    return _deadline(state, plan, now) or (None if state.paused else _forward(state, plan, tallies, now))


def may_step(market: MarketTime | None, now: float) -> bool:
    """Whether the market is open, and far enough from its open, its close and any expiry."""
    if market is None:
        return True
    session = next((session for session in market.sessions if session.open <= now < session.close), None)
    if session is None or session.expiry:
        return False
    return session.open + market.quiet <= now < session.close - market.quiet


def silent(state: RolloutState, plan: Plan, tallies: Tallies, now: float) -> list[str]:
    """The background metrics that do not speak for a step now, with where they stand; whoever promotes needs none."""
    watched = [
        (metric, tallies(run, metric))
        for run in runs(state, plan, now)
        if run.name == BACKGROUND
        for metric, _ in run.metrics
    ]
    return [
        f"{metric.name} {tally.latest.phase}: {tally.latest.detail}" if tally.latest else f"{metric.name}: not measured"
        for metric, tally in watched
        if not tally.for_promotion
    ]


def _run(name: str, since: float, analysis: Analysis, plan: Plan) -> Run:
    return Run(name, since, resolved(plan, analysis))


def measurements(run: Run, metric: Metric, taken: Taken) -> list[Measurement]:
    """Those of this run: what was measured before a resume, or in an earlier stage, is another's."""
    return [one for one in taken.get((run.name, metric.name), ()) if one.at >= run.since]


def _judged(ended: Sequence[tuple[Run, Metric, Tally]], state: RolloutState, now: float) -> Change | None:
    """The end of a rollout that its measurements condemn, whatever else is unclear; else the pause it waits in."""
    for run, metric, tally in ended:
        if tally.phase is RunPhase.FAILED or (metric.critical and _decides(state)):
            return _rollback(now, _said(run, metric, tally), metric.name)
    if not ended or state.paused or state.phase is Phase.PROMOTED:
        return None
    return _change(Command.PAUSE, now, _said(*ended[0]))


def _said(run: Run, metric: Metric, tally: Tally) -> str:
    detail = f": {tally.latest.detail}" if tally.latest else ""
    return f"{run.name}: {metric.name} {tally.phase}{detail}"


def _decides(state: RolloutState) -> bool:
    return state.weight > 0 or state.phase is Phase.PROMOTED


def _deadline(state: RolloutState, plan: Plan, now: float) -> Change | None:
    over = now - state.stage_at - plan.progress_deadline_seconds
    if over <= 0:
        return None
    reason = f"stage {state.step} was not passed within {plan.progress_deadline_seconds:g} s"
    if plan.progress_deadline_abort:
        return _rollback(now, reason, DEADLINE)
    return None if state.paused else _change(Command.PAUSE, now, reason)


def _forward(state: RolloutState, plan: Plan, tallies: Tallies, now: float) -> Change | None:
    gate = current_gate(state, plan)
    if gate is None:
        return _promotion(state, plan, tallies, now)
    if isinstance(gate, Pause):
        if gate.indefinite or not _pause_over(gate, state, plan, now):
            return _calendar_ended(plan, now) if gate.sessions is not None else None
        return _change(Command.ADVANCE, now, f"stage {state.step}: pause over")
    run = runs(state, plan, now)[-1]
    if run_phase((metric, tallies(run, metric).phase) for metric, _ in run.metrics) is not RunPhase.SUCCESSFUL:
        return None
    return _change(Command.ADVANCE, now, f"{run.name}: successful")


def _promotion(state: RolloutState, plan: Plan, tallies: Tallies, now: float) -> Change | None:
    if silent(state, plan, tallies, now) or approvals_missing(state, plan):
        return None
    if not may_step(plan.market, now):
        return _calendar_ended(plan, now)
    return _change(Command.PROMOTE, now, f"stage {state.step}: every gate passed")


def _pause_over(pause: Pause, state: RolloutState, plan: Plan, now: float) -> bool:
    if pause.duration is not None:
        return now - state.gate_at >= pause.duration
    return len(_whole_sessions(plan.market, state.gate_at, now)) >= (pause.sessions or 0)


def _whole_sessions(market: MarketTime | None, since: float, now: float) -> list[Session]:
    return [one for one in market.sessions if since <= one.open and one.close <= now] if market else []


def _calendar_ended(plan: Plan, now: float) -> Change | None:
    """Sessions are known for so long: after the last of them nothing in market time would ever happen."""
    if plan.market is None or any(session.close > now for session in plan.market.sessions):
        return None
    reason = "the plan's sessions are over; abort, and start again with the sessions of the next weeks"
    return _change(Command.PAUSE, now, reason)


def _rollback(now: float, reason: str, trigger: str) -> Change:
    return Change(Command.ROLLBACK, now, reason, ACTOR, trigger=trigger)


def _change(command: Command, now: float, reason: str) -> Change:
    return Change(command, now, reason, ACTOR)
