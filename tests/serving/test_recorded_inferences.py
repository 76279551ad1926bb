"""Inferences over the Open Inference Protocol, recorded and run again: every bit that went out comes out once more."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
from hypothesis import Phase, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from test_decisions import serve
from test_open_inference import DATATYPES, ROW, document, rows, tensors
from test_recorded_decisions import records_of, replayed
from tiny_models import publish_hrm, settings_in

from core.errors import DataError
from core.settings import Settings
from flows.drill_models import FAULT_LEVEL, publish_policy
from flows.service_process import ServiceProcess
from serving.audit import find, find_request
from serving.inferences import Inference, infer, put_on_record
from serving.protocol import OUTPUTS
from serving.record_format import InferenceFacts, Record
from serving.schemas_v2 import InferRequest, InferResponseParameters
from serving.service import Service
from serving.watch import warnings

Arrays = dict[str, np.ndarray]
Answered = tuple[Inference, InferResponseParameters]


def asked_for(arrays: Arrays, **fields: Any) -> InferRequest:
    return InferRequest.model_validate(document(arrays) | fields)


async def ask(service: Service, model_id: str, arrays: Arrays, **fields: Any) -> Answered:
    made = await infer(service, service.live.models[model_id], asked_for(arrays, **fields), arrays)
    assert made.failed is None
    return made, await put_on_record(service, made)


def facts_of(record: Record) -> InferenceFacts:
    assert isinstance(record.facts, InferenceFacts)
    return record.facts


def bits(arrays: Mapping[str, np.ndarray]) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    return {name: (array.dtype.str, array.shape, array.tobytes()) for name, array in arrays.items()}


def agrees(made: Inference, record: Record) -> bool:
    numbers = {name: array for name, array in made.outputs.items() if name != "halt_reason"}
    texts = tuple(made.outputs["halt_reason"].tolist())
    return bits(record.arrays) == bits({**made.inputs, **numbers}) and facts_of(record).answer.halt_reason == texts


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return with_models(tmp_path)


def with_models(folder: Path) -> Settings:
    publish_policy(folder / "models", "ppo/v1")
    publish_hrm(folder / "models", "hrm/v1")
    return settings_in(folder, records={"min_free_gb": 0})


ASKED = st.tuples(st.sampled_from(["ppo/v1", "hrm/v1"]), st.integers(1, 20), st.integers(0, 10_000), st.booleans())


@given(groups=st.lists(st.lists(ASKED, min_size=1, max_size=12), min_size=1, max_size=3))
@hypothesis_settings(max_examples=10, phases=[Phase.explicit, Phase.generate])
def test_whatever_company_and_deadlines_an_inference_replays_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory, groups: list[list[tuple[str, int, int, bool]]]
) -> None:
    settings = with_models(tmp_path_factory.mktemp("any"))
    answers: list[Answered] = []

    async def one(service: Service, asked: tuple[str, int, int, bool]) -> None:
        model_id, count, seed, hurried = asked
        arrays, parameters = rows(count, seed), {"timeout": 1 + seed % 3000} if hurried else {}
        request = asked_for(arrays, parameters=parameters)
        made = await infer(service, service.live.models[model_id], request, arrays)
        if made.failed is None:
            answers.append((made, await put_on_record(service, made)))
        else:  # no half of an answer, and no record of it
            assert made.failed.error_code == "overloaded", made.failed

    async def story(service: Service) -> None:
        await service.load("hrm/v1")
        for group in groups:
            await asyncio.gather(*(one(service, asked) for asked in group))

    serve(settings, story)
    records = {record.facts.decision_id: record for record in records_of(settings)}
    assert len(records) == len(answers)
    assert all(told.recorded and agrees(made, records[told.decision_id]) for made, told in answers)
    results = replayed(settings, list(records.values()))
    assert [result.decision_id for result in results] == list(records)
    assert [result for result in results if result.verdict != "same"] == []
    assert all(result.again == result.recorded for result in results)


def test_what_a_deadline_cut_is_cut_there_again_row_by_row(settings: Settings) -> None:
    arrays = rows(5) | {"account": np.full((5, ROW["account"].shape[1]), 50, np.float32)}
    arrays["account"][2] = 0  # halts by itself in its first segment, if its market is calm
    arrays["complexity"][:] = 0.0

    async def story(service: Service) -> None:
        await service.load("hrm/v1")
        made = await infer(service, service.live.models["hrm/v1"], asked_for(arrays, parameters={"timeout": 1}), arrays)
        assert made.failed is None
        assert "deadline_reached" in made.outputs["halt_reason"].tolist()
        await put_on_record(service, made)

    serve(settings, story)
    (record,) = records_of(settings)
    assert record.facts.deadline_ms == pytest.approx(1e-3, rel=1e-3)
    (result,) = replayed(settings, [record])
    assert (result.verdict, result.again) == ("same", result.recorded)


def test_a_record_holds_the_tensors_as_they_came_and_what_was_asked_for(settings: Settings) -> None:
    arrays = rows(7)

    async def story(service: Service) -> None:
        await ask(service, "ppo/v1", arrays, id="r-7", outputs=[{"name": "value"}, {"name": "action"}])
        await ask(service, "ppo/v1", arrays)

    serve(settings, story)
    named, unnamed = records_of(settings)
    facts = facts_of(named)
    assert (facts.request_id, facts.outputs, facts.deadline_ms) == ("r-7", ("value", "action"), None)
    assert bits({name: named.arrays[name] for name in arrays}) == bits(arrays)
    assert (facts.answer.model, facts.answer.provider) == ("ppo/v1", "CPUExecutionProvider")
    assert (facts_of(unnamed).request_id, facts_of(unnamed).outputs) == (None, tuple(OUTPUTS))
    folder = settings.paths.state_dir / "decisions"
    assert [each.facts.decision_id for each in find_request(folder, "r-7")] == [facts.decision_id]


def test_decisions_and_inferences_are_replayed_together_and_more_of_them_than_are_looked_at_at_once(
    settings: Settings,
) -> None:
    from test_decisions import question

    from serving.decisions import decide

    async def story(service: Service) -> None:
        for seed in range(6):
            await ask(service, "ppo/v1", rows(100, seed))
            await decide(service, question())

    serve(settings, story)
    records = records_of(settings)
    results = replayed(settings, records)
    assert [result.decision_id for result in results] == [record.facts.decision_id for record in records]
    assert {result.verdict for result in results} == {"same"}


def test_an_inference_whose_record_was_altered_does_not_replay(settings: Settings) -> None:
    async def story(service: Service) -> None:
        await ask(service, "ppo/v1", rows(3))

    serve(settings, story)
    (record,) = records_of(settings)
    for name in ("quantity", "probabilities", "value"):
        array = record.arrays[name].copy()
        array.flat[-1] = np.nextafter(array.flat[-1], 9)
        (result,) = replayed(settings, [Record(record.facts, dict(record.arrays) | {name: array})])
        assert result.verdict == "differs", name
    for name in ("action", "segments"):
        array = record.arrays[name].copy()
        array[-1] += 1
        (result,) = replayed(settings, [Record(record.facts, dict(record.arrays) | {name: array})])
        assert result.verdict == "differs", name
    facts = facts_of(record)
    said = facts.answer.model_copy(update={"halt_reason": ("single_pass", "single_pass", "max_segments_reached")})
    (result,) = replayed(settings, [Record(facts.model_copy(update={"answer": said}), record.arrays)])
    assert result.verdict == "differs"


@pytest.mark.parametrize(
    ("name", "by", "verdict"),
    [
        ("value", 0.005, "rounding"),
        ("value", 1.0, "differs"),
        ("probabilities", 0.05, "differs"),
        ("action", 1, "differs"),
    ],
)
def test_a_device_may_round_what_an_inference_says_and_no_more(
    settings: Settings, name: str, by: float, verdict: str
) -> None:
    async def story(service: Service) -> None:
        await ask(service, "ppo/v1", rows(3))

    serve(settings, story)
    (record,) = records_of(settings)
    facts = facts_of(record)
    on_device = facts.answer.model_copy(update={"provider": "CUDAExecutionProvider"})
    off = record.arrays[name] + np.asarray(by, record.arrays[name].dtype)
    moved = Record(facts.model_copy(update={"answer": on_device}), dict(record.arrays) | {name: off})
    (result,) = replayed(settings, [moved])
    assert result.verdict == verdict
    assert "decided by CUDAExecutionProvider" in str(result.why)


def test_rows_that_fail_now_and_models_that_are_gone_are_told(settings: Settings) -> None:
    publish_policy(settings.paths.state_dir / "models", "nan/v1", "not_finite")

    async def story(service: Service) -> None:
        await service.load("nan/v1")
        for seed in range(3):
            await ask(service, "nan/v1", rows(2, seed))

    serve(settings, story)
    records = records_of(settings)
    poisoned = dict(records[1].arrays) | {"bars": np.full_like(records[1].arrays["bars"], FAULT_LEVEL + 1)}
    results = replayed(settings, [records[0], Record(records[1].facts, poisoned), records[2]])
    assert [result.verdict for result in results] == ["same", "differs", "same"]
    assert "not finite" in str(results[1].why)
    shutil.rmtree(settings.paths.state_dir / "models/nan/v1")
    assert {result.verdict for result in replayed(settings, records)} == {"no_model"}


def test_a_failed_inference_and_a_refused_one_leave_no_record(settings: Settings) -> None:
    publish_policy(settings.paths.state_dir / "models", "nan/v1", "not_finite")

    async def story(service: Service) -> None:
        await service.load("nan/v1")
        arrays = rows(3) | {"bars": np.full_like(rows(3)["bars"], FAULT_LEVEL + 1)}
        made = await infer(service, service.live.models["nan/v1"], asked_for(arrays), arrays)
        assert made.failed is not None
        with pytest.raises(DataError, match="outputs"):
            await ask(service, "nan/v1", rows(1), outputs=[{"name": "mood"}])

    serve(settings, story)
    assert records_of(settings) == []


def test_a_disk_that_refuses_costs_an_inferences_record_and_not_its_answer(settings: Settings) -> None:
    (settings.paths.state_dir / "decisions").write_text("in the way")

    async def story(service: Service) -> None:
        made, told = await ask(service, "ppo/v1", rows(3))
        assert made.outputs["action"].shape == (3,)
        assert not told.recorded
        assert "unrecorded" in warnings(service)
        assert 'hrm_decision_records_total{outcome="failed"} 1.0' in service.telemetry.exposition.text().decode()

    serve(settings, story)


@pytest.mark.parametrize("binary", [True, False])
def test_the_public_client_gets_the_id_and_its_tensors_are_the_records_to_the_last_bit(
    running: ServiceProcess, binary: bool
) -> None:
    folder = running.log.parent
    arrays, wanted = rows(9, seed=int(binary)), [triton.InferRequestedOutput(name, binary) for name in OUTPUTS]
    with triton.InferenceServerClient(running.url.removeprefix("http://"), network_timeout=60) as client:
        headers = {"Authorization": f"Bearer {running.token}"}
        result = client.infer("ppo", tensors(arrays, binary=binary), outputs=wanted, request_id="r-9", headers=headers)
    told = result.get_response()["parameters"]
    assert told["recorded"] is True
    record = find(folder / "decisions", told["decision_id"])
    assert bits({name: record.arrays[name] for name in DATATYPES}) == bits(arrays)
    (replayed_once,) = replayed(settings_in(folder), [record])
    assert replayed_once.verdict == "same"
    assert replayed_once.again is not None
    for name in OUTPUTS:
        if name != "halt_reason":
            again = np.array(replayed_once.again[name], result.as_numpy(name).dtype)
            assert again.tobytes() == result.as_numpy(name).tobytes(), name


def test_an_answer_without_an_id_of_the_callers_still_has_one_of_its_record(
    running: ServiceProcess, http: httpx.Client
) -> None:
    answer = http.post("/v2/models/ppo/infer", json=document(outputs=[{"name": "action"}])).json()
    assert answer.keys() == {"model_name", "model_version", "parameters", "outputs"}
    facts = facts_of(find(running.log.parent / "decisions", answer["parameters"]["decision_id"]))
    assert (facts.request_id, facts.outputs) == (None, ("action",))
    assert abs(facts.at - time.time()) < 60
