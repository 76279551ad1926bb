"""The OpenAPI document is complete and true: read, and attacked with what it allows and with what it does not."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.routing import iter_route_contexts
from tiny_books import publish_book
from tiny_models import publish_all, settings_in

from core.observation import BookSchema
from flows.service_process import ServiceProcess, service_process
from serving import schemas
from serving.routes import BODIES, ROUTES

EXAMPLES = 8  # of each route and kind, beside the document's own examples and the edges of every field
# A body may be of the document's form and not of the model's size, a name well formed and no model's: both are refused.
NOT_CHECKED = "positive_data_acceptance"


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    """A service of its own, which no allowance protects from its attacker."""
    folder = tmp_path_factory.mktemp("attacked")
    publish_all(folder / "models")
    publish_book(folder / "models", "pair/v1", BookSchema(instruments=2, factors=3))  # what the example asks for
    settings = settings_in(folder, rollout={"cool_down_s": 0.0})
    limits = settings.serving.rate_limits
    unlimited = limits.model_copy(update=dict.fromkeys(type(limits).model_fields, 1e6))
    serving = settings.serving.model_copy(update={"rate_limits": unlimited, "book_model": "pair/v1"})
    with service_process(settings.model_copy(update={"serving": serving}), champion="ppo/v1") as process:
        yield process


@pytest.fixture(scope="module")
def document(attacked: ServiceProcess) -> dict[str, Any]:
    headers = {"Authorization": f"Bearer {attacked.token}"}
    found = httpx.get(f"{attacked.url}/openapi.json", headers=headers, trust_env=False)
    return dict(found.json())


@pytest.fixture(scope="module")
def operations(document: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {(method, path): item[method] for path, item in document["paths"].items() for method in item}


def test_every_route_is_in_it(operations: dict[tuple[str, str], dict[str, Any]]) -> None:
    routes = {(method.lower(), route.path) for route in iter_route_contexts(ROUTES) for method in route.methods or ()}
    assert operations.keys() == routes
    assert len(routes) >= 34


AT_ANY_WORDS = {"/v1/rollout/abort", "/v1/rollout/rollback"}  # no abort is refused for its body


def test_every_operation_teaches_and_names_its_failures(operations: dict[tuple[str, str], dict[str, Any]]) -> None:
    for (method, path), operation in operations.items():
        assert operation["tags"], path
        assert len(operation["description"]) > 20, path
        codes = operation["responses"].keys()
        assert {"200", "401", "403", "429", "500"} <= codes, path
        if method == "post" and "requestBody" in operation:
            assert {"408", "413"} <= codes, path
            assert ("415" in codes) == (path not in AT_ANY_WORDS), path
        for code, response in operation["responses"].items():
            if code != "200" and (code, path) != ("503", "/health"):
                schema = response["content"]["application/problem+json"]["schema"]
                assert schema == {"$ref": "#/components/schemas/Problem"}, (path, code)


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    text = json.dumps(document)
    names = {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}
    assert names <= document["components"]["schemas"].keys()
    assert {"DecisionRequest", "BatchRequest", "InferRequest", "Problem"} <= names


def test_credentials_are_declared(document: dict[str, Any], operations: dict[tuple[str, str], dict[str, Any]]) -> None:
    assert document["components"]["securitySchemes"] == {"bearer": {"type": "http", "scheme": "bearer"}}
    assert document["security"] == [{"bearer": []}]
    free = {path for (_, path), operation in operations.items() if {} in operation.get("security", ())}
    assert free == {
        "/health",
        "/health/live",
        "/health/ready",
        "/metrics",
        "/v2",
        "/v2/health/live",
        "/v2/health/ready",
    }
    assert "Scope: `decide`" in operations["post", "/v1/decisions"]["description"]


def test_the_examples_are_what_the_models_take(operations: dict[tuple[str, str], dict[str, Any]]) -> None:
    seen, bodies = 0, {body.__name__: body for body in BODIES}
    for operation in operations.values():
        content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
        for example in content.get("examples", {}).values():
            name = content["schema"].get("$ref", "RolloutRequest").rpartition("/")[2]  # an abort takes anything
            bodies[name].model_validate_json(json.dumps(example["value"]))
            seen += 1
    assert seen >= 10


def test_the_raw_form_is_declared_with_its_parameters(operations: dict[tuple[str, str], dict[str, Any]]) -> None:
    decisions = operations["post", "/v1/decisions"]
    assert decisions["requestBody"]["content"].keys() == {"application/json", "application/octet-stream"}
    assert {parameter["name"] for parameter in decisions["parameters"]} == schemas.RawFields.model_fields.keys()


def test_no_request_breaks_what_the_document_says(
    attacked: ServiceProcess, operations: dict[tuple[str, str], dict[str, Any]], tmp_path: Path
) -> None:
    command = [
        sys.executable, "-m", "schemathesis.cli", "run", f"{attacked.url}/openapi.json",
        "--header", f"Authorization: Bearer {attacked.token}",
        "--phases", "examples,coverage,fuzzing", "--max-examples", str(EXAMPLES),
        "--generation-deterministic", "--no-shrink", "--continue-on-failure",
        "--suppress-health-check", "all", "--exclude-checks", NOT_CHECKED, "--no-color",
    ]  # fmt: skip
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False)
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
    assert f"Tested: {len(operations)}" in run.stdout
    assert attacked.process.poll() is None
    assert "unforeseen_error" not in attacked.log.read_text()
