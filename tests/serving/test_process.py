"""The service as a process: how it starts, refuses, stops, dies and comes back."""

import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from core.errors import ConfigError
from core.settings import Settings
from flows.service_process import ServiceProcess, service_process
from serving.local_token import read_or_create_token

ROOT = Path(__file__).parent.parent.parent
FORBIDDEN = ("torch", "pandas", "prefect", "gymnasium", "trading", "hrm", "baselines")


def post(service: ServiceProcess, path: str, **body: object) -> httpx.Response:
    headers = {"Authorization": f"Bearer {service.token}"}
    return httpx.post(service.url + path, json=body, headers=headers, trust_env=False, timeout=60)


def get(service: ServiceProcess, path: str) -> httpx.Response:
    headers = {"Authorization": f"Bearer {service.token}"}
    return httpx.get(service.url + path, headers=headers, trust_env=False, timeout=60)


def run_serving(settings: Settings, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = os.environ | {
        "HRM_PATHS__STATE_DIR": str(settings.paths.state_dir),
        "PYTHONPATH": str(ROOT),
        "HRM_SERVING__PORT": "0",
    }
    return subprocess.run(
        [sys.executable, "-m", "serving", *arguments],
        env=variables | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_service_imports_nothing_heavy_and_nothing_it_may_not() -> None:
    code = "import sys, serving.app, serving.__main__, serving.client; print(*sys.modules)"
    output = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    loaded = {name.split(".")[0] for name in output.stdout.split()}
    assert "onnxruntime" in loaded
    assert loaded.isdisjoint(FORBIDDEN)


def test_rollout_state_survives_kill_9_and_the_same_model_decides_after(settings: Settings) -> None:
    with service_process(settings, champion="ppo/v1") as service:
        post(service, "/v1/rollout/start", champion="ppo/v1", challenger="hrm/v1")
        before = post(service, "/v1/rollout/promote").json()
        service.process.kill()
        service.process.wait()
    with service_process(settings, champion="nan/v1") as service:  # the durable state wins
        after = get(service, "/v1/rollout").json()
        named = ("phase", "champion", "challenger", "weight", "step", "version", "epoch")
        assert [after[name] for name in named] == [before[name] for name in named]
        assert get(service, "/health").json()["overall_health"] == "healthy"
        post(service, "/v1/rollout/abort")
        service.process.kill()
        service.process.wait()
    with service_process(settings) as service:
        assert get(service, "/v1/rollout").json()["latched"]


def test_sigterm_ends_it_cleanly_and_a_new_one_takes_over(settings: Settings) -> None:
    with service_process(settings, champion="ppo/v1") as service:
        service.process.terminate()
        assert service.process.wait(15) == 0


def test_a_service_without_a_champion_is_live_but_not_ready(settings: Settings) -> None:
    with service_process(settings) as service:
        assert get(service, "/health/live").status_code == 200
        for path in ("/health/ready", "/health"):
            assert get(service, path).status_code == 503
        account = {"features": [0.0, 0.0], "position": 0}
        refused = post(
            service, "/v1/decisions", symbol="A", bars=[[0.0] * 2] * 4, complexity=0, accounts={"champion": account}
        )
        assert (refused.status_code, refused.json()["code"]) == (503, "not_ready")
        assert refused.headers["retry-after"] == "1"
        assert post(service, "/v1/rollout/start", champion="ppo/v1", challenger="hrm/v1").status_code == 200
        assert get(service, "/health/ready").status_code == 200


def test_a_busy_port_is_a_clear_error_and_exit_code_2(settings: Settings) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        result = run_serving(settings, "--champion", "ppo/v1", HRM_SERVING__PORT=port)
    assert result.returncode == 2
    assert f"127.0.0.1:{port}" in result.stderr
    assert "HRM_SERVING__PORT" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_tampered_champion_is_a_clear_error_and_leaves_no_state(settings: Settings) -> None:
    (settings.paths.state_dir / "models/ppo/v1/model.onnx").write_bytes(b"tampered")
    result = run_serving(settings, "--champion", "ppo/v1")
    assert result.returncode == 2
    assert "model.onnx" in result.stderr
    assert "Traceback" not in result.stderr
    result = run_serving(settings, "--champion", "hrm/v99")
    assert result.returncode == 2  # still no champion in the state: the next attempt may name another one
    assert "hrm/v99" in result.stderr


def test_a_challenger_damaged_while_the_service_was_down_is_rolled_back_at_start(settings: Settings) -> None:
    with service_process(settings, champion="ppo/v1") as service:
        post(service, "/v1/rollout/start", champion="ppo/v1", challenger="hrm/v1")
        post(service, "/v1/rollout/promote")
    (settings.paths.state_dir / "models/hrm/v1/model.onnx").write_bytes(b"tampered")
    with service_process(settings) as service:
        state = get(service, "/v1/rollout").json()
        assert (state["phase"], state["champion"], state["weight"]) == ("rolled_back", "ppo/v1", 0)
        assert "model.onnx" in state["reason"]


def test_wrong_settings_are_listed_at_once_and_nothing_starts(settings: Settings) -> None:
    result = run_serving(settings, HRM_TRIGGERS__ERROR_RATIO="7", HRM_SERVING__THREADS="0")
    assert result.returncode == 2
    assert "triggers.error_ratio" in result.stderr
    assert "serving.threads" in result.stderr


def test_the_token_is_made_once_and_only_its_owner_may_read_it(tmp_path: Path) -> None:
    token = read_or_create_token(tmp_path / "state")
    assert len(token) >= 32
    assert read_or_create_token(tmp_path / "state") == token
    assert stat.S_IMODE((tmp_path / "state/api_token").stat().st_mode) == 0o600
    assert [file.name for file in (tmp_path / "state").iterdir()] == ["api_token"]


def test_a_token_too_short_to_protect_anything_is_refused(tmp_path: Path) -> None:
    (tmp_path / "api_token").write_text("short\n")
    with pytest.raises(ConfigError, match="delete it"):
        read_or_create_token(tmp_path)
