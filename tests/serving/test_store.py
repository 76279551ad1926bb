import json
import shutil
from pathlib import Path

import pytest

from core.errors import ModelError
from core.signing import KEYS, SIGNING_KEY, sign
from flows.drill_models import publish_policy
from serving.store import list_versions, load_version, sign_version


@pytest.fixture
def store(tmp_path: Path) -> Path:
    publish_policy(tmp_path / "models", "ppo/v1")
    return tmp_path / "models"


def describe(store: Path, model_id: str = "ppo/v1", **change: object) -> None:
    """Another manifest, rightly signed: what only who holds the key can do."""
    file = store / model_id / "manifest.json"
    data = json.dumps(json.loads(file.read_text()) | change).encode()
    file.write_bytes(data)
    (store / model_id / "manifest.sig").write_bytes(sign(data, store.parent / KEYS))


def load(store: Path, model_id: str = "ppo/v1", limit_mb: float = 100) -> object:
    return load_version(store, model_id, size_limit_mb=limit_mb)


def test_a_published_version_is_read_with_its_golden_arrays(store: Path) -> None:
    model = load_version(store, "ppo/v1", size_limit_mb=100)
    assert model.id == "ppo/v1"
    assert {"in_bars", "in_account", "out_action_logits"} <= model.golden.keys()


@pytest.mark.parametrize("name", ["model.onnx", "golden.npz"])
def test_one_flipped_bit_is_found_and_the_file_is_named(store: Path, name: str) -> None:
    file = store / "ppo/v1" / name
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(ModelError, match=name) as error:
        load(store)
    assert error.value.code == "digest_mismatch"
    assert "publish" in str(error.value)


def test_a_shortened_file_is_found(store: Path) -> None:
    file = store / "ppo/v1/model.onnx"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ModelError, match=r"model\.onnx"):
        load(store)


@pytest.mark.parametrize("name", ["manifest.json", "model.onnx", "golden.npz"])
def test_an_absent_file_is_named(store: Path, name: str) -> None:
    (store / "ppo/v1" / name).unlink()
    with pytest.raises(ModelError, match=name) as error:
        load(store)
    assert error.value.code == "model_not_found"


def test_an_absent_version_says_how_models_are_made(store: Path) -> None:
    with pytest.raises(ModelError, match="migration publishes"):
        load(store, "ppo/v9")


def test_an_oversized_model_is_refused_before_it_is_read_whole(store: Path) -> None:
    with pytest.raises(ModelError, match="model_size_limit_mb") as error:
        load(store, limit_mb=0.0005)
    assert error.value.code == "model_too_large"


@pytest.mark.parametrize(
    "model_id", ["ppo", "ppo/v1/x", "../ppo/v1", "../etc", "/etc/passwd", "ppo/..", "PPO/v1", "ppo/v1\n", ""]
)
def test_an_id_cannot_leave_the_store(store: Path, model_id: str) -> None:
    with pytest.raises(ModelError) as error:
        load(store, model_id)
    assert error.value.code == "model_id_invalid"


@pytest.mark.parametrize(
    "change", [{"algorithm": "lstm"}, {"unknown": 1}, {"quantity_max": -1}, {"format": 2}, {"version": "v7"}]
)
def test_a_manifest_that_breaks_its_schema_is_refused(store: Path, change: dict[str, object]) -> None:
    describe(store, **change)
    with pytest.raises(ModelError, match=r"manifest\.json") as error:
        load(store)
    assert error.value.code == "manifest_invalid"


def test_a_manifest_that_is_no_json_is_refused(store: Path) -> None:
    data = b"\xff\x00{"
    (store / "ppo/v1/manifest.json").write_bytes(data)
    (store / "ppo/v1/manifest.sig").write_bytes(sign(data, store.parent / KEYS))
    with pytest.raises(ModelError, match=r"manifest\.json"):
        load(store)


