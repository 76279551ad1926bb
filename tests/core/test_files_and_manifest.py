import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from pydantic import ValidationError

from core.errors import ModelError
from core.files import sha256_hex, write_atomically, write_json
from core.manifest import publish
from core.observation import ObservationSchema

SCHEMA = ObservationSchema(window=4, patch=2, bar_features=("a",), account_features=("b",))
FIELDS = {
    "name": "hrm",
    "version": "v1",
    "algorithm": "ppo",
    "parameters": 1,
    "observation": SCHEMA,
    "quantity_max": 10.0,
    "dataset_digest": "d",
}


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path) -> None:
    file = tmp_path / "state.json"
    write_json(file, {"a": 1})
    with pytest.raises(ValueError, match="JSON"):
        write_json(file, {"a": float("nan")})
    assert file.read_text() == '{\n  "a": 1\n}\n'
    assert [entry.name for entry in tmp_path.iterdir()] == ["state.json"]


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """The kernel refuses to let any file grow further, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_disk_that_is_full_leaves_the_old_file_and_nothing_else(tmp_path) -> None:
    file = tmp_path / "model"
    write_atomically(file, b"old")
    with files_of_at_most(1000), pytest.raises(OSError, match="too large"):
        write_atomically(file, b"x" * 100_000)
    assert file.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]


def test_a_disk_that_fills_while_publishing_leaves_no_trace(tmp_path) -> None:
    with files_of_at_most(1000), pytest.raises(OSError, match="too large"):
        publish(tmp_path, {"model.onnx": b"x" * 100_000}, **FIELDS)
    assert list((tmp_path / "hrm").iterdir()) == []


def test_a_published_version_carries_the_digest_of_every_file(tmp_path) -> None:
    made = publish(tmp_path, {"model.onnx": b"graph"}, **FIELDS)
    assert made.files["model.onnx"].sha256 == sha256_hex(b"graph")
    assert (tmp_path / "hrm" / "v1" / "model.onnx").read_bytes() == b"graph"


def test_a_published_version_never_changes(tmp_path) -> None:
    publish(tmp_path, {"model.onnx": b"graph"}, **FIELDS)
    with pytest.raises(ModelError, match="another version"):
        publish(tmp_path, {"model.onnx": b"other"}, **FIELDS)
    assert (tmp_path / "hrm" / "v1" / "model.onnx").read_bytes() == b"graph"


@pytest.mark.parametrize("name", ["../evil", "UPPER", "", "a/b", ".hidden"])
def test_a_name_that_could_leave_the_store_is_refused(tmp_path, name: str) -> None:
    with pytest.raises(ValidationError):
        publish(tmp_path, {}, **(FIELDS | {"name": name}))


def test_another_schema_is_refused_with_the_remedy() -> None:
    other = SCHEMA.model_copy(update={"window": 8})
    with pytest.raises(ModelError, match="retrain"):
        SCHEMA.require(other, "hrm/v1")
