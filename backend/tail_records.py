"""Decisions as they are recorded (serving/records.py): each as a `decision`, and as the seed's `hrm_metrics` (5.1.2).

Only what is appended is read: the files of today and yesterday (UTC), each from where the last look ended. A frame that
is not whole yet is read when it is; one that never will be is passed over, as every reader of records does.
"""

from __future__ import annotations

import zlib
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any

import structlog

from backend.hub import News, utc
from core.actions import Action
from core.halting import HaltingRule
from core.manifest import MANIFEST, ModelManifest
from core.settings import Settings
from serving.record_format import FRAME, LENGTH, MAGIC, Answer, DecisionFacts, decode
from serving.records import FILE_PATTERN

MOST_BYTES = 8 << 20  # of one file, in one look
MOST_A_LOOK = 50  # decisions: a person follows no more, nor does a page
OF_THE_LATEST = 100  # decisions of a model, of which the share that settled is told
SETTLED = {"q_learning_decision", "single_pass"}

log = structlog.get_logger(__name__)


class RecordTail:
    """Of one folder of records."""

    def __init__(self, settings: Settings, memory_mb: Callable[[], float | None]) -> None:
        self._folder = settings.paths.state_dir / "decisions"
        self._metrics = HrmMetrics(settings, memory_mb)
        self._at: dict[str, int] = {}  # by file: the first byte that was not read
        self._sizes: dict[str, int] = {}  # of each file, when it was last read
        self._began = False

    def look(self) -> Iterator[News]:
        found: list[DecisionFacts] = []
        for file in self._files():
            found += self._appended(file)
        self._began = True
        if len(found) > MOST_A_LOOK:
            log.warning("decisions_left_out", left_out=len(found) - MOST_A_LOOK)
        for facts in sorted(found, key=lambda each: each.decision_id)[-MOST_A_LOOK:]:
            yield _decision(facts)
            if facts.answer.model is not None:
                yield self._metrics.of(facts)

    def _files(self) -> list[Path]:
        if not self._folder.is_dir():
            return []
        today = datetime.now(UTC)
        days = {f"{today - timedelta(days=ago):%Y%m%d}" for ago in (0, 1)}
        files = [file for file in self._folder.iterdir() if file.name[:8] in days and FILE_PATTERN.fullmatch(file.name)]
        self._at = {file.name: self._at[file.name] for file in files if file.name in self._at}
        return files

    def _appended(self, file: Path) -> list[DecisionFacts]:
        """What is there now, at the first look, is the past."""
        size = file.stat().st_size
        at = self._at.setdefault(file.name, 0 if self._began else size)
        if size in (at, self._sizes.get(file.name)):  # nothing new, or only what is torn
            return []
        self._sizes[file.name] = size
        with file.open("rb") as stream:
            stream.seek(at)
            data = stream.read(MOST_BYTES)
        bodies, read = _whole(data)
        if len(data) == MOST_BYTES:
            self._sizes.pop(file.name)  # there is more
            read = read or MOST_BYTES
        self._at[file.name] = at + read
        return [facts for body in bodies if isinstance(facts := decode(body).facts, DecisionFacts)]


def _whole(data: bytes) -> tuple[list[bytes], int]:
    """The bodies of all whole frames, and the byte after the last of them."""
    bodies, at, end = [], 0, 0
    while (at := data.find(MAGIC, at)) >= 0:
        body = _body(data, at)
        if body is None:
            at += 1
            continue
        bodies.append(body)
        at = end = at + FRAME.size + len(body)
    return bodies, end


def _body(data: bytes, at: int) -> bytes | None:
    if at + FRAME.size > len(data):
        return None
    _, length, checksum = FRAME.unpack_from(data, at)
    body = data[at + FRAME.size : at + FRAME.size + length]
    return body if LENGTH.size <= length == len(body) and zlib.crc32(body) == checksum else None


def _decision(facts: DecisionFacts) -> News:
    shadow = facts.shadow
    data = {
        "decision_id": facts.decision_id,
        "symbol": facts.symbol,
        "epoch": facts.epoch,
        "rung": facts.rung,
        "fallback": facts.fallback,
        "acting": facts.acting,
        "complexity": facts.complexity,
        "latency_ms": facts.latency_ms,
        **_answer(facts.answer),
        "shadow": None if shadow is None else _answer(shadow),
    }
    return News("decision", data, utc(facts.at), facts.symbol, state=f"decision:{facts.symbol}")


def _answer(answer: Answer) -> dict[str, Any]:
    return {
        "model": answer.model,
        "role": answer.role,
        "position": answer.position,
        "action": answer.action,
        "action_name": Action(answer.action).name,
        "quantity": answer.quantity,
        "segments": answer.segments,
        "halt_reason": answer.halt_reason,
    }


class HrmMetrics:
    """The seed's `hrm_metrics`, of one decision at a time.

    hierarchical_efficiency   1 - (segments - 1) / (max_segments - 1), max_segments of the model's own halting rule:
                              what was not needed of the computation allowed beyond the first segment, as a
                              backtest's computation_efficiency (trading/hierarchy.py); 1 for a model of one pass,
                              None where its manifest is gone
    convergence_stability     of the model's latest 100 decisions the share that stopped by itself, neither at the limit
                              of segments nor at a deadline: a backtest's hierarchical_convergence
    inference_performance     latency of the whole answer; memory of the service's processes, which is asked for every
                              15 s (None: it does not answer); `optimal` within performance.inference_timeout_ms
    """

    def __init__(self, settings: Settings, memory_mb: Callable[[], float | None]) -> None:
        self._store = settings.paths.state_dir / "models"
        self._limit_ms = settings.performance.inference_timeout_ms
        self._memory_mb = memory_mb
        self._settled: defaultdict[str, deque[bool]] = defaultdict(lambda: deque(maxlen=OF_THE_LATEST))
        self._rule = lru_cache(64)(self._read_rule)

    def of(self, facts: DecisionFacts) -> News:
        model, depth = str(facts.answer.model), facts.answer.segments
        settled = self._settled[model]
        settled.append(facts.answer.halt_reason in SETTLED)
        efficiency = self._efficiency(model, depth)
        data = {
            "hierarchical_efficiency": efficiency,
            "computation_depth": depth,
            "convergence_stability": sum(settled) / len(settled),
            "inference_performance": {
                "latency_ms": facts.latency_ms,
                "memory_mb": self._memory_mb(),
                "status": "optimal" if facts.latency_ms < self._limit_ms else "warning",
            },
            "adaptive_reasoning": {
                "market_complexity": facts.complexity,
                "reasoning_depth": depth,
                "efficiency_score": efficiency,
            },
        }
        return News("hrm_metrics", data, utc(facts.at), facts.symbol, state=f"hrm_metrics:{facts.symbol}")

    def _efficiency(self, model: str, depth: int) -> float | None:
        try:
            rule = self._rule(model)
        except (OSError, ValueError):  # the model was removed since, or is damaged
            return None
        return 1.0 if rule is None or rule.max_segments == 1 else 1.0 - (depth - 1) / (rule.max_segments - 1)

    def _read_rule(self, model: str) -> HaltingRule | None:
        return ModelManifest.model_validate_json((self._store / model / MANIFEST).read_bytes()).halting
