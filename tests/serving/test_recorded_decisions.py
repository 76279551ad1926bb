"""Decisions of a real service, recorded and decided again: whoever shares their batch, whatever cut them short."""

from __future__ import annotations

import asyncio
import contextlib
import math
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest
from hypothesis import Phase, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from test_decisions import POISON, A, F, W, command, question, serve, to_canary, until
from tiny_models import publish_hrm, settings_in

from core.errors import ModelError
from core.settings import Settings
from flows.drill_models import FAULT_LEVEL, publish_policy
from flows.service_process import service_process
from serving import ladder
from serving.audit import between, find, read
from serving.decisions import decide
from serving.engine import load_engine
from serving.health import health
from serving.ladder import Rung
from serving.question import Account, Question
from serving.record_format import Record
from serving.replay import Replayed, replay
from serving.schemas import DecisionResponse
from serving.service import Service
from serving.watch import warnings

POISONED = POISON.bars


def stand_on(service: Service, rung: Rung) -> None:
    """As if the rungs above had failed a moment ago."""
    service.ladder._stay = service.ladder._stay_on(rung, since=time.perf_counter())


def records_of(settings: Settings) -> list[Record]:
    return list(between(settings.paths.state_dir / "decisions", 0.0, time.time() + 1))


def replayed(settings: Settings, records: list[Record]) -> list[Replayed]:
    return list(replay(records, lambda model_id: load_engine(settings, model_id)))


def agrees(answer: DecisionResponse, record: Record) -> bool:
    facts, kept = record.facts, record.facts.answer
    told = (
        answer.action,
        answer.quantity,
        answer.segments,
        answer.halt_reason,
        answer.role,
        tuple(answer.probabilities),
    )
    noted = (kept.action, kept.quantity, kept.segments, kept.halt_reason, kept.role, kept.probabilities)
    both = (answer.request_id, answer.symbol, answer.epoch, answer.rung, answer.fallback, answer.latency_ms)
    return told == noted and both == (
        facts.request_id, facts.symbol, facts.epoch, facts.rung, facts.fallback, facts.latency_ms
    )  # fmt: skip


Asked = tuple[int, int, int, bool, bool]  # seed, depth wanted, symbol, out of time, poisoned

ASKED = st.tuples(
    st.integers(0, 10_000),
    st.integers(0, 8),
    st.integers(0, 30),
    st.booleans(),
    st.integers(0, 9).map(lambda n: n == 0),
)


def some_question(asked: Asked) -> Question:
    seed, depth, symbol, hurried, poisoned = asked
    rng = np.random.default_rng(seed)
    accounts = [
        Account(np.array([depth - 0.6, rng.normal()], np.float32), int(rng.integers(-1, 2))) for depth in (depth, 1)
    ]
    bars = POISONED if poisoned else rng.normal(size=(W, F)).astype(np.float32)
    deadline = time.perf_counter() + float(rng.random()) * 5e-3 if hurried else math.inf
    return Question(f"S{symbol}", bars, float(rng.random()), *accounts, deadline=deadline)


@given(
    groups=st.lists(st.lists(ASKED, min_size=1, max_size=24), min_size=1, max_size=4),
    rung=st.sampled_from([Rung.FULL, Rung.FULL, *Rung]),
)
@hypothesis_settings(max_examples=12, phases=[Phase.explicit, Phase.generate])
def test_whatever_company_and_conditions_a_record_replays_to_the_same_decision(
    tmp_path_factory: pytest.TempPathFactory, groups: list[list[Asked]], rung: Rung
) -> None:
    """A canary of half the symbols, each with a shadow; models that fail on some inputs; every rung; deadlines."""
    folder = tmp_path_factory.mktemp("any")
    publish_policy(folder / "models", "ppo/v1", "not_finite")
    publish_hrm(folder / "models", "hrm/v1")
    settings = settings_in(
        folder, rollout={"steps": [50, 100]}, triggers={"latency_ms": 1e6}, records={"min_free_gb": 0}
    )
    answers: list[DecisionResponse] = []

    async def story(service: Service) -> None:
        await to_canary(service, "hrm/v1", promotions=1)
        stand_on(service, rung)
        for group in groups:
            made = await asyncio.gather(
                *(decide(service, some_question(asked)) for asked in group), return_exceptions=True
            )
            answers.extend(each for each in made if isinstance(each, DecisionResponse))
            others = [each for each in made if not isinstance(each, DecisionResponse)]
            assert all(isinstance(each, ModelError) and each.code == "overloaded" for each in others), others

    serve(settings, story)
    records = {record.facts.decision_id: record for record in records_of(settings)}
    assert len(records) == len(answers)
    assert all(answer.recorded and agrees(answer, records[answer.decision_id]) for answer in answers)
    results = replayed(settings, list(records.values()))
    assert len(results) == len(answers) + sum(answer.shadow is not None for answer in answers)
    assert [result for result in results if result.verdict != "same"] == []


