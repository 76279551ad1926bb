"""Why a model decided as it did: which bars and account features moved it, and how its belief went by segment.

By occlusion of what is on record: a part of the question is replaced (serving/occlusion.py says by what) and the
effect is how much the log-odds of the chosen action, against the other legal ones, fall. Positive: it spoke for the
action. Every row thinks exactly as many segments as the decision did, so an effect on the belief is not mixed with one
on the depth. The complexity only decides the least depth; its part is told apart.

Never where decisions are made: `hrm explain` and the backend run this in processes of their own. Only a decision that
replays the same is explained.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.actions import Action
from core.errors import DataError, ModelError
from core.observation import ObservationSchema
from serving.engine import CPU_ROWS_PER_RUN, Engine
from serving.occlusion import Occlusion, applied, groups, shuffled, usual
from serving.reasoning import Arrays, Ints, Reasoning, Slots, Step
from serving.record_format import DecisionFacts, Record
from serving.replay import AGREES, replay
from serving.replay_cases import Arm, Case, cases

DRAWS = 4  # of other bars in another order, for the check
TINY = 1e-300  # a probability below it counts as it: log-odds stay finite

BASELINE = (
    "Bars are replaced by the mean of their timeframe in this window, account features by 0. Effects are falls of the "
    "chosen action's log-odds against the other legal actions, all at the decision's own depth."
)
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Effect:
    """Of taking `name` away: how much the log-odds (nats) fall, and what would have been chosen then."""

    name: str
    log_odds: float
    action: str
    flips: bool


@dataclass(frozen=True)
class Segment:
    """What was believed after a segment; None is what a single pass does not have, or a first segment."""

    segment: int
    action: str
    log_odds: float  # of the action that was chosen in the end
    probabilities: dict[str, float]
    quantity: float
    value: float
    q_halt: float | None
    q_continue: float | None
    state_change_ratio: float | None  # |z_H - z_H before| / |z_H before|
    halted: bool


@dataclass(frozen=True)
class Depth:
    """How deep, and to what, it would have thought in a market of that complexity."""

    complexity: float
    segments: int
    action: str


@dataclass(frozen=True)
class Checks:
    """How far the effects may be believed: in a model that adds its inputs up the sums are equal."""

    bars_sum: float  # of the groups' effects
    bars_together: float  # of all bars at once
    account_sum: float
    account_together: float
    correlation_with_shuffled_bars: float | None  # over groups, with other bars as baseline; None: no effect differs


@dataclass(frozen=True)
class Explanation:
    decision_id: str
    arm: Arm
    symbol: str
    model: str
    action: str
    log_odds: float
    quantity: float
    segments: int
    halt_reason: str
    trajectory: list[Segment]
    bars: list[Effect]  # by group, oldest first
    features: list[str]  # of a bar, [F]
    cells: list[list[float]]  # effect by group and feature, [G, F]
    account: list[Effect]
    depth: list[Depth]  # at complexity 0, as it was, and 1; of a single pass none
    checks: Checks
    baseline: str = BASELINE


def explain(
    record: Record, load: Callable[[str], Engine], *, arm: Arm = "answer", until: float = float("inf")
) -> Explanation:
    """Explain one arm of a record. `until` (time.monotonic()) is when to give up.

    Raises DataError where there is nothing to explain (a book, an inference, a rule's answer, no shadow), ModelError
    where the model is gone, is not the one that decided, decides otherwise on this machine, or takes too long.
    """
    facts, case, engine = _replayed(record, load, arm)
    answer = facts.answer if arm == "answer" else facts.shadow
    assert answer is not None  # noqa: S101 - `_replayed` has found its case
    asked = _Asked(engine, case, answer.action, answer.segments, until)
    schema = engine.manifest.market
    parts = groups(schema)
    width = len(schema.bar_features)
    by_group = asked.effects([Occlusion(bars=part) for part in parts], [part.name for part in parts])
    cells = asked.effects([Occlusion(bars=part, feature=n) for part in parts for n in range(width)])
    names = schema.account_features
    account = asked.effects([Occlusion(account=place) for place in range(len(names))], names)
    return Explanation(
        decision_id=facts.decision_id,
        arm=arm,
        symbol=facts.symbol,
        model=engine.id,
        action=Action(answer.action).name,
        log_odds=asked.log_odds,
        quantity=answer.quantity,
        segments=answer.segments,
        halt_reason=answer.halt_reason,
        trajectory=asked.trajectory(),
        bars=by_group,
        features=list(schema.bar_features),
        cells=np.reshape([each.log_odds for each in cells], (len(parts), width)).tolist(),
        account=account,
        depth=_depths(engine, case),
        checks=_checks(asked, schema, by_group, account),
    )


def _replayed(record: Record, load: Callable[[str], Engine], arm: Arm) -> tuple[DecisionFacts, Case, Engine]:
    """The arm's case and its engine, which has just decided the same again. Raises DataError, ModelError."""
    facts = record.facts
    if not isinstance(facts, DecisionFacts):
        raise DataError(
            f"{facts.decision_id}: a {facts.kind} is not explained, only decisions on one instrument are; `hrm replay` "
            f"decides it again",
            code="not_explainable",
        )
    case = next((each for each in cases(record) if each.arm == arm), None)
    if case is None:
        raise DataError(f"{facts.decision_id}: no shadow decided beside it; explain its answer", code="no_shadow")
    if case.by.model is None:
        why = "; ".join(f"{model}: {code}" for model, code in facts.errors.items()) or f"rung {facts.rung}"
        raise DataError(
            f"{facts.decision_id}: no model decided it, a rule did ({why}); there is nothing to explain",
            code="no_model_decided",
        )
    engine = load(case.by.model)
    _require_same(record, engine, arm)
    return facts, case, engine


def _require_same(record: Record, engine: Engine, arm: Arm) -> None:
    def only(model_id: str) -> Engine:
        if model_id != engine.id:
            raise ModelError(f"{model_id}: is not asked", code="no_model")  # the other arm's
        return engine

    again = next(each for each in replay([record], only) if each.arm == arm)
    if again.verdict not in AGREES:
        why = again.why or f"{engine.id}: decides otherwise on this machine"
        raise ModelError(f"{again.decision_id}: {why}; `hrm replay` shows both", code=again.verdict)


class _Watched:
    """Slots that keep what the last run put out: halting values and states, which a step does not tell."""

    separable = True

    def __init__(self, slots: Slots) -> None:
        self.rows, self._slots = slots.rows, slots
        self.out: Arrays = {}

    def place(self, slots: Ints, feeds: Any) -> None:
        self._slots.place(slots, feeds)

    def run(self, slots: Ints) -> Arrays:
        self.out = self._slots.run(slots)
        return self.out


class _Asked:
    """A decision whose question is asked again with something taken away."""

    def __init__(self, engine: Engine, case: Case, action: int, depth: int, until: float) -> None:
        self._engine, self._case, self._action, self._depth, self._until = engine, case, action, depth, until
        self.bars, self._account = case.feeds["bars"][0], case.feeds["account"][0]
        self._usual = usual(self.bars, engine.manifest.market)
        self.log_odds = self.effects([Occlusion()], intact=0.0)[0].log_odds * -1.0

    def effects(
        self,
        occlusions: Sequence[Occlusion],
        names: Sequence[str] | None = None,
        *,
        baseline: NDArray[np.float32] | None = None,
        intact: float | None = None,
    ) -> list[Effect]:
        """In the order of the occlusions; `intact` is what is compared with, else the decision as it was."""
        intact = self.log_odds if intact is None else intact
        baseline = self._usual if baseline is None else baseline
        found: list[Effect] = []
        for start in range(0, len(occlusions), CPU_ROWS_PER_RUN):
            some = occlusions[start : start + CPU_ROWS_PER_RUN]
            bars, account = applied(some, self.bars, self._account, baseline)
            *_, (last, _) = self._thought({"bars": bars, "account": account})
            odds = log_odds(last.decisions.probabilities, self._action)
            for n, (belief, action) in enumerate(zip(odds, last.decisions.action.tolist(), strict=True), start):
                name = names[n] if names else ""
                found.append(Effect(name, float(intact - belief), Action(action).name, action != self._action))
        return found

    def trajectory(self) -> list[Segment]:
        """Of the decision as it was."""
        states: list[Floats] = []
        told: list[Segment] = []
        for step, out in self._thought(self._case.feeds):
            if "z_H_next" in out:
                states.append(out["z_H_next"].astype(np.float64))
            told.append(_segment(step, out, self._action, _change(states)))
        return told

    def _thought(self, feeds: Any) -> Iterator[tuple[Step, Arrays]]:
        """All rows, segment by segment, to the decision's depth whether or not they would halt. Raises ModelError."""
        rows = len(feeds["bars"])
        watched = _Watched(self._engine.slots(rows))
        reasoning = Reasoning(self._engine.manifest, watched)
        same = [np.repeat(each, rows, axis=0) for each in (self._case.complexity, self._case.position, self._case.cap)]
        reasoning.join(feeds, *same)
        for _ in range(self._depth):
            if time.monotonic() > self._until:
                raise ModelError(
                    f"{self._case.decision_id}: {self._engine.id} takes too long to ask so often; `hrm explain` has "
                    f"no limit",
                    code="explanation_too_slow",
                )
            step = reasoning.step()
            if step.broken.any():
                raise ModelError(
                    f"{self._engine.id}: an output is not finite once an input is taken away; do not trust the model",
                    code="output_not_finite",
                )
            yield step, watched.out


def log_odds(probabilities: Floats, action: int) -> Floats:
    """[n] nats, of one action against all others: [n, 5] with illegal ones at 0. Finite however sure a model is."""
    rest = np.delete(probabilities, action, axis=1).sum(axis=1)
    odds: Floats = np.log(np.maximum(probabilities[:, action], TINY)) - np.log(np.maximum(rest, TINY))
    return odds


def _segment(step: Step, out: Arrays, action: int, change: float | None) -> Segment:
    made = step.decisions
    halting = {name: float(out[name][0]) if name in out else None for name in ("q_halt", "q_continue")}
    return Segment(
        segment=int(made.segments[0]),
        action=Action(int(made.action[0])).name,
        log_odds=float(log_odds(made.probabilities, action)[0]),
        probabilities={each.name: float(made.probabilities[0, each]) for each in Action},
        quantity=float(made.quantity[0]),
        value=float(made.value[0]),
        state_change_ratio=change,
        halted=bool(step.halted[0]),
        **halting,
    )


def _change(states: Sequence[Floats]) -> float | None:
    if len(states) < 2:
        return None
    before, now = states[-2:]
    return float(np.linalg.norm(now - before) / max(float(np.linalg.norm(before)), 1e-12))


def _depths(engine: Engine, case: Case) -> list[Depth]:
    if engine.manifest.halting is None:
        return []
    complexity = np.array([0.0, case.complexity[0], 1.0], np.float32)
    bars, account = (np.repeat(case.feeds[name], 3, axis=0) for name in ("bars", "account"))
    position, cap = np.repeat(case.position, 3), np.repeat(case.cap, 3)
    made = engine.decide(bars, account, complexity, position, max_segments=cap)
    rows = zip(complexity.tolist(), made.segments.tolist(), made.action.tolist(), strict=True)
    return [Depth(felt, segments, Action(action).name) for felt, segments, action in rows]


def _checks(asked: _Asked, schema: ObservationSchema, bars: list[Effect], account: list[Effect]) -> Checks:
    together = asked.effects([Occlusion(all_bars=True), Occlusion(all_account=True)])
    return Checks(
        bars_sum=sum(each.log_odds for each in bars),
        bars_together=together[0].log_odds,
        account_sum=sum(each.log_odds for each in account),
        account_together=together[1].log_odds,
        correlation_with_shuffled_bars=_agreement(asked, schema, bars),
    )


def _agreement(asked: _Asked, schema: ObservationSchema, bars: list[Effect]) -> float | None:
    """Of the groups' effects with what they are if other bars stand there; the same for a decision at any time."""
    generator = np.random.default_rng(0)
    occlusions = [Occlusion(bars=part) for part in groups(schema)]
    drawn = [asked.effects(occlusions, baseline=shuffled(asked.bars, schema, generator)) for _ in range(DRAWS)]
    other = np.mean([[each.log_odds for each in draw] for draw in drawn], axis=0)
    mine = np.array([each.log_odds for each in bars])
    if len(mine) < 2 or not mine.std() or not other.std():
        return None
    return float(np.corrcoef(mine, other)[0, 1])
