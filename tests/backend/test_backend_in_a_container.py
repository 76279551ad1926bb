"""The backend as deploy/compose.yaml starts it: it listens at one address and finds the service at another."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import httpx
import yaml
from test_backend_app import backend

from flows.processes import free_port

ROOT = Path(__file__).parents[2]
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())["services"]


def test_it_listens_where_it_is_told_and_its_check_passes_while_the_service_elsewhere_is_down(tmp_path: Path) -> None:
    service = {"HRM_SERVING__HOST": "127.0.0.2", "HRM_SERVING__PORT": str(free_port())}
    check = re.search(r"127\.0\.0\.1:8200(/[\w/]+)", SERVICES["backend"]["healthcheck"]["test"][-1])
    assert check is not None
    with backend(tmp_path, environment=service, arguments=["--host", "127.0.0.1"]) as (_, listening):
        assert listening["host"] == "127.0.0.1"
        headers = {"Authorization": f"Bearer {(tmp_path / 'api_token').read_text().strip()}"}
        with httpx.Client(base_url=f"http://127.0.0.1:{listening['port']}", trust_env=False, timeout=30.0) as client:
            assert client.get(check[1]).status_code == 200
            told = client.get("/api/dashboard/summary", headers=headers).json()
    assert f"http://127.0.0.2:{service['HRM_SERVING__PORT']}" in told["service_problem"]


def test_compose_s_backend_asks_the_proxy_with_the_credentials_that_the_service_knows() -> None:
    started = SERVICES["backend"]
    assert started["entrypoint"][-2:] == ["--host", "0.0.0.0"]
    assert started["environment"]["HRM_SERVING__HOST"] in SERVICES
    credentials = [secret for secret in SERVICES["serving-1"]["secrets"] if isinstance(secret, dict)]
    assert [secret for secret in started["secrets"] if isinstance(secret, dict)] == credentials
