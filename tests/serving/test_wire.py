"""Questions as raw float32 and in batches: decided as the same question alone in JSON is."""

from __future__ import annotations

import json
import math
import struct
import time
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from core.errors import DataError
from delivery.routing import Role
from flows.drill_models import SCHEMA
from serving.question import FEATURE_MAX, Account, Question
from serving.schemas import RawFields
from serving.wire import from_raw, to_raw

W, F, A = SCHEMA.window, len(SCHEMA.bar_features), len(SCHEMA.account_features)
URL, BATCH = "/v1/decisions", "/v1/decisions/batch"
RAW = {"Content-Type": "application/octet-stream"}
FIELDS = {"symbol": "NIFTY50", "complexity": 0.2, "position": 0}
BODY = np.full(W * F + A, 0.5, "<f4").tobytes()
OF_ITS_OWN = ("decision_id", "request_id", "latency_ms", "shadow_latency_ms")


def decision(**changes: Any) -> dict[str, Any]:
    account = {"features": [0.5] * A, "position": 0}
    body = {"symbol": "NIFTY50", "bars": [[0.5] * F] * W, "complexity": 0.2, "accounts": {"champion": account}}
    return body | changes


def raw(http: httpx.Client, body: bytes = BODY, headers: dict[str, str] = RAW, **fields: Any) -> httpx.Response:
    said = {name: value for name, value in (FIELDS | fields).items() if value is not None}
    return http.post(URL, content=body, params=said, headers=headers)


def its_decision(answer: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in answer.items() if name not in OF_ITS_OWN}


numbers = st.floats(-FEATURE_MAX, FEATURE_MAX, width=32)
accounts = st.builds(Account, arrays_of.arrays(np.float32, (A,), elements=numbers), st.integers(-1, 1))
names = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), min_size=1, max_size=64)


@given(
    symbol=names,
    bars=arrays_of.arrays(np.float32, (W, F), elements=numbers),
    complexity=st.floats(0, 1),
    champion=accounts,
    challenger=st.none() | accounts,
    request_id=names,
    acting=st.sampled_from([None, "champion", "challenger"]),
)
def test_what_is_written_raw_is_read_as_it_was(
    symbol: str,
    bars: Any,
    complexity: float,
    champion: Account,
    challenger: Account | None,
    request_id: str,
    acting: Role | None,
) -> None:
    question = Question(symbol, bars, complexity, champion, challenger, request_id, acting=acting)
    body, said = to_raw(question)
    assert len(body) == 4 * (W * F + A * (1 if challenger is None else 2))
    read = from_raw(body, RawFields.model_validate(said), SCHEMA)
    assert (read.symbol, read.complexity, read.request_id, read.deadline) == (symbol, complexity, request_id, math.inf)
    assert read.acting == acting
    assert np.array_equal(read.bars, bars)
    for mine, theirs in ((champion, read.champion), (challenger, read.challenger)):
        assert (mine is None) == (theirs is None)
        if mine is not None and theirs is not None:
            assert np.array_equal(mine.features, theirs.features)
            assert mine.position == theirs.position


def test_a_deadline_travels_as_the_time_that_is_left() -> None:
    account = Account(np.zeros(A, np.float32), 0)
    question = Question("X", np.zeros((W, F), np.float32), 0.0, account, deadline=time.perf_counter() + 5)
    left_ms = float(to_raw(question)[1]["deadline_ms"])
    assert 1000 < left_ms <= 5000
    past = Question("X", np.zeros((W, F), np.float32), 0.0, account, deadline=time.perf_counter() - 1)
    assert float(to_raw(past)[1]["deadline_ms"]) > 0


@pytest.mark.parametrize("change", [-4, -1, 1, 4, 4 * A])
def test_a_raw_body_of_another_size_is_refused(change: int) -> None:
    body = BODY[:change] if change < 0 else BODY + b"\0" * change
    with pytest.raises(DataError, match="float32, got"):
        from_raw(body, RawFields(symbol="X", complexity=0.1, position=0), SCHEMA)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1.1e6, -1.1e6, 3e38])
