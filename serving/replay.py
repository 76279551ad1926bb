"""Decides again what is on record, under the conditions of the time, and compares: exactly.

    by a model     the same bytes on the same inputs
    by a rule      the rule once more

What is asked and what must be the same: serving/replay_cases.py. Rows of one model are decided together: what a row
answers does not follow from its batch (serving/reasoning.py). On a CPU that is so to the last bit. A device rounds
products of another size otherwise: where one decided, or replays, numbers may be off by DEVICE_ROUNDING and the verdict
is `rounding`, which is no difference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from pydantic_core import to_json

from core.errors import ModelError
from serving.engine import Engine
from serving.graph import GPU_PROVIDERS
from serving.reasoning import Decisions
from serving.record_format import Origin, Record
from serving.replay_cases import Arm, Case, Outputs, cases

ROWS = 256  # that are looked at together, and a last record's

DEVICE_ROUNDING = 0.01  # 16-bit arithmetic: of the number; of those that may be near 0 also in itself
NEAR_ZERO = {"quantity": 0.0, "probabilities": DEVICE_ROUNDING, "value": DEVICE_ROUNDING}
AGREES = frozenset({"same", "rounding"})

Verdict = Literal["same", "rounding", "differs", "other_bytes", "no_model"]
Loader = Callable[[str], Engine]


@dataclass(frozen=True)
class Replayed:
    """One arm of one record; `again` is None where nothing could be decided, and `why` says what was in the way."""

    decision_id: str
    arm: Arm
    model: str | None
    recorded: Outputs
    again: Outputs | None
    verdict: Verdict
    why: str | None = None


def replay(records: Iterable[Record], load: Loader) -> Iterator[Replayed]:
    """Each record's answer, then its shadow where it has one; in the order of the records.

    `load` gives the engine of a model's id or raises ModelError; it is asked again for every few hundred rows.
    """
    for batch in _batches(records):
        done: dict[Case, Replayed] = {}
        for model in {case.by.model for case in batch}:
            mine = [case for case in batch if case.by.model == model]
            done |= zip(mine, _by_rule(mine) if model is None else _by_model(model, mine, load), strict=True)
        yield from (done[case] for case in batch)


def _batches(records: Iterable[Record]) -> Iterator[list[Case]]:
    batch: list[Case] = []
    for record in records:
        batch += cases(record)
        if sum(case.rows for case in batch) >= ROWS:
            yield batch
            batch = []
    if batch:
        yield batch


def _by_rule(batch: list[Case]) -> list[Replayed]:
    return [_result(case, case.read(None)) for case in batch]


def _by_model(model: str, batch: list[Case], load: Loader) -> list[Replayed]:
    try:
        engine = load(model)
    except ModelError as error:
        return [_result(case, None, str(error), "no_model") for case in batch]
    differing = {case: _differing_bytes(case.by, engine) for case in batch}
    fit = [case for case in batch if differing[case] is None]
    again = dict(zip(fit, _decide(engine, fit), strict=True))
    return [again.get(case) or _result(case, None, differing[case], "other_bytes") for case in batch]


def _differing_bytes(by: Origin, engine: Engine) -> str | None:
    theirs = {"manifest.json": by.manifest_sha256, "model.onnx": by.onnx_sha256}
    ours = {"manifest.json": engine.manifest_sha256, "model.onnx": engine.onnx_sha256}
    differing = [name for name in ours if ours[name] != theirs[name]]
    if not differing:
        return None
    return f"{engine.id}: not the bytes that decided: {', '.join(differing)}; restore the version of the record"


def _decide(engine: Engine, batch: list[Case]) -> list[Replayed]:
    if not batch:
        return []
    try:
        made = _made(engine, batch)
    except ModelError as error:  # of one row, perhaps: the others are not to be blamed for it
        if len(batch) == 1:
            return [_result(batch[0], None, str(error))]
        return [result for case in batch for result in _decide(engine, [case])]
    ends = np.cumsum([case.rows for case in batch]).tolist()
    return [
        _compared(case, case.read(made[end - case.rows : end]), engine.provider)
        for case, end in zip(batch, ends, strict=True)
    ]


def _made(engine: Engine, batch: list[Case]) -> Decisions:
    """Of all rows of all cases, in order. Raises ModelError."""
    feeds = {name: np.concatenate([case.feeds[name] for case in batch]) for name in batch[0].feeds}
    complexity = np.concatenate([case.complexity for case in batch])
    position = np.concatenate([case.position for case in batch])
    cap = np.concatenate([case.cap for case in batch])
    if engine.manifest.algorithm == "hrm_book":
        return engine.decide_rows(feeds, complexity, position, cap)
    return engine.decide(feeds["bars"], feeds["account"], complexity, position, max_segments=cap)


def _compared(case: Case, again: Outputs, provider: str) -> Replayed:
    """With what `provider` came to."""
    theirs = case.by.provider
    elsewhere = None if theirs == provider else f"decided by {theirs}, replayed by {provider}"
    exact = _exact(case.recorded, again)
    device = not GPU_PROVIDERS.isdisjoint({theirs, provider})
    rounded = device and not exact and _close(case.recorded, again)
    return _result(case, again, elsewhere, "rounding" if rounded else None)


def _result(case: Case, again: Outputs | None, why: str | None = None, verdict: Verdict | None = None) -> Replayed:
    exact = again is not None and _exact(case.recorded, again)
    verdict = verdict or ("same" if exact else "differs")
    return Replayed(case.decision_id, case.arm, case.by.model, case.recorded, again, verdict, why)


def _exact(recorded: Outputs, again: Outputs) -> bool:
    """To the last bit: a number's shortest text is that number's alone, and -0 is not 0."""
    return all(to_json(again[name]) == to_json(recorded[name]) for name in recorded)


def _close(recorded: Outputs, again: Outputs) -> bool:
    return all(_alike(name, recorded[name], again[name]) for name in recorded)


def _alike(name: str, recorded: Any, again: Any) -> bool:
    """As far as a device's rounding goes; what it leaves alone (choices, depths) must be the same."""
    if name not in NEAR_ZERO:
        return bool(recorded == again)
    return np.allclose(again, recorded, rtol=DEVICE_ROUNDING, atol=NEAR_ZERO[name])
