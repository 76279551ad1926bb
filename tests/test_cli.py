"""The command line as a person uses it: help that teaches, one JSON object, errors that name the remedy.

Most commands run in this process; those that would change it, and a few of each kind, in one of their own.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import Said

HRM = Path(sys.executable).parent / "hrm"


def in_a_process(*arguments: str, state: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"HRM_PATHS__STATE_DIR": str(state), "OMP_NUM_THREADS": "1"}
    return subprocess.run([HRM, *arguments], capture_output=True, text=True, env=environment, timeout=120, check=False)


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
        ("trade", "kill"),
        ("trade", "resume"),
        ("trade", "status"),
        ("baseline", "import"),
        ("bench",),
        ("bench", "ppo"),
        ("doctor",),
        ("rollout",),
        ("rollout", "start"),
        ("rollout", "watch"),
        ("rollout", "verify"),
        ("rollout", "drill"),
        ("data", "fetch"),
        ("fyers", "login"),
        ("data", "check"),
        ("keys",),
        ("keys", "create"),
        ("models", "sign"),
    ],
)
def test_every_command_explains_itself(command: tuple[str, ...], hrm: Callable[..., Said], tmp_path: Path) -> None:
    answer = hrm(*command, "--help", state=tmp_path)
    assert answer.code == 0
    assert "Usage" in answer.out


def test_the_installed_command_is_this_command_line(tmp_path: Path) -> None:
    answer = in_a_process("--help", state=tmp_path)
    assert answer.returncode == 0
    assert "Usage" in answer.stdout and "migrate" in answer.stdout


def test_simulated_bars_are_written_and_pass_the_check(hrm: Callable[..., Said], tmp_path: Path) -> None:
    file = tmp_path / "bars.parquet"
    made = hrm("data", "fetch", "--out", file, "--sessions", 5, "--json", state=tmp_path)
    assert made.json == {"file": str(file), "rows": 375, "symbol": "SYNTHETIC"}
    checked = hrm("data", "check", file, "--json", state=tmp_path)
    assert checked.code == 0
    assert checked.json["sessions"] == 5


BAD_INPUT = [
    (("train", "--version", "../../x"), {}, "version '../../x'"),
    (("export", "nowhere", "--version", "../x"), {}, "version '../x'"),
    (("migrate", "--data", "absent.parquet"), {}, "no such file"),
    (("migrate", "--preset", "enormous"), {}, "choose one of"),
    (("backtest", "--model", "hrm/none"), {}, "hrm/none"),
    (("export", "nowhere", "--version", "v1"), {}, "no readable checkpoint"),
    (("finetune", "nowhere"), {}, "no readable checkpoint"),
    (("data", "check", "absent.csv"), {}, "absent.csv"),
    (("data", "fetch", "NSE:NIFTY50-INDEX", "--out", "x.parquet"), {}, "hrm fyers login"),
    (("data", "fetch", "X", "--from", "yesterday", "--out", "x.parquet"), {}, "2023-12-31"),
    (("data", "fetch", "X", "--out", "x.parquet"), {}, "NSE:NIFTY50-INDEX"),
    (("fyers", "login"), {}, "FYERS_REDIRECT_URI"),
    (("doctor",), {"HRM_PERFORMANCE__MEMORY_LIMIT_GB": "-1"}, "memory_limit_gb"),
    (("doctor",), {"HRM_TYPO": "1"}, "HRM_TYPO"),
    (("rollout", "--key", "absent", "status"), {}, "hrm keys create"),
    (("rollout", "verify", "absent.jsonl"), {}, "hrm rollout export"),
    (("rollout", "start", "--challenger", "hrm/v1", "--plan", "absent.yaml"), {}, "absent.yaml"),
]


@pytest.mark.parametrize(("arguments", "environ", "named"), BAD_INPUT, ids=lambda value: str(value)[:40])
def test_bad_input_exits_with_2_and_names_the_remedy(
    arguments: tuple[str, ...], environ: dict[str, str], named: str, hrm: Callable[..., Said], tmp_path: Path
) -> None:
    answer = hrm(*arguments, state=tmp_path / "state", **environ)
    assert answer.code == 2, answer.err
    assert named in answer.err
    assert "Traceback" not in answer.err


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("serve", "--champion", "ppo/absent", "--port", "0"), "ppo/absent"),
        (("export", "nowhere", "--version", "v1"), "no readable checkpoint"),
    ],
)
def test_bad_input_ends_a_process_with_2_and_without_a_traceback(
    arguments: tuple[str, ...], named: str, tmp_path: Path
) -> None:
    answer = in_a_process(*arguments, state=tmp_path / "state")
    assert answer.returncode == 2, answer.stderr
    assert named in answer.stderr
    assert "Traceback" not in answer.stderr


def test_a_file_with_problems_fails_its_check(hrm: Callable[..., Said], tmp_path: Path) -> None:
    file = tmp_path / "bars.csv"
    rows = "\n".join(f"2024-01-01T09:{minute}:00+05:30,1,1,1,-1,0" for minute in (15, 20, 25))
    file.write_text(f"timestamp,open,high,low,close,volume\n{rows}\n")
    answer = hrm("data", "check", file, "--json", state=tmp_path)
    assert answer.code == 2
    assert answer.json["problems"]


@pytest.mark.parametrize("arguments", [("migrate", "--no-such-option"), ("migrate", "--seed", "-1"), ("nothing",)])
def test_wrong_usage_exits_with_2_in_one_line_and_one_object(
    arguments: tuple[str, ...], hrm: Callable[..., Said], tmp_path: Path
) -> None:
    answer = hrm(*arguments, "--json", state=tmp_path)
    assert answer.code == 2
    assert len(answer.err.splitlines()) == 1
    assert answer.json["error"]["code"] == "usage"


def test_trading_without_a_service_is_one_line_and_leaves_no_ledger(hrm: Callable[..., Said], tmp_path: Path) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # bound and not listening: nobody else gets the port, and nobody answers
        port = held.getsockname()[1]
        answer = hrm("trade", "--sessions", 1, "--json", state=tmp_path, HRM_SERVING__PORT=str(port))
    assert answer.code == 2
    assert "hrm serve" in answer.err
    assert len(answer.err.splitlines()) == 1
    assert answer.json["error"]["code"] == "no_service"
    assert not (tmp_path / "paper.db").exists()


def test_no_command_shows_the_commands_and_exits_with_2(hrm: Callable[..., Said], tmp_path: Path) -> None:
    answer = hrm(state=tmp_path)
    assert answer.code == 2
    assert "migrate" in answer.out + answer.err


def test_a_bad_file_is_refused_before_anything_starts(tmp_path: Path) -> None:
    file = tmp_path / "bars.csv"
    file.write_text("timestamp,open,high,low,close,volume\n2024-01-01 09:15,1,1,1,nan,0\n")
    answer = in_a_process("migrate", "--data", str(file), "--json", state=tmp_path / "state")
    assert answer.returncode == 2
    assert str(file) in answer.stderr
    assert json.loads(answer.stdout.strip().splitlines()[-1])["error"]["code"] == "bad_bars"
    assert not (tmp_path / "state" / "models").exists()


def test_a_busy_port_is_named_with_the_remedy(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:
        answer = in_a_process("serve", "--port", str(busy.getsockname()[1]), state=tmp_path)
    assert answer.returncode == 2
    assert "HRM_SERVING__PORT" in answer.stderr


def test_no_permission_to_write_is_an_error_and_not_a_traceback(hrm: Callable[..., Said], tmp_path: Path) -> None:
    answer = hrm("data", "fetch", "--out", "/proc/bars.parquet", "--sessions", 2, state=tmp_path)
    assert answer.code == 2
    assert "/proc" in answer.err
    assert "Traceback" not in answer.err


def test_the_doctor_finds_this_environment_healthy(hrm: Callable[..., Said], tmp_path: Path) -> None:
    answer = hrm("doctor", "--json", state=tmp_path)
    assert answer.code == 0, answer.out + answer.err
    assert answer.json["healthy"] is True
    assert "trading days are known until" in answer.json["checks"]["calendar"]["detail"]
    assert "none published yet: make migrate" in hrm("doctor", state=tmp_path).out
