"""Decides again what is on record, under the conditions of the time, and compares: action, quantity and depth, exactly.

    by a model     the same bytes on the same inputs; what a deadline or the ladder cut is cut at the same segment
    by a rule      the rule once more: go flat on rung `rule`, else HOLD

Rows of one model are decided together: what a row answers does not follow from its batch (serving/reasoning.py). On a
CPU that is so to the last bit. A device rounds products of another size otherwise: where one decided, or replays, a
quantity may be off by DEVICE_ROUNDING and the verdict is `rounding`, which is no difference.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Literal

import numpy as np

from core.actions import SAFE_DECISION, go_flat
from core.errors import ModelError
from serving.engine import Engine
from serving.graph import GPU_PROVIDERS
from serving.reasoning import UNLIMITED
from serving.records import Answer, Facts, Floats, Record

CUT = frozenset({"deadline_reached", "segments_capped"})
ROWS = 256  # records that are looked at together

DEVICE_ROUNDING = 0.01  # of the quantity: 16-bit arithmetic
AGREES = frozenset({"same", "rounding"})

Verdict = Literal["same", "rounding", "differs", "other_bytes", "no_model"]
Loader = Callable[[str], Engine]


@dataclass(frozen=True)
class Decided:
    """What is compared. A rule has no depth: 0 segments."""

    action: int
    quantity: float
    segments: int


@dataclass(frozen=True)
class Replayed:
    """One arm of one record; `again` is None where nothing could be decided, and `why` says what was in the way."""

    decision_id: str
    arm: Literal["answer", "shadow"]
    model: str | None
    recorded: Decided
    again: Decided | None
    verdict: Verdict
    why: str | None = None


@dataclass(frozen=True, eq=False)
class _Case:
    """One arm of one record, and what it decided on."""

    arm: Literal["answer", "shadow"]
    facts: Facts
    answer: Answer
    bars: Floats
    account: Floats

    @property
    def cap(self) -> int:
        if self.answer.halt_reason in CUT:
            return self.answer.segments
        return UNLIMITED if self.answer.segment_cap is None else self.answer.segment_cap

    def result(self, again: Decided | None, why: str | None = None, verdict: Verdict | None = None) -> Replayed:
        recorded = Decided(self.answer.action, self.answer.quantity, self.answer.segments)
        verdict = verdict or ("same" if again == recorded else "differs")
        return Replayed(self.facts.decision_id, self.arm, self.answer.model, recorded, again, verdict, why)

    def compared(self, again: Decided, provider: str) -> Replayed:
        """With what `provider` came to."""
        theirs = self.answer.provider
        elsewhere = None if theirs == provider else f"decided by {theirs}, replayed by {provider}"
        close = math.isclose(again.quantity, self.answer.quantity, rel_tol=DEVICE_ROUNDING)
        alike = close and (again.action, again.segments) == (self.answer.action, self.answer.segments)
        exact = again.quantity == self.answer.quantity
        device = not GPU_PROVIDERS.isdisjoint({theirs, provider})
        return self.result(again, elsewhere, "rounding" if alike and device and not exact else None)


def replay(records: Iterable[Record], load: Loader) -> Iterator[Replayed]:
    """Each record's answer, then its shadow where it has one; in the order of the records.

    `load` gives the engine of a model's id or raises ModelError; it is asked again for every few hundred records.
    """
    remaining = iter(records)
    while batch := [case for record in islice(remaining, ROWS) for case in _cases(record)]:
        models = {case.answer.model for case in batch}
        done: dict[_Case, Replayed] = {}
        for model in models:
            cases = [case for case in batch if case.answer.model == model]
            done |= zip(cases, _by_rule(cases) if model is None else _by_model(model, cases, load), strict=True)
        yield from (done[case] for case in batch)


def _cases(record: Record) -> list[_Case]:
    facts, arrays = record.facts, record.arrays
    cases = [_Case("answer", facts, facts.answer, arrays["bars"], arrays["account"])]
    if facts.shadow is not None:
        cases.append(_Case("shadow", facts, facts.shadow, arrays["bars"], arrays["shadow_account"]))
    return cases


def _by_rule(cases: list[_Case]) -> list[Replayed]:
    def decided(case: _Case) -> Decided:
        action, quantity = go_flat(case.answer.position) if case.facts.rung == "rule" else SAFE_DECISION
        return Decided(int(action), quantity, 0)

    return [case.result(decided(case)) for case in cases]


def _by_model(model: str, cases: list[_Case], load: Loader) -> list[Replayed]:
    try:
        engine = load(model)
    except ModelError as error:
        return [case.result(None, str(error), "no_model") for case in cases]
    fit = [case for case in cases if _differing_bytes(case.answer, engine) is None]
    again = dict(zip(fit, _decide(engine, fit), strict=True))
    return [
        again.get(case) or case.result(None, _differing_bytes(case.answer, engine), "other_bytes") for case in cases
    ]


def _differing_bytes(answer: Answer, engine: Engine) -> str | None:
    theirs = {"manifest.json": answer.manifest_sha256, "model.onnx": answer.onnx_sha256}
    ours = {"manifest.json": engine.manifest_sha256, "model.onnx": engine.onnx_sha256}
    differing = [name for name in ours if ours[name] != theirs[name]]
    if not differing:
        return None
    return f"{engine.id}: not the bytes that decided: {', '.join(differing)}; restore the version of the record"


def _decide(engine: Engine, cases: list[_Case]) -> list[Replayed]:
    if not cases:
        return []
    try:
        made = engine.decide(
            bars=np.stack([case.bars for case in cases]),
            account=np.stack([case.account for case in cases]),
            complexity=np.array([case.facts.complexity for case in cases], dtype=np.float32),
            position=np.array([case.answer.position for case in cases]),
            max_segments=np.array([case.cap for case in cases]),
        )
    except ModelError as error:  # of one row, perhaps: the others are not to be blamed for it
        if len(cases) == 1:
            return [cases[0].result(None, str(error))]
        return [result for case in cases for result in _decide(engine, [case])]
    rows = zip(made.action.tolist(), made.quantity.tolist(), made.segments.tolist(), strict=True)
    return [case.compared(Decided(*row), engine.provider) for case, row in zip(cases, rows, strict=True)]
