"""The document at /openapi.json is complete and true: read, and attacked with what it allows and what it does not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from fastapi.routing import APIRoute, iter_route_contexts
from test_backend_app import backend, settings_of

from backend.app import create_app

OURS = ("/api/backtest", "/api/trading", "/api/live-data")


def test_every_route_of_ours_is_described(tmp_path: Path) -> None:
    app = create_app(settings_of(tmp_path))
    paths = app.openapi()["paths"]
    for route in iter_route_contexts(app.routes):
        if isinstance(route.original_route, APIRoute) and str(route.path).startswith(OURS):
            described = paths[route.path_format]
            for method in route.methods or ():
                operation = described[method.lower()]
                assert operation["tags"], route.path
                assert {"401", "403", "429", "500"} < operation["responses"].keys(), route.path
                assert "Scope: `" in operation["description"], route.path


def test_the_key_of_a_manual_trade_is_described_as_a_header(tmp_path: Path) -> None:
    (key,) = create_app(settings_of(tmp_path)).openapi()["paths"]["/api/trading/manual-trade"]["post"]["parameters"]
    assert (key["name"], key["in"], key["required"]) == ("Idempotency-Key", "header", False)


@pytest.mark.slow
def test_no_request_breaks_what_the_document_says(tmp_path: Path) -> None:
    """Not checked: that what has the form is accepted (an unknown symbol is not), and 405 (a run has a job's path)."""
    environ = {"HRM_SERVING__RATE_LIMITS__READS_PER_S": "1e6", "HRM_SERVING__RATE_LIMITS__CHANGES_PER_S": "1e6"}
    with backend(tmp_path, environment=environ) as (process, listening):
        token = (tmp_path / "api_token").read_text().strip()
        command = [
            sys.executable, "-m", "schemathesis.cli", "run", f"http://127.0.0.1:{listening['port']}/openapi.json",
            "--header", f"Authorization: Bearer {token}", "--include-path-regex", "^/api/(backtest|trading|live-data)",
            "--phases", "examples,coverage,fuzzing", "--max-examples", "8", "--generation-deterministic",
            "--no-shrink", "--continue-on-failure", "--suppress-health-check", "all",
            "--exclude-checks", "positive_data_acceptance,allow_header_conformance", "--no-color",
        ]  # fmt: skip
        run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False)
        assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
        assert process.poll() is None
