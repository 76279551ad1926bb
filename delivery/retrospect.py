"""A rollout judged again from what is on record: by another plan, or by the same one after the code was changed.

    the log        ──> the states it went through: which analyses were under way, and since when
    measurements   ──> each reading judged again, in the order in which they were recorded
    both plans     ──> what the controller would have done (progress.next_change) with the one and with the other

Both plans are asked whenever a measurement changed something, the state did, or a minute is over. Beyond the first
change that differs nobody knows: the states that follow are those of what was done. What the guard and people did is
not judged. A measurement that was an error stays one; one that does not say what it read, or read something else than
the other plan would, cannot be judged again, and is inconclusive.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import sqlalchemy as sa

from core.errors import RolloutError
from delivery.analysis import Measurement, MeasurementPhase, RunPhase, Tally, measurement
from delivery.earned import Arms, Pairs
from delivery.judges import Args, Reading, judge
from delivery.metrics import Metric, Provider
from delivery.plan import Plan
from delivery.progress import WATCH, Run, next_change, runs
from delivery.store import RolloutStore
from delivery.transitions import ACTIVE, Change, Command, Phase, RolloutState, Rules, transition

LOOK_S = 60.0  # what time alone decides, a pause or a deadline, is looked at so often at least
CANNOT = "cannot be judged again: what was read is not on record"
ON_ARMS = frozenset({"mann_whitney", "conf_seq"})

Key = tuple[str, float, str]  # run, since, metric
Row = tuple[str, str, Measurement]  # run, metric
Again = Callable[[Run, Metric, Args, Measurement], Measurement | None]


@dataclass(frozen=True)
class MetricAgain:
    """Where a metric's measurements led to, and where they lead to now. None: that plan has no such metric there."""

    run: str
    since: float  # Unix seconds
    metric: str
    taken: int
    unjudged: int  # of them, that cannot be judged again
    was: RunPhase | None
    now: RunPhase | None


@dataclass(frozen=True)
class Difference:
    """What the controller does with each of the two plans, in words."""

    at: float  # Unix seconds
    was: str
    now: str


@dataclass(frozen=True)
class Judgement:
    attempt: int
    plan_was: str  # SHA-256
    plan_now: str
    metrics: tuple[MetricAgain, ...]  # in the order in which their runs began
    difference: Difference | None


def judged_again(store: RolloutStore, attempt: int, plan: Plan) -> Judgement:
    """The attempt by its own plan and by `plan`. Raises RolloutError `no_such_attempt`, and SQLAlchemyError."""
    states = list(store.states(attempt))
    if not states:
        raise RolloutError(
            f"no rollout began at version {attempt}; `hrm rollout events` shows the starts", code="no_such_attempt"
        )
    own = _Judged(store.plan(states[0][1]), lambda run, metric, args, one: one)
    other = _Judged(plan, _Again(store.engine, attempt, own.provider))
    difference = _walk(states, store.recorded(attempt), own, other)
    return Judgement(attempt, own.plan.sha256, plan.sha256, _told(own, other), difference)


@dataclass
class _Followed:
    tally: Tally
    taken: int = 0
    unjudged: int = 0

    def add(self, one: Measurement, again: Measurement | None) -> bool:
        """Whether it changed where the metric stands."""
        before = self._stands
        self.taken += 1
        self.unjudged += again is None
        self.tally.add(again or replace(one, phase=MeasurementPhase.INCONCLUSIVE, detail=CANNOT))
        return self._stands != before

    @property
    def _stands(self) -> tuple[RunPhase, MeasurementPhase | None]:
        latest = self.tally.latest
        return self.tally.phase, latest.phase if latest else None


class _Judged:
    """One plan, and the tallies of the runs to which it and the states lead."""

    def __init__(self, plan: Plan, again: Again) -> None:
        self.plan = plan
        self.followed: dict[Key, _Followed] = {}
        self._again = again
        self._runs: tuple[Run, ...] = ()
        self._taken: dict[tuple[str, str], list[Measurement]] = defaultdict(list)

    def knows(self, state: RolloutState) -> bool:
        return state.phase not in ACTIVE or state.step < len(self.plan.stages)

    def enter(self, state: RolloutState, at: float) -> None:
        """What is measured from now on belongs to this state's runs."""
        self._runs = runs(state, self.plan, at) if self.knows(state) else ()
        for run in self._runs:
            for metric, args in run.metrics:
                key = run.name, run.since, metric.name
                if key not in self.followed:
                    followed = self.followed[key] = _Followed(Tally(metric))
                    for one in self._taken[run.name, metric.name]:
                        self._add(followed, run, metric, args, one)

    def take(self, row: Row) -> bool:
        """Whether a metric that is under way stands elsewhere now."""
        name, measured, one = row
        self._taken[name, measured].append(one)
        return any(
            self._add(self.followed[name, run.since, measured], run, metric, args, one)
            for run in self._runs
            for metric, args in run.metrics
            if (run.name, metric.name) == (name, measured)
        )

    def change(self, state: RolloutState, at: float) -> tuple[Change, RolloutState] | None:
        """What the controller would do, and what that would lead to."""
        change = next_change(state, self.plan, self._tally, at)
        return None if change is None else (change, transition(state, change, Rules(self.plan, 0.0)))

    def provider(self, name: str, measured: str) -> Provider | None:
        """What the metric of a run that is under way reads."""
        found = (metric for run in self._runs if run.name == name for metric, _ in run.metrics)
        return next((metric.provider for metric in found if metric.name == measured), None)

    def _tally(self, run: Run, metric: Metric) -> Tally:
        return self.followed[run.name, run.since, metric.name].tally

    def _add(self, followed: _Followed, run: Run, metric: Metric, args: Args, one: Measurement) -> bool:
        return one.at >= run.since and followed.add(one, self._again(run, metric, args, one))