def test_a_deadline_is_replayed_at_the_depth_it_cut_at(settings: Settings) -> None:
    async def story(service: Service) -> None:
        asked = some_question((1, 6, 0, False, False))
        answer = await decide(service, replace(asked, deadline=time.perf_counter()))
        assert (answer.halt_reason, answer.segments) == ("deadline_reached", 1)

    serve(settings, story, champion="hrm/v1")
    (record,) = records_of(settings)
    assert record.facts.deadline_ms is not None
    (result,) = replayed(settings, [record])
    assert (result.verdict, result.again) == ("same", result.recorded)


def test_each_rung_asks_whom_it_should_and_says_so(settings: Settings) -> None:
    """The champion is an HRM of depth 6 with a single pass behind it; both see a long position."""
    told: dict[Rung, tuple[str, str, int, str, str]] = {}

    async def story(service: Service) -> None:
        await to_canary(service, "hrm/v1", promotions=5)
        for rung in Rung:
            stand_on(service, rung)
            asked = Question("A", np.ones((W, F), np.float32), 0.95, Account(np.array([5.5, 0], np.float32), 1))
            answer = await decide(service, asked)
            told[rung] = (answer.rung, answer.model, answer.segments, answer.halt_reason, answer.action_name)
            assert answer.fallback == (rung >= Rung.PPO)
        assert warnings(service) == ["degraded"]

    serve(settings, story)
    assert told[Rung.FULL][:4] == ("full", "hrm", 6, "max_segments_reached")
    assert told[Rung.CAPPED][:4] == ("capped", "hrm", 3, "segments_capped")  # the minimum for so complex a market
    assert told[Rung.PPO][:4] == ("ppo", "ppo", 1, "single_pass")
    assert told[Rung.RULE] == ("rule", "none", 0, "ladder_rule", "CLOSE_LONG")
    assert told[Rung.HOLD] == ("hold", "none", 0, "ladder_hold", "HOLD")
    assert {result.verdict for result in replayed(settings, records_of(settings))} == {"same"}


def test_on_a_lower_rung_no_shadow_adds_to_the_load(settings: Settings) -> None:
    async def story(service: Service) -> None:
        await command(service, "start", champion="ppo/v1", challenger="hrm/v1")
        stand_on(service, Rung.RULE)
        answer = await decide(service, question(positions=(-1, None)))
        assert (answer.action_name, answer.shadow, answer.shadow_missing) == ("CLOSE_SHORT", None, "degraded")
        assert answer.shadow_latency_ms is None  # it was not asked

    serve(settings, story)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """A ladder that takes a tenth of a second for what takes it seconds."""
    for name in ("STANDING_S", "SHORT_S", "SETTLE_S", "PROBE_EVERY_S"):
        monkeypatch.setattr(ladder, name, 0.02)
    return {"dwell_s": 0.05, "max_dwell_s": 0.2, "min_samples": 6}


async def keep_asking(service: Service, asked: Callable[[], Question], rung: Rung) -> list[DecisionResponse]:
    answers: list[DecisionResponse] = []
    deadline = time.monotonic() + 60
    while service.ladder.rung is not rung:
        assert time.monotonic() < deadline, f"still on {service.ladder.rung}"
        answers.append(await decide(service, asked()))
        await asyncio.sleep(0.002)
    return answers


