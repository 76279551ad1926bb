"""Sticky until flat and hand-over, as a caller sees them: a real service, in every form a question has."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from canaries import SALT, canary_of, post, settings_of
from tiny_models import settings_in

from delivery.plan import Plan
from delivery.routing import Role, bucket
from delivery.transitions import Change, Command, Phase
from flows.drill_models import FAULT_LEVEL, SCHEMA, publish_policy, slow_products
from flows.service_process import ServiceProcess, service_process
from serving import calls
from serving.client import ServiceClient
from serving.decisions import decide
from serving.question import Account, Question
from serving.service import Service

W, F, A = SCHEMA.window, len(SCHEMA.bar_features), len(SCHEMA.account_features)
NAMES = [f"SYM{i}" for i in range(1000)]
FIRST = next(name for name in NAMES if bucket(SALT, name) < 0.05)  # the challenger's at 5 percent
LATER = next(name for name in NAMES if bucket(SALT, name) > 0.5)  # the champion's
DENIED = next(name for name in NAMES if name != FIRST and bucket(SALT, name) < 0.05)
PLAN = Plan.model_validate(
    {
        "steps": [{"pause": {}}, {"setWeight": 5}, {"pause": {}}, {"setWeight": 100}, {"pause": {}}],
        "symbols": {"deny": [DENIED]},
        "handover": {
            "default": "freeze",
            "triggers": {"manual": "reduce_only"},
            "symbols": {FIRST: "flatten"},
            "flattenAfter": "5m",
            "flattenBeforeClose": "10m",
        },
    }
)


@pytest.fixture(scope="module")
def canary(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    with canary_of(PLAN, tmp_path_factory.mktemp("canary")) as process:
        yield process


def question(symbol: str, acting: Role | None, champion: int = 0, challenger: int | None = 0) -> Question:
    bars, features = np.full((W, F), 0.5, np.float32), np.zeros(A, np.float32)
    own = None if challenger is None else Account(features, challenger)
    return Question(symbol, bars, 0.1, Account(features, champion), own, acting=acting)


STICKY = [
    # symbol, acting, positions of champion and challenger, who decides
    (FIRST, None, 1, 1, "challenger"),  # nobody said who holds it: as ever
    (LATER, None, 1, 1, "champion"),
    (FIRST, "champion", 1, 0, "champion"),  # held until flat, although the weight gives it away
    (FIRST, "champion", 0, 1, "challenger"),  # flat: it moves
    (LATER, "challenger", 0, -1, "challenger"),
    (LATER, "challenger", 1, 0, "champion"),
    (LATER, "challenger", 1, None, "challenger"),  # both arms decide on the champion's account
    (DENIED, None, 0, 0, "champion"),
    (DENIED, "challenger", 0, 1, "champion"),
]


@pytest.mark.parametrize(("symbol", "acting", "champion", "challenger", "role"), STICKY)
def test_a_position_stays_with_its_arm_until_it_is_flat_in_every_form_of_the_question(
    canary: ServiceProcess, symbol: str, acting: Role | None, champion: int, challenger: int | None, role: Role
) -> None:
    with ServiceClient(canary.url, canary.token) as client:
        asked = question(symbol, acting, champion, challenger)
        raw = client.call(calls.decision(asked))
        (batched,) = client.call(calls.decisions([asked])).results
    assert batched.decision is not None
    assert [raw.role, batched.decision.role] == [role, role]
    assert raw.shadow is not None
    assert raw.shadow.role != role
    assert raw.handover is None
    body = _json(asked)
    assert _post(canary, body)["role"] == role


def test_a_rollback_ends_it_and_the_answer_says_what_becomes_of_the_position(tmp_path: Path) -> None:
    terms = {"flatten_after_s": 300.0, "flatten_before_close_s": 600.0}
    with canary_of(PLAN, tmp_path) as process:
        assert _post(process, _json(question(LATER, "challenger", 0, 1)))["role"] == "challenger"
        post(process, "/v1/rollout/rollback", {})
        _says(process, LATER, {"mode": "reduce_only"} | terms)
        _says(process, FIRST, {"mode": "flatten"} | terms)
    with service_process(settings_of(tmp_path)) as process:  # durable
        _says(process, LATER, {"mode": "reduce_only"} | terms)
        post(process, "/v1/rollout/start", {"champion": "ppo/v1", "challenger": "hrm/v2"})
        _says(process, LATER, {"mode": "reduce_only"} | terms)  # the next one's shadow holds nothing


@pytest.mark.parametrize("acting", [None, "challenger"])
def test_a_rollback_while_the_challenger_thinks_is_told_with_the_champions_answer(
    tmp_path: Path, acting: Role | None
) -> None:
    publish_policy(tmp_path / "models", "ppo/v1")
    publish_policy(tmp_path / "models", "slow/v1", "slow", products=slow_products(400.0))
    settings = settings_in(tmp_path, performance={"inference_timeout_ms": 5000})

    async def story() -> None:
        service = Service(settings, "ppo/v1")
        await service.open()
        try:
            steps = [{"pause": {}}, {"setWeight": 100}, {"pause": {}}]
            plan = Plan.model_validate({"steps": steps, "handover": {"default": "freeze"}})
            await service.command(Change(Command.START, time.time(), challenger="slow/v1", plan=plan))
            await service.command(Change(Command.PROMOTE, time.time()))
            asked = question("A", acting, 0, 1)
            asked.bars[:] = FAULT_LEVEL + 1  # the level at which it is slow
            pending = asyncio.create_task(decide(service, asked))
            while not service.live.models["slow/v1"].thinking:
                await asyncio.sleep(0.001)
            await service.command(Change(Command.ABORT, time.time()))
            answer = await pending
            assert (answer.role, answer.model) == ("champion", "ppo")
            assert answer.handover is not None
            assert answer.handover.mode == "freeze"
        finally:
            await service.close()

    asyncio.run(asyncio.wait_for(story(), 30))


@pytest.mark.parametrize(("acting", "told"), [("champion", True), ("challenger", False), (None, False)])
def test_a_rollback_after_the_promotion_hands_over_what_the_promoted_champion_held(
    tmp_path: Path, acting: Role | None, told: bool
) -> None:
    publish_policy(tmp_path / "models", "ppo/v1")
    publish_policy(tmp_path / "models", "hrm/v1")

    async def story() -> None:
        service = Service(settings_in(tmp_path), "ppo/v1")
        await service.open()
        try:
            steps = [{"setWeight": 100}, {"pause": {}}]
            plan = Plan.model_validate({"steps": steps, "handover": {"default": "flatten"}})
            await service.command(Change(Command.START, time.time(), challenger="hrm/v1", plan=plan))
            for _ in range(2):
                await service.command(Change(Command.PROMOTE, time.time()))
            assert service.live.state.phase is Phase.PROMOTED
            assert (await decide(service, question("A", acting, 1, 1))).handover is None
            await service.command(Change(Command.ROLLBACK, time.time()))
            answer = await decide(service, question("A", acting, 1, 1))
            assert (answer.role, answer.model, answer.handover is not None) == ("champion", "ppo", told)
            assert (await decide(service, question("A", acting, 0, 0))).handover is None
        finally:
            await service.close()

    asyncio.run(asyncio.wait_for(story(), 30))


def _says(process: ServiceProcess, symbol: str, handover: dict[str, Any]) -> None:
    """The champion decides; the hand-over is for what the challenger holds, and for nothing else."""
    held = _post(process, _json(question(symbol, "challenger", 0, 1)))
    assert (held["role"], held["handover"]) == ("champion", handover)
    for asked in (
        question(symbol, "challenger", 1, 0),
        question(symbol, "champion", 1, 1),
        question(symbol, None, 1, 1),
    ):
        answer = _post(process, _json(asked))
        assert (answer["role"], answer["handover"]) == ("champion", None)


def _json(asked: Question) -> dict[str, Any]:
    accounts = {"champion": asked.champion} | ({"challenger": asked.challenger} if asked.challenger else {})
    body = {
        "symbol": asked.symbol,
        "bars": asked.bars.tolist(),
        "complexity": asked.complexity,
        "accounts": {
            role: {"features": one.features.tolist(), "position": one.position} for role, one in accounts.items()
        },
    }
    return body | ({"acting": asked.acting} if asked.acting else {})


def _post(process: ServiceProcess, body: dict[str, Any]) -> dict[str, Any]:
    return dict(post(process, "/v1/decisions", body))
