"""Held-out sessions through the running service, several symbols at a time, each arm in its own virtual portfolio.

A lane is one symbol that lives through one session. In every lock-step each lane asks the service once; the
answer holds the acting arm's decision and, as `shadow`, the other arm's. Both arms see the same bars and act on
portfolios of their own, so their difference is theirs alone. What each earned is reported back as an outcome.

Shapes: B lanes of one replay, D decisions, S sessions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from core.actions import SAFE_DECISION
from core.errors import HrmSystemError
from core.observation import ObservationSchema
from serving.question import Account, Question
from serving.schemas import Decision, DecisionResponse
from trading.env import SessionEnv, Step
from trading.evaluation import regret_of
from trading.features import Floats
from trading.market import Ints, Market
from trading.observations import Observations

CLIENT_THREADS = 4
BOTH = ("champion", "challenger")


class Service(Protocol):
    """The two calls a replay makes. Both raise HrmSystemError when the service does not answer."""

    def decide(self, question: Question) -> DecisionResponse: ...
    def outcome(self, symbol: str, champion_bps: float, challenger_bps: float) -> object: ...


@dataclass(frozen=True)
class Course:
    """What is replayed: a market, the observation, the price of turnover, and whether its optimum is known."""

    market: Market
    schema: ObservationSchema
    cost_bps: float
    optimum_known: bool


@dataclass(frozen=True)
class Decided:
    """What one arm decided for one lane; the safe decision where it failed to answer."""

    action: int = int(SAFE_DECISION[0])
    quantity: float = SAFE_DECISION[1]
    segments: int = 0
    latency_ms: float = float("nan")
    model: str = ""
    acting: bool = False
    failed: bool = True
    late: bool = False


@dataclass
class Arm:
    """One arm's virtual portfolios over all lanes, and what it did in them."""

    env: SessionEnv
    return_bps: Floats  # [B]
    regret_bps: Floats | None  # [B]; None where the optimum is unknown
    decided: list[Decided] = field(default_factory=list)
    position: list[int] = field(default_factory=list)  # after each decision
    acting: dict[int, bool] = field(default_factory=dict)  # by lane, at its latest decision

    @classmethod
    def of(cls, course: Course, sessions: Ints) -> Arm:
        env = SessionEnv(course.market, course.schema, sessions, course.cost_bps)
        return cls(env, np.zeros(len(sessions)), np.zeros(len(sessions)) if course.optimum_known else None)

    def take(self, decided: Sequence[Decided], before: Ints) -> Step:
        """Act on all lanes, from positions `before` [B]; lanes whose session has ended ignore it."""
        step = self.env.step(np.array([one.action for one in decided]))
        self.return_bps += step.reward_bps
        if self.regret_bps is not None:
            self.regret_bps += regret_of(step, before, self.env.market, self.env.cost_bps)
        for row in np.flatnonzero(step.active).tolist():
            self.decided.append(decided[row])
            self.position.append(int(step.position[row]))
            self.acting[row] = decided[row].acting
        return step

    def open_positions(self) -> dict[int, int]:
        """Lane to position, where this arm was acting at its latest decision and is not flat."""
        position = self.env.position.tolist()
        return {row: position[row] for row, acting in self.acting.items() if acting and position[row]}


@dataclass(frozen=True)
class Replay:
    """Arms by role, row for row the same decisions; `symbols` names the lane of each session [S]."""

    symbols: list[str]
    arms: dict[str, Arm]
    lost: int  # requests without any answer
    finished: bool  # False: stopped by `keep_going`

    @property
    def handover(self) -> dict[str, int]:
        """Symbol to position the challenger held for real when the replay was stopped."""
        challenger = self.arms.get("challenger")
        held = {} if challenger is None else challenger.open_positions()
        return {self.symbols[row]: position for row, position in held.items()}


