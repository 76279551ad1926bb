"""Without a container engine: what the images are made of runs by itself, and every document is of its schema."""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from importlib import resources
from pathlib import Path

import jsonschema  # type: ignore[import-untyped]  # has no types
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
DOCKERFILE = (ROOT / "Dockerfile").read_text()
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
OUR_USER = "10001:10001"


def copied() -> list[tuple[list[str], str]]:
    """Sources and the target of every COPY from the checkout."""
    lines = re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.MULTILINE)
    return [(words[:-1], words[-1]) for words in map(str.split, lines)]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the build sees after its last COPY, and nothing else of the checkout."""
    folder = tmp_path_factory.mktemp("image")
    for sources, target in copied():
        for source in sources:
            place = folder / target / (source if target == "./" else "")
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, place, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / source, place)
    return folder


def run(tree: Path, module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A module of the tree. Without `site`, whose .pth files would find in the checkout what was forgotten here."""
    code = f"import runpy, sys; sys.argv[0] = {module!r}; runpy.run_module({module!r}, run_name='__main__')"
    environment = {
        "PYTHONPATH": os.pathsep.join([str(tree), sysconfig.get_path("purelib")]),
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
        "PATH": os.environ["PATH"],
        "HRM_PATHS__STATE_DIR": str(tree.parent / "state"),
        "HRM_PRESET": "compact",
        "NUMBA_CACHE_DIR": str(tree.parent / "numba"),
        "HOME": str(tree.parent),
    }
    command = [sys.executable, "-S", "-c", code, *arguments]
    return subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize(
    ("module", "arguments", "said"),
    [
        ("cli", ["serve", "--help"], "--champion"),
        ("cli", ["fyers", "emulate", "--help"], "emulate"),
        ("tests.fyers_emulator", ["--help"], "--port"),
        ("backend", ["--help"], "--port"),
        ("serving", ["--help"], "--champion"),
        ("flows.migration", [], ""),
    ],
)
def test_what_is_copied_runs_by_itself(tree: Path, module: str, arguments: list[str], said: str) -> None:
    done = run(tree, module, *arguments)
    assert done.returncode == 0, done.stderr[-2000:]
    assert said in done.stdout


def test_a_forgotten_copy_would_be_found(tree: Path, tmp_path: Path) -> None:
    less = tmp_path / "image"
    shutil.copytree(tree, less, ignore=shutil.ignore_patterns("delivery"))
    assert "No module named 'delivery'" in run(less, "serving", "--help").stderr


def test_what_the_wheel_holds_is_copied_before_it_is_built() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    included = re.search(r"^include = \[(.*)\]$", text, re.MULTILINE)
    assert included is not None
    sources = {source for found, _ in copied() for source in found}
    assert {name.lstrip("/") for name in re.findall(r'"([^"]+)"', included[1])} <= sources


def test_the_context_holds_what_is_copied_and_nothing_else() -> None:
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    assert lines[0] == "*"
    allowed = {line[1:] for line in lines if line[0] == "!"}
    assert allowed == {source for found, _ in copied() for source in found}


def test_images_run_as_nobody_in_particular_and_serving_has_no_torch() -> None:
    stages = dict(re.findall(r"^FROM \S+ AS (\S+)\n((?:(?!^FROM).*\n?)*)", DOCKERFILE, re.MULTILINE))
    for name in ("serving", "worker"):
        assert f"USER {OUR_USER}" in stages[name]
        assert "HEALTHCHECK" in stages[name] and "org.opencontainers.image.title" in stages[name]
    assert "torch" not in stages["serving-built"]
    assert all("-c constraints.txt" in line for line in re.findall(r"pip install[^&\n]*", DOCKERFILE))


def test_compose_is_of_its_schema() -> None:
    schemas = resources.files("check_jsonschema") / "builtin_schemas" / "vendor"
    jsonschema.validate(COMPOSE, json.loads((schemas / "compose-spec.json").read_text()))


