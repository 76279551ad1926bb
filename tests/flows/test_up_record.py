"""`hrm down` ends what `hrm up` started: by pid and start time, by the mark that it was given, and nothing else."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from core.errors import ConfigError
from flows.up_record import MARK, Part, Record, end, holder, members, read_record, require_free, write_record

SLEEP = "import time; print('up', flush=True); time.sleep(600)"
STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
)
# A worker: its child has a session of its own, as a flow run has.
PARENT = f"""
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", {SLEEP!r}], start_new_session=True, stdout=subprocess.DEVNULL)
print(child.pid, flush=True)
time.sleep(600)
"""

Start = Callable[[str], tuple[Part, str]]


@pytest.fixture
def mark() -> str:
    return secrets.token_hex(8)


@pytest.fixture
def start(mark: str, tmp_path: Path) -> Iterator[Start]:
    """Starts a part; its first line, when it has said it. What is left of it is killed."""
    started: list[subprocess.Popen[str]] = []

    def run(code: str) -> tuple[Part, str]:
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {MARK: mark},
            start_new_session=True,
        )
        started.append(process)
        assert process.stdout is not None
        return part_of(process.pid, tmp_path), process.stdout.readline().strip()

    yield run
    for process in started:
        end(Part(name="part", pid=process.pid, started_at=0, address="", log=tmp_path), mark)
        process.communicate()


def part_of(pid: int, folder: Path) -> Part:
    created = psutil.Process(pid).create_time()
    return Part(name="part", pid=pid, started_at=created, address="", log=folder / "log")


def until(condition: Callable[[], bool], limit_s: float = 20) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_a_part_is_ended_with_what_it_started_in_other_sessions(start: Start, mark: str) -> None:
    part, child = start(PARENT)
    assert end(part, mark)
    assert part.leader is None
    assert not alive(int(child))


def test_what_a_killed_part_leaves_behind_is_found_by_its_mark(start: Start, mark: str) -> None:
    part, child = start(PARENT)
    psutil.Process(part.pid).kill()
    until(lambda: part.leader is None)
    assert [process.pid for process in members(part, mark)] == [int(child)]
    assert end(part, mark)
    assert not alive(int(child))


def test_a_part_that_ignores_two_requests_is_killed(start: Start, mark: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.up_record.GRACE_S", 0.2)
    part, _ = start(STUBBORN)
    assert end(part, mark)
    assert not alive(part.pid)


def test_a_pid_that_was_given_away_again_is_nobody_of_ours(start: Start, mark: str) -> None:
    part, _ = start(SLEEP)
    before = part.model_copy(update={"started_at": part.started_at - 60})
    assert before.leader is None
    assert end(before, "another mark")
    assert alive(part.pid)


def test_another_desk_s_processes_are_not_ours(start: Start, mark: str, tmp_path: Path) -> None:
    part, child = start(PARENT)
    ended = part.model_copy(update={"pid": 2**22 - 1})
    assert members(ended, f"{mark}-other") == []
    assert alive(int(child))


def test_a_record_comes_back_as_it_was_written(tmp_path: Path) -> None:
    record = Record(mark="m", ports={"prefect": 4200}).with_part(part_of(os.getpid(), tmp_path))
    write_record(tmp_path, record)
    assert read_record(tmp_path) == record
    assert len(record.with_part(part_of(os.getpid(), tmp_path)).parts) == 1


@pytest.mark.parametrize("text", ["", "{", '{"mark": "m"}', '{"mark":"m","ports":{},"parts":[{"pid":-1}]}'])
def test_a_damaged_record_ends_nobody_and_says_what_to_do(tmp_path: Path, text: str) -> None:
    (tmp_path / "up.json").write_text(text)
    with pytest.raises(ConfigError, match="end those processes by hand, then delete it"):
        read_record(tmp_path)


def test_a_taken_port_is_said_with_the_process_that_holds_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert holder(port) == f"process {os.getpid()} ({psutil.Process().name()}) listens there"
        with pytest.raises(ConfigError, match=rf"{port} \(backend\): process {os.getpid()} .* --backend-port"):
            require_free("127.0.0.1", {"backend": port})
    require_free("127.0.0.1", {"backend": port})
