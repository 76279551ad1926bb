"""The backend's explanations over HTTP, and `hrm explain`: the same numbers, named refusals, one at a time."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import httpx
import numpy as np
import pytest
from test_backend_app import backend

import cli
from backend import explanation_figures, explanations
from backend.explanations import Explanations
from core.errors import DataError, ModelError
from core.settings import Settings
from serving.engine import load_engine
from serving.explain import explain
from serving.record_format import Record

sys.path.append(str(Path(__file__).parents[1] / "serving"))  # where these are; pytest adds it for its own tests

from explained import A, F, W, counting, linear, put_on_disk, record_of
from tiny_models import settings_in

UNKNOWN = "20200101T000000000-00000000-00000000"


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return settings_in(tmp_path_factory.mktemp("state"))


@pytest.fixture(scope="module")
def records(settings: Settings) -> dict[str, Record]:
    rng = np.random.default_rng(3)
    kernels = (rng.normal(size=shape).astype(np.float32) for shape in ((W, F, 5), (A, 5)))
    flat = record_of(linear(settings, *kernels, "ppo/v1"), 1)
    made = {"ppo": flat, "hrm": record_of(counting(settings), 2, first=3.4)}
    for record in made.values():
        put_on_disk(settings.paths.state_dir, record)
    return made


@pytest.fixture(scope="module")
def http(settings: Settings, records: dict[str, Record]) -> Iterator[httpx.Client]:
    """Of a real backend over these records."""
    del records  # on disk by now
    with backend(settings.paths.state_dir) as (_, listening):
        headers = {"Authorization": f"Bearer {(settings.paths.state_dir / 'api_token').read_text().strip()}"}
        url = f"http://127.0.0.1:{listening['port']}"
        with httpx.Client(base_url=url, headers=headers, trust_env=False, timeout=60) as client:
            yield client


def test_a_decision_is_explained_with_figures_words_and_numbers(http: httpx.Client, records: dict[str, Record]) -> None:
    answered = http.get(f"/api/explanations/{records['hrm'].facts.decision_id}")
    assert answered.status_code == 200
    told = answered.json()
    assert told["figures"].keys() == {"bars", "account", "segments"}
    assert all({"data", "layout"} <= figure.keys() for figure in told["figures"].values())
    assert told["figures"]["segments"]["data"][0]["x"] == [1, 2, 3, 4]
    assert "deep/v1 chose" in told["text"]
    assert [len(told["trajectory"]), np.shape(told["cells"])] == [4, (W, F)]
    single = http.get(f"/api/explanations/{records['ppo'].facts.decision_id}").json()
    assert single["figures"].keys() == {"bars", "account"}


def test_what_moved_nothing_is_not_named_and_its_figure_says_so(settings: Settings, records: dict[str, Record]) -> None:
    told = explain(records["ppo"], partial(load_engine, settings))
    still = replace(told, account=[replace(each, log_odds=0.0, flips=False) for each in told.account])
    assert "No account feature moved it" in explanation_figures.account(still)
    assert "Account features that spoke" in explanation_figures.account(told)
    nothing = replace(still, bars=[replace(each, log_odds=0.0, flips=False) for each in told.bars])
    assert "Most moved it: no single input." in explanation_figures.text(nothing)
    assert "No bar moved it" in explanation_figures.bars(nothing)


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        (UNKNOWN, 404, "decision_not_found"),
        ("nonsense", 422, "no_decision_id"),
        ("{hrm}?arm=shadow", 404, "no_shadow"),
        ("{hrm}?arm=both", 422, "request_invalid"),
    ],
)
def test_what_cannot_be_explained_is_refused_by_name(
    http: httpx.Client, records: dict[str, Record], path: str, status: int, code: str
) -> None:
    answered = http.get(f"/api/explanations/{path.format(hrm=records['hrm'].facts.decision_id)}")
    assert (answered.status_code, answered.json()["code"]) == (status, code)


def test_nobody_without_credentials_is_told(http: httpx.Client, records: dict[str, Record]) -> None:
    path = f"/api/explanations/{records['hrm'].facts.decision_id}"
    assert http.get(path, headers={"Authorization": "Bearer no"}).status_code == 401


def test_a_model_that_is_gone_is_named_and_once_it_is_back_so_is_the_explanation(
    settings: Settings, records: dict[str, Record], tmp_path: Path
) -> None:
    kept, gone = tmp_path / "kept", settings.paths.state_dir / "models/deep"

    async def asked() -> None:
        held = Explanations(settings)
        decision_id = records["hrm"].facts.decision_id
        shutil.move(gone, kept)
        try:
            with pytest.raises(ModelError, match="no such file"):
                await held.get(decision_id, "answer")
        finally:
            shutil.move(kept, gone)
        first = await held.get(decision_id, "answer")
        assert await held.get(decision_id, "answer") is first
        held.close()

    asyncio.run(asked())


def test_of_too_many_at_once_some_are_told_to_come_again(
    settings: Settings, records: dict[str, Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(explanations, "MOST_WAITING", 1)

    async def asked() -> list[bytes | BaseException]:
        held = Explanations(settings)
        ids = [records[name].facts.decision_id for name in ("hrm", "ppo", "hrm")]
        try:
            return await asyncio.gather(*(held.get(each, "answer") for each in ids), return_exceptions=True)
        finally:
            held.close()

    first, second, same = asyncio.run(asked())
    assert isinstance(second, ModelError)
    assert second.code == "overloaded"
    assert first is same


def test_a_limit_ends_a_long_one(
    settings: Settings, records: dict[str, Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(explanations, "LIMIT_S", -1.0)

    async def asked() -> None:
        held = Explanations(settings)
        with pytest.raises(ModelError, match="hrm explain"):
            await held.get(records["hrm"].facts.decision_id, "answer")
        with pytest.raises(DataError):
            await held.get(UNKNOWN, "answer")
        held.close()

    asyncio.run(asked())


def said(monkeypatch: pytest.MonkeyPatch, settings: Settings, *arguments: str) -> int:
    monkeypatch.setenv("HRM_PATHS__STATE_DIR", str(settings.paths.state_dir))
    monkeypatch.setenv("HRM_PRESET", "compact")
    monkeypatch.setattr(sys, "argv", ["hrm", "explain", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


def test_the_command_prints_and_writes_a_page(
    settings: Settings,
    records: dict[str, Record],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    decision_id, page = records["hrm"].facts.decision_id, tmp_path / "why.html"
    assert said(monkeypatch, settings, decision_id, "--html", str(page)) == 0
    out = capsys.readouterr().out
    assert "Belief by segment" in out
    assert "deep/v1 chose" in out
    assert decision_id in page.read_text()
    assert said(monkeypatch, settings, decision_id, "--json") == 0
    assert json.loads(capsys.readouterr().out.strip().splitlines()[-1])["segments"] == 4
    assert said(monkeypatch, settings, UNKNOWN) == 2
    assert "no record of" in capsys.readouterr().err
