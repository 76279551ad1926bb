"""`hrm keys` and `hrm models sign` as a person uses them, on one machine and on two."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cli import app
from core.errors import ConfigError, ModelError
from flows.drill_models import publish_policy
from serving.keys import KeyRing
from serving.scopes import Principal, Scope
from serving.store import load_version

CERTIFICATE = "-----BEGIN PUBLIC KEY-----"


def hrm(state: Path, *arguments: str) -> str:
    """What it prints. Raises what it raises."""
    answer = CliRunner().invoke(app, arguments, env={"HRM_PATHS__STATE_DIR": str(state)}, catch_exceptions=False)
    assert answer.exit_code == 0, answer.output
    return answer.stdout


def of(state: Path, *arguments: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(hrm(state, *arguments, "--json").splitlines()[-1])
    return document


def test_a_key_is_made_shown_once_listed_and_revoked(tmp_path: Path) -> None:
    made = of(
        tmp_path, "keys", "create", "desk 7", "--scope", "decide", "--scope", "rollout:abort", "--expires-days", "30"
    )
    found = KeyRing(tmp_path).who(made["key"].encode())
    assert found == Principal(f"key:{made['id']}", frozenset({Scope.DECIDE, Scope.ROLLOUT_ABORT}))
    listed = of(tmp_path, "keys", "list")["keys"]
    assert listed == [{name: value for name, value in made.items() if name != "key"}]
    assert made["key"] not in hrm(tmp_path, "keys", "list")
    assert of(tmp_path, "keys", "revoke", made["id"])["revoked"]
    assert of(tmp_path, "keys", "list") == {"keys": []}


def test_a_scope_that_does_not_exist_is_told_with_those_that_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="rollout:abort") as error:
        hrm(tmp_path, "keys", "create", "desk", "--scope", "decide", "--scope", "everything")
    assert error.value.code == "usage"
    assert not (tmp_path / "api_keys.json").exists()


def load(state: Path) -> None:
    load_version(state / "models", "ppo/v1", size_limit_mb=100)


def test_models_of_another_machine_load_once_its_key_is_trusted(tmp_path: Path) -> None:
    trainer, server = tmp_path / "trainer", tmp_path / "server"
    publish_policy(trainer / "models", "ppo/v1")
    shutil.copytree(trainer / "models", server / "models")  # models travel, keys do not
    with pytest.raises(ModelError, match="hrm keys trust"):
        load(server)
    shown = tmp_path / "trainer.pem"
    shown.write_text(hrm(trainer, "keys", "show"))
    assert shown.read_text().startswith(CERTIFICATE)
    assert of(server, "keys", "trust", str(shown))["trusted"] == of(trainer, "keys", "show")["key_id"]
    load(server)
    assert not (server / "keys/signing.pem").exists()


def test_a_version_of_before_signatures_is_signed_by_who_vouches_for_it(tmp_path: Path) -> None:
    publish_policy(tmp_path / "models", "ppo/v1")
    (tmp_path / "models/ppo/v1/manifest.sig").unlink()
    with pytest.raises(ModelError, match="hrm models sign ppo/v1"):
        load(tmp_path)
    signed = of(tmp_path, "models", "sign", "ppo/v1")
    assert signed["files"] == ["golden.npz", "model.onnx"]
    assert signed["key_id"] == of(tmp_path, "keys", "show")["key_id"]
    load(tmp_path)


@pytest.mark.parametrize("content", ["", "junk", CERTIFICATE])
def test_a_file_that_holds_no_key_is_named(tmp_path: Path, content: str) -> None:
    file = tmp_path / "their.pem"
    with pytest.raises(ConfigError, match=r"their\.pem") as error:
        hrm(tmp_path, "keys", "trust", str(file))
    assert error.value.code == "no_such_file"
    file.write_text(content)
    with pytest.raises(ConfigError, match=r"their\.pem") as error:
        hrm(tmp_path, "keys", "trust", str(file))
    assert error.value.code == "key_invalid"
