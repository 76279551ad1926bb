"""How well the service can decide now, as a state: five rungs, left downwards when they fail and upwards on proof.

    FULL     the routed model, as many segments as it wants
    CAPPED   the routed model, each row at its minimum of segments (core.halting)
    PPO      a loaded single-pass model decides for it
    RULE     no model: close what is held, HOLD when flat
    HOLD     (HOLD, 1.0): even a rule's answer would come too late

    down     a long and a short window breach a limit, and do so for STANDING_S: the stall of a machine is over by then;
             what is slow goes to a cheaper model, where there is one; what fails goes all the way
    up       after `dwell_s`, PROBES trial runs on the rung above, all of them well inside the limit

The long window has the guard's tests (serving/guard.py), the short one says that it is still so: the pair of Beyer et
al. (2018), "The Site Reliability Workbook", chapter 5. The guard judges a candidate and takes it away; the ladder
judges nobody, it protects the decisions of this very moment, whoever makes them. A rung that is left again soon after
it was climbed is tried half as often each time, down to once in `max_dwell_s`: constant overload does not make it flap,
and no fault outlasts itself by more. A probe runs beside a decision that the lower rung answers: nobody depends on it.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Literal, cast

from core.settings import Ladder as LadderSettings
from serving.guard import Sample, Window

RungName = Literal["full", "capped", "ppo", "rule", "hold"]
Reason = Literal["latency", "errors", "recovered", "models_changed"]

STANDING_S = 2.0
SHORT_S = 1.0  # the short window
SETTLE_S = 5.0  # at most so long after a change decisions may still wait behind those of the rung before
PROBES = 10
PROBE_EVERY_S = 0.5
WELL_INSIDE = 0.5  # of the latency limit
SYMBOLS = 4096  # of which the last outcome is known


class Rung(IntEnum):
    FULL = 0
    CAPPED = 1
    PPO = 2
    RULE = 3
    HOLD = 4

    @property
    def label(self) -> RungName:
        return LABELS[self]


LABELS: dict[Rung, RungName] = {rung: cast(RungName, rung.name.lower()) for rung in Rung}


@dataclass(frozen=True)
class Transition:
    before: Rung
    after: Rung
    reason: Reason


@dataclass(eq=False)
class _Symbols:
    """Whether each symbol's last decision failed."""

    failing: dict[str, bool] = field(default_factory=dict)
    count: int = 0

    def is_its_own(self, symbol: str, *, failed: bool) -> bool:
        """Note the outcome; whether it is a failure of this symbol alone, again, while most others are answered.

        One instrument whose data a model cannot take must not bring down, or flatten, all the others.
        """
        before = self.failing.pop(symbol, False)
        own = failed and before and 2 * self.count <= len(self.failing) + 1
        self.failing[symbol] = failed
        self.count += failed - before
        if len(self.failing) > SYMBOLS:
            self.count -= self.failing.pop(next(iter(self.failing)))
        return own


@dataclass(eq=False)
class _Stay:
    """On one rung, from one change to the next."""

    rung: Rung
    since: float
    long: Window
    short: Window
    symbols: _Symbols = field(default_factory=_Symbols)
    settled: bool = False  # what waited behind the rung before is through
    breached_by: Reason | None = None
    breached_at: float = math.inf
    trial: Rung | None = None  # the rung above
    probes: deque[bool] = field(default_factory=lambda: deque(maxlen=PROBES))  # of the trial: good ones are True
    probing: bool = False
    probe_at: float = -math.inf

    @property
    def proven(self) -> Rung | None:
        """The rung above, if its trial has succeeded."""
        return self.trial if len(self.probes) == PROBES and all(self.probes) else None

    def breach(self, now: float, still: float) -> Reason | None:
        """What is wrong by the long window, as long as more than the ratio `still` of the short one is bad."""
        self.long.prune(now)
        self.short.prune(now)
        if self.short.failed + self.short.slow <= still * len(self.short):
            return None
        return "errors" if self.long.too_faulty else "latency" if self.long.too_slow else None