def test_only_loopback_is_published_and_everything_says_how_it_is() -> None:
    for name, service in COMPOSE["services"].items():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name
        assert "healthcheck" in service or name in ("serving-1", "serving-2", "proxy", "deploy-flows"), name
        for other, wanted in service.get("depends_on", {}).items():
            ends = "service_completed_successfully" if other == "deploy-flows" else "service_healthy"
            assert wanted["condition"] == ends and other in COMPOSE["services"]
    assert {name for name, net in COMPOSE["networks"].items() if net.get("internal")} == {"data", "desk"}


def test_our_containers_are_locked_down_and_their_secrets_are_files() -> None:
    ours = {name: of for name, of in COMPOSE["services"].items() if of["image"].startswith("hrm-")}
    assert set(ours) == {"serving-1", "serving-2", "deploy-flows", "worker", "backend", "prefect"}
    for service in ours.values():
        assert service["read_only"] and service["cap_drop"] == ["ALL"] and service["user"] == OUR_USER
    for name, service in COMPOSE["services"].items():
        for variable, value in service.get("environment", {}).items():
            secret = re.search("PASSWORD|SECRET|KEY|TOKEN|AUTH", variable) and not variable.endswith("FILE")
            assert not secret, f"{name}: {variable}={value} belongs in a file"
    assert all(entry["file"].startswith("./secrets/") for entry in COMPOSE["secrets"].values())


def test_every_file_that_is_mounted_is_there() -> None:
    for service in COMPOSE["services"].values():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            if source.startswith("./") and not source.startswith("./secrets"):
                assert (DEPLOY / source).exists(), source
            elif not source.startswith("."):
                assert source in COMPOSE["volumes"], source


def test_the_flows_are_deployed_before_their_worker_begins_and_replicas_know_whom_to_tell() -> None:
    services = COMPOSE["services"]
    assert "flows.up_deployments" in services["deploy-flows"]["entrypoint"][-1]
    assert services["deploy-flows"]["restart"] == "on-failure:5"  # and not again once it is done
    assert "deploy-flows" in services["worker"]["depends_on"]
    for name in ("serving-1", "serving-2", "worker", "deploy-flows"):
        assert services[name]["environment"]["PREFECT_API_URL"] == "http://prefect:4200/api", name
        assert "prefect_auth" in services[name]["secrets"], name


def test_whoever_reads_the_rollout_and_decisions_finds_those_of_the_replicas() -> None:
    services = COMPOSE["services"]
    for name in ("serving-1", "serving-2", "worker", "backend"):
        assert services[name]["environment"]["ROLLOUT_DATABASE_URL_FILE"] == "/run/secrets/rollout_database_url", name
        assert "rollout_database_url" in services[name]["secrets"], name
        assert {"desk", "data"} <= set(services[name]["networks"]), name
    for name in ("serving-1", "serving-2", "backend"):
        mounts = [volume for volume in services[name]["volumes"] if volume.startswith("decisions:")]
        assert mounts == ["decisions:/var/lib/hrm/decisions" + (":ro" if name == "backend" else "")]


def test_an_entry_point_that_a_shell_begins_is_handed_its_arguments(tmp_path: Path) -> None:
    """The service's: its secret becomes a variable, and what compose says of the champion is said to it."""
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "hrm").write_text('#!/bin/sh\nprintf "%s|" "$PREFECT_API_AUTH_STRING" "$@"\n')
    (tools / "hrm").chmod(0o755)
    (tmp_path / "prefect_auth").write_text("hrm:it's $HOME\n")
    shell, flag, script, *rest = COMPOSE["services"]["serving-1"]["entrypoint"]
    script = script.replace("$$", "$").replace("/run/secrets", str(tmp_path))
    command = [shell, flag, script, *rest, "--champion", "ppo/v1 x"]
    environ = {"PATH": f"{tools}:{os.environ['PATH']}"}
    said = subprocess.run(command, env=environ, capture_output=True, text=True, check=True).stdout
    assert said == "hrm:it's $HOME|serve|--champion|ppo/v1 x|"
