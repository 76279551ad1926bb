"""The command line as a person uses it: help that teaches, one JSON object, errors that name the remedy."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

HRM = Path(sys.executable).parent / "hrm"


def hrm(*arguments: str, state: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"HRM_PATHS__STATE_DIR": str(state), "OMP_NUM_THREADS": "1"} | environ
    return subprocess.run([HRM, *arguments], capture_output=True, text=True, env=environment, timeout=120, check=False)


def last_line(answer: subprocess.CompletedProcess[str]) -> dict:
    return json.loads(answer.stdout.strip().splitlines()[-1])


@pytest.mark.parametrize(
    "command",
    [
        (),
        ("migrate",),
        ("train",),
        ("finetune",),
        ("export",),
        ("backtest",),
        ("serve",),
        ("trade",),
        ("baseline", "import"),
        ("bench",),
        ("bench", "ppo"),
        ("doctor",),
        ("rollout",),
        ("rollout", "start"),
        ("rollout", "drill"),
        ("data", "fetch"),
        ("data", "check"),
        ("keys",),
        ("keys", "create"),
        ("models", "sign"),
    ],
)
def test_every_command_explains_itself(command: tuple[str, ...], tmp_path) -> None:
    answer = hrm(*command, "--help", state=tmp_path)
    assert answer.returncode == 0
    assert "Usage" in answer.stdout


def test_simulated_bars_are_written_and_pass_the_check(tmp_path) -> None:
    file = tmp_path / "bars.parquet"
    made = hrm("data", "fetch", "--out", str(file), "--sessions", "5", "--json", state=tmp_path)
    assert last_line(made) == {"file": str(file), "rows": 375, "symbol": "SYNTHETIC"}
    checked = hrm("data", "check", str(file), "--json", state=tmp_path)
    assert checked.returncode == 0
    assert last_line(checked)["sessions"] == 5


BAD_INPUT = [
    (("train", "--version", "../../x"), {}, "version '../../x'"),
    (("export", "nowhere", "--version", "../x"), {}, "version '../x'"),
    (("migrate", "--data", "absent.parquet"), {}, "no such file"),
    (("migrate", "--preset", "enormous"), {}, "choose one of"),
    (("backtest", "--model", "hrm/none"), {}, "hrm/none"),
    (("export", "nowhere", "--version", "v1"), {}, "no readable checkpoint"),
    (("finetune", "nowhere"), {}, "no readable checkpoint"),
    (("data", "check", "absent.csv"), {}, "absent.csv"),
    (("data", "fetch", "--symbol", "NSE:NIFTY50-INDEX", "--out", "x.parquet"), {}, "FYERS_CLIENT_ID"),
    (("data", "fetch", "--symbol", "X", "--start", "yesterday", "--out", "x.parquet"), {}, "2023-12-31"),
    (("serve", "--champion", "ppo/absent", "--port", "0"), {}, "ppo/absent"),
    (("doctor",), {"HRM_PERFORMANCE__MEMORY_LIMIT_GB": "-1"}, "memory_limit_gb"),
    (("doctor",), {"HRM_TYPO": "1"}, "HRM_TYPO"),
]


@pytest.mark.parametrize(("arguments", "environ", "named"), BAD_INPUT, ids=lambda value: str(value)[:40])
def test_bad_input_exits_with_2_and_names_the_remedy(arguments, environ, named: str, tmp_path) -> None:
    answer = hrm(*arguments, state=tmp_path / "state", **environ)
    assert answer.returncode == 2, answer.stderr
    assert named in answer.stderr
    assert "Traceback" not in answer.stderr


def test_a_file_with_problems_fails_its_check(tmp_path) -> None:
    file = tmp_path / "bars.csv"
    rows = "\n".join(f"2024-01-01T09:{minute}:00+05:30,1,1,1,-1,0" for minute in (15, 20, 25))
    file.write_text(f"timestamp,open,high,low,close,volume\n{rows}\n")
    answer = hrm("data", "check", str(file), "--json", state=tmp_path)
    assert answer.returncode == 2
    assert last_line(answer)["problems"]


@pytest.mark.parametrize("arguments", [("migrate", "--no-such-option"), ("migrate", "--seed", "-1"), ("nothing",)])
def test_wrong_usage_exits_with_2_in_one_line_and_one_object(arguments: tuple[str, ...], tmp_path) -> None:
    answer = hrm(*arguments, "--json", state=tmp_path)
    assert answer.returncode == 2
    assert len(answer.stderr.splitlines()) == 1
    assert last_line(answer)["error"]["code"] == "usage"


def test_trading_without_a_service_is_one_line_and_leaves_no_ledger(tmp_path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    answer = hrm("trade", "--sessions", "1", "--json", state=tmp_path, HRM_SERVING__PORT=str(port))
    assert answer.returncode == 2
    assert "hrm serve" in answer.stderr
    assert len(answer.stderr.splitlines()) == 1
    assert last_line(answer)["error"]["code"] == "no_service"
    assert not (tmp_path / "paper.db").exists()


def test_no_command_shows_the_commands_and_exits_with_2(tmp_path) -> None:
    answer = hrm(state=tmp_path)
    assert answer.returncode == 2
    assert "migrate" in answer.stdout + answer.stderr


def test_a_bad_file_is_refused_before_anything_starts(tmp_path) -> None:
    file = tmp_path / "bars.csv"
    file.write_text("timestamp,open,high,low,close,volume\n2024-01-01 09:15,1,1,1,nan,0\n")
    answer = hrm("migrate", "--data", str(file), "--json", state=tmp_path / "state")
    assert answer.returncode == 2
    assert str(file) in answer.stderr
    assert last_line(answer)["error"]["code"] == "bad_bars"
    assert not (tmp_path / "state" / "models").exists()


def test_a_busy_port_is_named_with_the_remedy(tmp_path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:
        answer = hrm("serve", "--port", str(busy.getsockname()[1]), state=tmp_path)
    assert answer.returncode == 2
    assert "HRM_SERVING__PORT" in answer.stderr


def test_no_permission_to_write_is_an_error_and_not_a_traceback(tmp_path) -> None:
    answer = hrm("data", "fetch", "--out", "/proc/bars.parquet", "--sessions", "2", state=tmp_path)
    assert answer.returncode == 2
    assert "/proc" in answer.stderr
    assert "Traceback" not in answer.stderr


def test_the_doctor_finds_this_environment_healthy(tmp_path) -> None:
    answer = hrm("doctor", "--json", state=tmp_path)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert last_line(answer)["healthy"] is True
    assert "trading days are known until" in last_line(answer)["checks"]["calendar"]["detail"]
