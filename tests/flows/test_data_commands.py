"""`hrm data check` as a person and as a script meet it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

CLOCK = [f"{9 + (15 + 5 * bar) // 60:02d}:{(15 + 5 * bar) % 60:02d}" for bar in range(75)]
DAYS = [f"2023-01-{day:02d}" for day in (2, 3, 4, 5, 6, 9, 10, 11, 12, 13)]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Ten clean sessions, but for a row that stands twice."""
    rows = [f"{day}T{clock}:00+05:30,100,101,99,{100 + bar % 2},0" for day in DAYS for bar, clock in enumerate(CLOCK)]
    path = tmp_path / "bars.csv"
    path.write_text("timestamp,open,high,low,close,volume\n" + "\n".join([*rows[:8], *rows[7:]]) + "\n")
    return path


def check(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).parent / "hrm"), "data", "check", *map(str, arguments)]
    environ = os.environ | {"COLUMNS": "160"}
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environ)


def last_line(answer: subprocess.CompletedProcess[str]) -> dict:
    return json.loads(answer.stdout.strip().splitlines()[-1])


def test_people_read_a_table_of_what_is_there_what_is_wrong_and_what_to_do(file: Path) -> None:
    answer = check(file)
    assert answer.returncode == 2
    for words in (
        "751 in 10 sessions",
        "300 s",
        "75 in 9, others in 1",
        "1 exact, 0 conflicting",
        "exact_duplicate",
        "row 9 ",
    ):
        assert words in answer.stdout
    assert "--fix" in answer.stdout
    assert [path.name for path in file.parent.iterdir()] == ["bars.csv"]


def test_fix_writes_a_clean_copy_and_tells_each_repair(file: Path) -> None:
    answer = check(file, "--fix", "--json")
    assert answer.returncode == 0, answer.stderr
    said = last_line(answer)
    assert said["file"] == str(file)
    assert said["exact_duplicates"] == 1
    assert said["clean"]["file"] == str(file.with_name("bars.clean.csv"))
    assert [(repair["what"], repair["count"]) for repair in said["clean"]["repairs"]] == [("repeated rows dropped", 1)]
    assert said["clean"]["report"]["problems"] == said["clean"]["report"]["dropped_sessions"] == []
    again = check(file.with_name("bars.clean.csv"), "--fix", "--out", file.with_name("again.parquet"), "--json")
    assert last_line(again)["clean"]["repairs"] == []
    assert len(pd.read_parquet(file.with_name("again.parquet"))) == 750


def test_people_read_the_repairs_too(file: Path) -> None:
    answer = check(file, "--fix")
    assert answer.returncode == 0
    assert "750 rows, clean" in answer.stdout
    assert "repeated rows dropped" in answer.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "named"),
    [
        (["--out", "x.csv"], "usage", "give both"),
        (["--fix", "--out", "bars.csv"], "bad_file", "choose another --out"),
        (["--fix", "--out", "x.xlsx"], "bad_file", "unknown extension"),
        (["--fix", "--out", "bars.csv/x.csv"], "disk_error", "a file is in the way"),
    ],
)
def test_wrong_ways_to_ask_are_named_and_write_nothing(
    file: Path, arguments: list[str], code: str, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(file.parent)
    answer = check("bars.csv", *arguments, "--json")
    assert answer.returncode == 2
    assert named in answer.stderr
    assert last_line(answer)["error"]["code"] == code
    assert [path.name for path in file.parent.iterdir()] == ["bars.csv"]
