"""The Open Inference Protocol over real HTTP: the public tritonclient unchanged, and the protocol's refusals."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
from tiny_models import RULE  # beside this file
from tritonclient.utils import InferenceServerException

from core.halting import minimum_segments
from flows.drill_models import FAULT_LEVEL, SCHEMA, publish_policy
from flows.service_process import ServiceProcess
from serving.protocol import OUTPUTS

W, F, A = SCHEMA.window, len(SCHEMA.bar_features), len(SCHEMA.account_features)
ROW = {
    "bars": np.full((1, W, F), 0.5, np.float32),
    "account": np.zeros((1, A), np.float32),
    "complexity": np.full(1, 0.2, np.float32),
    "position": np.zeros(1, np.int64),
}
DATATYPES = {"bars": "FP32", "account": "FP32", "complexity": "FP32", "position": "INT64"}


@pytest.fixture
def headers(running: ServiceProcess) -> dict[str, str]:
    return {"Authorization": f"Bearer {running.token}"}


@pytest.fixture
def client(running: ServiceProcess) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(running.url.removeprefix("http://"), network_timeout=60) as client:
        yield client


def rows(count: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    account = np.zeros((count, A), np.float32)
    account[:, 0] = rng.integers(0, 5, count)  # tiny hrm models think as long as it says
    return {
        "bars": rng.normal(size=(count, W, F)).astype(np.float32),
        "account": account,
        "complexity": rng.random(count, dtype=np.float32),
        "position": rng.integers(-1, 2, count),
    }


def tensors(arrays: dict[str, np.ndarray], *, binary: bool) -> list[triton.InferInput]:
    made = []
    for name, array in arrays.items():
        tensor = triton.InferInput(name, list(array.shape), DATATYPES[name])
        tensor.set_data_from_numpy(array, binary_data=binary)
        made.append(tensor)
    return made


def document(arrays: dict[str, Any] = ROW, **changes: Any) -> dict[str, Any]:
    inputs = [
        {"name": name, "datatype": DATATYPES[name], "shape": list(array.shape), "data": array.ravel().tolist()}
        for name, array in arrays.items()
    ]
    return {"inputs": inputs} | changes


def changed(name: str, /, **fields: Any) -> dict[str, Any]:
    """A request with one tensor changed; a field that is None is left out."""
    body = document()
    tensor = next(tensor for tensor in body["inputs"] if tensor["name"] == name)
    tensor.update(fields)
    for field in [field for field, value in fields.items() if value is None]:
        del tensor[field]
    return body


def infer(http: httpx.Client, body: Any, model: str = "ppo") -> httpx.Response:
    return http.post(f"/v2/models/{model}/infer", json=body)


def test_the_public_client_finds_the_server_and_the_model(
    client: triton.InferenceServerClient, headers: dict[str, str]
) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
    assert client.is_model_ready("ppo", headers=headers)
    assert client.is_model_ready("ppo", "v1", headers=headers)
    assert not client.is_model_ready("ppo", "v9", headers=headers)
    assert not client.is_model_ready("nobody", headers=headers)
    metadata = client.get_model_metadata("ppo", headers=headers)
    assert (metadata["name"], metadata["versions"]) == ("ppo", ["v1"])
    assert metadata["inputs"][0] == {"name": "bars", "datatype": "FP32", "shape": [-1, W, F]}
    assert [output["name"] for output in metadata["outputs"]] == list(OUTPUTS)
    config = client.get_model_config("ppo", "v1", headers=headers)
    assert config["input"][0] == {"name": "bars", "data_type": "TYPE_FP32", "dims": [W, F]}
    assert config["output"][-1] == {"name": "halt_reason", "data_type": "TYPE_STRING", "dims": []}


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
def test_the_public_client_is_answered_what_a_decision_would_say(
    client: triton.InferenceServerClient,
    http: httpx.Client,
    headers: dict[str, str],
    binary_in: bool,
    binary_out: bool,
) -> None:
    arrays = rows(7)
    wanted = [triton.InferRequestedOutput(name, binary_data=binary_out) for name in OUTPUTS]
    result = client.infer("ppo", tensors(arrays, binary=binary_in), outputs=wanted, request_id="r-7", headers=headers)
    answer = result.get_response()
    assert (answer["model_name"], answer["model_version"], answer["id"]) == ("ppo", "v1", "r-7")
    for row in range(7):
        account = {"features": arrays["account"][row].tolist(), "position": int(arrays["position"][row])}
        body = {
            "symbol": "X",
            "bars": arrays["bars"][row].tolist(),
            "complexity": float(arrays["complexity"][row]),
            "accounts": {"champion": account},
        }
        decision = http.post("/v1/decisions", json=body).json()
        for name in ("action", "quantity", "value", "segments"):
            assert result.as_numpy(name)[row] == decision[name]
        assert result.as_numpy("probabilities")[row].tolist() == decision["probabilities"]
        assert str(result.as_numpy("halt_reason")[row]).strip("b'") == decision["halt_reason"]


def test_without_requested_outputs_all_come(client: triton.InferenceServerClient, headers: dict[str, str]) -> None:
    result = client.infer("ppo", tensors(ROW, binary=True), headers=headers)
    assert [output["name"] for output in result.get_response()["outputs"]] == list(OUTPUTS)
    assert result.as_numpy("probabilities").shape == (1, 5)
    assert result.as_numpy("action").dtype == np.int64
    assert result.as_numpy("quantity").dtype == np.float64


def test_only_the_outputs_that_are_asked_for_come_and_in_that_order(http: httpx.Client) -> None:
    answer = infer(http, document(outputs=[{"name": "segments"}, {"name": "action"}])).json()
    assert [output["name"] for output in answer["outputs"]] == ["segments", "action"]


def test_a_model_is_loaded_asked_beside_the_rollout_and_let_go(
    client: triton.InferenceServerClient, http: httpx.Client, headers: dict[str, str]
) -> None:
    with pytest.raises(InferenceServerException, match="hrm is not loaded"):
        client.infer("hrm", tensors(ROW, binary=True), headers=headers)
    client.load_model("hrm/v1", headers=headers)
    client.load_model("hrm", headers=headers)  # the newest
    index = {(row["name"], row["version"]): row for row in client.get_model_repository_index(headers=headers)}
    assert index["hrm", "v1"]["state"] == index["hrm", "v3"]["state"] == index["ppo", "v1"]["state"] == "READY"
    assert index["hrm", "v2"] == {"name": "hrm", "version": "v2", "state": "UNAVAILABLE", "reason": "not loaded"}
    loaded = http.post("/v2/repository/index", json={"ready": True}).json()
    assert {row["version"] for row in loaded if row["name"] == "hrm"} == {"v1", "v3"}

    arrays = rows(40, seed=3)
    newest = client.infer("hrm", tensors(arrays, binary=True), headers=headers)
    named = client.infer("hrm", tensors(arrays, binary=True), model_version="v1", headers=headers)
    assert newest.get_response()["model_version"] == "v3"
    assert named.get_response()["model_version"] == "v1"
    assert newest.as_numpy("action").tolist() == named.as_numpy("action").tolist()
    depth = minimum_segments(arrays["complexity"], RULE)
    assert newest.as_numpy("segments").tolist() == np.maximum(arrays["account"][:, 0] + 1, depth).tolist()
    assert http.get("/v1/rollout").json()["phase"] == "idle"
    assert http.post("/v1/decisions", json=_question()).json()["model"] == "ppo"

    client.unload_model("hrm", headers=headers)
    assert not client.is_model_ready("hrm", headers=headers)
    with pytest.raises(InferenceServerException, match="is not loaded"):
        client.unload_model("hrm", headers=headers)
    with pytest.raises(InferenceServerException, match="rollout needs ppo/v1"):
        client.unload_model("ppo", headers=headers)
    with pytest.raises(InferenceServerException, match="no version"):
        client.load_model("nobody", headers=headers)
    with pytest.raises(InferenceServerException, match="no such file"):
        client.load_model("hrm/v77", headers=headers)
    with pytest.raises(InferenceServerException, match="not permitted"):
        client.load_model("hrm", config='{"max_batch_size": 3}', headers=headers)


def _question() -> dict[str, Any]:
    account = {"features": [0.0] * A, "position": 0}
    return {"symbol": "X", "bars": [[0.5] * F] * W, "complexity": 0.2, "accounts": {"champion": account}}


def test_who_decides_is_asked_when_no_version_is_named(running: ServiceProcess, http: httpx.Client) -> None:
    publish_policy(running.log.parent / "models", "ppo/v2")  # newer, and it does not decide
    http.post("/v1/models/ppo/v2/load").raise_for_status()
    assert infer(http, document()).json()["model_version"] == "v1"
    assert http.post("/v2/models/ppo/versions/v2/infer", json=document()).json()["model_version"] == "v2"
    assert http.get("/v2/models/ppo").json()["versions"] == ["v1", "v2"]
    assert http.post("/v1/models/ppo/v2/unload").json() == {"status": "unloaded"}
    assert http.post("/v1/models/ppo/v2/unload").status_code == 409


def test_a_model_that_fails_is_an_error_and_condemns_nobody(
    client: triton.InferenceServerClient, http: httpx.Client, headers: dict[str, str]
) -> None:
    client.load_model("nan", headers=headers)
    poisoned = rows(3) | {"bars": np.full((3, W, F), FAULT_LEVEL + 1, np.float32)}
    before = http.get("/v1/rollout").json()["statistics"]["champion"]["total_errors"]
    with pytest.raises(InferenceServerException, match="not finite") as error:
        client.infer("nan", tensors(poisoned, binary=True), headers=headers)
    assert error.value.status() == "500"
    assert http.get("/v1/rollout").json()["statistics"]["champion"]["total_errors"] == before
    client.unload_model("nan", headers=headers)


def test_a_timeout_is_a_deadline(http: httpx.Client) -> None:
    http.post("/v2/repository/models/hrm/v1/load").raise_for_status()
    deep = ROW | {"account": np.full((1, A), 50, np.float32)}
    answer = http.post("/v2/models/hrm/infer", json=document(deep, parameters={"timeout": 1}))
    if answer.status_code == 200:  # the segment that was under way when the time was up
        found = {output["name"]: output["data"] for output in answer.json()["outputs"]}
        assert found["halt_reason"] == ["deadline_reached"]
    else:
        assert (answer.status_code, answer.json()["code"]) == (503, "overloaded")
    http.post("/v2/repository/models/hrm/unload", json={}).raise_for_status()


def test_a_client_without_a_key_is_told_so(client: triton.InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException, match="Authorization"):
        client.infer("ppo", tensors(ROW, binary=True))


NESTED = [[[0.5] * F] * W]


@pytest.mark.parametrize("data", [NESTED, [0.5] * (W * F), [[[1] * F] * W]])
def test_json_data_may_be_nested_or_flat(http: httpx.Client, data: list[Any]) -> None:
    assert infer(http, changed("bars", data=data)).status_code == 200


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (changed("bars", name="candles"), "exactly bars FP32"),
        (changed("bars", datatype="FP64"), "exactly bars FP32"),
        (changed("bars", datatype="FP16"), "datatype"),
        (changed("position", datatype="FP32"), "exactly bars FP32"),
        (changed("bars", data=[0.5] * (W * F - 1)), "does not fit"),
        (changed("bars", data=[[[0.5] * F] * (W - 1) + [[0.5]]]), "neither flat nor nested"),
        (changed("bars", data=[[0.5] * F] * W), "neither flat nor nested"),
        (changed("bars", data=["0.5"] * (W * F)), "no FP32"),
        (changed("bars", data=[True] * (W * F)), "no FP32"),
        (changed("bars", data=[None] * (W * F)), "no FP32"),
        (changed("bars", data=[1e39] + [0.5] * (W * F - 1)), "inputs.bars[0][0][0]: inf"),
        (changed("bars", data=[10**400] + [0.5] * (W * F - 1)), "bars"),
        (changed("bars", data=[-1.1e6] * (W * F)), "inputs.bars[0][0][0]"),
        (changed("bars", shape=[1, W * F]), "shape [1, "),
        (changed("bars", shape=[1, F, W]), "shape [1, "),
        (changed("bars", shape=[0, W, F], data=[]), "shape"),
        (changed("bars", shape=[-1, W, F]), "shape"),
        (changed("bars", shape=[2**40, 2**40]), "shape"),
        (changed("bars", data=None), "either data or"),
        (changed("bars", parameters={"binary_data_size": 4}), "either data or"),
        (changed("bars", parameters={"shared_memory_region": "x"}), "shared_memory_region"),
        (changed("account", shape=[2, A], data=[0.0] * 2 * A), "inputs.account: shape"),
        (changed("complexity", data=[1.5]), "complexity"),
        (changed("complexity", data=["x"]), "complexity"),
        (changed("position", data=[2]), "position"),
        (changed("position", data=[0.0]), "no INT64"),
        (changed("position", data=[2**70]), "64 bits"),
        (changed("position", data=[-(2**63)]), "position"),
        (document() | {"inputs": document()["inputs"][:3]}, "exactly bars"),
        (document() | {"inputs": [*document()["inputs"], document()["inputs"][0]]}, "given twice"),
        (document() | {"inputs": []}, "inputs"),
        (document(outputs=[{"name": "actions"}]), "outputs.actions"),
        (document(outputs=[{"name": "action"}, {"name": "action"}]), "given twice"),
        (document(outputs=[{"name": "action", "parameters": {"classification": 3}}]), "classification"),
        (document(parameters={"sequence_id": 5}), "sequence_id"),
        (document(parameters={"timeout": 0}), "timeout"),
        (document(id="x" * 65), "id"),
        ([], "body"),
        ({}, "inputs"),
    ],
)
def test_what_breaks_the_protocol_is_a_400_that_says_where(http: httpx.Client, body: Any, why: str) -> None:
    response = infer(http, body)
    assert response.status_code == 400
    problem = response.json()
    assert why in problem["error"]
    assert problem["detail"] == problem["error"]
    assert response.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
@pytest.mark.parametrize(("name", "size"), [("bars", W * F), ("account", A), ("complexity", 1)])
def test_numbers_that_are_not_finite_are_refused(http: httpx.Client, number: str, name: str, size: int) -> None:
    text = json.dumps(changed(name, data=["@"] * size)).replace('"@"', number)
    response = http.post("/v2/models/ppo/infer", content=text)
    assert response.status_code == 400
    assert name in response.json()["error"]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_binary_numbers_that_are_not_finite_are_refused(
    client: triton.InferenceServerClient, headers: dict[str, str], bad: float
) -> None:
    for name in ("bars", "account", "complexity"):
        array = ROW[name].copy()
        array.flat[0] = bad
        with pytest.raises(InferenceServerException, match=name):
            client.infer("ppo", tensors(ROW | {name: array}, binary=True), headers=headers)


def binary_body() -> tuple[bytes, int]:
    body, size = triton.InferenceServerClient.generate_request_body(tensors(ROW, binary=True))
    return bytes(body), int(size)


@pytest.mark.parametrize("length", ["0", "-1", "x", "99999999", "1", "1e2", "", "1" * 5000])
def test_a_wrong_header_length_is_a_400(http: httpx.Client, length: str) -> None:
    body, _ = binary_body()
    headers = {"Inference-Header-Content-Length": length, "Content-Type": "application/octet-stream"}
    assert http.post("/v2/models/ppo/infer", content=body, headers=headers).status_code == 400


@pytest.mark.parametrize(("cut", "more"), [(1, b""), (4, b""), (0, b"\0"), (0, b"\0" * 8)])
def test_a_binary_body_of_another_size_than_it_says_is_a_400(http: httpx.Client, cut: int, more: bytes) -> None:
    body, size = binary_body()
    headers = {"Inference-Header-Content-Length": str(size)}
    response = http.post("/v2/models/ppo/infer", content=body[: len(body) - cut] + more, headers=headers)
    assert response.status_code == 400


def test_a_compressed_body_is_a_415(client: triton.InferenceServerClient, headers: dict[str, str]) -> None:
    with pytest.raises(InferenceServerException, match="not compressed"):
        client.infer("ppo", tensors(ROW, binary=True), request_compression_algorithm="gzip", headers=dict(headers))


def test_more_rows_than_a_batch_are_refused(http: httpx.Client, headers: dict[str, str]) -> None:
    assert infer(http, document(rows(256))).status_code in (200, 413)
    response = infer(http, document({name: array[:257] for name, array in rows(257).items()}))
    assert response.status_code in (400, 413)
