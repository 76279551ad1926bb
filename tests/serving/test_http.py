"""The service over real HTTP: doors, shapes, the life of a rollout."""

import json
import re
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.routing import iter_route_contexts

from flows.drill_models import FAULT_LEVEL, SCHEMA
from flows.service_process import ServiceProcess
from serving.routes import ROUTES as APP_ROUTES

W, F, A = SCHEMA.window, len(SCHEMA.bar_features), len(SCHEMA.account_features)
PROBLEM = "application/problem+json"


def decision(**changes: Any) -> dict[str, Any]:
    account = {"features": [0.0] * A, "position": 0}
    body = {"symbol": "NIFTY50", "bars": [[0.5] * F] * W, "complexity": 0.2, "accounts": {"champion": account}}
    return body | changes


def rollout(http: httpx.Client, command: str, **body: Any) -> httpx.Response:
    return http.post(f"/v1/rollout/{command}", json=body)


@pytest.fixture
def fresh_challenger(running: ServiceProcess, http: httpx.Client, request: pytest.FixtureRequest) -> str:
    """A challenger version that was never rolled back."""
    from tiny_models import publish_hrm  # beside this file

    version = "hrm/" + re.sub(r"[^a-z0-9]", "-", request.node.name.lower())[-60:].strip("-")
    publish_hrm(running.log.parent / "models", version)
    return version


ROUTES = sorted(
    (method, route.path or "", route.endpoint.__access__.local)
    for route in iter_route_contexts(APP_ROUTES)
    for method in route.methods or ()
)


def test_the_walk_below_sees_every_route() -> None:
    assert len(ROUTES) >= 33
    assert ("POST", "/v1/rollout/abort", False) in ROUTES
    assert [path for _, path, local in ROUTES if local] == [
        "/health", "/health/live", "/health/ready", "/metrics", "/v2", "/v2/health/live", "/v2/health/ready",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("method", "path", "local"),
    [*ROUTES, ("GET", "/docs", False), ("GET", "/openapi.json", False), ("GET", "/x", False)],
)
@pytest.mark.parametrize("authorization", [None, "Bearer wrong", "Basic abc", "Bearer"])
def test_nothing_but_health_and_metrics_opens_without_the_token(
    running: ServiceProcess, method: str, path: str, local: bool, authorization: str | None
) -> None:
    headers = {"Authorization": authorization} if authorization else {}
    response = httpx.request(method, running.url + path, headers=headers, trust_env=False, timeout=60)
    if local:
        assert response.status_code == 200
        return
    assert response.status_code == 401
    assert response.headers["content-type"] == PROBLEM
    assert response.json()["code"] == "unauthorized"


def test_the_token_opens_the_documentation(http: httpx.Client) -> None:
    assert "/v1/decisions" in http.get("/openapi.json").json()["paths"]


def test_a_decision_has_every_field_of_the_contract(http: httpx.Client) -> None:
    response = http.post("/v1/decisions", json=decision(request_id="r-1"))
    assert response.status_code == 200
    answer = response.json()
    assert answer.keys() == {
        "request_id", "symbol", "action", "action_name", "quantity", "probabilities", "value", "segments",
        "halt_reason", "model", "model_version", "role", "latency_ms", "epoch", "fallback", "shadow", "shadow_missing",
        "shadow_latency_ms", "provider", "decision_id", "recorded", "rung", "handover", "account", "promoted",
    }  # fmt: skip
    assert (answer["request_id"], answer["symbol"]) == ("r-1", "NIFTY50")
    assert (answer["action_name"], answer["role"], answer["model"]) == ("BUY_LONG", "champion", "ppo")
    assert (answer["fallback"], answer["shadow"]) == (False, None)
    assert (answer["shadow_missing"], answer["shadow_latency_ms"], answer["handover"]) == (None, None, None)


