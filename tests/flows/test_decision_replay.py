"""`hrm replay` as a person uses it, on the records of a service with an exported compact model."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import Phase, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

import cli
from core.manifest import ModelManifest, publish
from core.observation import ObservationSchema
from core.settings import Settings, load_settings
from hrm.export import export_model
from hrm.model import HierarchicalReasoningModel
from serving.audit import between
from serving.decisions import decide
from serving.engine import load_engine
from serving.question import Account, Question
from serving.replay import replay
from serving.schemas import DecisionResponse
from serving.service import Service

HRM = "HRM_HIERARCHICAL_REASONING_MODEL__"
SCHEMA = ObservationSchema(
    window=12, patch=4, bar_features=("return", "volume"), account_features=("position", "clock", "size")
)


@dataclass(frozen=True)
class Said:
    code: int
    out: str
    err: str

    @property
    def json(self) -> dict:
        return json.loads(self.out.strip().splitlines()[-1])


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A store with hrm/v1: the compact preset of up to six segments, whose halting head has an opinion."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("state")
    environ = {
        "HRM_PATHS__STATE_DIR": str(folder),
        "HRM_RECORDS__MIN_FREE_GB": "0",
        f"{HRM}ACT__MAX_SEGMENTS": "6",
    }
    settings = load_settings(preset="compact", environ=environ)
    model = HierarchicalReasoningModel(settings.hierarchical_reasoning_model, SCHEMA, 1000.0, seed=0)
    with torch.no_grad():
        model.q_head.weight.normal_(std=0.5, generator=torch.Generator().manual_seed(1))
    export_model(
        model.eval(),
        store=folder / "models",
        name="hrm",
        version="v1",
        settings=settings,
        metrics={},
        dataset_digest="none",
    )
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

    def run(*arguments: object) -> Said:
        capsys.readouterr()  # what was said before is not the command's
        monkeypatch.setattr(sys, "argv", ["hrm", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        return Said(int(ended.value.code or 0), said.out, said.err)

    return run


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
