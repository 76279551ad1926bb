"""Children end with their block, with their parent, and say why they did not start."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from core.errors import ConfigError
from flows.processes import child, free_port, wait_until_healthy

SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]
STUBBORN = [
    sys.executable,
    "-c",
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)",
]
PARENT = """
import sys
from pathlib import Path
from flows.processes import child
command = [sys.executable, "-c", "import time; time.sleep(600)"]
with child("sleeper", command, log=Path(sys.argv[1]), env={}) as one:
    print(one.process.pid, flush=True)
    one.process.wait()
"""


def alive(pid: int) -> bool:
    """Whether the process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def poll_until(condition, deadline_s: float = 20.0) -> bool:
    end = time.monotonic() + deadline_s
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return False


def test_a_child_ends_with_its_block(tmp_path):
    with child("sleeper", SLEEP, log=tmp_path / "log", env=os.environ) as one:
        assert one.process.poll() is None
    assert one.process.returncode is not None


def test_a_child_ends_when_the_block_raises(tmp_path):
    with pytest.raises(KeyError), child("sleeper", SLEEP, log=tmp_path / "log", env=os.environ) as one:
        raise KeyError
    assert one.process.returncode is not None


def test_a_child_that_ignores_sigterm_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr("flows.processes.TERMINATE_GRACE_S", 0.2)
    with child("stubborn", STUBBORN, log=tmp_path / "log", env=os.environ) as one:
        assert poll_until(lambda: "up" in one.tail())
    assert one.process.returncode == -signal.SIGKILL


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent death signal is Linux's")
def test_a_child_dies_when_its_parent_is_killed_hard(tmp_path):
    root = Path(__file__).parent.parent.parent
    command = [sys.executable, "-c", PARENT, str(tmp_path / "log")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root) as parent:
        pid = int(parent.stdout.readline())
        assert alive(pid)
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait()
    assert poll_until(lambda: not alive(pid))


def test_a_child_that_exits_is_reported_with_the_end_of_its_log(tmp_path):
    broken = [sys.executable, "-c", "import sys; print('the disk is full'); sys.exit(7)"]
    why = pytest.raises(ConfigError, match=r"the service exited with code 7[\s\S]*the disk is full")
    with child("the service", broken, log=tmp_path / "log", env=os.environ) as one, why:
        wait_until_healthy(one, lambda: False, deadline_s=30)


def test_a_child_that_is_never_ready_is_reported_at_the_deadline(tmp_path):
    why = pytest.raises(ConfigError, match=r"not ready after 0\.1 s[\s\S]*it wrote nothing")
    with child("the service", SLEEP, log=tmp_path / "log", env=os.environ) as one, why:
        wait_until_healthy(one, lambda: False, deadline_s=0.1)


def test_a_free_port_can_be_listened_on():
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", free_port()))