def nested(**changes: Any) -> dict[str, Any]:
    return decision(accounts={"champion": {"features": [0.0] * A, "position": 0} | changes})


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (decision(bars=[[0.5] * F] * (W - 1)), "bars"),
        (decision(bars=[[0.5] * (F + 1)] * W), "bars"),
        (decision(bars=[[0.5] * F] * (W - 1) + [[0.5]]), "bars"),
        (decision(bars=[]), "bars"),
        (decision(bars="text"), "bars"),
        (decision(bars=[[1e39] * F] * W), "bars"),
        (decision(bars=[[3e38] * F] * W), "bars"),
        (decision(bars=[[-1.1e6] * F] * W), "bars"),
        (decision(bars=[["0.5"] * F] * W), "bars"),
        (decision(bars=[[True] * F] * W), "bars"),
        (decision(complexity="0.5"), "complexity"),
        (decision(complexity=True), "complexity"),
        (decision(complexity=1.5), "complexity"),
        (decision(complexity=None), "complexity"),
        (decision(symbol=""), "symbol"),
        (decision(symbol="A\nB"), "symbol"),
        (decision(symbol="A" * 65), "symbol"),
        (decision(surprise=1), "surprise"),
        (decision(acting="shadow"), "acting"),
        (decision(acting=True), "acting"),
        (decision(accounts={}), "accounts.champion"),
        (nested(position=2), "position"),
        (nested(position="1"), "position"),
        (nested(position=True), "position"),
        (nested(features=[1.1e6] * A), "features"),
        (nested(features=[0.0]), "features"),
        (nested(features=["x"] * A), "features"),
        (decision(request_id="x" * 65), "request_id"),
    ],
)
def test_a_malformed_request_is_a_422_that_names_the_field(
    http: httpx.Client, body: dict[str, Any], field: str
) -> None:
    response = http.post("/v1/decisions", json=body)
    assert response.status_code == 422
    assert response.headers["content-type"] == PROBLEM
    assert field in response.json()["detail"]


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
@pytest.mark.parametrize("place", ["bars", "complexity", "features"])
def test_numbers_that_are_not_finite_are_refused(http: httpx.Client, number: str, place: str) -> None:
    body = decision(**{place: "@"}) if place != "features" else nested(features=["@"] * A)
    if place == "bars":
        body["bars"] = [["@"] * F] * W
    text = json.dumps(body).replace('"@"', number)
    response = http.post("/v1/decisions", content=text, headers={"Content-Type": "application/json"})
    assert response.status_code == 422
    assert place in response.json()["detail"]


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]", b"null", b"[" * 20_000])
def test_a_body_that_is_no_request_is_refused_without_harm(http: httpx.Client, content: bytes) -> None:
    response = http.post("/v1/decisions", content=content, headers={"Content-Type": "application/json"})
    assert response.status_code in (400, 422)
    assert response.headers["content-type"] == PROBLEM
    assert http.post("/v1/decisions", json=decision()).status_code == 200


def test_a_declared_body_above_the_limit_is_refused(http: httpx.Client) -> None:
    response = http.post("/v1/decisions", content=b"x" * 70_000)
    assert (response.status_code, response.json()["code"]) == (413, "body_too_large")


def test_a_streamed_body_is_cut_at_the_limit(http: httpx.Client) -> None:
    response = http.post("/v1/decisions", content=(b"x" * 1000 for _ in range(70)))
    assert (response.status_code, response.json()["code"]) == (413, "body_too_large")


def test_unknown_paths_and_methods_are_problems_too(http: httpx.Client) -> None:
    for response, status in ((http.get("/v1/nothing"), 404), (http.get("/v1/decisions"), 405)):
        assert response.status_code == status
        assert response.headers["content-type"] == PROBLEM


def test_a_rollout_lives_over_http(http: httpx.Client, fresh_challenger: str) -> None:
    started = rollout(http, "start", champion="ppo/v1", challenger=fresh_challenger, reason="test", actor="me")
    assert started.status_code == 200
    assert (started.json()["phase"], started.json()["weight"]) == ("shadow", 0)
    answer = http.post("/v1/decisions", json=decision()).json()
    assert (answer["role"], answer["shadow"]["role"]) == ("champion", "challenger")
    assert answer["shadow"]["model_version"] == fresh_challenger.split("/")[1]
    assert "shadow" not in answer["shadow"]
    assert answer["shadow_latency_ms"] == answer["shadow"]["latency_ms"] > 0

    weights = [rollout(http, "promote").json()["weight"] for _ in range(4)]
    assert weights == [5, 25, 50, 100]
    answer = http.post("/v1/decisions", json=decision()).json()
    assert (answer["role"], answer["shadow"]["role"]) == ("challenger", "champion")
    assert answer["epoch"] == http.get("/v1/rollout").json()["epoch"]

    promoted = rollout(http, "promote").json()
    assert (promoted["phase"], promoted["champion"], promoted["fallback"]) == ("promoted", fresh_challenger, "ppo/v1")
    answer = http.post("/v1/decisions", json=decision()).json()
    assert (answer["role"], answer["model"], answer["promoted"]) == ("champion", "hrm", True)
    assert (answer["shadow"]["role"], answer["shadow"]["model"]) == ("challenger", "ppo")

    health = http.get("/health")
    assert health.status_code == 200
    assert len(health.json()["individual_checks"]) == 5

    back = rollout(http, "rollback", reason="enough").json()
    assert (back["phase"], back["champion"], back["latched"], back["durable"]) == ("rolled_back", "ppo/v1", True, True)
    assert rollout(http, "abort").json()["version"] == back["version"]
    assert http.post("/v1/decisions", json=decision()).json()["model"] == "ppo"
    commands = [event["command"] for event in http.get("/v1/rollout/events").json()["events"]]
    assert commands[-7:] == ["start", "promote", "promote", "promote", "promote", "promote", "rollback"]


def test_an_invalid_transition_is_a_409_that_says_what_is_allowed(http: httpx.Client, fresh_challenger: str) -> None:
    rollout(http, "start", champion="ppo/v1", challenger=fresh_challenger)
    response = rollout(http, "start", champion="ppo/v1", challenger="hrm/v2")
    assert (response.status_code, response.json()["code"]) == (409, "invalid_transition")
    assert "promote" in response.json()["detail"]
    version = http.get("/v1/rollout").json()["version"]
    stale = rollout(http, "promote", version=version - 1)
    assert (stale.status_code, stale.json()["code"]) == (409, "stale_version")
    assert rollout(http, "pause").json()["paused"]
    assert rollout(http, "promote").json()["code"] == "paused"
    assert rollout(http, "abort").json()["latched"]


@pytest.mark.parametrize(("challenger", "code"), [("hrm/v99", "model_not_found"), ("bad/v1", "digest_mismatch")])
def test_a_challenger_that_cannot_be_loaded_changes_nothing(
    running: ServiceProcess, http: httpx.Client, challenger: str, code: str
) -> None:
    from flows.drill_models import publish_policy

    folder = running.log.parent / "models"
    if challenger == "bad/v1":
        publish_policy(folder, "bad/v1")
        (folder / "bad/v1/model.onnx").write_bytes(b"tampered")
    before = http.get("/v1/rollout").json()["version"]
    response = rollout(http, "start", champion="ppo/v1", challenger=challenger)
    assert (response.status_code, response.json()["code"]) == (409, code)
    assert http.get("/v1/rollout").json()["version"] == before


@pytest.mark.parametrize("challenger", ["../../etc/passwd", "hrm", "", "hrm/v1/x"])
def test_a_model_id_that_is_none_is_a_422(http: httpx.Client, challenger: str) -> None:
    assert rollout(http, "start", champion="ppo/v1", challenger=challenger).status_code == 422


def test_a_failing_challenger_loses_its_traffic_and_no_decision_is_lost(
    running: ServiceProcess, http: httpx.Client
) -> None:
    from flows.drill_models import publish_policy

    publish_policy(running.log.parent / "models", "sick/v1", "not_finite")
    rollout(http, "start", champion="ppo/v1", challenger="sick/v1")
    for _ in range(4):
        rollout(http, "promote")
    assert http.post("/v1/decisions", json=decision()).json()["role"] == "challenger"
    poisoned = decision(bars=[[FAULT_LEVEL + 1] * F] * W)
    deadline = time.monotonic() + 60  # one bad moment is not enough
    while time.monotonic() < deadline:
        answer = http.post("/v1/decisions", json=poisoned).json()
        assert (answer["role"], answer["action_name"]) == ("champion", "BUY_LONG")
        state = http.get("/v1/rollout").json()
        if state["latched"]:
            break
        assert answer["fallback"], "the champion answered for the challenger and must say so"
    assert (state["phase"], state["reason"]) == ("rolled_back", "error_rate_exceeded")
    answer = http.post("/v1/decisions", json=decision()).json()
    assert (answer["role"], answer["fallback"]) == ("champion", False)
    assert 'hrm_rollback_total{trigger="error_rate_exceeded"} 1.0' in http.get("/metrics").text


def test_outcomes_that_condemn_the_challenger_roll_it_back(http: httpx.Client, fresh_challenger: str) -> None:
    rollout(http, "start", champion="ppo/v1", challenger=fresh_challenger)
    for i in range(2000):
        body = {"symbol": "X", "champion_bps": 3.0 + i % 3, "challenger_bps": -3.0 - i % 5}
        answer = http.post("/v1/outcomes", json=body).json()
        if answer["phase"] == "rolled_back":
            break
    state = http.get("/v1/rollout").json()
    assert (answer["phase"], state["reason"]) == ("rolled_back", "performance_degradation")
    assert 0 < answer["outcomes"] < 2000


@pytest.mark.parametrize("bps", [1e38, -1e38, 10_001, "3", True, None])
def test_an_outcome_that_cannot_be_is_refused(http: httpx.Client, bps: object) -> None:
    """One of them would blind the performance trigger for good."""
    for arms in ({"champion_bps": bps, "challenger_bps": 0}, {"champion_bps": 0, "challenger_bps": bps}):
        response = http.post("/v1/outcomes", json={"symbol": "X"} | arms)
        assert response.status_code == 422
        assert "_bps" in response.json()["detail"]


def test_integers_are_numbers_too(http: httpx.Client) -> None:
    body = nested(features=[0] * A) | {"bars": [[1] * F] * W, "complexity": 1}
    assert http.post("/v1/decisions", json=body).status_code == 200


@pytest.mark.parametrize("query", ["aftr=1", "after=1&limit=5", "after=-1", "after=x", "after=9223372036854775808"])
def test_a_question_to_the_log_that_is_not_understood_is_a_422(http: httpx.Client, query: str) -> None:
    response = http.get(f"/v1/rollout/events?{query}")
    assert (response.status_code, response.json()["code"]) == (422, "request_invalid")


def test_events_are_told_from_where_the_reader_stopped(http: httpx.Client) -> None:
    events = http.get("/v1/rollout/events").json()["events"]
    assert http.get("/v1/rollout/events", params={"after": events[0]["version"]}).json()["events"] == events[1:]


def test_a_start_with_another_champion_than_the_acting_one_is_a_409(http: httpx.Client) -> None:
    before = http.get("/v1/rollout").json()
    response = rollout(http, "start", champion="hrm/v1", challenger="hrm/v2")
    assert (response.status_code, response.json()["code"]) == (409, "champion_mismatch")
    assert "ppo/v1 decides" in response.json()["detail"]
    assert http.get("/v1/rollout").json()["version"] == before["version"]


def test_metrics_carry_the_names_dashboards_are_built_on(http: httpx.Client) -> None:
    http.post("/v1/decisions", json=decision())
    text = http.get("/metrics").text
    for name in (
        "hrm_inference_requests_total", "hrm_inference_duration_seconds_bucket", "hrm_act_segments_bucket",
        "hrm_rollout_weight_ratio", "hrm_rollout_epoch", "hrm_rollback_total", "hrm_shadow_disagreement_total",
        "hrm_alert_active", "process_resident_memory_bytes",
    ):  # fmt: skip
        assert re.search(rf"^{name}[ {{]", text, re.M), name
    assert sum(line.endswith(" 1.0") for line in text.splitlines() if line.startswith("hrm_rollout_phase")) == 1


def test_health_names_the_five_checks_of_the_seed(http: httpx.Client) -> None:
    document = http.get("/health").json()
    assert document["overall_health"] == "healthy"
    assert set(document["individual_checks"]) == {
        "check_model_loading",
        "check_inference_performance",
        "check_memory_usage",
        "check_act_mechanism",
        "check_hierarchical_convergence",
    }
    assert all(check["status"] == "healthy" for check in document["individual_checks"].values())


def test_the_list_of_models_shows_what_is_stored_and_loaded(http: httpx.Client) -> None:
    document = http.get("/v1/models").json()
    assert {"ppo/v1", "hrm/v1"} <= {row["id"] for row in document["store"]}
    assert document["loaded"]["ppo/v1"]["provider"] == "CPUExecutionProvider"


def test_each_decision_is_one_line_of_json_in_the_log(running: ServiceProcess, http: httpx.Client) -> None:
    http.post("/v1/decisions", json=decision(request_id="to-be-found"))
    lines = [json.loads(line) for line in Path(running.log).read_text().splitlines()]
    found = [line for line in lines if line.get("request_id") == "to-be-found"]
    assert len(found) == 1
    assert found[0]["event"] == "decision"
    assert {"model", "role", "segments", "halt_reason", "latency_ms", "action", "epoch"} <= found[0].keys()
    assert running.token not in Path(running.log).read_text()
