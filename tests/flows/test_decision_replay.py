"""`hrm replay` as a person uses it, on the records of a service with an exported compact model."""

from __future__ import annotations

import asyncio
import math
import shutil
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import Said, said_here
from hypothesis import Phase, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from core.manifest import ModelManifest, publish
from core.observation import ObservationSchema
from core.settings import Settings, load_settings
from flows.book_training import book_settings
from hrm.book import BookModel
from hrm.book_export import export_book
from hrm.export import export_model
from hrm.model import HierarchicalReasoningModel
from serving.audit import between, find
from serving.book import BookObservation, BookQuestion
from serving.book_decisions import decide_book
from serving.decisions import decide
from serving.engine import load_engine
from serving.inferences import infer, put_on_record
from serving.question import Account, Question
from serving.replay import replay
from serving.schemas import DecisionResponse
from serving.schemas_v2 import InferInput, InferRequest
from serving.service import Service

HRM = "HRM_HIERARCHICAL_REASONING_MODEL__"
SCHEMA = ObservationSchema(
    window=12, patch=4, bar_features=("return", "volume"), account_features=("position", "clock", "size")
)
K, FACTORS = 9, 2
SHALLOW = {f"{HRM}HIERARCHICAL__N_CYCLES": "1", f"{HRM}HIERARCHICAL__T_TIMESTEPS": "1"}  # untrained, deep: no parity


@pytest.fixture(scope="module", autouse=True)
def a_busy_machine_is_no_failure() -> Iterator[None]:
    """Load that is shed and records that a slow disk costs have tests of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("serving.batcher.QUEUE_LIMIT_S", 60.0)
        patch.setattr("serving.records.SLOW_S", 10.0)
        yield


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A store with hrm/v1 and book/v1: the compact preset of up to six segments; halting heads have an opinion."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("state")
    environ = {
        "HRM_PATHS__STATE_DIR": str(folder),
        "HRM_RECORDS__MIN_FREE_GB": "0",
        "HRM_PERFORMANCE__INFERENCE_TIMEOUT_MS": "1000",  # on a machine with others to serve
        f"{HRM}ACT__MAX_SEGMENTS": "6",
    }
    settings = load_settings(preset="compact", environ=environ)
    model = HierarchicalReasoningModel(settings.hierarchical_reasoning_model, SCHEMA, 1000.0, seed=0)
    of_books = book_settings(load_settings(preset="compact", environ=environ | SHALLOW))
    book = BookModel(of_books.hierarchical_reasoning_model, K, FACTORS, seed=0)
    with torch.no_grad():
        for each in (model, book):
            each.q_head.weight.normal_(std=0.5, generator=torch.Generator().manual_seed(1))
    about: dict[str, Any] = {"store": folder / "models", "version": "v1", "metrics": {}, "dataset_digest": "none"}
    export_model(model.eval(), name="hrm", settings=settings, **about)
    export_book(book.eval(), name="book", settings=of_books, **about)
    return settings


def some_question(seed: int) -> Question:
    rng = np.random.default_rng(seed)
    account = Account(rng.normal(size=3).astype(np.float32), int(rng.integers(-1, 2)))
    return Question(f"S{seed % 7}", rng.normal(size=(12, 2)).astype(np.float32), float(rng.random()), account)


def decided(settings: Settings, groups: list[list[int]]) -> list[DecisionResponse]:
    """The answers to groups of questions by their seeds, each group at once."""

    async def run() -> list[DecisionResponse]:
        service = Service(settings, "hrm/v1")
        await service.open()
        try:
            return [
                answer
                for seeds in groups
                for answer in await asyncio.gather(*(decide(service, some_question(seed)) for seed in seeds))
            ]
        finally:
            await service.close()

    return asyncio.run(run())


@given(st.lists(st.lists(st.integers(0, 10_000), min_size=1, max_size=40), min_size=1, max_size=4))
@hypothesis_settings(max_examples=8, phases=[Phase.explicit, Phase.generate])
def test_a_compact_model_replays_exactly_whoever_shared_its_batch(settings: Settings, groups: list[list[int]]) -> None:
    shutil.rmtree(settings.paths.state_dir / "decisions", ignore_errors=True)
    answers = decided(settings, groups)
    records = list(between(settings.paths.state_dir / "decisions", 0.0, 1e11))
    assert {answer.decision_id for answer in answers} == {record.facts.decision_id for record in records}
    results = list(replay(records, lambda model_id: load_engine(settings, model_id)))
    assert len(results) == len(answers)
    assert [result for result in results if result.verdict != "same"] == []


def some_book(seed: int) -> BookQuestion:
    rng = np.random.default_rng(seed)
    instruments = rng.normal(size=(K, 4 + FACTORS)).astype(np.float32)
    instruments[:, -3:-1] = np.abs(instruments[:, -3:-1])
    instruments[:, -1] = rng.integers(-1, 2, K)
    row = BookObservation(instruments, rng.integers(1, K + 1, 2).astype(np.float32))
    return BookQuestion(f"[/desk {seed}]", tuple(f"S{k}" for k in range(K)), row, tuple(range(K)), None, "b", math.inf)


def some_rows(seed: int) -> dict[str, np.ndarray]:
    rng, B = np.random.default_rng(seed), 1 + 7 * seed % 30
    return {
        "bars": rng.normal(size=(B, 12, 2)).astype(np.float32),
        "account": rng.normal(size=(B, 3)).astype(np.float32),
        "complexity": rng.random(B, dtype=np.float32),
        "position": rng.integers(-1, 2, B),
    }


async def inferred(service: Service, seed: int) -> str:
    """Its decision's id."""
    rows = some_rows(seed)
    types = {"f": "FP32", "i": "INT64"}
    inputs = [
        InferInput(name=name, datatype=types[array.dtype.kind], shape=array.shape, data=[])
        for name, array in rows.items()
    ]
    made = await infer(service, service.live.models["hrm/v1"], InferRequest(inputs=inputs, id="i"), rows)
    assert made.failed is None
    return (await put_on_record(service, made)).decision_id


