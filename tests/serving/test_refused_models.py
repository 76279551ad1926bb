"""What a running service does with a challenger that is not what it says: refuses it by name and decides on."""

import io
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from tiny_models import publish_all, settings_in

from core.files import sha256_hex
from core.manifest import publish
from flows.drill_models import FAULT_LEVEL, SCHEMA, golden, policy_graph, publish_policy
from flows.service_process import ServiceProcess, service_process

LIMIT_MB = 0.1


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    folder = tmp_path_factory.mktemp("service")
    publish_all(folder / "models")
    settings = settings_in(folder, performance={"model_size_limit_mb": LIMIT_MB}, rollout={"cool_down_s": 0.0})
    with service_process(settings, champion="ppo/v1") as process:
        yield process


def publish_graph(store: Path, graph: bytes, arrays: bytes | None = None) -> None:
    publish(
        store,
        {"model.onnx": graph, "golden.npz": arrays or golden(policy_graph("none"))},
        name="bad",
        version="v1",
        algorithm="ppo",
        parameters=1,
        observation=SCHEMA,
        quantity_max=100.0,
        dataset_digest="synthetic",
    )


def unsigned(store: Path) -> None:
    publish_policy(store, "bad/v1")
    (store / "bad/v1/manifest.sig").unlink()


def of_a_stranger(store: Path) -> None:
    publish_policy(store.parent / "stranger/models", "bad/v1")
    shutil.copytree(store.parent / "stranger/models/bad", store / "bad")


def altered(name: str, old: bytes, new: bytes) -> Callable[[Path], None]:
    def alter(store: Path) -> None:
        publish_policy(store, "bad/v1")
        file = store / "bad/v1" / name
        data = file.read_bytes()
        assert old in data
        file.write_bytes(data.replace(old, new, 1))

    return alter


def rewritten(store: Path) -> None:
    """The graph and its digest, by somebody who understood the format but has no key."""
    publish_policy(store, "bad/v1")
    graph, file = policy_graph("opposite"), store / "bad/v1/manifest.json"
    manifest = json.loads(file.read_text())
    manifest["files"]["model.onnx"] = {"sha256": sha256_hex(graph), "bytes": len(graph)}
    (store / "bad/v1/model.onnx").write_bytes(graph)
    file.write_text(json.dumps(manifest))


def with_the_signature_of_another(store: Path) -> None:
    publish_policy(store, "bad/v1")
    shutil.copy(store / "ppo/v1/manifest.sig", store / "bad/v1/manifest.sig")


def with_a_signature_that_is_none(store: Path) -> None:
    publish_policy(store, "bad/v1")
    (store / "bad/v1/manifest.sig").write_bytes(b"\x00" * 50_000)


def oversized(store: Path) -> None:
    model = onnx.load_from_string(policy_graph("none"))
    model.doc_string = "x" * int(2 * LIMIT_MB * 1e6)
    publish_graph(store, model.SerializeToString())


def of_another_schema(store: Path) -> None:
    publish_policy(store, "bad/v1", schema=SCHEMA.model_copy(update={"bar_features": ("close", "volume")}))


def not_finite(store: Path) -> None:
    """On its own golden inputs, whatever outputs it was published with."""
    with np.load(io.BytesIO(golden(policy_graph("none")))) as archive:
        arrays = dict(archive)
    arrays["in_bars"] = np.full_like(arrays["in_bars"], FAULT_LEVEL + 1)
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    publish_graph(store, policy_graph("not_finite"), buffer.getvalue())


def of_other_outputs(store: Path) -> None:
    publish_graph(store, policy_graph("opposite"))  # with the goldens of the healthy one


def elsewhere(location: str) -> Callable[[Path], None]:
    def make(store: Path) -> None:
        model = onnx.load_from_string(policy_graph("none"))
        kernel = next(tensor for tensor in model.graph.initializer if tensor.name == "kernel")
        kernel.ClearField("raw_data")
        kernel.data_location = TensorProto.EXTERNAL
        kernel.external_data.add(key="location", value=location)
        publish_graph(store, model.SerializeToString())

    return make


def with_operators_of_its_own(store: Path) -> None:
    model = onnx.load_from_string(policy_graph("none"))
    model.graph.node.append(helper.make_node("Evil", ["bars"], ["evil"], domain="my.ops"))
    model.opset_import.append(helper.make_opsetid("my.ops", 1))
    publish_graph(store, model.SerializeToString())


def no_graph(store: Path) -> None:
    publish_graph(store, b"\x08\x0a")  # a protobuf of one field


