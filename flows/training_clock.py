"""Training for a wall time instead of a number of steps.

The cosine needs to know its last step, so it is estimated anew after every step from the rate so far: whatever else
the machine does meanwhile, the learning rate ends its way when the time does. Looks at validation sessions are part
of the time, and so is compilation.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from core.settings import Settings
from hrm import control
from hrm.batch import Batch
from hrm.trainer import DeepSupervisionTrainer

LOOKS_AT = (0.6, 0.75, 0.9, 1.0)  # of the training time
STEPS_PER_S = 10  # guessed until the rate is known
UNTIMED_STEPS = 8  # on a GPU the first steps compile and capture; none of them tells the rate
REPORT_S = 0.5

Report = Callable[[float, str], None]  # ratio of the budget used, note


def guessed_steps(budget_s: float) -> int:
    """For a trainer that wants to know how long it will train: it compiles what will be long."""
    return max(1, round(STEPS_PER_S * budget_s))


@dataclass
class Clock:
    """Seconds of one training: those spent on steps and those spent on looks."""

    budget_s: float
    looks: int
    started: float = field(default_factory=time.monotonic)
    looking_s: float = 0.0
    looked: int = 0
    untimed_s: float = 0.0

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self.started

    @property
    def training_s(self) -> float:
        """Spent on steps so far."""
        return self.elapsed_s - self.looking_s

    @property
    def to_train_s(self) -> float:
        """To be spent on steps in all: what the looks leave, the coming ones estimated by those that were."""
        return self.budget_s - self.per_look_s * self.looks

    @property
    def per_look_s(self) -> float:
        return self.looking_s / self.looked if self.looked else 0.0

    @property
    def has_time_to_look(self) -> bool:
        return self.elapsed_s + self.per_look_s <= self.budget_s

    def steps_in_all(self, step: int) -> int | None:
        """How many steps the time will allow, seen after number `step`; None before the rate is known."""
        if step == UNTIMED_STEPS:
            self.untimed_s = self.training_s
        if step <= UNTIMED_STEPS:
            return None
        rate = (step - UNTIMED_STEPS) / (self.training_s - self.untimed_s)
        return step + max(1, round(rate * (self.to_train_s - self.training_s)))

    def look(self, work: Callable[[], float]) -> float:
        began = time.monotonic()
        found = work()
        self.looking_s += time.monotonic() - began
        self.looked += 1
        return found


@dataclass(frozen=True)
class Fit:
    """How a training went: seconds in all, optimiser steps, and the losses the looks found."""

    train_s: float
    steps: int
    looks: list[float]

    def facts(self, trainer: DeepSupervisionTrainer[Any], settings: Settings) -> dict[str, Any]:
        """What it took, as the benchmarks report it."""
        return {
            "train_s": self.train_s,
            "steps": self.steps,
            "rows": self.steps * settings.performance.batch_size,
            "parameters": trainer.model.parameter_count,
            "block_passes": control.block_passes(settings),
            "looks": self.looks,
        }


def fit(
    trainer: DeepSupervisionTrainer[Any],
    batches: Iterator[Batch],
    validate: Callable[[], float],
    *,
    budget_s: float,
    report: Report,
) -> Fit:
    """Train for `budget_s` seconds; `trainer.ema` keeps the averaged weights for which `validate` was lowest."""
    clock = Clock(budget_s, len(LOOKS_AT))
    looks: list[float] = []
    best: dict[str, Any] = {}
    for share in LOOKS_AT:
        if looks and not clock.has_time_to_look:
            break
        _train_until(share, trainer, batches, clock, report)
        looks.append(clock.look(validate))
        if looks[-1] == min(looks):
            best = copy.deepcopy(trainer.ema.state_dict())
    trainer.ema.load_state_dict(best)
    report(1.0, f"{trainer.step} steps")
    return Fit(clock.elapsed_s, trainer.step, looks)


def _train_until(
    share: float, trainer: DeepSupervisionTrainer[Any], batches: Iterator[Batch], clock: Clock, report: Report
) -> None:
    """Steps until a share of the training time is used up; at least one."""
    reported_s = 0.0
    while True:
        loss = trainer.train_step(next(batches))
        trainer.total_steps = clock.steps_in_all(trainer.step) or trainer.total_steps
        if clock.elapsed_s - reported_s > REPORT_S:
            reported_s = clock.elapsed_s
            report(min(0.99, reported_s / clock.budget_s), f"step {trainer.step}, loss {loss:.3f}")
        if clock.training_s >= share * clock.to_train_s:
            return


def over_trainings(facts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Each fact over several seeds: the median of numbers; lists (the looks) stay as they are, seed by seed."""
    found = {key: [one[key] for one in facts] for key in facts[0]}
    return {key: values if isinstance(values[0], list) else median(values) for key, values in found.items()}