def all_kinds(settings: Settings, seeds: range) -> list[list[str]]:
    """Ids of books and inferences that were decided together, with decisions among them."""

    async def run() -> list[list[str]]:
        service = Service(settings, "hrm/v1")
        await service.open()
        try:
            await service.load("book/v1")
            books = asyncio.gather(*(decide_book(service, some_book(seed)) for seed in seeds))
            rows = asyncio.gather(*(inferred(service, seed) for seed in seeds[:12]))
            alone = asyncio.gather(*(decide(service, some_question(seed)) for seed in seeds))
            return [[each.decision_id for each in await kind] for kind in (books, alone)] + [list(await rows)]
        finally:
            await service.close()

    return asyncio.run(run())


def test_books_and_inferences_of_exported_models_replay_to_every_bit_beside_decisions(settings: Settings) -> None:
    folder = settings.paths.state_dir / "decisions"
    shutil.rmtree(folder, ignore_errors=True)
    ids = [each for kind in all_kinds(settings, range(60)) for each in kind]
    records = list(between(folder, 0.0, 1e11))
    assert sorted(ids) == [record.facts.decision_id for record in records]
    results = list(replay(records, lambda model_id: load_engine(settings, model_id)))
    assert [result for result in results if result.verdict != "same"] == []
    assert all(result.again == result.recorded for result in results)
    depths = {result.again["segments"] for result in results if result.model == "book/v1" and result.again}
    assert len(depths) >= 2  # otherwise depth is compared with itself
    reasons = {record.facts.answer.feasible_by for record in records if record.facts.kind == "book"}
    assert {"model", "held"} <= reasons


def test_a_book_and_an_inference_are_shown_beside_their_replay(hrm: Callable[..., Said], settings: Settings) -> None:
    folder = settings.paths.state_dir / "decisions"
    shutil.rmtree(folder, ignore_errors=True)
    (book, *_), _, (*_, rows) = all_kinds(settings, range(12))
    said = hrm("replay", book)
    assert said.code == 0, said.err
    assert "book [/desk 0]: S0, S1, S2 and 6 more" in said.out
    assert "same" in said.out
    said = hrm("replay", rows)
    assert (said.code, "rows of an inference: 18" in said.out) == (0, True), said.err
    told = hrm("replay", rows, "--json").json
    assert (told["same"], told["records"][0]["kind"]) == (True, "inference")
    assert told["replayed"][0]["again"]["quantity"] == find(folder, rows).arrays["quantity"].tolist()
    assert len(hrm("replay", "--request-id", "b", "--json").json["replayed"]) == 12
    assert hrm("replay", "--all", "--json").json == {"arms": 36, "same": 36}


