"""One private Prefect server for the whole session: every flow in these tests runs against it."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, PREFECT_HOME

from flows.control_plane import control_plane


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Environment with which another process reaches the server; this process has its settings already."""
    state_dir = tmp_path_factory.mktemp("control-plane")
    with control_plane(state_dir, state_dir / "prefect.log") as url:
        yield os.environ | {
            "PREFECT_API_URL": url,
            "PREFECT_API_AUTH_STRING": str(PREFECT_API_AUTH_STRING.value()),
            "PREFECT_HOME": str(PREFECT_HOME.value()),
            "PREFECT_LOGGING_TO_API_ENABLED": "false",
            "DO_NOT_TRACK": "1",
        }
    assert str(PREFECT_API_URL.value()) != url  # the settings are back to what they were
