"""The README's commands, run as they stand, in order, on a small market and with short training."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```sh\n(.*?)```", README, flags=re.DOTALL)
SMALL = {
    "HRM_PRESET": "compact",
    "HRM_HIERARCHICAL_REASONING_MODEL__HIERARCHICAL__N_CYCLES": "1",  # exported in a third of the time
    "HRM_HIERARCHICAL_REASONING_MODEL__HIERARCHICAL__T_TIMESTEPS": "1",
    "HRM_SYNTHETIC_MARKET__BARS_PER_SESSION": "50",
    "HRM_SYNTHETIC_MARKET__TRAIN_SESSIONS": "60",
    "HRM_SYNTHETIC_MARKET__VALIDATION_SESSIONS": "10",
    "HRM_SYNTHETIC_MARKET__TEST_SESSIONS": "20",
    "HRM_TRAINING_PARAMS__PPO__TOTAL_TIMESTEPS": "8000",
    "HRM_TRAINING_PARAMS__HRM__MAX_EPOCHS": "1",
    "HRM_TRAINING_PARAMS__HRM__ROWS_PER_EPOCH": "2560",
    "HRM_TRIGGERS__LATENCY_MS": "1000000",  # the guard sleeps: a busy test machine is slow
}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


def test_the_first_screen_names_targets_that_exist() -> None:
    targets = [line.split()[1] for line in BLOCKS[0].splitlines() if line.startswith("make ")]
    assert targets == ["up", "down", "migrate", "test"]
    for target in targets:
        subprocess.run(["make", "--dry-run", target], cwd=ROOT, check=True, capture_output=True)


def test_training_serving_trading_and_rolling_out_work_as_written(tmp_path) -> None:
    ended = "trap 'kill $(jobs -p) 2>/dev/null || :' EXIT\n"  # or what runs beside a command that fails is waited for
    script = "set -e\n" + ended + "\n".join(BLOCKS[1:]) + "\nkill %1\nwait %1\n"
    environment = os.environ | SMALL
    environment |= {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "HRM_PATHS__STATE_DIR": str(tmp_path / ".hrm"),
        "HRM_SERVING__PORT": str(free_port()),
        "OMP_NUM_THREADS": "1",
    }
    answer = subprocess.run(
        ["bash", "-mc", script], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=540, check=False
    )
    assert answer.returncode == 0, answer.stdout[-3000:] + answer.stderr[-3000:]
    assert "rolled back" in answer.stdout
    assert "not convinced" in answer.stdout
