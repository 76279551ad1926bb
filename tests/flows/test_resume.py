"""kill -9 of a migration anywhere, then the same command again: finished phases are not repeated."""

import multiprocessing
import os
import signal
import time
from pathlib import Path

import fast_migration
from made_up_runs import new_run

from flows.migration import PHASES, ExitCode

FORK = multiprocessing.get_context("fork")  # a process of its own without importing everything again


def migrate(run_dir: Path, log: Path) -> multiprocessing.process.BaseProcess:
    process = FORK.Process(target=fast_migration.main, args=(str(run_dir), log))
    process.start()
    return process


def kill_at(place: str, run_dir: Path, log: Path) -> None:
    """Run until the migration is at `place`, then kill -9."""
    log.with_suffix(".hold").write_text(place)
    held = log.with_suffix(".held")
    process = migrate(run_dir, log)
    deadline = time.monotonic() + 60
    while not (held.exists() and held.read_text() == place):
        assert process.is_alive(), "the migration ended before it was killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.join()


def test_a_migration_killed_in_and_after_every_phase_completes_without_repeating_finished_ones(tmp_path):
    run = new_run(tmp_path)
    log = tmp_path / "log"
    for number, phase in enumerate(PHASES):
        when = "working" if number % 2 else "recorded"
        kill_at(f"{phase}:{when}", run.folder, log)
        assert (run.phase(phase) is not None) == (when == "recorded")
        assert run.outcome is None
        assert new_run(tmp_path).folder == run.folder
    log.with_suffix(".hold").unlink()
    process = migrate(run.folder, log)
    process.join(60)
    assert process.exitcode == ExitCode.MIGRATED
    ran = log.read_text().split()
    assert {phase: ran.count(phase) for phase in PHASES} == {
        phase: 2 if number % 2 else 1 for number, phase in enumerate(PHASES)
    }
    assert run.outcome is not None
    assert (run.folder / "report.html").exists()
