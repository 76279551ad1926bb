"""Rows of one model that are thinking, each at a segment of its own: they join and leave between two runs.

    step:  run one segment of every row that is here;  a row halts by core.halting, or at its cap

A row keeps one slot while it is here. What it answers follows from its own slot alone: neither the rows beside it nor
the moment they come and go have a part in it. Whoever runs whole batches to the end (serving/engine.py) and whoever
lets rows come and go (serving/batcher.py) use this one loop.

Shapes: B rows of a call, n rows that are here; W window, F bar features, A account features.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from core.actions import legal_actions
from core.halting import HaltingRule, HaltReason, halt_reason, minimum_segments, should_halt
from core.manifest import ModelManifest

Arrays = dict[str, NDArray[Any]]
Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]

UNLIMITED = np.iinfo(np.int64).max


@dataclass(frozen=True)
class Decisions:
    """One decision per row. Illegal actions have probability 0; quantity is in units.

    The decision on a book is one action for each of its K instruments: an axis K after B, in units of 1, no value.
    """

    action: Ints  # [B]
    quantity: NDArray[np.float64]  # [B]
    probabilities: NDArray[np.float64]  # [B, 5]
    value: NDArray[np.float64]  # [B]
    segments: Ints  # [B]
    stable: Mask  # [B] the last segment left the action as the one before had it; True for one segment
    halt_reason: list[HaltReason]  # B of them

    def __getitem__(self, rows: Any) -> Decisions:
        """Some of the rows (a slice, a mask or indices), as another batch."""
        return Decisions(
            action=self.action[rows],
            quantity=self.quantity[rows],
            probabilities=self.probabilities[rows],
            value=self.value[rows],
            segments=self.segments[rows],
            stable=self.stable[rows],
            halt_reason=[self.halt_reason[row] for row in np.arange(len(self.action))[rows]],
        )


def concatenate(parts: list[Decisions]) -> Decisions:
    """The rows of all parts, in order."""
    return Decisions(
        action=np.concatenate([part.action for part in parts]),
        quantity=np.concatenate([part.quantity for part in parts]),
        probabilities=np.concatenate([part.probabilities for part in parts]),
        value=np.concatenate([part.value for part in parts]),
        segments=np.concatenate([part.segments for part in parts]),
        stable=np.concatenate([part.stable for part in parts]),
        halt_reason=[reason for part in parts for reason in part.halt_reason],
    )


class Slots(Protocol):
    """Where the rows' inputs and carry live between two runs: in this process's memory, or on a device."""

    rows: int
    separable: bool  # whether some rows can be run without the others

    def place(self, slots: Ints, feeds: Mapping[str, NDArray[Any]]) -> None:
        """Put new rows into `slots`; their next run starts them afresh."""

    def run(self, slots: Ints) -> Arrays:
        """One segment of these rows, outputs by name; the carry also stays here. Raises ModelError."""


@dataclass(frozen=True)
class Step:
    """What one run said of the rows that were here."""

    slots: Ints  # [n]
    decisions: Decisions  # [n] of this segment, whether or not a row goes on
    halted: Mask  # [n]
    broken: Mask  # [n] rows with an output that is no number: they decide nothing


class Reasoning:
    """Not thread-safe: each thread has its own."""

    def __init__(self, manifest: ModelManifest, slots: Slots) -> None:
        self._rule: HaltingRule | None = manifest.halting if manifest.algorithm != "ppo" else None
        answers = (slots.rows, *manifest.observation.answers)
        self._quantity_max = manifest.quantity_max
        self._slots = slots
        self._here = np.zeros(slots.rows, dtype=np.bool_)
        self._position = np.zeros(answers, dtype=np.int64)
        self._minimum = np.zeros(slots.rows, dtype=np.int64)
        self._cap = np.zeros(slots.rows, dtype=np.int64)
        self._segment = np.zeros(slots.rows, dtype=np.int64)
        self._action = np.zeros(answers, dtype=np.int64)

    @property
    def separable(self) -> bool:
        return self._slots.separable

    @property
    def free(self) -> int:
        return int(self._here.size - self._here.sum())

    @property
    def here(self) -> Ints:
        """The slots that are taken, ascending."""
        return np.flatnonzero(self._here)

    def join(
        self, feeds: Mapping[str, NDArray[Any]], complexity: NDArray[Any], position: NDArray[Any], cap: NDArray[Any]
    ) -> Ints:
        """Take in B rows and answer their slots, the lowest that are free. `cap` [B]: at most so many segments."""
        slots = np.flatnonzero(~self._here)[: len(position)]
        self._slots.place(slots, feeds)
        self._here[slots] = True
        self._position[slots] = position
        self._minimum[slots] = minimum_segments(complexity, self._rule) if self._rule else 1
        self._cap[slots] = cap
        self._segment[slots] = 0
        return slots

    def leave(self, slots: Ints) -> None:
        self._here[slots] = False

    def step(self, slots: Ints | None = None) -> Step:
        """One segment of the rows in `slots`, by default of all. Rows stay until they `leave`. Raises ModelError."""
        slots = self.here if slots is None else slots
        out = self._slots.run(slots)
        broken = _broken(out)
        if broken.any():
            out = {name: np.where(_like(broken, array), 0.0, array) for name, array in out.items()}
        self._segment[slots] += 1
        segment = self._segment[slots]
        logits = np.where(legal_actions(self._position[slots]), out["action_logits"].astype(np.float64), -np.inf)
        action = logits.argmax(axis=-1)
        stable = (action == self._action[slots]).reshape(len(slots), -1).all(axis=1) | (segment == 1)
        self._action[slots] = action
        halted, reasons = self._halting(slots, segment, out)
        weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
        decisions = Decisions(
            action=action,
            quantity=self._quantity(out, action),
            probabilities=weights / weights.sum(axis=-1, keepdims=True),
            value=out["value"].astype(np.float64) if "value" in out else np.zeros(len(slots)),
            segments=segment,
            stable=stable,
            halt_reason=reasons,
        )
        return Step(slots, decisions, halted, broken)

    def _quantity(self, out: Arrays, action: Ints) -> NDArray[np.float64]:
        if "log_quantity" not in out:
            return np.ones(action.shape)
        bounded = np.clip(out["log_quantity"].astype(np.float64), 0.0, np.log(max(self._quantity_max, 1.0)))
        quantity: NDArray[np.float64] = np.exp(bounded)
        return quantity

    def _halting(self, slots: Ints, segment: Ints, out: Arrays) -> tuple[Mask, list[HaltReason]]:
        if self._rule is None:
            return np.ones(len(slots), dtype=np.bool_), ["single_pass"] * len(slots)
        halted = should_halt(segment, out["q_halt"], out["q_continue"], self._minimum[slots], self._rule)
        capped = segment >= self._cap[slots]
        reasons = [
            _reason(int(done), bool(by_rule), bool(cut), self._rule)
            for done, by_rule, cut in zip(segment, halted, capped, strict=True)
        ]
        return halted | capped, reasons


def _reason(segment: int, by_rule: bool, capped: bool, rule: HaltingRule) -> HaltReason:
    return "segments_capped" if capped and not by_rule else halt_reason(segment, by_rule, rule)


def _broken(out: Arrays) -> Mask:
    """Rows of which any output is not finite."""
    rows = len(out["action_logits"])
    finite = [np.isfinite(array.reshape(rows, -1)).all(axis=1) for array in out.values()]
    broken: Mask = ~np.logical_and.reduce(finite)
    return broken


def _like(mask: Mask, array: NDArray[Any]) -> Mask:
    """`mask` [n] against `array` [n, ...]."""
    return mask.reshape(-1, *(1,) * (array.ndim - 1))
