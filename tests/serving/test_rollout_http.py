"""Commands of a rollout over real HTTP: whose they are, at which version, by which plan, and with whose approval."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import pytest
from tiny_models import publish_all, publish_hrm, settings_in

from delivery.plan import Plan, plan_from
from flows.service_process import ServiceProcess, service_process
from serving import calls
from serving.calls import ServiceError
from serving.client import ServiceClient
from serving.keys import create
from serving.scopes import Scope

PROBLEM = "application/problem+json"
STEPS = [{"pause": {}}, {"setWeight": 5}, {"pause": {}}, {"setWeight": 50}, {"pause": {}}]  # a person's, every one
NUMBER = count()
Rollout = dict[str, Any]


@pytest.fixture
def challenger(running: ServiceProcess) -> str:
    """A version that was never rolled back."""
    version = f"hrm/http-{next(NUMBER)}"
    publish_hrm(running.log.parent / "models", version)
    return version


@pytest.fixture
def begin(http: httpx.Client, challenger: str) -> Iterator[Any]:
    """Starts a rollout with a plan, and takes it back in the end."""

    def start(**plan: Any) -> Rollout:
        body = {"champion": "ppo/v1", "challenger": challenger, "plan": {"steps": STEPS} | plan}
        response = http.post("/v1/rollout/start", json=body)
        assert response.status_code == 200, response.text
        return dict(response.json())

    yield start
    http.post("/v1/rollout/abort")


@dataclass(frozen=True)
class Caller:
    id: str
    key: str

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"}


@pytest.fixture(scope="module")
def callers(running: ServiceProcess) -> dict[str, Caller]:
    """Keys that the service has heard of: it looks every other second."""
    scopes = {"desk": Scope.ROLLOUT_PROMOTE, "anna": Scope.ROLLOUT_APPROVE, "berta": Scope.ROLLOUT_APPROVE}
    found = {}
    for name, scope in scopes.items():
        key, text = create(running.log.parent, name, (scope, Scope.ROLLOUT_READ))
        found[name] = Caller(f"key:{key.id}", text)
    deadline = time.monotonic() + 60
    while httpx.get(f"{running.url}/v1/rollout", headers=found["berta"].headers, trust_env=False).status_code != 200:
        assert time.monotonic() < deadline, "the service did not take the keys"
        time.sleep(0.05)
    return found


def command(http: httpx.Client, name: str, if_match: str | None = None, **body: Any) -> httpx.Response:
    headers = {} if if_match is None else {"If-Match": if_match}
    return http.post(f"/v1/rollout/{name}", json=body, headers=headers)


def state(http: httpx.Client) -> Rollout:
    return dict(http.get("/v1/rollout").json())


def refused(response: httpx.Response) -> tuple[int, str]:
    assert response.headers["content-type"] == PROBLEM
    return response.status_code, response.json()["code"]


def test_the_version_is_the_entity_tag_of_every_answer(http: httpx.Client, begin: Any) -> None:
    begin()
    for response in (http.get("/v1/rollout"), command(http, "pause"), command(http, "resume"), command(http, "abort")):
        assert response.headers["etag"] == f'"{response.json()["version"]}"'


@pytest.mark.parametrize("form", ['"{version}"', '"1", "{version}"', "*", 'W/"{version}", "{version}"'])
def test_a_command_at_the_version_that_was_read_is_carried_out(http: httpx.Client, begin: Any, form: str) -> None:
    version = begin()["version"]
    paused = command(http, "pause", form.format(version=version))
    assert (paused.status_code, paused.json()["version"]) == (200, version + 1)


@pytest.mark.parametrize("form", ['"{before}"', '"{after}"', 'W/"{version}"', '"x"', '""', '"{before}", "{after}"'])
def test_a_command_at_another_version_changes_nothing(http: httpx.Client, begin: Any, form: str) -> None:
    version = begin()["version"]
    tags = form.format(before=version - 1, version=version, after=version + 1)
    response = command(http, "promote", tags)
    assert refused(response) == (412, "precondition_failed")
    assert f"now version {version}" in response.json()["detail"]
    assert state(http)["version"] == version


@pytest.mark.parametrize("text", ["7", '"7', "'7'", '"7" "8"', '"7",', ""])
def test_an_if_match_that_is_none_is_a_422_that_shows_how_to_write_it(
    http: httpx.Client, begin: Any, text: str
) -> None:
    version = begin()["version"]
    response = command(http, "promote", text)
    assert response.status_code == 422
    assert 'If-Match: "7"' in response.json()["detail"]
    assert state(http)["version"] == version


def test_header_and_body_may_both_name_the_version_but_not_different_ones(http: httpx.Client, begin: Any) -> None:
    version = begin()["version"]
    response = command(http, "pause", f'"{version}"', version=version + 1)
    assert response.status_code == 422
    assert f'"{version}"' in response.json()["detail"]
    assert state(http)["version"] == version
    assert command(http, "pause", f'"{version}"', version=version).json()["paused"]
    assert refused(command(http, "resume", version=version)) == (409, "stale_version")  # the body alone means as before
    assert refused(command(http, "resume", f'"{version}"', version=version)) == (412, "precondition_failed")


def test_a_stale_start_loads_nothing(http: httpx.Client, challenger: str) -> None:
    version = state(http)["version"]
    response = command(http, "start", f'"{version + 1}"', champion="ppo/v1", challenger=challenger)
    assert refused(response) == (412, "precondition_failed")
    assert challenger not in http.get("/v1/models").json()["loaded"]


def test_of_two_commands_at_the_same_version_one_is_carried_out(http: httpx.Client, begin: Any) -> None:
    version = begin()["version"]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: command(http, "promote", f'"{version}"').status_code, range(8)))
    assert sorted(answers) == [200] + 7 * [412]
    assert state(http)["step"] == 1


@pytest.mark.parametrize("name", ["abort", "rollback"])
@pytest.mark.parametrize("tags", ['"0"', 'W/"1"', "no tag at all", ""])
def test_nothing_that_fences_can_be_in_the_way_of_an_abort(
    http: httpx.Client, begin: Any, name: str, tags: str
) -> None:
    begin()
    response = command(http, name, tags, version=0)
    assert response.status_code == 200
    assert response.json()["latched"]


def test_a_plan_that_comes_with_a_start_is_frozen_and_told(http: httpx.Client, begin: Any) -> None:
    sessions = [{"day": "2026-11-23", "open": 1795405500.0, "close": 1795428600.0}]
    templates = {"errors": {"metrics": [
        {"name": "error_ratio", "provider": {"service": "error_ratio"}, "failureCondition": "result > 0.05"}
    ]}}  # fmt: skip
    gates = [{"pause": {}}, {"pause": {"duration": "30m"}}, {"analysis": {"templates": [{"name": "errors"}]}}]
    told = begin(
        steps=[*gates, {"setWeight": 7}, {"pause": {"sessions": 2}}],
        analysisTemplates=templates,
        market={"sessions": sessions},
        approvals={"required": 1},
    )
    assert (told["phase"], told["step"], told["steps"], told["gate"]) == ("shadow", 0, [7], 0)
    assert told["gates"] == ["until somebody promotes", "pause 30m", "analysis: errors"]
    assert told["waits_for"] == "until somebody promotes"
    assert told["approvals"] == {"required": 1, "given": [], "missing": 1}
    assert (told["attempt"], told["started_by"]) == (told["version"], "local")
    assert told["stage_at"] == told["gate_at"] > 1.7e9

    answer = http.get("/v1/rollout/plan")
    assert hashlib.sha256(answer.content).hexdigest() == told["plan_sha256"]
    assert answer.headers["etag"] == f'"{told["plan_sha256"]}"'
    assert answer.json()["market"]["sessions"][0]["day"] == "2026-11-23"
    assert plan_from(answer.text).sha256 == told["plan_sha256"]  # what is told can be started again

    passed = command(http, "promote").json()
    assert (passed["step"], passed["gate"], passed["waits_for"]) == (0, 1, "pause 30m")
    assert "approvals" in passed and command(http, "pause").json()["waits_for"] == "a resume"


def test_without_a_plan_it_is_the_one_of_the_settings(http: httpx.Client, challenger: str) -> None:
    told = command(http, "start", champion="ppo/v1", challenger=challenger).json()
    try:
        assert told["steps"] == [5, 25, 50, 100]
        assert http.get("/v1/rollout/plan").headers["etag"] == f'"{told["plan_sha256"]}"'
    finally:
        gone = command(http, "abort").json()
    assert (gone["waits_for"], gone["gates"], gone["trigger"]) == ("", [], "manual")


@pytest.mark.parametrize(
    ("plan", "named"),
    [
        ({"steps": []}, "plan.steps"),
        ({"steps": [{"setWeight": 101}]}, "plan.steps.0.setWeight"),
        ({"steps": [{"setwight": 5}]}, "did you mean 'setWeight'?"),
        ({"steps": [{"setWeight": 5}, {"setWeight": 5}]}, "steps.1.setWeight: 5 does not grow"),
        ({"steps": [{"setWeight": 5, "pause": {}}]}, "plan.steps.0"),
        ({"steps": STEPS, "limits": {"symbol": {"maxDrawdownPct": 0}}}, "plan.limits.symbol.maxDrawdownPct"),
        ({"steps": STEPS, "backgroundAnalysis": {"templates": [{"name": "none"}]}}, "unknown template 'none'"),
        ({"steps": STEPS, "market": {"sessions": [{"day": "x", "open": 1, "close": 2}]}}, "market.sessions.0.day"),
        ([], "plan"),
        ("5, 25, 100", "plan"),
    ],
)
def test_a_plan_that_is_not_valid_starts_nothing_and_names_the_place(
    http: httpx.Client, challenger: str, plan: Any, named: str
) -> None:
    before = state(http)["version"]
    response = command(http, "start", champion="ppo/v1", challenger=challenger, plan=plan)
    assert refused(response) == (422, "request_invalid")
    assert named in json.dumps(response.json()["errors"])
    assert state(http)["version"] == before
    assert challenger not in http.get("/v1/models").json()["loaded"]


def test_a_plan_with_the_shares_of_a_whole_exchange_fits(http: httpx.Client, begin: Any) -> None:
    shares = {f"NSE:SYMBOL{number:04d}-EQ": 1.0 + number for number in range(1500)}
    begin(weightBasis="notional", symbols={"notional": shares})
    assert http.get("/v1/rollout/plan").json()["symbols"]["notional"] == shares


def test_the_log_names_the_authenticated_caller_whatever_the_body_claims(
    http: httpx.Client, begin: Any, callers: dict[str, Caller]
) -> None:
    begin()
    who, headers = callers["desk"].id, callers["desk"].headers
    http.post("/v1/rollout/pause", json={"reason": "lunch", "actor": "controller"}, headers=headers)
    http.post("/v1/rollout/resume", json={"actor": "guard"}, headers=headers)
    command(http, "abort", reason="enough")
    events = http.get("/v1/rollout/events").json()["events"][-3:]
    assert [(event["actor"], event["reason"]) for event in events] == [
        (who, "lunch (for controller)"),
        (who, "(for guard)"),
        ("local", "enough"),
    ]


def test_a_promotion_takes_two_approvals_of_others_than_the_starter(
    http: httpx.Client, begin: Any, callers: dict[str, Caller]
) -> None:
    begin(steps=[{"pause": {}}, {"setWeight": 50}, {"pause": {}}], approvals={"required": 2})
    anna, berta, desk = callers["anna"], callers["berta"], callers["desk"].headers
    assert refused(http.post("/v1/rollout/approve")) == (409, "self_approval")  # who started has every scope
    assert refused(http.post("/v1/rollout/approve", headers=desk)) == (403, "scope_missing")
    assert http.post("/v1/rollout/approve", headers=anna.headers, json={"actor": "berta"}).status_code == 200
    again = http.post("/v1/rollout/approve", headers=anna.headers).json()
    assert again["approvals"] == {"required": 2, "given": [anna.id], "missing": 1}  # one key, one approval
    assert command(http, "promote").json()["weight"] == 50  # only the last promotion needs any
    refusal = command(http, "promote")
    assert refused(refusal) == (409, "approvals_missing")
    assert "1 more approval" in refusal.json()["detail"]
    given = http.post("/v1/rollout/approve", headers=berta.headers).json()
    assert given["approvals"] == {"required": 2, "given": [anna.id, berta.id], "missing": 0}
    assert command(http, "promote").json()["phase"] == "promoted"
    assert refused(http.post("/v1/rollout/approve", headers=anna.headers)) == (409, "invalid_transition")


def test_who_may_approve_may_neither_promote_nor_abort(http: httpx.Client, callers: dict[str, Caller]) -> None:
    for path in ("promote", "abort", "start"):
        assert refused(http.post(f"/v1/rollout/{path}", headers=callers["anna"].headers)) == (403, "scope_missing")


def test_what_the_controller_measures_is_told(http: httpx.Client, begin: Any) -> None:
    metric = {"name": "memory", "provider": {"service": "rss_gb"}, "failureCondition": "result > 64", "interval": "1s"}
    told = begin(
        backgroundAnalysis={"templates": [{"name": "watch"}]},
        analysisTemplates={"watch": {"metrics": [metric | {"count": 0, "inconclusiveLimit": -1}]}},
    )
    deadline = time.monotonic() + 60
    while True:
        answer = http.get("/v1/rollout/analysis", params={"last": 1}).json()
        (run,) = answer["runs"]
        (memory,) = run["metrics"]
        if memory["taken"] >= 2:
            break
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert (answer["attempt"], run["run"], run["ended"], run["phase"]) == (
        told["attempt"],
        "background",
        False,
        "running",
    )
    (latest,) = memory["measurements"]
    assert (latest["phase"], 0 < latest["value"] < 64) == ("successful", True)
    assert command(http, "abort").json()["latched"]
    assert http.get("/v1/rollout/analysis").json()["runs"][0]["ended"]


@pytest.mark.parametrize("asked", ["last=1001", "last=-1", "last=x", "first=1"])
def test_a_question_for_measurements_that_is_not_understood_is_a_422(http: httpx.Client, asked: str) -> None:
    assert refused(http.get(f"/v1/rollout/analysis?{asked}")) == (422, "request_invalid")


def test_a_state_that_cannot_be_read_is_a_503_and_no_bug(tmp_path: Path) -> None:
    publish_all(tmp_path / "models")
    with (
        service_process(settings_in(tmp_path), champion="ppo/v1") as service,
        httpx.Client(
            base_url=service.url, headers={"Authorization": f"Bearer {service.token}"}, trust_env=False
        ) as http,
    ):
        command(http, "start", champion="ppo/v1", challenger="hrm/v1")
        for file in tmp_path.glob("rollout.db*"):
            with file.open("r+b") as damaged:
                damaged.write(b"damaged! " * 4096)
        for path in ("events", "analysis"):
            assert refused(http.get(f"/v1/rollout/{path}")) == (503, "state_unreadable")
        assert state(http)["phase"] == "shadow"  # memory knows who decides
        assert "unforeseen_error" not in service.log.read_text()


def test_nobody_passes_a_gate_by_hand(http: httpx.Client, begin: Any) -> None:
    begin(steps=[{"pause": {"duration": "1h"}}, {"setWeight": 50}])
    assert refused(command(http, "advance")) == (404, "not_found")
    assert refused(command(http, "promote")) == (409, "gates_not_passed")


def test_the_client_starts_with_a_plan_approves_and_fences(
    running: ServiceProcess, challenger: str, callers: dict[str, Caller]
) -> None:
    plan = Plan.model_validate({"steps": STEPS, "approvals": {"required": 1}})
    with (
        ServiceClient(running.url, running.token) as client,
        ServiceClient(running.url, callers["anna"].key) as approver,
    ):
        begun = client.call(calls.start("ppo/v1", challenger, plan=plan, reason="by plan"))
        assert (begun.plan_sha256, client.call(calls.plan())) == (plan.sha256, plan)
        with pytest.raises(ServiceError) as error:
            client.call(calls.command("promote", version=begun.version + 1))
        assert (error.value.status, error.value.code) == (412, "precondition_failed")
        approved = approver.call(calls.command("approve", version=begun.version))
        assert approved.approvals.missing == 0
        assert client.call(calls.command("promote", version=approved.version)).weight == 5
        assert client.call(calls.command("abort", version=0)).latched


def test_the_scope_to_read_opens_what_is_told_and_no_command(http: httpx.Client, callers: dict[str, Caller]) -> None:
    for path in ("", "/plan", "/events", "/analysis"):
        assert http.get(f"/v1/rollout{path}", headers=callers["anna"].headers).status_code == 200
    assert refused(http.post("/v1/rollout/pause", headers=callers["anna"].headers)) == (403, "scope_missing")


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b'{"reason": "' + b"x" * 2000 + b'", "actor": ""}', "application/json"),
        (b'{"version": "7", "who": "me"}', "application/json"),
        (b"reason=it+is+on+fire", "application/x-www-form-urlencoded"),
        (b"\xff\xfe", "text/plain"),
        (b"[1]", "application/json"),
    ],
)
@pytest.mark.parametrize("name", ["abort", "rollback"])
def test_no_abort_is_refused_for_its_words(http: httpx.Client, begin: Any, name: str, body: bytes, kind: str) -> None:
    begin()
    response = http.post(f"/v1/rollout/{name}", content=body, headers={"Content-Type": kind})
    assert (response.status_code, response.json()["latched"]) == (200, True)


def test_a_person_steps_in_market_time_only_as_the_controller_does(http: httpx.Client, begin: Any) -> None:
    last_week = {"day": "2020-01-06", "open": 1578282300, "close": 1578304800}
    begin(market={"sessions": [last_week]})
    assert refused(command(http, "promote")) == (409, "outside_market_time")
    assert state(http)["weight"] == 0


def test_a_person_steps_only_where_the_background_analysis_speaks_for_it(http: httpx.Client, begin: Any) -> None:
    never = {"name": "late", "provider": {"service": "rss_gb"}, "failureCondition": "result > 999", "count": 0}
    begin(
        analysisTemplates={"late": {"metrics": [never | {"initialDelay": "1h"}]}},
        backgroundAnalysis={"templates": [{"name": "late"}]},
    )
    assert refused(command(http, "promote")) == (409, "background_not_passed")
    assert state(http)["weight"] == 0


def test_a_promotion_right_after_the_start_waits_for_the_first_measurements(http: httpx.Client, begin: Any) -> None:
    at_once = {"name": "resident", "provider": {"service": "rss_gb"}, "failureCondition": "result > 999", "count": 0}
    begin(
        analysisTemplates={"resident": {"metrics": [at_once | {"successCondition": "result < 999"}]}},
        backgroundAnalysis={"templates": [{"name": "resident"}]},
    )
    assert command(http, "promote").json()["weight"] == 5


def test_of_two_promotions_that_were_judged_at_one_step_only_one_is_taken(http: httpx.Client, begin: Any) -> None:
    begin()
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: command(http, "promote"), range(4)))
    taken = [answer.json() for answer in answers if answer.status_code == 200]
    codes = {answer.json()["code"] for answer in answers if answer.status_code != 200}
    assert codes <= {"stale_version", "invalid_transition"}  # the latter after three, one after the other
    promotions = [one for one in http.get("/v1/rollout/events").json()["events"] if one["command"] == "promote"]
    steps = {(one["phase"], one["step"]) for one in taken}  # promoted at last, at the step that it was at
    assert 1 <= len(steps) == len(taken) <= len(promotions)