def test_a_model_that_fails_leads_down_to_the_rule_and_probes_lead_back(
    tmp_path: Path, quick: dict[str, float]
) -> None:
    publish_policy(tmp_path / "models", "nan/v1", "not_finite")
    settings = settings_in(tmp_path, ladder=quick, records={"min_free_gb": 0})

    async def story(service: Service) -> None:
        poisoned, healthy = question(FAULT_LEVEL + 1, positions=(1, None)), question(positions=(1, None))
        down = await keep_asking(service, lambda: poisoned, Rung.RULE)
        assert {answer.halt_reason for answer in down[:-1]} == {"no_model_answered"}
        assert down[-1].rung == "rule"  # the step is taken before a decision, not after it
        assert (await decide(service, poisoned)).action_name == "CLOSE_LONG"
        told = await health(service)
        assert told["ladder"]["rung"] == "rule"  # type: ignore[index]
        assert "degraded" in told["warnings"]  # type: ignore[operator]
        for _ in range(100):  # the probes fail as well: it stays
            await decide(service, poisoned)
            await asyncio.sleep(0.002)
        assert service.ladder.rung is Rung.RULE
        await keep_asking(service, lambda: healthy, Rung.FULL)
        assert (await decide(service, healthy)).model == "nan"
        exposed = service.telemetry.exposition.text().decode()
        assert 'hrm_ladder_transitions_total{from="full",to="rule"} 1.0' in exposed
        assert 'hrm_ladder_transitions_total{from="rule",to="full"} 1.0' in exposed
        assert 'hrm_ladder_rung{rung="full"} 1.0' in exposed

    serve(settings, story, champion="nan/v1")
    results = replayed(settings, records_of(settings))
    assert {result.verdict for result in results} == {"same"}


def test_hold_is_left_as_soon_as_answers_come_in_time(tmp_path: Path, quick: dict[str, float]) -> None:
    publish_policy(tmp_path / "models", "ppo/v1")

    async def story(service: Service) -> None:
        stand_on(service, Rung.HOLD)
        answers = await keep_asking(service, question, Rung.FULL)
        assert {answer.rung for answer in answers[:-1]} == {"hold", "rule"}

    serve(settings_in(tmp_path, ladder=quick), story)


def test_a_model_of_the_ladder_that_is_unloaded_is_not_waited_for(settings: Settings) -> None:
    async def story(service: Service) -> None:
        await to_canary(service, "hrm/v1", promotions=5)
        stand_on(service, Rung.PPO)
        await command(service, "rollback")  # now the single pass is the champion
        answer = await decide(service, question())
        assert (answer.rung, answer.model, answer.fallback) == ("full", "ppo", False)

    serve(settings, story)


def test_a_disk_that_refuses_costs_the_record_and_is_told(settings: Settings) -> None:
    in_the_way = settings.paths.state_dir / "decisions"
    in_the_way.write_text("")

    async def story(service: Service) -> None:
        answer = await decide(service, question())
        assert (answer.action_name, answer.recorded) == ("BUY_LONG", False)
        told = await health(service)
        assert "unrecorded" in told["warnings"]  # type: ignore[operator]
        assert str(in_the_way) in told["records"]["problem"]  # type: ignore[index]
        assert 'hrm_decision_records_total{outcome="failed"} 1.0' in service.telemetry.exposition.text().decode()
        in_the_way.unlink()

        async def recovered() -> bool:
            return (await decide(service, question())).recorded

        deadline = time.monotonic() + 60
        while not await recovered():
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)

    serve(settings, story)


def answered(settings: Settings, n: int, ask: Callable[[], Question] = question, champion: str = "hrm/v1") -> None:
    async def story(service: Service) -> None:
        await asyncio.gather(*(decide(service, ask()) for _ in range(n)))

    serve(settings, story, champion=champion)


def test_other_bytes_under_the_same_name_are_not_taken_for_the_model_that_decided(settings: Settings) -> None:
    answered(settings, 2)
    shutil.rmtree(settings.paths.state_dir / "models/hrm/v1")
    publish_hrm(settings.paths.state_dir / "models", "hrm/v1")  # the same graph, another manifest
    results = replayed(settings, records_of(settings))
    assert [(result.verdict, result.again) for result in results] == [("other_bytes", None)] * 2
    assert "manifest.json" in str(results[0].why)


def test_a_model_that_is_gone_is_said_to_be(settings: Settings) -> None:
    answered(settings, 1)
    shutil.rmtree(settings.paths.state_dir / "models/hrm/v1")
    (result,) = replayed(settings, records_of(settings))
    assert (result.verdict, result.again) == ("no_model", None)
    assert "hrm" in str(result.why)


