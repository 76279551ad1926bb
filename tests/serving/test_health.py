"""/health where something breaks: that check says so, the other ones are answered all the same."""

from __future__ import annotations

import asyncio
import json
import math
from typing import Any

import pytest
from test_decisions import serve

from core.settings import Settings
from serving import batcher
from serving.health import CHECKS, health
from serving.schemas import HealthCheck, HealthResponse
from serving.service import Service


@pytest.fixture
def settings(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Of a machine that is as busy as it likes: no probe comes too late."""
    monkeypatch.setattr(batcher, "QUEUE_LIMIT_S", 60.0)
    performance = settings.performance.model_copy(update={"inference_timeout_ms": 60_000.0})
    return settings.model_copy(update={"performance": performance})


async def checks(service: Service) -> dict[str, HealthCheck]:
    """As a client reads them; `overall_health` must follow from them."""
    document = json.loads(json.dumps(await health(service), allow_nan=False))  # as the route does
    found = HealthResponse.model_validate(document)
    assert list(found.individual_checks) == [check.__name__ for check in CHECKS]
    healthy = all(check.status == "healthy" for check in found.individual_checks.values())
    assert found.overall_health == ("healthy" if healthy else "unhealthy")
    return found.individual_checks


def test_a_model_that_goes_while_it_is_checked_is_an_error_of_that_check(settings: Settings) -> None:
    async def story(service: Service) -> None:
        await service.load("hrm/v2")
        looking = asyncio.create_task(checks(service))
        await asyncio.sleep(0)  # the first probe is under way
        await service.unload("hrm/v2")
        found = await looking
        broken = found.pop("check_inference_performance")
        assert (broken.status, broken.details) == ("error", {})
        assert broken.error == "hrm/v2 was unloaded while it was checked; ask again"
        assert {check.status for check in found.values()} == {"healthy"}
        assert (await checks(service))["check_inference_performance"].status == "healthy"

    serve(settings, story)


def test_a_check_that_breaks_says_why_and_the_others_are_answered(settings: Settings) -> None:
    async def story(service: Service) -> None:
        engine: Any = service.live.models["hrm/v1"].engine
        engine.residuals = None
        found = await checks(service)
        assert "'NoneType' object is not iterable" in str(found["check_hierarchical_convergence"].error)
        assert [name for name, check in found.items() if check.status == "error"] == ["check_hierarchical_convergence"]
        assert all(check.error is None for check in found.values() if check.status != "error")

        async def silent() -> Any:
            raise KeyError

        service.live.models["hrm/v1"].run = lambda _: silent()  # type: ignore[method-assign, assignment]
        assert (await checks(service))["check_act_mechanism"].error == "KeyError()"  # never an empty text

    serve(settings, story, champion="hrm/v1")


def test_states_that_are_no_numbers_are_told_as_json(settings: Settings) -> None:
    async def story(service: Service) -> None:
        service.live.models["hrm/v1"].engine.residuals = (0.5, math.inf, math.nan)
        check = (await checks(service))["check_hierarchical_convergence"]
        assert check.status == "unhealthy"
        assert check.details["hrm/v1"]["relative_change_of_z_H"] == [0.5, None, None]

    serve(settings, story, champion="hrm/v1")


def test_a_model_that_does_not_answer_generates_no_action(settings: Settings) -> None:
    async def story(service: Service) -> None:
        before = (await checks(service))["check_inference_performance"].details["models"]["ppo/v1"]
        assert before["action_generated"] is True
        service.live.models["ppo/v1"].engine.stop()
        check = (await checks(service))["check_inference_performance"]
        after = check.details["models"]["ppo/v1"]
        assert (check.status, after["action_generated"], after["meets_requirement"]) == ("unhealthy", False, False)
        assert after["error"]

    serve(settings, story)


def test_a_state_that_cannot_be_read_breaks_no_check(settings: Settings) -> None:
    async def story(service: Service) -> None:
        for file in settings.paths.state_dir.glob("rollout.db*"):
            file.write_bytes(b"no database")
        found = await checks(service)
        assert found["check_model_loading"].status == "healthy"
        assert all(check.error is None for check in found.values())

    serve(settings, story)
