"""Inference as the Open Inference Protocol means it: rows for one named model, and what stays on record of them.

On record (serving/records.py) are the tensors as they came and all outputs of all rows, whichever of them were asked
for. Who is refused, or gets an error, is answered no decision: of that there is no record.

Shapes: B rows; the tensors are those of serving/protocol.py.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from serving import protocol
from serving.answers import deadline_ms, origin
from serving.batcher import Batcher, Run
from serving.engine import Engine
from serving.record_format import InferenceAnswer, InferenceFacts, Record
from serving.schemas_v2 import InferRequest, InferResponseParameters
from serving.service import Service
from serving.tensors import Array

ROLE = "infer"  # what runs are counted as
TEXTS = "halt_reason"  # the one output that is not numbers


@dataclass(frozen=True)
class Inference:
    """A request, and what became of each of its rows."""

    asked: InferRequest
    wanted: Mapping[str, bool]  # outputs in the order asked for, and whether each travels binary
    inputs: Mapping[str, Array]
    by: Engine
    runs: tuple[Run, ...]  # B of them
    started: float  # perf_counter, s
    deadline: float
    latency_ms: float

    @property
    def failed(self) -> Run | None:
        """One row without an answer leaves the request without one."""
        return next((run for run in self.runs if run.decisions is None), None)

    @cached_property
    def outputs(self) -> Mapping[str, Array]:
        """All of them, where nothing has failed."""
        return protocol.outputs(self.runs)


async def infer(service: Service, model: Batcher, asked: InferRequest, inputs: Mapping[str, Array]) -> Inference:
    """Ask the model. Raises DataError for tensors it does not take, or outputs it has not."""
    wanted = protocol.wanted_outputs(asked)
    rows = protocol.observations(inputs, asked, model.engine.manifest.market)
    started, timeout_us = time.perf_counter(), asked.parameters.timeout
    deadline = math.inf if timeout_us is None else started + timeout_us / 1e6
    runs = await asyncio.gather(*(model.run(row, deadline) for row in rows))
    for run in runs:
        service.telemetry.ran(run, ROLE)
    latency_ms = (time.perf_counter() - started) * 1e3
    return Inference(asked, wanted, inputs, model.engine, tuple(runs), started, deadline, latency_ms)


async def put_on_record(service: Service, made: Inference) -> InferResponseParameters:
    """The id of the record of an inference that has not failed, and whether the disk took it."""
    decision_id, at = service.records.new_id()
    recorded = await service.turns.write(_record(made, decision_id, at))
    service.telemetry.recorded(recorded)
    return InferResponseParameters(decision_id=decision_id, recorded=recorded)


def _record(made: Inference, decision_id: str, at: float) -> Record:
    facts = InferenceFacts(
        decision_id=decision_id,
        at=at,
        deadline_ms=deadline_ms(made.deadline, made.started),
        latency_ms=made.latency_ms,
        request_id=made.asked.id,
        outputs=tuple(made.wanted),
        answer=InferenceAnswer(**origin(made.by), halt_reason=tuple(made.outputs[TEXTS].tolist())),
    )
    numbers = {name: array for name, array in made.outputs.items() if name != TEXTS}
    return Record(facts, {**made.inputs, **numbers})
