"""Memory: the larger of two is judged, and what can be given up is given up once. The driver alone is made up."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families
from structlog.testing import capture_logs
from test_decisions import A, F, W, command, serve, until
from tiny_books import publish_book

from core.observation import BookSchema
from core.settings import Settings, load_settings
from serving import batcher, memory, service
from serving.batcher import Observation
from serving.graph import CUDA
from serving.guard import Guard, Trigger
from serving.health import health
from serving.memory import Relief, device_bytes, give_up, own_device_bytes, watch_device
from serving.service import Service

NET_S = 60.0
SETTINGS = load_settings(environ={})
ROW = Observation(np.zeros((W, F), np.float32), np.zeros(A, np.float32), 0.0, 0)


@dataclass(frozen=True)
class Process:
    pid: int
    usedGpuMemory: int | None  # noqa: N815 - NVML's name; None where the driver does not say


class Driver:
    """pynvml's three functions, on devices that run these processes."""

    def __init__(self, *devices: list[Process]) -> None:
        self._devices = devices

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return len(self._devices)

    def nvmlDeviceGetHandleByIndex(self, number: int) -> list[Process]:  # noqa: N802
        return self._devices[number]

    def nvmlDeviceGetComputeRunningProcesses(self, device: list[Process]) -> list[Process]:  # noqa: N802
        return device


@pytest.mark.parametrize(
    ("devices", "held"),
    [
        ((), 0),
        (([Process(8, 5)],), 0),
        (([Process(7, None)],), 0),
        (([Process(7, 3), Process(8, 5)], [], [Process(7, 4)]), 7),
    ],
)
def test_a_process_holds_what_all_devices_say_of_it(devices: tuple[list[Process], ...], held: int) -> None:
    assert device_bytes(Driver(*devices), 7) == held


def test_the_real_binding_has_the_functions_that_are_asked() -> None:
    pynvml = pytest.importorskip("pynvml")
    for name in ("nvmlInit", *(name for name in vars(Driver) if name.startswith("nvml"))):
        assert callable(getattr(pynvml, name))


def test_a_process_without_a_device_holds_nothing_there() -> None:
    assert own_device_bytes() == 0  # also where there is no driver


def test_a_missing_binding_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    memory._nvml.cache_clear()
    monkeypatch.setitem(sys.modules, "pynvml", None)  # an import raises
    assert own_device_bytes() == 0


def test_the_larger_of_resident_set_and_device_memory_is_judged() -> None:
    for resident, device in ((4.1, 0.5), (0.5, 4.1)):
        guard = Guard(SETTINGS.triggers)
        guard.rss_gb, guard.device_gb = resident, device
        assert guard.verdict("challenger") is Trigger.MEMORY
        assert guard.seen("challenger").rss_gb == guard.statistics()["rss_gb"] == 4.1
        assert guard.alerts(SETTINGS.alerts, "champion")["memory_mitigation"]
    guard.rss_gb = guard.device_gb = 2.5  # they are not added up
    assert guard.verdict("challenger") is None
    assert not guard.alerts(SETTINGS.alerts, "champion")["memory_warning"]


