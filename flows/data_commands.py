"""`hrm data ...`: fetch bars, say what is wrong with them, write a clean copy."""

from __future__ import annotations

from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from core.errors import ConfigError
from core.settings import load_settings
from flows.options import AsJson, Seed, day
from flows.terminal import answer

if TYPE_CHECKING:
    from rich.table import Table

    from trading.files import CleanCopy
    from trading.quality import QualityReport

app = typer.Typer(no_args_is_help=True, help="Fetch, check and repair bars.")

LISTED = 6  # of a list of days, before it is cut short for people; --json has all of them


@app.command()
def check(
    file: Annotated[Path, typer.Argument(help="CSV or parquet of bars.")],
    fix: Annotated[bool, typer.Option("--fix", help="Write a clean copy, by certain repairs only.")] = False,
    out: Annotated[Path | None, typer.Option(help="Where to; by default <name>.clean<ext> beside the file.")] = None,
    as_json: AsJson = False,
) -> None:
    """Report gaps, duplicates, outliers and everything else that would make a file unusable. Exits with 2 if it is."""
    from trading.files import check as check_file
    from trading.files import fix as fix_file

    if out is not None and not fix:
        raise ConfigError("--out is where --fix writes; give both", code="usage")
    report = check_file(file)
    if not as_json:
        _print_report(file, report)
    clean = fix_file(file, out) if fix else None
    if clean is not None and not as_json:
        _print_copy(clean)
    if as_json:
        copy = {} if clean is None else {"clean": asdict(clean)}
        answer({"file": str(file), **asdict(report), **copy}, as_json)
    raise typer.Exit(2 if report.problems and clean is None else 0)


@app.command()
def fetch(  # noqa: PLR0913, PLR0917 - options of a command, all by name
    symbol: Annotated[str, typer.Argument(help="SYNTHETIC, or as Fyers names it: NSE:NIFTY50-INDEX.")] = "SYNTHETIC",
    out: Annotated[
        Path | None, typer.Option(help="Parquet or CSV file to write; by default where the backend looks for it.")
    ] = None,
    resolution: Annotated[str, typer.Option(help="Minutes in a bar (Fyers).")] = "5",
    first: Annotated[str, typer.Option("--from", help="First day, YYYY-MM-DD (Fyers).")] = "2023-01-01",
    last: Annotated[str | None, typer.Option("--to", help="Last day (Fyers); by default today.")] = None,
    sessions: Annotated[int, typer.Option(min=1, help="Sessions to simulate (SYNTHETIC).")] = 250,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Write bars to a file: simulated, or from Fyers (`hrm fyers login` first).

    A download that was interrupted goes on where it was; quarters that are over are asked for once.
    """
    from flows.arrival import tell_arrival
    from flows.fyers_bars import file_of, history
    from trading.files import to_frame, write_bars
    from trading.synthetic import simulate

    settings = load_settings()
    if symbol == "SYNTHETIC":
        frame = to_frame(simulate(settings.synthetic_market, sessions=sessions, seed=seed).bars)
    else:
        frame = history(settings, symbol, resolution, (day(first), day(last) if last else date.today()))
    file = out or file_of(settings, symbol)
    write_bars(frame, file)
    tell_arrival(file)
    answer({"file": str(file), "rows": len(frame), "symbol": symbol}, as_json)


def _print_report(file: Path, report: QualityReport) -> None:
    facts = _table(str(file))
    interval = "-" if report.interval_s is None else f"{report.interval_s:g} s"
    usual = max(report.session_lengths, key=lambda length: report.session_lengths[length], default=0)
    others = report.sessions - report.session_lengths.get(usual, 0)
    for name, value in (
        ("rows", f"{report.rows:,} in {report.sessions:,} sessions, {report.first} to {report.last}"),
        ("interval", interval),
        ("bars a session", f"{usual} in {report.session_lengths.get(usual, 0):,}, others in {others:,}"),
        ("gaps", f"{report.gaps:,}"),
        ("duplicates", f"{report.exact_duplicates:,} exact, {report.conflicting_duplicates:,} conflicting"),
        ("outliers", f"{report.outliers:,}"),
        ("left out", _listed(report.dropped_sessions)),
        ("missing", _listed(report.missing_sessions)),
        ("not in the calendar", _listed(report.off_calendar)),
        ("after a long break", _listed(report.long_breaks)),
        ("begin late, end early", _listed(report.partial_sessions)),
        ("large moves, kept", _listed(report.large_moves)),
    ):
        facts.add_row(name, value)
    faults = _table("what is wrong", "fault", "count", "first at", "what to do")
    for problem in report.problems:
        faults.add_row(f"[bold red]{problem.code}", f"{problem.count:,}", problem.first, problem.remedy)
    for defect in report.defects:
        faults.add_row(f"{defect.code} (left out)", f"{defect.count:,}", defect.first, defect.remedy)
    _print(facts, faults)


def _print_copy(clean: CleanCopy) -> None:
    repairs = _table(f"{clean.file}: {clean.report.rows:,} rows, clean", "repair", "count", "first at")
    for repair in clean.repairs:
        repairs.add_row(repair.what, f"{repair.count:,}", repair.first)
    _print(repairs)


def _table(title: str, *columns: str) -> Table:
    from rich.table import Table

    table = Table(
        *columns, title=title, title_justify="left", box=None, show_header=bool(columns), padding=(0, 2, 0, 0)
    )
    return table


def _print(*tables: Table) -> None:
    from rich.console import Console

    console = Console()
    for table in tables:
        if table.row_count or table is tables[0]:
            console.print(table, "")


def _listed(days: tuple[str, ...]) -> str:
    shown = ", ".join(days[:LISTED])
    return f"{shown} and {len(days) - LISTED} more" if len(days) > LISTED else shown or "none"
