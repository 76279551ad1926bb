"""Decisions on books, recorded and decided again: whoever shares their batch, whatever stood in for the model."""

from __future__ import annotations

import asyncio
import math
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import structlog
from hypothesis import Phase, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from test_book_decisions import SYMBOLS, drawn, request, serve
from test_recorded_decisions import records_of, replayed
from tiny_books import FAULT_LEVEL, publish_book
from tiny_models import settings_in

from core.errors import ModelError
from core.settings import Settings
from flows.drill_models import publish_policy
from serving.audit import find, find_request
from serving.book import BookQuestion
from serving.book_decisions import decide_book
from serving.record_format import BookFacts, Record
from serving.schemas_book import BookResponse
from serving.service import Service
from serving.watch import warnings


def books_in(folder: Path) -> Settings:
    publish_policy(folder / "models", "ppo/v1")
    publish_book(folder / "models", "book/v1")
    return settings_in(folder, serving={"book_model": "book/v1"}, records={"min_free_gb": 0})


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return books_in(tmp_path)


def answered(settings: Settings, *questions: BookQuestion) -> list[BookResponse]:
    """All at once."""
    answers: list[BookResponse] = []

    async def story(service: Service) -> None:
        answers.extend(await asyncio.gather(*(decide_book(service, question) for question in questions)))

    serve(settings, story)
    return answers


def facts_of(record: Record) -> BookFacts:
    assert isinstance(record.facts, BookFacts)
    return record.facts


def agrees(answer: BookResponse, record: Record) -> bool:
    facts, kept = facts_of(record), facts_of(record).answer
    told = sorted((each.symbol, each.target, each.action, each.probabilities) for each in answer.decisions)
    seen = record.arrays["probabilities"].tolist() if "probabilities" in record.arrays else [None] * len(facts.symbols)
    noted = list(zip(facts.symbols, kept.target, kept.action, seen, strict=True))
    both = ("utility", "feasible_by", "segments", "halt_reason", "provider")
    return (
        told == noted
        and all(getattr(answer, name) == getattr(kept, name) for name in both)
        and f"{answer.model}/{answer.model_version}" == (kept.model or "none/none")
        and (answer.request_id, answer.book_id, answer.latency_ms)
        == (facts.request_id, facts.book_id, facts.latency_ms)
    )


ASKED = st.tuples(st.integers(0, 10_000), st.permutations(range(4)), st.sampled_from([math.inf, math.inf, 2e-3, 0.0]))


@given(groups=st.lists(st.lists(ASKED, min_size=1, max_size=24), min_size=1, max_size=4))
@hypothesis_settings(max_examples=12, phases=[Phase.explicit, Phase.generate])
def test_whatever_company_and_conditions_a_book_replays_to_all_that_was_answered(
    tmp_path_factory: pytest.TempPathFactory, groups: list[list[tuple[int, list[int], float]]]
) -> None:
    """Answers that keep the limits and that break them, models that fail, deadlines, any order of the instruments."""
    settings = books_in(tmp_path_factory.mktemp("any"))
    answers: list[BookResponse] = []

    async def story(service: Service) -> None:
        for group in groups:
            questions = [
                BookQuestion(
                    "desk", tuple(sorted(SYMBOLS)), drawn(seed), tuple(places), None, "r", time.perf_counter() + s
                )
                for seed, places, s in group
            ]
            made = await asyncio.gather(*(decide_book(service, each) for each in questions), return_exceptions=True)
            answers.extend(each for each in made if isinstance(each, BookResponse))
            others = [each for each in made if not isinstance(each, BookResponse)]
            assert all(isinstance(each, ModelError) and each.code == "overloaded" for each in others), others

    serve(settings, story)
    records = {record.facts.decision_id: record for record in records_of(settings)}
    assert len(records) == len(answers)
    assert all(answer.recorded and agrees(answer, records[answer.decision_id]) for answer in answers)
    results = replayed(settings, list(records.values()))
    assert [result.decision_id for result in results] == list(records)
    assert [result for result in results if result.verdict != "same"] == []
    assert all(result.again == result.recorded for result in results)


def test_a_record_has_all_that_the_answer_follows_from(settings: Settings) -> None:
    asked = request([1.0, -1.0, 0.5, -2.0], [0, 1, 1, -1], net=0, depth=3, request_id="r-1", deadline_ms=5000)
    question = asked.question()
    (answer,) = answered(settings, question)
    record = find(settings.paths.state_dir / "decisions", answer.decision_id)
    facts = facts_of(record)
    assert [each.facts for each in find_request(settings.paths.state_dir / "decisions", "r-1")] == [facts]
    assert (facts.book_id, facts.symbols) == ("desk", tuple(sorted(SYMBOLS)))
    assert facts.deadline_ms == pytest.approx(5000, abs=1000)
    assert abs(facts.at - time.time()) < 60
    for name, array in question.row.feeds.items():
        assert record.arrays[name].tobytes() == array.tobytes()
    assert (facts.answer.model, facts.answer.storage, facts.answer.segments) == ("book/v1", "fp32", 3)
    assert len(str(facts.answer.onnx_sha256)) == 64
    assert facts.errors == {}
    assert agrees(answer, record)


