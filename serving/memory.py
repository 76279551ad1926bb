"""Memory of this process: measured, and given up where there is too much of it (the seed's 9.1.2).

Judged is the larger of the resident set and of what GPUs have come to hold since models were last loaded or unloaded:
a leak on a device shows in no resident set, and what a context, weights and captured graphs take is no leak, however
much it is. The driver is asked through NVML, which counts by process id. In a container whose driver does not
translate ids, this process is not among them, and its device memory is not seen.

    above alerts.memory_mitigation_gb   known decisions are forgotten, models beside the rollout unloaded, what the
                                        allocator keeps is returned: all that no decision of the rollout depends on
    below alerts.memory_warning_gb      the episode is over; the next one may begin
    above triggers.memory_gb            the candidate goes (serving/guard.py)
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

import psutil
import structlog

from core.errors import ModelError
from serving.allocator import return_memory
from serving.graph import GPU_PROVIDERS
from serving.live import needed

if TYPE_CHECKING:
    from serving.service import Service

DEVICE_S = 1.0  # how often a driver is asked

log = structlog.get_logger()


def measure_memory(service: Service) -> None:
    resident = psutil.Process().memory_info().rss
    service.guard.rss_gb = resident / 1e9
    service.telemetry.resident.set(resident)


def device_bytes(nvml: Any, pid: int) -> int:
    """What process `pid` holds on all GPUs, as the binding `nvml` (pynvml) says; 0 where no device knows it."""
    devices = [nvml.nvmlDeviceGetHandleByIndex(number) for number in range(nvml.nvmlDeviceGetCount())]
    running = [process for device in devices for process in nvml.nvmlDeviceGetComputeRunningProcesses(device)]
    return sum(process.usedGpuMemory or 0 for process in running if process.pid == pid)


def own_device_bytes() -> int:
    """What this process holds on all GPUs; 0 without a driver or its binding. Blocks as long as the driver does."""
    try:
        return device_bytes(_nvml(), os.getpid())
    except Exception as error:  # whatever a driver says: the service does not depend on it
        log.debug("device_memory_unknown", error=str(error))
        return 0


async def watch_device(service: Service, read: Callable[[], int] = own_device_bytes) -> None:
    """Until cancelled. Apart from what judges (serving/watch.py), which must not wait for a driver."""
    known, before = frozenset[str](), 0
    while True:
        models = service.live.models
        on_device = frozenset(name for name, each in models.items() if each.engine.provider in GPU_PROVIDERS)
        held = await asyncio.to_thread(read) if on_device else 0
        # A driver that says nothing for once says 0; what a model has left behind when it is unloaded goes later.
        if on_device != known or not before or 0 < held < before:
            known, before = on_device, held
        service.guard.device_gb = max(0, held - before) / 1e9
        service.telemetry.device.set(held)
        await asyncio.sleep(DEVICE_S)


class Relief:
    """Gives memory up once an episode, however long that lasts."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._high = False

    def look(self) -> None:
        """On the event loop, after a measurement."""
        limits, used_gb = self._service.settings.alerts, self._service.guard.memory_gb
        if used_gb > limits.memory_mitigation_gb and not self._high:
            self._high = True
            self._service.spawn(give_up(self._service))
        elif used_gb < min(limits.memory_warning_gb, limits.memory_mitigation_gb):
            self._high = False


async def give_up(service: Service) -> None:
    """Let go of all that no decision of the rollout depends on; the book model of the settings stays, too."""
    before_gb = service.guard.memory_gb
    forgotten = sum(model.forget() for model in service.live.models.values())
    unloaded = []
    for name in sorted(service.live.models.keys() - needed(service.live.state) - {service.settings.serving.book_model}):
        try:
            await service.unload(name)
        except ModelError as error:  # a start needs it now, or somebody was faster
            log.info("memory_not_given_up", model=name, error=str(error))
        else:
            unloaded.append(name)
    await asyncio.to_thread(return_memory)
    measure_memory(service)
    log.warning(
        "memory_mitigation",
        before_gb=before_gb,
        after_gb=service.guard.memory_gb,  # what an unloaded model held follows in seconds: it answers first
        decisions_forgotten=forgotten,
        models_unloaded=unloaded,
    )


@cache
def _nvml() -> Any:
    """The binding, connected to the driver. Raises ImportError, or an NVMLError of it."""
    import pynvml  # only where a model is on a GPU

    pynvml.nvmlInit()
    return pynvml