@pytest.fixture
def answers(settings: Settings) -> list[DecisionResponse]:
    shutil.rmtree(settings.paths.state_dir / "decisions", ignore_errors=True)
    made = decided(settings, [[1, 2, 3], [4], list(range(300))])
    assert len({answer.segments for answer in made}) >= 3  # otherwise depth is compared with itself
    return made


@pytest.fixture
def hrm(settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    monkeypatch.setenv("HRM_PATHS__STATE_DIR", str(settings.paths.state_dir))
    monkeypatch.setenv("HRM_PRESET", "compact")

    return lambda *arguments: said_here(monkeypatch, capsys, *arguments)


def test_one_decision_is_shown_beside_its_replay(hrm: Callable[..., Said], answers: list[DecisionResponse]) -> None:
    said = hrm("replay", answers[0].decision_id)
    assert said.code == 0, said.err
    assert said.out.count(repr(answers[0].quantity)) == 2
    assert said.out.count(answers[0].action_name) == 2
    assert "same" in said.out


def test_one_decision_as_json_tells_all_that_is_on_record(
    hrm: Callable[..., Said], answers: list[DecisionResponse]
) -> None:
    told = hrm("replay", answers[4].decision_id, "--json").json
    assert told["same"] is True
    assert told["replayed"][0]["again"] == told["replayed"][0]["recorded"]
    assert told["records"][0]["answer"]["probabilities"] == answers[4].probabilities


def test_a_request_is_found_by_the_id_its_caller_gave_it(
    hrm: Callable[..., Said], answers: list[DecisionResponse]
) -> None:
    told = hrm("replay", "--request-id", answers[3].request_id, "--json").json
    assert [each["decision_id"] for each in told["replayed"]] == [answers[3].decision_id]


def test_all_of_a_time_are_replayed_and_counted(hrm: Callable[..., Said], answers: list[DecisionResponse]) -> None:
    said = hrm("replay", "--all", "--json")
    assert (said.code, said.json) == (0, {"arms": len(answers), "same": len(answers)})
    assert "replay" in said.err
    tomorrow = datetime.now(UTC).date() + timedelta(days=1)
    assert hrm("replay", "--all", "--until", tomorrow, "--json").json["same"] == len(answers)
    assert hrm("replay", "--all", "--since", "2020-01-01T09:15", "--until", "2020-01-02").code == 2


def test_another_model_under_the_same_name_is_told_and_exits_with_1(
    hrm: Callable[..., Said], answers: list[DecisionResponse], settings: Settings, tmp_path: Path
) -> None:
    version = settings.paths.state_dir / "models/hrm/v1"
    shutil.copytree(version, tmp_path / "kept")
    try:
        shutil.rmtree(version)
        said = hrm("replay", "--all", "--json")
        assert said.code == 1
        assert said.json["no_model"] == len(answers)
        files = {name: (tmp_path / "kept" / name).read_bytes() for name in ("model.onnx", "golden.npz")}
        described = ModelManifest.model_validate_json((tmp_path / "kept/manifest.json").read_bytes())
        publish(settings.paths.state_dir / "models", files, **described.model_dump(exclude={"files", "created_at"}))
        said = hrm("replay", answers[0].decision_id)
        assert said.code == 1
        assert "other_bytes" in said.out
        assert "not the bytes that decided: manifest.json;" in said.out
    finally:
        shutil.rmtree(version, ignore_errors=True)
        shutil.copytree(tmp_path / "kept", version)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give one of"),
        (["x", "--all"], "give one of"),
        (["x"], "is no decision id"),
        (["20200101T000000000-00000000-00000000"], "no record of"),
        (["--request-id", "never"], "no decision on request"),
        (["--all", "--since", "yesterday"], "is no time"),
        (["--all", "--since", "2026-01-02", "--until", "2026-01-01"], "is not before"),
        (["x", "--since", "2026-01-02"], "belong to --all"),
        (["--all", "--records", "/nowhere"], "no decision on record"),
    ],
)
def test_what_cannot_be_replayed_is_one_line_and_exit_code_2(
    hrm: Callable[..., Said], arguments: list[str], message: str
) -> None:
    said = hrm("replay", *arguments)
    assert (said.code, message in said.err) == (2, True), said.err