@pytest.mark.parametrize("place", [0, 7, W * F, W * F + A - 1])
def test_a_raw_number_that_is_none_is_named(bad: float, place: int) -> None:
    body = bytearray(BODY)
    struct.pack_into("<f", body, 4 * place, bad)
    with pytest.raises(DataError, match=rf"^body\[{place}\]"):
        from_raw(bytes(body), RawFields(symbol="X", complexity=0.1, position=0), SCHEMA)


def test_raw_and_json_are_decided_alike(http: httpx.Client) -> None:
    rng = np.random.default_rng(5)
    for position in (-1, 0, 1):
        bars, features = rng.normal(size=(W, F)).astype("<f4"), rng.normal(size=A).astype("<f4")
        account = {"features": features.astype(float).tolist(), "position": position}
        spoken = http.post(URL, json=decision(bars=bars.astype(float).tolist(), accounts={"champion": account})).json()
        read = raw(http, bars.tobytes() + features.tobytes(), position=position, request_id="r1").json()
        assert its_decision(read) == its_decision(spoken)
        assert read["request_id"] == "r1"


def test_a_challengers_own_account_is_given_with_its_position(http: httpx.Client) -> None:
    both = BODY + np.zeros(A, "<f4").tobytes()
    assert raw(http, both, challenger_position=1).status_code == 200
    for response in (raw(http, both), raw(http, challenger_position=1)):
        assert response.status_code == 422
        assert "body:" in response.json()["detail"]


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({"symbol": None}, "symbol"),
        ({"symbol": ""}, "symbol"),
        ({"symbol": "A\nB"}, "symbol"),
        ({"complexity": None}, "complexity"),
        ({"complexity": "nan"}, "complexity"),
        ({"complexity": 1.01}, "complexity"),
        ({"position": None}, "position"),
        ({"position": 2}, "position"),
        ({"position": "long"}, "position"),
        ({"challenger_position": ""}, "challenger_position"),
        ({"deadline_ms": 0}, "deadline_ms"),
        ({"deadline_ms": "inf"}, "deadline_ms"),
        ({"deadline_ms": 10_001}, "deadline_ms"),
        ({"request_id": "x" * 65}, "request_id"),
        ({"surprise": 1}, "surprise"),
        ({"symbol": ["A", "B"]}, "twice"),
    ],
)
def test_a_raw_question_that_is_malformed_is_a_422_that_names_the_field(
    http: httpx.Client, fields: dict[str, Any], place: str
) -> None:
    response = raw(http, **fields)
    assert response.status_code == 422
    assert response.headers["content-type"] == "application/problem+json"
    assert place in response.json()["detail"]


@pytest.mark.parametrize("symbol", ["%FF", "%C3", "%ED%A0%80"])
def test_a_symbol_that_is_no_text_is_refused_and_not_another_one(http: httpx.Client, symbol: str) -> None:
    response = http.post(f"{URL}?complexity=0.5&position=0&symbol={symbol}", content=b"", headers=RAW)
    assert response.status_code == 422
    assert "UTF-8" in response.json()["detail"]


def test_what_is_neither_json_nor_raw_is_a_415(http: httpx.Client) -> None:
    for headers in ({"Content-Type": "text/plain"}, RAW | {"Content-Encoding": "gzip"}):
        response = raw(http, headers=headers)
        assert (response.status_code, response.headers["content-type"]) == (415, "application/problem+json")


def test_parameters_beside_json_are_refused_rather_than_ignored(http: httpx.Client) -> None:
    response = http.post(URL, json=decision(), params={"symbol": "OTHER"})
    assert response.status_code == 422