def test_what_stood_in_for_a_model_is_on_record_with_why_and_replays_without_one(settings: Settings) -> None:
    failed = request([1.0] * 4, [1, 1, 1, -1], gross=2, variance=FAULT_LEVEL).question()
    held = request([1.0] * 4, [1, 0, -1, 0], gross=3).question()
    answers = answered(settings, failed, held)
    assert [answer.feasible_by for answer in answers] == ["reduced", "held"]
    records = records_of(settings)
    by_id = {record.facts.decision_id: facts_of(record) for record in records}
    assert by_id[answers[0].decision_id].errors == {"book/v1": "output_not_finite"}
    assert by_id[answers[0].decision_id].answer.model is None
    assert by_id[answers[1].decision_id].answer.model == "book/v1"
    shutil.rmtree(settings.paths.state_dir / "models/book/v1")
    verdicts = {result.decision_id: result.verdict for result in replayed(settings, records)}
    assert verdicts == {answers[0].decision_id: "same", answers[1].decision_id: "no_model"}


def test_a_deadline_of_a_book_is_replayed_at_the_depth_it_cut_at(settings: Settings) -> None:
    question = request([1.0, -1.0, 1.0, -1.0], depth=6).question()
    (answer,) = answered(settings, replace(question, deadline=time.perf_counter()))  # passed when it comes to a segment
    assert (answer.halt_reason, answer.segments) == ("deadline_reached", 1)
    (result,) = replayed(settings, records_of(settings))
    assert result.verdict == "same"
    assert result.again is not None
    assert (result.again["halt_reason"], result.again["segments"]) == ("deadline_reached", 1)


@pytest.mark.parametrize(
    "change",
    [
        {"action": (0, 1, 0, 0)},
        {"target": (0, 0, 0, 0)},
        {"utility": -1.0},
        {"feasible_by": "held"},
        {"segments": 2},
        {"halt_reason": "deadline_reached"},
        {"halt_reason": "max_segments_reached"},
    ],
)
def test_a_book_whose_record_was_altered_does_not_replay(settings: Settings, change: dict[str, Any]) -> None:
    answered(settings, request([1.0, -1.0, 0.5, -2.0]).question())
    (record,) = records_of(settings)
    facts = facts_of(record)
    altered = facts.model_copy(update={"answer": facts.answer.model_copy(update=change)})
    (result,) = replayed(settings, [Record(altered, record.arrays)])
    assert result.verdict == "differs"


def test_the_last_bit_of_a_probability_and_of_an_input_counts(settings: Settings) -> None:
    answered(settings, request([0.7, -1.0, 0.5, -2.0]).question())
    (record,) = records_of(settings)
    probabilities = record.arrays["probabilities"].copy()
    probabilities[0, 4] = np.nextafter(probabilities[0, 4], 1)
    illegal = record.arrays["probabilities"].copy()
    illegal[illegal == 0] = -0.0
    instruments = record.arrays["instruments"].copy()
    instruments[0, 0] = np.nextafter(instruments[0, 0], np.float32(9))
    for change in ({"probabilities": probabilities}, {"probabilities": illegal}, {"instruments": instruments}):
        (result,) = replayed(settings, [Record(record.facts, dict(record.arrays) | change)])
        assert result.verdict == "differs", change
    facts = facts_of(record)
    on_device = facts.answer.model_copy(update={"provider": "CUDAExecutionProvider"})
    moved = Record(
        facts.model_copy(update={"answer": on_device}), dict(record.arrays) | {"probabilities": probabilities}
    )
    (result,) = replayed(settings, [moved])
    assert result.verdict == "rounding"
    flat = on_device.model_copy(update={"target": (0, 0, 0, 0)})  # rounding leaves choices alone
    (result,) = replayed(settings, [Record(facts.model_copy(update={"answer": flat}), moved.arrays)])
    assert result.verdict == "differs"


def test_a_disk_that_refuses_costs_a_books_record_and_not_its_answer(settings: Settings) -> None:
    (settings.paths.state_dir / "decisions").write_text("in the way")

    async def story(service: Service) -> None:
        answer = await decide_book(service, request([1.0] * 4).question())
        assert (answer.feasible_by, answer.recorded) == ("model", False)
        assert "unrecorded" in warnings(service)
        assert 'hrm_decision_records_total{outcome="failed"} 1.0' in service.telemetry.exposition.text().decode()

    serve(settings, story)


def test_books_that_fail_or_wait_are_seen_in_metrics_and_each_in_its_log_line(settings: Settings) -> None:
    async def story(service: Service) -> None:
        with structlog.testing.capture_logs() as lines:
            failed = request([1.0] * 4, variance=FAULT_LEVEL).question()
            answers = [await decide_book(service, each) for each in (failed, request([1.0] * 4).question())]
        told = [line for line in lines if line["event"] == "book_decision"]
        assert [line["decision_id"] for line in told] == [answer.decision_id for answer in answers]
        assert all(line["recorded"] for line in told)
        exposed = service.telemetry.exposition.text().decode()
        book = 'model="book",role="book",version="v1"'
        assert f'hrm_inference_errors_total{{code="output_not_finite",{book}}} 1.0' in exposed
        assert f"hrm_inference_duration_seconds_count{{{book}}} 2.0" in exposed
        assert 'hrm_inference_requests_total{model="none",outcome="fallback",role="book",version="none"} 1.0' in exposed
        assert 'hrm_decision_records_total{outcome="recorded"} 2.0' in exposed
        assert service.guard.windows["champion"].failed == 0  # nothing is said of who decides single instruments

    serve(settings, story)
