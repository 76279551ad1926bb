"""`hrm data check` as a person and as a script meet it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from command_line import Said, said_here

CLOCK = [f"{9 + (15 + 5 * bar) // 60:02d}:{(15 + 5 * bar) % 60:02d}" for bar in range(75)]
DAYS = [f"2023-01-{day:02d}" for day in (2, 3, 4, 5, 6, 9, 10, 11, 12, 13)]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Ten clean sessions, but for a row that stands twice."""
    rows = [f"{day}T{clock}:00+05:30,100,101,99,{100 + bar % 2},0" for day in DAYS for bar, clock in enumerate(CLOCK)]
    path = tmp_path / "bars.csv"
    path.write_text("timestamp,open,high,low,close,volume\n" + "\n".join([*rows[:8], *rows[7:]]) + "\n")
    return path


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    monkeypatch.setenv("COLUMNS", "160")
    return lambda *arguments: said_here(monkeypatch, capsys, "data", "check", *arguments)


def test_people_read_a_table_of_what_is_there_what_is_wrong_and_what_to_do(
    file: Path, check: Callable[..., Said]
) -> None:
    answer = check(file)
    assert answer.code == 2
    for words in (
        "751 in 10 sessions",
        "300 s",
        "75 in 9, others in 1",
        "1 exact, 0 conflicting",
        "exact_duplicate",
        "row 9 ",
    ):
        assert words in answer.out
    assert "--fix" in answer.out
    assert [path.name for path in file.parent.iterdir()] == ["bars.csv"]


def test_fix_writes_a_clean_copy_and_tells_each_repair(file: Path, check: Callable[..., Said]) -> None:
    answer = check(file, "--fix", "--json")
    assert answer.code == 0, answer.err
    said = answer.json
    assert said["file"] == str(file)
    assert said["exact_duplicates"] == 1
    assert said["clean"]["file"] == str(file.with_name("bars.clean.csv"))
    assert [(repair["what"], repair["count"]) for repair in said["clean"]["repairs"]] == [("repeated rows dropped", 1)]
    assert said["clean"]["report"]["problems"] == said["clean"]["report"]["dropped_sessions"] == []
    again = check(file.with_name("bars.clean.csv"), "--fix", "--out", file.with_name("again.parquet"), "--json")
    assert again.json["clean"]["repairs"] == []
    assert len(pd.read_parquet(file.with_name("again.parquet"))) == 750


def test_people_read_the_repairs_too(file: Path, check: Callable[..., Said]) -> None:
    answer = check(file, "--fix")
    assert answer.code == 0
    assert "750 rows, clean" in answer.out
    assert "repeated rows dropped" in answer.out


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
    file: Path, check: Callable[..., Said], arguments: list[str], code: str, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(file.parent)
    answer = check("bars.csv", *arguments, "--json")
    assert answer.code == 2
    assert named in answer.err
    assert answer.json["error"]["code"] == code
    assert [path.name for path in file.parent.iterdir()] == ["bars.csv"]