REFUSED = {
    "unsigned": (unsigned, "signature_missing"),
    "of a stranger": (of_a_stranger, "signer_unknown"),
    "an altered manifest": (altered("manifest.json", b"100.0", b"900.0"), "signature_invalid"),
    "a manifest with a space more": (altered("manifest.json", b"{", b"{ "), "signature_invalid"),
    "graph and manifest rewritten": (rewritten, "signature_invalid"),
    "the signature of another version": (with_the_signature_of_another, "signature_invalid"),
    "no signature but bytes": (with_a_signature_that_is_none, "signature_invalid"),
    "an altered graph": (altered("model.onnx", b"kernel", b"kernol"), "digest_mismatch"),
    "altered goldens": (altered("golden.npz", b"in_bars", b"in_bors"), "digest_mismatch"),
    "oversized": (oversized, "model_too_large"),
    "another schema": (of_another_schema, "schema_mismatch"),
    "not finite": (not_finite, "output_not_finite"),
    "other outputs than it says": (of_other_outputs, "golden_mismatch"),
    "weights in the working directory": (elsewhere("kernel.bin"), "graph_unsafe"),
    "weights above it": (elsewhere("../kernel.bin"), "graph_unsafe"),
    "weights anywhere": (elsewhere("/etc/passwd"), "graph_unsafe"),
    "operators of its own": (with_operators_of_its_own, "graph_unsafe"),
    "no graph": (no_graph, "graph_invalid"),
}
DECISION = {
    "symbol": "A",
    "bars": [[0.5] * len(SCHEMA.bar_features)] * SCHEMA.window,
    "complexity": 0.2,
    "accounts": {"champion": {"features": [0.0] * len(SCHEMA.account_features), "position": 0}},
}


@pytest.mark.parametrize("how", REFUSED)
def test_a_model_that_is_not_what_it_says_is_refused_and_the_champion_decides_on(
    running: ServiceProcess, how: str
) -> None:
    store = running.log.parent / "models"
    shutil.rmtree(store / "bad", ignore_errors=True)
    make, code = REFUSED[how]
    make(store)
    headers = {"Authorization": f"Bearer {running.token}"}
    with httpx.Client(base_url=running.url, headers=headers, trust_env=False, timeout=60) as http:
        before = http.get("/v1/rollout").json()
        for path, body in (
            ("/v1/rollout/start", {"champion": "ppo/v1", "challenger": "bad/v1"}),
            ("/v1/models/bad/v1/load", None),
        ):
            if code == "schema_mismatch" and body is None:
                continue  # alone it is a good model; it only does not fit the champion
            refused = http.post(path, json=body)
            assert (refused.status_code, refused.json()["code"]) == (409, code)
            assert "bad/v1" in refused.json()["detail"]
        after = http.get("/v1/rollout").json()
        assert after | {"statistics": None} == before | {"statistics": None}  # memory is looked at all the time
        answer = http.post("/v1/decisions", json=DECISION).json()
        assert (answer["model"], answer["role"], answer["fallback"]) == ("ppo", "champion", False)
        assert "bad/v1" not in http.get("/v1/models").json()["loaded"]


def flipped(store: Path, version: str) -> None:
    file = store / version / "model.onnx"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(bytes(data))


def published_again(store: Path, version: str) -> None:
    shutil.rmtree(store / version)
    publish_policy(store, version, "opposite")


def no_longer_signed(store: Path, version: str) -> None:
    (store / version / "manifest.sig").unlink()


@pytest.mark.parametrize(
    ("change", "code"),
    [(flipped, "digest_mismatch"), (published_again, "model_changed"), (no_longer_signed, "signature_missing")],
)
def test_what_is_no_longer_what_was_loaded_gets_no_more_to_decide(
    running: ServiceProcess, change: Callable[[Path, str], None], code: str
) -> None:
    store, version = running.log.parent / "models", f"good/{code}".replace("_", "-")
    publish_policy(store, version)
    headers = {"Authorization": f"Bearer {running.token}"}
    plan = {"steps": [{"pause": {}}, {"setWeight": 5}]}
    with httpx.Client(base_url=running.url, headers=headers, trust_env=False, timeout=60) as http:
        start = {"champion": "ppo/v1", "challenger": version, "plan": plan}
        assert http.post("/v1/rollout/start", json=start).status_code == 200
        change(store, version)
        refused = http.post("/v1/rollout/promote")
        assert (refused.status_code, refused.json()["code"]) == (409, code)
        assert http.get("/v1/rollout").json()["weight"] == 0
        assert http.post("/v1/rollout/abort").json()["latched"]
