"""The doctor names what is missing and how to get it, and tells what is needed from what is only useful."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from core.settings import load_settings
from flows import doctor
from flows.drill_models import publish_policy


def examine(state_dir: Path) -> dict[str, dict[str, object]]:
    found = doctor.examine(load_settings(environ={"HRM_PATHS__STATE_DIR": str(state_dir)}))
    assert found["healthy"] == (not any(check["ok"] is False for check in found["checks"].values()))
    checks: dict[str, dict[str, object]] = found["checks"]
    return checks


def test_an_empty_state_is_no_illness_and_the_first_command_is_named(tmp_path: Path) -> None:
    checks = examine(tmp_path)
    assert checks["models"] == {"ok": None, "detail": "none published yet: make migrate"}
    assert checks["broker"]["ok"] is None and "hrm fyers login" in str(checks["broker"]["detail"])


def test_published_models_are_named_and_damaged_ones_too(tmp_path: Path) -> None:
    publish_policy(tmp_path / "models", "ppo/v1")
    assert examine(tmp_path)["models"] == {"ok": True, "detail": "1 published, ppo/v1"}
    (tmp_path / "models" / "ppo" / "v1" / "manifest.json").write_text("{}")
    damaged = examine(tmp_path)["models"]
    assert damaged["ok"] is None and "ppo/v1" in str(damaged["detail"])


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ("0.165.0", "fastapi<0.151,>=0.150 is needed, not 0.165.0"),
        (None, "fastapi is not installed"),
        ("0.150.2", None),
    ],
)
def test_a_package_out_of_its_range_is_named(
    found: str | None, said: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def version(_: str) -> str:
        if found is None:
            raise PackageNotFoundError
        return found

    monkeypatch.setattr(doctor, "version", version)
    assert doctor._unmet(Requirement("fastapi>=0.150,<0.151")) == said


def test_what_is_declared_is_there(tmp_path: Path) -> None:
    packages = examine(tmp_path)["packages"]
    assert packages["ok"] is True, packages["detail"]
    assert int(str(packages["detail"]).split()[0]) > 25


def test_tools_that_are_not_there_are_told_with_their_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    tools = examine(tmp_path)["tools"]
    assert tools["ok"] is None
    assert all(name in str(tools["detail"]) for name in doctor.TOOLS)