class _Again:
    """A measurement as another metric judges what was read; None where that is not on record."""

    def __init__(self, engine: sa.Engine, attempt: int, was_read: Callable[[str, str], Provider | None]) -> None:
        self._engine, self._attempt, self._was_read = engine, attempt, was_read
        self._arms: dict[float, Arms] = {}

    def __call__(self, run: Run, metric: Metric, args: Args, one: Measurement) -> Measurement | None:
        if one.phase is MeasurementPhase.ERROR:
            return one
        reading = self._reading(run, metric, one)
        return None if reading is None else measurement(judge(metric, reading, args), one.at, reading)

    def _reading(self, run: Run, metric: Metric, one: Measurement) -> Reading | None:
        if one.samples is None or self._was_read(run.name, metric.name) != metric.provider:
            return None
        if metric.judge.kind not in ON_ARMS:
            return Reading(one.value, one.samples, one.hits or 0)
        champion, challenger = self._since(run.since if run.name == WATCH else 0.0)
        if len(champion) < one.samples:
            return None
        return Reading(samples=one.samples, champion=champion[: one.samples], challenger=challenger[: one.samples])

    def _since(self, since: float) -> Arms:
        if since not in self._arms:
            self._arms[since] = Pairs(self._engine, self._attempt, since).read()
        return self._arms[since]


def _walk(
    states: Sequence[tuple[float, RolloutState]], recorded: Iterable[Row], own: _Judged, other: _Judged
) -> Difference | None:
    """Both plans through the same states and measurements; the first change that differs."""
    difference: Difference | None = None
    state: RolloutState | None = None
    looked_at = 0.0
    for at, happened in _in_order(states, recorded):
        changed = isinstance(happened, RolloutState) or own.take(happened) | other.take(happened)
        if state is not None and difference is None and (changed or at - looked_at >= LOOK_S):
            difference, looked_at = _difference(state, at, own, other), at
        if isinstance(happened, RolloutState):
            state = happened
            own.enter(state, at)  # the other one asks it what was read
            other.enter(state, at)
    return difference


def _in_order(
    states: Sequence[tuple[float, RolloutState]], recorded: Iterable[Row]
) -> Iterator[tuple[float, RolloutState | Row]]:
    """Measurements in the order in which they were recorded, each before the state that it may have led to."""
    following = deque(states)
    for row in recorded:
        while following and following[0][0] < row[2].at:
            yield following.popleft()
        yield row[2].at, row
    yield from following


def _difference(state: RolloutState, at: float, own: _Judged, other: _Judged) -> Difference | None:
    if not other.knows(state):
        return Difference(at, f"stage {state.step}", f"nothing: the plan has no stage {state.step}")
    was, now = own.change(state, at), other.change(state, at)
    return None if _effect(was) == _effect(now) else Difference(at, _in_words(was), _in_words(now))


def _effect(change: tuple[Change, RolloutState] | None) -> RolloutState | None:
    """For what it leads to, whatever the reason."""
    return None if change is None else replace(change[1], reason="")


def _in_words(made: tuple[Change, RolloutState] | None) -> str:
    if made is None:
        return "nothing"
    change, after = made
    to = f" to {after.weight} %" if change.command is Command.PROMOTE and after.phase is not Phase.PROMOTED else ""
    return f"{change.command}{to}: {change.reason}"


def _told(own: _Judged, other: _Judged) -> tuple[MetricAgain, ...]:
    keys = sorted(own.followed.keys() | other.followed.keys(), key=lambda key: (key[1], key[0], key[2]))
    return tuple(_metric(key, own.followed.get(key), other.followed.get(key)) for key in keys)


def _metric(key: Key, was: _Followed | None, now: _Followed | None) -> MetricAgain:
    return MetricAgain(
        *key,
        taken=was.taken if was else 0,
        unjudged=now.unjudged if now else 0,
        was=was.tally.phase if was else None,
        now=now.tally.phase if now else None,
    )
