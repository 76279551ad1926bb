"""A migration whose phases do nothing but say that they ran, for a process that will be killed.

A phase waits after its work, or after its record is written, where LOG.hold names it, so that a test can kill it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from made_up_runs import phase_results

from flows import migration
from flows.phases import complete
from flows.run_state import Run, load_run


def main(run_dir: str, log: Path) -> None:
    """Exits with the migration's code."""
    phases: dict[str, Callable[[str], Any]] = {name: partial(_phase, name=name, log=log) for name in migration.PHASES}
    # Not sys.exit: a fork would wait for threads that only its parent has.
    os._exit(migration.migrate(load_run(Path(run_dir)), phases).exit_code)


def _phase(run_dir: str, *, name: str, log: Path) -> None:
    def work(run: Run) -> dict[str, Any]:
        with log.open("a") as file:
            file.write(f"{name}\n")
        _hold_if_asked(log, f"{name}:working")
        return phase_results()[name]

    complete(run_dir, name, work)
    _hold_if_asked(log, f"{name}:recorded")


def _hold_if_asked(log: Path, place: str) -> None:
    hold = log.with_suffix(".hold")
    if hold.exists() and hold.read_text() == place:
        log.with_suffix(".held").write_text(place)
        time.sleep(600)
