"""What `hrm migrate` leaves on the screen: phases, gates, the verdict and where the report is."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from core.gates import Verdict
from flows.migration import PHASES, MigrationResult
from flows.phases import gate_rows
from flows.run_state import PhaseRecord, load_run

STYLES = {Verdict.PASS: "green", Verdict.FAIL: "bold red", Verdict.INCONCLUSIVE: "yellow"}
HEADLINES = {
    "migrated": "[bold green]HRM took over",
    "stopped": "[bold red]Stopped: the incumbent keeps deciding",
    "rolled_back": "[bold red]Rolled back: the incumbent decides again",
}


def print_outcome(result: MigrationResult, console: Console | None = None) -> None:
    """A table of phases and gates, then the verdict in one line each."""
    console = console or Console()
    run = load_run(Path(result.report).parent)
    table = Table("phase", "seconds", "gate", "verdict", box=None, header_style="bold")
    for name in PHASES:
        record = run.phase(name)
        if record is None:
            table.add_row(name, "", "not reached", "")
        else:
            _add(table, record)
    console.print(table)
    console.print(HEADLINES[result.outcome] + (f" at {result.stopped_at}" if result.stopped_at else ""))
    if result.reason:
        console.print(result.reason, highlight=False)
    console.print(f"report: {result.report}", highlight=False, soft_wrap=True)


def _add(table: Table, record: PhaseRecord) -> None:
    for index, row in enumerate(gate_rows(record)):
        verdict = Verdict(row["verdict"])
        table.add_row(
            record.phase if index == 0 else "",
            f"{record.seconds:.0f}" if index == 0 else "",
            f"{row['metric']} {row['value']} ({row['limit']})",
            f"[{STYLES[verdict]}]{verdict}",
        )
