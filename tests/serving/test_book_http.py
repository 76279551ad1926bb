"""A book over real HTTP: a running service, models that come and go, and who may ask."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from test_book_decisions import request
from tiny_books import publish_book
from tiny_models import settings_in

from core.observation import BookSchema
from flows.drill_models import publish_policy
from flows.service_process import ServiceProcess, service_process
from serving.audit import find
from serving.keys import create
from serving.scopes import Scope

URL = "/v1/books/decisions"


@pytest.fixture(scope="module")
def books(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    folder: Path = tmp_path_factory.mktemp("books")
    publish_policy(folder / "models", "ppo/v1")
    publish_book(folder / "models", "book/v1")
    publish_book(folder / "models", "pair/v1", BookSchema(instruments=2, factors=2))
    with service_process(
        settings_in(folder), champion="ppo/v1", environ={"HRM_SERVING__BOOK_MODEL": "book/v1"}
    ) as service:
        yield service


@pytest.fixture
def http(books: ServiceProcess) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {books.token}"}
    with httpx.Client(base_url=books.url, headers=headers, trust_env=False, timeout=60) as client:
        yield client


def body(mus: list[float], *arguments: Any, **more: Any) -> dict[str, Any]:
    return request(mus, *arguments, **more).model_dump(mode="json")


def test_a_book_is_decided_over_http_in_the_order_it_was_asked_in(books: ServiceProcess, http: httpx.Client) -> None:
    asked = body([1.0, -1.0, 0.5, -2.0], [0, 1, 1, -1], depth=2, request_id="r-1")
    straight = http.post(URL, json=asked)
    assert straight.status_code == 200, straight.text
    turned = http.post(URL, json=asked | {"instruments": asked["instruments"][::-1]}).json()
    answer = straight.json()
    assert [decision["target"] for decision in answer["decisions"]] == [1, -1, 1, -1]
    assert turned["decisions"] == answer["decisions"][::-1]
    assert (answer["request_id"], answer["segments"], answer["feasible_by"]) == ("r-1", 2, "model")
    assert answer["feasible"] is True
    assert answer["recorded"] is True
    kept = find(books.log.parent / "decisions", answer["decision_id"]).facts
    assert (kept.kind, kept.request_id, kept.latency_ms) == ("book", "r-1", answer["latency_ms"])


def test_limits_are_kept_whatever_the_model_says(http: httpx.Client) -> None:
    held = http.post(URL, json=body([1.0] * 4, [1, -1, 0, 0], gross=2, net=0)).json()
    assert [decision["target"] for decision in held["decisions"]] == [1, -1, 0, 0]
    assert held["feasible_by"] == "held"
    reduced = http.post(URL, json=body([1.0] * 4, [1, 1, 1, 1], gross=0, net=0)).json()
    assert [decision["action_name"] for decision in reduced["decisions"]] == ["CLOSE_LONG"] * 4
    assert reduced["feasible_by"] == "reduced"


def test_a_model_for_books_of_another_size_is_loaded_while_the_service_runs(http: httpx.Client) -> None:
    pair = body([1.0, -1.0])
    refused = http.post(URL, json=pair)
    assert (refused.status_code, refused.json()["code"]) == (409, "no_book_model")
    assert "hrm book train --instruments 2 --factors 2" in refused.json()["detail"]
    loaded = http.post("/v1/models/pair/v1/load")
    assert loaded.json()["observation"] == {"instruments": 2, "factors": 2}
    assert http.post(URL, json=pair).json()["model"] == "pair"
    assert http.post("/v1/models/pair/v1/unload").status_code == 200
    assert http.post(URL, json=pair).status_code == 409
    assert http.post(URL, json=body([1.0] * 4)).status_code == 200


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"limits": {"gross": 2.5, "net": 1}}, "limits.gross"),
        ({"instruments": []}, "instruments"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_what_is_no_book_is_refused_by_the_fields_name(http: httpx.Client, change: dict[str, Any], field: str) -> None:
    refused = http.post(URL, json=body([1.0] * 4) | change)
    assert refused.status_code == 422
    assert refused.headers["content-type"] == "application/problem+json"
    assert field in refused.json()["detail"]


def test_a_number_that_is_none_a_symbol_twice_and_a_form_are_refused(http: httpx.Client) -> None:
    sound = body([1.0] * 4)
    twice = sound | {"instruments": [sound["instruments"][0]] * 4}
    assert http.post(URL, json=twice).json()["code"] == "duplicate_symbol"
    assert http.post(URL, data={"book_id": "x"}).status_code == 415
    sound["instruments"][0]["mu"] = math.nan
    broken = json.dumps(sound).encode()  # as a careless client writes it
    assert http.post(URL, content=broken, headers={"Content-Type": "application/json"}).status_code == 422


def test_the_scope_is_that_of_decisions(books: ServiceProcess) -> None:
    folder = books.log.parent
    others = [scope for scope in Scope if scope not in (Scope.DECIDE, Scope.ADMIN)]
    wrong, right = (create(folder, "test", scopes)[1] for scopes in (others, [Scope.DECIDE]))

    def ask(key: str) -> int:
        headers = {"Authorization": f"Bearer {key}"}
        url = books.url + URL
        return httpx.post(url, json=body([1.0] * 4), headers=headers, trust_env=False, timeout=60).status_code

    _until(lambda: ask(wrong) != 401)  # a running service sees new keys within a second
    assert (ask(wrong), ask(right)) == (403, 200)


def _until(condition: Callable[[], bool], limit_s: float = 10.0) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)
