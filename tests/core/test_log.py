"""A service's log: every line whole, and nobody waits for who reads it."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from core.log import LineWriter

ROOT = Path(__file__).parent.parent.parent
LINE = b'{"event":"x"}'


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    yield reader, writer
    for end in (reader, writer):
        with suppress(OSError):  # the test has closed it
            os.close(end)


def everything(reader: int) -> list[bytes]:
    os.set_blocking(reader, False)
    text = b""
    while True:
        try:
            text += os.read(reader, 1 << 20)
        except BlockingIOError:
            return text.splitlines()


def fill(log: LineWriter, line: bytes = LINE) -> None:
    while not log.dropped:
        log.info(line)


def test_a_pipe_that_nobody_reads_costs_lines_and_no_time(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    log = LineWriter(writer)
    fill(log)
    for _ in range(9):
        log.warning(LINE)
    assert log.dropped == 10
    lines = everything(reader)
    assert set(lines) == {LINE}  # whole ones
    log.info(b'{"event":"back"}')
    log.info(LINE)
    notice, back, last = everything(reader)
    assert json.loads(notice) == {"event": "log_lines_dropped", "level": "warning", "count": 10}
    assert (back, last) == (b'{"event":"back"}', LINE)


def test_a_line_that_broke_off_does_not_swallow_the_next(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    log = LineWriter(writer)
    fill(log, b"y" * 10_000)  # longer than what a pipe takes in one piece
    assert log.dropped == 1
    everything(reader)
    log.info(LINE)
    assert everything(reader)[-1] == LINE


def test_whoever_shares_the_pipe_still_waits_for_its_reader(pipe: tuple[int, int]) -> None:
    _, writer = pipe
    fill(LineWriter(writer))
    assert not fcntl.fcntl(writer, fcntl.F_GETFL) & os.O_NONBLOCK


def test_a_reader_that_has_gone_ends_nothing(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    log = LineWriter(writer)
    os.close(reader)
    log.error(LINE)
    assert log.dropped == 1
    os.close(writer)
    late = LineWriter.__new__(LineWriter)  # a descriptor that is closed at start is a mistake of the entry point
    with pytest.raises(OSError):
        late.__init__(writer)  # type: ignore[misc]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # a writer lives as long as its process
def test_a_socket_that_nobody_reads_costs_lines_and_no_time() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        log = LineWriter(ours.fileno())
        fill(log)
        assert theirs.recv(len(LINE) + 1) == LINE + b"\n"


def test_a_full_disk_ends_nothing() -> None:
    with Path("/dev/full").open("wb") as disk:
        log = LineWriter(disk.fileno())
        log.info(LINE)
    assert log.dropped == 1


def run(code: str) -> list[dict[str, object]]:
    script = f"import structlog\nfrom core.log import configure_service_logging\nconfigure_service_logging()\n{code}"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, timeout=60, check=True)
    return [json.loads(line) for line in done.stderr.splitlines()]


def test_whatever_is_logged_becomes_one_json_line() -> None:
    lines = run(
        "log = structlog.get_logger()\n"
        "log.info('odd', half='\\ud800', big=2**70, path=__import__('pathlib').Path('a'), nan=float('nan'), s={1})\n"
        "log.debug('unheard')\n"
        "try:\n    1 / 0\nexcept ZeroDivisionError:\n    log.exception('oh')\n"
    )
    odd, oh = lines
    assert (odd["event"], odd["level"], odd["big"], odd["half"]) == ("odd", "info", 2**70, "\ud800")
    assert str(odd["timestamp"]).endswith("Z")
    assert (oh["level"], "ZeroDivisionError" in str(oh["exception"])) == ("error", True)


def test_a_process_whose_stderr_is_never_read_still_ends() -> None:
    script = (
        "import structlog\nfrom core import log\nlog.configure_service_logging()\n"
        "for _ in range(5000): structlog.get_logger().info('decision', symbol='A')\n"
        "print(log.dropped_lines() > 0)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.read() == b"True\n"
        assert process.wait(60) == 0