class Ladder:
    """Used from the event loop only. Time is `clock`'s, s; which rungs can be stood on is the caller's to know."""

    def __init__(self, limits: LadderSettings, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits = limits
        self._short_limits = limits.model_copy(update={"window_s": SHORT_S, "min_samples": 1})
        self._clock = clock
        self._wait_s = dict.fromkeys(Rung, limits.dwell_s)  # before a rung is tried again
        self._climbed_at = -math.inf
        self._stay = self._stay_on(Rung.FULL, since=-math.inf)

    @property
    def rung(self) -> Rung:
        return self._stay.rung

    def advance(self, available: Collection[Rung]) -> Transition | None:
        """Take the step that is due, if one is. To be called before a decision, and now and then without one.

        FULL is always available: it is what the service does by itself. A rung whose model is gone is left upwards.
        """
        if self.rung not in available and (above := self._above(available)) is not None:
            return self._move(above, "models_changed")
        breach = self._standing_breach()
        if breach is not None and (below := self._below(available, breach)) is not None:
            self._wait_s[self.rung] = self._next_wait_s()
            return self._move(below, breach)
        proven = self._stay.proven
        if proven is not None and proven is self._above(available):
            self._climbed_at = self._clock()
            return self._move(proven, "recovered")
        return None

    def observe(self, rung: Rung, arrived_at: float, latency_ms: float, *, symbol: str, failed: bool) -> None:
        """One decision on `rung`: from arrival to answer, queueing included; infinite when it was refused for lack of
        time. `failed` if no model of the rung answered.
        """
        stay = self._stay
        if rung is stay.rung and stay.symbols.is_its_own(symbol, failed=failed):
            return
        good = not failed and latency_ms <= self._limits.latency_ms
        stay.settled = stay.settled or (rung is stay.rung and (good or arrived_at >= stay.since + SETTLE_S))
        if rung is stay.rung and stay.settled:
            for window in (stay.long, stay.short):
                window.add(Sample(self._clock(), latency_ms, failed, segments=0))

    def probe(self, available: Collection[Rung]) -> Rung | None:
        """The rung above, if a trial run on it is due now. Its outcome must come back by `probed`, in any case."""
        if self.rung is Rung.FULL:
            return None
        now, stay, above = self._clock(), self._stay, self._above(available)
        if above is None or stay.probing or now < max(stay.since + self._wait_s[above], stay.probe_at):
            return None
        if above is not stay.trial:
            stay.trial = above
            stay.probes.clear()
        stay.probing, stay.probe_at = True, now + PROBE_EVERY_S
        return above

    def probed(self, rung: Rung, latency_ms: float, *, failed: bool) -> None:
        """What came of a probe; of one that was begun before the last change nothing is learnt."""
        if self._stay.probing and rung is self._stay.trial:
            self._stay.probing = False
            self._stay.probes.append(not failed and latency_ms <= WELL_INSIDE * self._limits.latency_ms)

    def statistics(self) -> dict[str, object]:
        """For /health: the rung, since when, how it does, and what is known of those above."""
        now, stay = self._clock(), self._stay
        stay.long.prune(now)
        return {
            "rung": stay.rung.label,
            "for_s": now - stay.since if math.isfinite(stay.since) else None,
            "window": stay.long.statistics(),
            "good_probes": sum(stay.probes),
            "waits_s": {rung.label: wait_s for rung, wait_s in self._wait_s.items() if rung < stay.rung},
        }

    def _above(self, available: Collection[Rung]) -> Rung | None:
        return max((rung for rung in available if rung < self.rung), default=None)

    def _below(self, available: Collection[Rung], reason: Reason) -> Rung | None:
        """Load is met with less thought and with refusals, never by closing positions: only failures lead to rules."""
        lowest = Rung.PPO if reason == "latency" and self.rung < Rung.RULE else Rung.HOLD
        return min((rung for rung in available if self.rung < rung <= lowest), default=None)

    def _next_wait_s(self) -> float:
        """Before the rung that is being left is tried again: twice as long as last time, if that was not long ago."""
        relapse = self._clock() - self._climbed_at < self._limits.max_dwell_s
        return min(2 * self._wait_s[self.rung], self._limits.max_dwell_s) if relapse else self._limits.dwell_s

    def _standing_breach(self) -> Reason | None:
        now, stay = self._clock(), self._stay
        breach = stay.breach(now, self._limits.error_ratio)
        if breach is not stay.breached_by:
            stay.breached_by, stay.breached_at = breach, now
        return breach if now - stay.breached_at >= STANDING_S else None

    def _move(self, rung: Rung, reason: Reason) -> Transition:
        transition = Transition(self.rung, rung, reason)
        self._stay = self._stay_on(rung, since=self._clock())
        return transition

    def _stay_on(self, rung: Rung, since: float) -> _Stay:
        return _Stay(rung, since, Window(self._limits), Window(self._short_limits))