def replay(
    service: Service,
    course: Course,
    lanes: Mapping[str, int],
    *,
    roles: Sequence[str] = BOTH,
    keep_going: Callable[[float], bool] = lambda ratio: True,
) -> Replay:
    """Drive `lanes` (symbol to session id) to the end of their sessions.

    Args:
        roles: arms to follow; the champion alone once it has taken over.
        keep_going: asked before every lock-step with the ratio done; False stops the replay there.
    """
    symbols, sessions = list(lanes), np.array(list(lanes.values()), dtype=np.int64)
    arms = {role: Arm.of(course, sessions) for role in roles}
    clock = arms[roles[0]].env
    longest = int((clock.last - clock.at).max()) + 1
    lost = steps = 0
    with ThreadPoolExecutor(CLIENT_THREADS) as pool:
        while not clock.done and keep_going(steps / longest):
            lost += _lock_step(service, symbols, arms, pool)
            steps += 1
    return Replay(symbols, arms, lost, clock.done)


def _lock_step(service: Service, symbols: Sequence[str], arms: Mapping[str, Arm], pool: ThreadPoolExecutor) -> int:
    """One decision in every lane whose session goes on; the number of requests that got no answer."""
    seen = {role: arm.env.observe() for role, arm in arms.items()}
    rows = np.flatnonzero(next(iter(arms.values())).env.active).tolist()
    questions = [_question(symbols[row], row, seen) for row in rows]
    answers = dict(zip(rows, pool.map(partial(_ask, service), questions), strict=True))
    earned = {}
    for role, arm in arms.items():
        decided = [_decided(answers.get(row), role) for row in range(len(symbols))]
        earned[role] = arm.take(decided, seen[role].position)
    if len(arms) == len(BOTH):
        outcomes = [(symbols[row], *(float(earned[role].reward_bps[row]) for role in BOTH)) for row in rows]
        list(pool.map(lambda outcome: service.outcome(*outcome), outcomes))
    return sum(answer is None for answer in answers.values())


def _question(symbol: str, row: int, seen: Mapping[str, Observations]) -> Question:
    same = next(iter(seen.values()))  # bars and complexity do not depend on the portfolio
    accounts = {role: Account(arm.account[row], int(arm.position[row])) for role, arm in seen.items()}
    champion, challenger = accounts["champion"], accounts.get("challenger")
    return Question(symbol, same.bars[row], float(same.complexity[row]), champion, challenger)


def _ask(service: Service, question: Question) -> DecisionResponse | None:
    try:
        return service.decide(question)
    except HrmSystemError:
        return None  # counted as lost; both arms hold


def _decided(answer: DecisionResponse | None, role: str) -> Decided:
    """The part of an answer that is `role`'s: its shadow, or what was answered to the arm it was routed to.

    An arm that did not answer holds: `late` if it was too slow for a shadow, or a degraded service did not ask it, else
    `failed`, as is an acting decision that another model had to take. `latency_ms` is then what the service knows of
    its run, NaN while it still ran.
    """
    if answer is None:
        return Decided()
    shadow = answer.shadow
    if shadow is not None and shadow.role == role:
        return _read(shadow, acting=False)
    if answer.account == role:
        return _read(answer, acting=True)
    late, ran_ms = answer.shadow_missing in ("late", "degraded"), answer.shadow_latency_ms
    return Decided(failed=not late, late=late, latency_ms=float("nan") if ran_ms is None else ran_ms)


def _read(part: Decision, *, acting: bool) -> Decided:
    return Decided(
        action=part.action,
        quantity=part.quantity,
        segments=part.segments,
        latency_ms=part.latency_ms,
        model=f"{part.model}/{part.model_version}",
        acting=acting,
        failed=part.fallback,
    )


def arms_of(replays: Sequence[Replay], role: str) -> list[Arm]:
    return [one.arms[role] for one in replays]


def column(arms: Sequence[Arm], name: str) -> NDArray[Any]:
    """One field of all decisions [D] of these arms."""
    return np.array([getattr(decided, name) for arm in arms for decided in arm.decided])
