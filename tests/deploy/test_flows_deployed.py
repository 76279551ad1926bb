"""What containers run before Prefect's worker begins, against a real server: as compose and the cluster say it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from test_shipping import COMPOSE, DEPLOY, ROOT, tree

sys.path.append(str(ROOT / "tests" / "serving"))  # where live_prefect is; pytest adds it for its own tests
from live_prefect import Prefect

__all__ = ["tree"]  # a fixture: what the image holds
JOB_TEMPLATE = DEPLOY / "k8s" / "base" / "prefect-job-template.json"
pytestmark = pytest.mark.slow


def asked(server: Prefect, method: str, path: str, **body: Any) -> Any:
    user, password = server.password.split(":")
    sent = body if method == "POST" else None
    answer = httpx.request(method, server.url + path, json=sent, auth=(user, password), trust_env=False, timeout=60)
    return answer.raise_for_status().json()


def run(tree: Path, server: Prefect, script: str) -> None:
    environ = {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(server.home),
        "OMP_NUM_THREADS": "1",
        "PREFECT_API_URL": server.url,
        "PREFECT_API_AUTH_STRING": server.password,
        "PREFECT_HOME": str(server.home / "client"),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    command = ["sh", "-c", script]
    done = subprocess.run(command, cwd=tree, env=environ, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


def files(tree: Path) -> set[Path]:
    return {place for place in tree.rglob("*") if place.is_file()}


@pytest.mark.parametrize(("where", "kind"), [("compose", "process"), ("kubernetes", "kubernetes")])
def test_everything_is_deployed_and_again_without_a_change(tmp_path: Path, tree: Path, where: str, kind: str) -> None:
    server = Prefect(tmp_path / "prefect")
    server.home.mkdir()
    (tmp_path / "prefect_auth").write_text(server.password)
    script = as_compose_says(tmp_path) if where == "compose" else as_the_cluster_says()
    before = files(tree)
    with server.running():
        run(tree, server, script)
        first = deployed(server)
        run(tree, server, script)
        pool = asked(server, "GET", "/work_pools/hrm")
        assert pool["type"] == kind
        assert deployed(server) == first
    flows = {one["name"] for one in yaml.safe_load((tree / "prefect.yaml").read_text())["deployments"]}
    assert set(first) == flows
    assert all(
        pull == [{"prefect.deployments.steps.set_working_directory": {"directory": str(tree)}}]
        for pull in first.values()
    )
    assert files(tree) == before  # the image's file system is read-only


def deployed(server: Prefect) -> dict[str, Any]:
    """Where each deployment's runs begin, by its name."""
    return {one["name"]: one["pull_steps"] for one in asked(server, "POST", "/deployments/filter")}


def as_compose_says(secrets: Path) -> str:
    script: str = COMPOSE["services"]["deploy-flows"]["entrypoint"][-1]
    return script.replace("$$", "$").replace("/run/secrets", str(secrets))


def as_the_cluster_says() -> str:
    documents = yaml.safe_load_all((DEPLOY / "k8s" / "base" / "worker.yaml").read_text())
    worker = next(document for document in documents if document["kind"] == "Deployment")
    script: str = worker["spec"]["template"]["spec"]["initContainers"][0]["command"][-1]
    return script.replace("/etc/hrm/prefect-job-template.json", str(JOB_TEMPLATE))