def test_a_record_that_was_altered_does_not_replay(settings: Settings) -> None:
    answered(settings, 1)
    (record,) = records_of(settings)
    for change in ({"action": 1}, {"quantity": np.nextafter(record.facts.answer.quantity, 2)}, {"segments": 2}):
        kept = record.facts.answer.model_copy(update=change)
        altered = Record(record.facts.model_copy(update={"answer": kept}), record.arrays)
        (result,) = replayed(settings, [altered])
        assert result.verdict == "differs"
        assert result.again == {"action": 0, "quantity": 1.0, "segments": 1}


@pytest.mark.parametrize(("share", "verdict"), [(1.0, "same"), (1.005, "rounding"), (1.02, "differs")])
def test_a_device_may_round_a_quantity_and_no_more(settings: Settings, share: float, verdict: str) -> None:
    answered(settings, 1)
    (record,) = records_of(settings)
    kept = record.facts.answer
    on_device = {"provider": "CUDAExecutionProvider", "quantity": kept.quantity * share}
    facts = record.facts.model_copy(update={"answer": kept.model_copy(update=on_device)})
    (result,) = replayed(settings, [Record(facts, record.arrays)])
    assert result.verdict == verdict
    assert "decided by CUDAExecutionProvider" in str(result.why)
    other = kept.model_copy(update=on_device | {"segments": 2})
    (result,) = replayed(settings, [Record(facts.model_copy(update={"answer": other}), record.arrays)])
    assert result.verdict == "differs"


def test_one_row_that_fails_now_is_not_held_against_its_batch(settings: Settings) -> None:
    answered(settings, 3, champion="nan/v1")
    records = records_of(settings)
    poisoned = Record(records[1].facts, dict(records[1].arrays) | {"bars": POISONED})
    results = replayed(settings, [records[0], poisoned, records[2]])
    assert [result.verdict for result in results] == ["same", "differs", "same"]


def test_kill_9_of_the_service_loses_no_decision_that_was_answered(settings: Settings) -> None:
    body = {
        "symbol": "A", "bars": [[0.5] * F] * W, "complexity": 0.1,
        "accounts": {"champion": {"features": [0.0] * A, "position": 0}},
    }  # fmt: skip
    told: set[str] = set()
    with service_process(settings, champion="hrm/v1") as service:

        async def client(http: httpx.AsyncClient) -> None:
            while True:
                try:
                    answer = await http.post("/v1/decisions", json=body)
                except httpx.TransportError:
                    return  # killed
                assert answer.json()["recorded"]
                told.add(answer.json()["decision_id"])

        async def load() -> None:
            headers = {"Authorization": f"Bearer {service.token}"}
            async with httpx.AsyncClient(base_url=service.url, headers=headers, trust_env=False) as http:
                clients = [asyncio.create_task(client(http)) for _ in range(8)]
                await until(lambda: len(told) > 200)
                service.process.kill()
                await asyncio.gather(*clients)

        asyncio.run(load())
        service.process.wait()
    folder = settings.paths.state_dir / "decisions"
    assert told <= {record.facts.decision_id for file in folder.glob("*.records") for record in read(file)}
    assert find(folder, next(iter(told))).facts.answer.model == "hrm/v1"


@pytest.mark.parametrize(
    ("champion", "left_s", "rung"),
    [("hrm/v1", 0.01, Rung.FULL), ("hrm/v1", math.inf, Rung.CAPPED), ("ppo/v1", math.inf, Rung.FULL)],
)
def test_refusals_lead_to_less_thought_never_to_a_rule_and_not_of_those_who_left_no_time(
    settings: Settings, quick: dict[str, float], champion: str, left_s: float, rung: Rung
) -> None:
    settings = settings.model_copy(update={"ladder": settings.ladder.model_copy(update=quick | {"dwell_s": 60.0})})

    async def story(service: Service) -> None:
        assert service.live.champion is not None
        service.live.champion._max_waiting = 0  # full, as under a load that never ends
        for _ in range(50):
            with contextlib.suppress(ModelError):
                await decide(service, replace(question(), deadline=time.perf_counter() + left_s))
            await asyncio.sleep(0.002)
        assert service.ladder.rung is rung

    serve(settings, story, champion=champion)