def test_the_list_shows_every_version_and_what_is_wrong_with_it(store: Path) -> None:
    publish_policy(store, "ppo/v2")
    (store / "ppo/v2/manifest.json").write_text("{}")
    publish_policy(store, "ppo/v3")
    (store / "ppo/v3/manifest.sig").unlink()
    (store / "ppo/.publishing-x").mkdir()
    (store / "ppo/.publishing-x/manifest.json").write_text("{}")
    rows = list_versions(store)
    assert [row["id"] for row in rows] == ["ppo/v1", "ppo/v2", "ppo/v3"]
    assert rows[0]["problem"] is None
    assert "was altered" in str(rows[1]["problem"])
    assert "hrm models sign ppo/v3" in str(rows[2]["problem"])


def test_an_empty_store_lists_nothing(tmp_path: Path) -> None:
    assert list_versions(tmp_path / "nowhere") == []


def test_an_unsigned_version_is_refused_until_somebody_vouches_for_it(store: Path) -> None:
    (store / "ppo/v1/manifest.sig").unlink()
    with pytest.raises(ModelError, match="hrm models sign ppo/v1") as error:
        load(store)
    assert error.value.code == "signature_missing"
    sign_version(store, "ppo/v1", size_limit_mb=100)
    load(store)


@pytest.mark.parametrize("name", ["model.onnx", "golden.npz"])
def test_nothing_is_signed_that_differs_from_its_manifest(store: Path, name: str) -> None:
    (store / "ppo/v1" / name).write_bytes(b"other")
    (store / "ppo/v1/manifest.sig").unlink()
    with pytest.raises(ModelError) as error:
        sign_version(store, "ppo/v1", size_limit_mb=100)
    assert error.value.code == "digest_mismatch"
    assert not (store / "ppo/v1/manifest.sig").exists()


def test_nothing_outside_the_folder_is_digested_for_a_signature(store: Path) -> None:
    outside = {"sha256": "0" * 64, "bytes": 1}
    describe(store, files={"../../../etc/passwd": outside})
    with pytest.raises(ModelError) as error:
        sign_version(store, "ppo/v1", size_limit_mb=100)
    assert error.value.code == "manifest_invalid"


def test_the_signature_of_another_version_does_not_count(store: Path) -> None:
    publish_policy(store, "ppo/v2")
    shutil.copy(store / "ppo/v2/manifest.sig", store / "ppo/v1/manifest.sig")
    with pytest.raises(ModelError, match="another") as error:
        load(store)
    assert error.value.code == "signature_invalid"


def test_a_version_under_another_name_is_not_that_one(store: Path) -> None:
    shutil.copytree(store / "ppo/v1", store / "ppo/v0")
    with pytest.raises(ModelError, match="not of ppo/v0") as error:
        load(store, "ppo/v0")
    assert error.value.code == "manifest_invalid"


def test_an_altered_manifest_is_not_even_parsed(store: Path) -> None:
    file = store / "ppo/v1/manifest.json"
    file.write_bytes(file.read_bytes().replace(b'"quantity_max": 100.0', b'"quantity_max": 900.0'))
    with pytest.raises(ModelError, match="was altered") as error:
        load(store)
    assert error.value.code == "signature_invalid"


def test_keys_among_the_models_are_nobodys(store: Path, tmp_path: Path) -> None:
    """Who may write models may not say whom to trust."""
    publish_policy(tmp_path / "attacker/models", "ppo/v2")
    shutil.copytree(tmp_path / "attacker/models/ppo/v2", store / "ppo/v2")
    shutil.copytree(tmp_path / "attacker" / KEYS, store / KEYS)
    shutil.copytree(tmp_path / "attacker" / KEYS, store / "ppo" / KEYS)
    with pytest.raises(ModelError) as error:
        load(store, "ppo/v2")
    assert error.value.code == "signer_unknown"
    assert (store / KEYS / SIGNING_KEY).exists()