def test_a_leak_on_the_device_is_seen_everywhere_and_takes_the_challenger(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    context, leaked = int(9e9), [0]  # a context and weights may be more than the limit: they are no leak
    limit = int(settings.triggers.memory_gb * 1e9)
    monkeypatch.setattr(memory, "DEVICE_S", 0.01)
    monkeypatch.setattr(service, "watch_device", partial(watch_device, read=lambda: context + leaked[0]))

    async def story(service: Service) -> None:
        def held() -> list[float]:
            families = text_string_to_metric_families(service.telemetry.exposition.text().decode())
            samples = [each for family in families for each in family.samples]
            return [each.value for each in samples if each.name == "process_device_memory_bytes"]

        await command(service, "start", challenger="hrm/v1")
        service.live.models["ppo/v1"].engine.provider = CUDA
        await until(lambda: held() == [context], NET_S)
        assert service.guard.device_gb == 0.0
        leaked[0] = limit // 2
        await until(lambda: service.guard.device_gb == leaked[0] / 1e9, NET_S)
        assert not service.live.state.latched
        leaked[0] = limit + 1
        await until(lambda: service.live.state.latched, NET_S)
        assert service.live.state.trigger == Trigger.MEMORY
        document: Any = await health(service)
        check = document["individual_checks"]["check_memory_usage"]
        assert (check["status"], check["details"]["device_gb"]) == ("unhealthy", leaked[0] / 1e9)
        await until(lambda: held() == [context + leaked[0]], NET_S)

    serve(settings, story)


def test_a_driver_that_says_nothing_for_once_makes_no_leak_and_hides_none(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    left, seen = [0, 9, 9, 10, 0, 10, 8, 9], list[float]()  # GB
    monkeypatch.setattr(memory, "DEVICE_S", 0.0)
    monkeypatch.setattr(service, "watch_device", lambda _: asyncio.sleep(0))

    async def story(service: Service) -> None:
        def read() -> int:
            seen.append(service.guard.device_gb)  # what came of the reading before
            return int((left.pop(0) if len(left) > 1 else left[0]) * 1e9)

        service.live.models["ppo/v1"].engine.provider = CUDA
        looking = asyncio.create_task(watch_device(service, read))
        await until(lambda: len(seen) > 8, NET_S)
        looking.cancel()
        assert seen[1:9] == [0, 0, 0, 1, 0, 1, 0, 1]

    serve(settings, story)


def test_no_driver_is_asked_for_a_model_on_the_cpu(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(service, "watch_device", lambda _: asyncio.sleep(0))

    async def story(service: Service) -> None:
        service.guard.device_gb = 9.0
        looking = asyncio.create_task(watch_device(service, lambda: asked.append(1) or 0))
        await until(lambda: service.guard.device_gb == 0, NET_S)
        looking.cancel()
        assert not asked

    serve(settings, story)


def test_what_no_decision_of_the_rollout_depends_on_is_given_up(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_book(settings.paths.state_dir / "models", "pair/v1", BookSchema(instruments=2, factors=3))
    serving = settings.serving.model_copy(update={"cache_entries": 100, "book_model": "pair/v1"})
    monkeypatch.setattr(batcher, "QUEUE_LIMIT_S", NET_S)  # no run comes too late on a busy machine, and none is slow
    performance = settings.performance.model_copy(update={"inference_timeout_ms": NET_S * 1e3})

    async def story(service: Service) -> None:
        await command(service, "start", challenger="hrm/v1")
        beside = await service.load("hrm/v2")
        for model in ("ppo/v1", "hrm/v1"):
            for row in (ROW, ROW, replace(ROW, position=1)):
                await service.live.models[model].run(row)
        with capture_logs() as lines:
            await give_up(service)
        assert service.live.models.keys() == {"ppo/v1", "hrm/v1", "pair/v1"}
        (line,) = (line for line in lines if line["event"] == "memory_mitigation")
        assert (line["decisions_forgotten"], line["models_unloaded"]) == (4, ["hrm/v2"])
        assert 0 < line["after_gb"] == service.guard.memory_gb
        await until(lambda: not any(thread.is_alive() for thread in beside._threads), NET_S)
        again = await service.live.models["ppo/v1"].run(ROW)
        assert again.decisions is not None
        assert not again.cached

    serve(settings.model_copy(update={"serving": serving, "performance": performance}), story)


def test_it_is_given_up_once_an_episode() -> None:
    async def story() -> list[float]:
        closed = Service(SETTINGS)  # nothing measures but this test
        relief = Relief(closed)
        with capture_logs() as lines:
            for used_gb in (3.4, 3.6, 3.7, 3.4, 3.1, 3.6, 2.9, 3.4, 3.8, 3.8):
                closed.guard.rss_gb = used_gb
                relief.look()
                await asyncio.gather(*closed._tasks)
        return [line["before_gb"] for line in lines if line["event"] == "memory_mitigation"]

    assert asyncio.run(story()) == [3.6, 3.8]


def test_levels_the_wrong_way_round_do_not_make_it_give_up_at_every_look() -> None:
    alerts = SETTINGS.alerts.model_copy(update={"memory_warning_gb": 3.5, "memory_mitigation_gb": 3.0})

    async def story() -> int:
        closed = Service(SETTINGS.model_copy(update={"alerts": alerts}))
        relief = Relief(closed)
        with capture_logs() as lines:
            for _ in range(3):
                closed.guard.rss_gb = 3.2
                relief.look()
                await asyncio.gather(*closed._tasks)
        return sum(line["event"] == "memory_mitigation" for line in lines)

    assert asyncio.run(story()) == 1


def test_a_running_service_gives_up_by_itself(settings: Settings) -> None:
    alerts = settings.alerts.model_copy(update={"memory_warning_gb": 0.001, "memory_mitigation_gb": 0.002})

    async def story(_: Service) -> None:
        await until(lambda: any(line["event"] == "memory_mitigation" for line in lines), NET_S)

    with capture_logs() as lines:
        serve(settings.model_copy(update={"alerts": alerts}), story)
    assert sum(line["event"] == "memory_mitigation" for line in lines) == 1
