"""`hrm ...` in this process: what a command says and how it ends, without the seconds that a new process takes."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import cli


@dataclass(frozen=True)
class Said:
    """How a command ended, and what it said on stdout and stderr."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The last line of stdout, which with --json is one object."""
        found: dict[str, Any] = json.loads(self.out.strip().splitlines()[-1])
        return found


def said_here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object) -> Said:
    """Runs a command. An exception that the command line does not turn into words passes through: a failed test."""
    capsys.readouterr()  # what was said before is not the command's
    monkeypatch.setattr(sys, "argv", ["hrm", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    told = capsys.readouterr()
    return Said(int(ended.value.code or 0), told.out, told.err)


@pytest.fixture
def hrm(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """A command in this process, with a state directory of its own."""

    def run(*arguments: object, state: Path, **environ: str) -> Said:
        for name, value in ({"HRM_PATHS__STATE_DIR": str(state)} | environ).items():
            monkeypatch.setenv(name, value)
        return said_here(monkeypatch, capsys, *arguments)

    return run
