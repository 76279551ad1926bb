"""Settings in a folder of their own, and a real service process for the tests that speak HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from tiny_models import publish_all, settings_in

from core.settings import Settings
from flows.service_process import ServiceProcess, service_process
from serving import records


@pytest.fixture(autouse=True)
def a_disk_that_may_be_slow() -> Iterator[None]:
    """What becomes of records where it is too slow has a test of its own; elsewhere a busy machine changes nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "SLOW_S", 10.0)
        yield


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Models ppo/v1 (healthy), hrm/v1 to v3 and nan/v1 (sleeping fault); no cool-down."""
    settings = settings_in(tmp_path, rollout={"cool_down_s": 0.0})
    publish_all(tmp_path / "models")
    return settings


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    """One service for a module. Tests that change its rollout leave it idle or rolled back."""
    folder = tmp_path_factory.mktemp("service")
    publish_all(folder / "models")
    settings = settings_in(folder, rollout={"cool_down_s": 0.0}, serving={"max_body_kb": 64})
    with service_process(settings, champion="ppo/v1") as process:
        yield process


@pytest.fixture
def http(running: ServiceProcess) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {running.token}"}
    with httpx.Client(base_url=running.url, headers=headers, trust_env=False, timeout=60) as client:
        yield client
