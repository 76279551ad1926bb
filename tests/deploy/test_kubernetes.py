"""The manifests, without a cluster: of their schemas, built by kustomize, locked down, of one mind with each other."""

import asyncio
import copy
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any
from uuid import uuid4

import kubernetes_validate  # type: ignore[import-untyped]  # has no types
import pytest
import yaml
from aiohttp import web
from aiohttp.test_utils import TestServer
from kubernetes_asyncio.client import ApiClient, Configuration  # type: ignore[import-untyped]  # has no types
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import FlowRun
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_KEY, temporary_settings
from prefect_kubernetes.worker import (  # type: ignore[import-untyped]  # has no types
    KubernetesWorker,
    KubernetesWorkerJobConfiguration,
)

BASE = Path(__file__).resolve().parents[2] / "deploy" / "k8s" / "base"
VERSION = "1.33"
PASSWORD = "of-this-test-alone"
Manifest = dict[str, Any]
# What a namespace must have before: serving.yaml, backend.yaml and worker.yaml say so.
EXPECTED = {
    ("Secret", "hrm-serving"): {"rollout_database_url", "api_keys.json", "pepper", "api_token"},
    ("Secret", "hrm-prefect"): {"api_url", "auth"},
    ("Secret", "hrm-trusted"): set(),
    ("ConfigMap", "hrm"): {"champion", "symbol"},
    ("ConfigMap", "hrm-prefect-job-template"): {"prefect-job-template.json"},
}
CLAIMS = {"hrm-models", "hrm-decisions", "hrm-state"}


def manifests() -> list[Manifest]:
    names = yaml.safe_load((BASE / "kustomization.yaml").read_text())["resources"]
    return [document for name in names for document in yaml.safe_load_all((BASE / name).read_text())]


def named(kind: str) -> dict[str, Manifest]:
    return {one["metadata"]["name"]: one for one in manifests() if one["kind"] == kind}


def pods() -> dict[str, Manifest]:
    """Of every Deployment by its name, and of a flow run."""
    found = {name: one["spec"]["template"]["spec"] for name, one in named("Deployment").items()}
    return found | {"a flow run": job()["spec"]["template"]["spec"]}


@cache
def job() -> Manifest:
    """What Prefect's own worker sends to a cluster for a flow run, by the pool's template and its pod's settings."""
    template = json.loads((BASE / "prefect-job-template.json").read_text())
    (worker,) = named("Deployment")["hrm-worker"]["spec"]["template"]["spec"]["containers"]
    plain = {one["name"]: one["value"] for one in worker["env"] if "value" in one}

    async def created() -> Manifest:
        nobody = PrefectClient(api="http://127.0.0.1:1/api")
        configuration = await KubernetesWorkerJobConfiguration.from_template_and_values(template, {}, client=nobody)
        configuration.prepare_for_flow_run(FlowRun(flow_id=uuid4(), name="a run"))
        async with TestServer(cluster) as server, ApiClient(Configuration(host=str(server.make_url("")))) as client:
            await KubernetesWorker("hrm")._create_job(configuration, client)
        return sent[-1]

    sent: list[Manifest] = []

    async def posted(request: web.Request) -> web.Response:
        sent.append(await request.json())
        return web.json_response(sent[-1], status=201)

    cluster = web.Application()
    cluster.router.add_post("/apis/batch/v1/namespaces/hrm/jobs", posted)
    secret = {PREFECT_API_AUTH_STRING: f"hrm:{PASSWORD}"}
    with pytest.MonkeyPatch.context() as environment, temporary_settings(secret, restore_defaults={PREFECT_API_KEY}):
        for name, value in plain.items():
            environment.setenv(name, value)
        return asyncio.run(created())


def known(manifest: Manifest) -> Manifest:
    """Without what Prefect insists on and Kubernetes passes over: both belong to the Job, where 1 is what they are."""
    found = copy.deepcopy(manifest)
    for name in ("parallelism", "completions"):
        assert found["spec"]["template"]["spec"].pop(name) == 1
    return found


def containers(pod: Manifest) -> list[Manifest]:
    return [*pod.get("initContainers", []), *pod["containers"]]


def test_manifests_are_of_their_schemas() -> None:
    for manifest in [*manifests(), known(job())]:
        kubernetes_validate.validate(manifest, VERSION, strict=True)


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
@pytest.mark.parametrize("overlay", ["cpu", "gpu"])
def test_overlays_build_and_are_of_their_schemas(overlay: str) -> None:
    command = ["kubectl", "kustomize", str(BASE.parent / "overlays" / overlay)]
    built = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    documents = list(yaml.safe_load_all(built))
    for document in documents:
        kubernetes_validate.validate(document, VERSION, strict=True)
    deployments = {one["metadata"]["name"]: one for one in documents if one["kind"] == "Deployment"}
    pod = deployments["hrm-serving"]["spec"]["template"]["spec"]
    assert ("nodeSelector" in pod) == (overlay == "gpu")
    plain = pods()["hrm-serving"]["containers"][0]["env"]
    assert len(pod["containers"][0]["env"]) == len(plain) + 1  # and the overlay's
    maps = [one["metadata"]["name"] for one in documents if one["kind"] == "ConfigMap"]
    worker = deployments["hrm-worker"]["spec"]["template"]["spec"]
    assert [one["configMap"]["name"] for one in worker["volumes"] if "configMap" in one] == maps