@pytest.mark.parametrize("deadline", [0, -1, "40", True, 10_001, math.inf])
def test_a_deadline_that_is_none_is_refused(http: httpx.Client, deadline: object) -> None:
    text = json.dumps(decision(deadline_ms=deadline))
    response = http.post(URL, content=text, headers={"Content-Type": "application/json"})
    assert response.status_code == 422
    assert "deadline_ms" in response.json()["detail"]


def test_a_deadline_that_is_kept_changes_nothing(http: httpx.Client) -> None:
    assert its_decision(http.post(URL, json=decision(deadline_ms=2000)).json()) == its_decision(
        http.post(URL, json=decision()).json()
    )


def batch(http: httpx.Client, *decisions: Any) -> httpx.Response:
    return http.post(BATCH, json={"decisions": list(decisions)})


def test_a_batch_is_decided_as_each_alone_and_in_order(http: httpx.Client) -> None:
    rng = np.random.default_rng(6)
    questions = [
        decision(symbol=f"S{row}", bars=rng.normal(size=(W, F)).tolist(), request_id=f"r{row}") for row in range(20)
    ]
    results = batch(http, *questions).json()["results"]
    assert [result["decision"]["request_id"] for result in results] == [f"r{row}" for row in range(20)]
    for question, result in zip(questions, results, strict=True):
        assert result["problem"] is None
        assert its_decision(result["decision"]) == its_decision(http.post(URL, json=question).json())


def test_what_cannot_be_decided_takes_nobody_with_it(http: httpx.Client) -> None:
    broken: list[tuple[Any, str, str]] = [
        (decision(bars=[[0.5] * F] * (W - 1)), "shape_mismatch", "bars"),
        (decision(bars=[[0.5] * F] * (W - 1) + [[0.5]]), "shape_mismatch", "bars"),
        (decision(complexity=2), "request_invalid", "complexity"),
        (decision(surprise=1), "request_invalid", "surprise"),
        (decision(deadline_ms=0), "request_invalid", "deadline_ms"),
        (None, "request_invalid", "body"),
        ("text", "request_invalid", "body"),
        ([], "request_invalid", "body"),
    ]
    mixed = [item for question, _, _ in broken for item in (decision(), question)]
    results = batch(http, *mixed).json()["results"]
    assert all(result["decision"]["action_name"] == "BUY_LONG" for result in results[::2])
    for (_, code, place), result in zip(broken, results[1::2], strict=True):
        assert result["decision"] is None
        assert (result["problem"]["status"], result["problem"]["code"]) == (422, code)
        assert place in result["problem"]["detail"]


def test_a_number_that_is_not_finite_spoils_only_its_own_question(http: httpx.Client) -> None:
    text = json.dumps({"decisions": [decision(), decision(bars=[[math.nan] * F] * W)]})
    results = http.post(BATCH, content=text, headers={"Content-Type": "application/json"}).json()["results"]
    assert results[0]["problem"] is None
    assert "bars" in results[1]["problem"]["detail"]


def test_a_request_id_counts_once_in_a_batch(http: httpx.Client) -> None:
    same, other = decision(request_id="a"), decision(request_id="b")
    results = batch(http, same, other, same, decision(), decision()).json()["results"]
    codes = [result["problem"] and result["problem"]["code"] for result in results]
    assert codes == [None, None, "duplicate_request_id", None, None]


@pytest.mark.parametrize(
    "body",
    [{}, [], None, {"decisions": []}, {"decisions": None}, {"decisions": [decision()], "more": 1},
     {"decisions": [None] * 257}],
)  # fmt: skip
def test_what_is_no_batch_is_a_422(http: httpx.Client, body: Any) -> None:
    response = http.post(BATCH, json=body)
    assert (response.status_code, response.json()["code"]) == (422, "request_invalid")


def test_a_batch_above_the_body_limit_is_a_413(http: httpx.Client) -> None:
    assert (
        batch(http, *[decision(symbol="X" * 64, request_id="r" * 64, bars=[[1 / 3] * F] * W)] * 256).status_code == 413
    )