def test_no_container_may_do_more_than_its_work() -> None:
    for name, pod in pods().items():
        assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] == 10001, name
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert pod["automountServiceAccountToken"] == (name == "hrm-worker"), name
        for container in containers(pod):
            context = container["securityContext"]
            assert context["readOnlyRootFilesystem"] and not context["allowPrivilegeEscalation"], name
            assert context["capabilities"] == {"drop": ["ALL"]}, name
            assert "memory" in container["resources"]["limits"], name


def test_the_one_token_of_the_cluster_is_for_jobs_of_the_namespace() -> None:
    (role,) = named("Role").values()
    written = {resource for rule in role["rules"] if set(rule["verbs"]) - READING for resource in rule["resources"]}
    assert written == {"jobs"}
    assert not named("ClusterRole") and "secrets" not in json.dumps(role)


READING = {"get", "list", "watch"}


def test_what_is_mounted_is_a_volume_and_what_is_named_is_expected() -> None:
    for name, pod in pods().items():
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        for container in containers(pod):
            assert {mount["name"] for mount in container["volumeMounts"]} <= set(volumes), name
            for kind, source, key in references(container):
                assert key in EXPECTED[kind, source], f"{name}: {source}/{key}"
        for volume in volumes.values():
            if "persistentVolumeClaim" in volume:
                assert volume["persistentVolumeClaim"]["claimName"] in CLAIMS
            if "secret" in volume:
                assert ("Secret", volume["secret"]["secretName"]) in EXPECTED
        for file in re.findall(r"/secrets/([\w.]+)", json.dumps(pod)):
            assert file in EXPECTED["Secret", "hrm-serving"], f"{name}: {file}"


def references(container: Manifest) -> Iterator[tuple[str, str, str]]:
    for variable in container.get("env", []):
        for source, kind in (("secretKeyRef", "Secret"), ("configMapKeyRef", "ConfigMap")):
            found = variable.get("valueFrom", {}).get(source)
            if found is not None:
                yield kind, found["name"], found["key"]


def test_no_secret_is_written_down() -> None:
    for name, pod in pods().items():
        for container in containers(pod):
            for variable in container.get("env", []):
                secret = re.search("PASSWORD|SECRET|KEY|TOKEN|AUTH", variable["name"])
                is_name = variable["name"].endswith(("SECRET_NAME", "SECRET_KEY"))
                assert not secret or is_name or "valueFrom" in variable, f"{name}: {variable['name']}"
    assert "PREFECT_API_AUTH_STRING" in json.dumps(job()) and PASSWORD not in json.dumps(job())


def test_what_serves_is_probed_and_replicas_are_never_all_gone() -> None:
    for name in ("hrm-serving", "hrm-backend"):
        assert {"startupProbe", "livenessProbe", "readinessProbe"} <= set(pods()[name]["containers"][0])
    replicas = named("Deployment")["hrm-serving"]["spec"]["replicas"]
    assert named("PodDisruptionBudget")["hrm-serving"]["spec"]["minAvailable"] < replicas
    scaled = named("HorizontalPodAutoscaler")["hrm-serving"]["spec"]
    assert scaled["minReplicas"] == replicas
    assert scaled["metrics"][0]["pods"]["metric"]["name"] == "hrm_inference_pending_requests"


def test_nothing_is_let_in_or_out_by_default_and_every_policy_is_of_pods_that_there_are() -> None:
    policies = named("NetworkPolicy")
    nothing = policies["hrm-nothing-else"]["spec"]
    assert nothing == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    labels = [one["spec"]["template"]["metadata"]["labels"] for one in named("Deployment").values()]
    labels.append(job()["spec"]["template"]["metadata"]["labels"])
    for name, policy in policies.items():
        wanted = policy["spec"]["podSelector"].get("matchLabels", {})
        assert any(wanted.items() <= pod.items() for pod in labels), name


def test_a_flow_run_s_command_is_not_handed_to_the_image_s_own_entry_point() -> None:
    """The worker's image starts `hrm`; Prefect gives arguments alone, which name the program."""
    (container,) = job()["spec"]["template"]["spec"]["containers"]
    assert container["command"] == ["env"] and container["args"][0] == "prefect"
