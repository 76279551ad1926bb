"""What happened, newest first: decisions one by one, and one log of rollout, trading and everything refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from backend.dashboard import ledger_reads
from backend.dashboard.decision_figures import NO_DECISIONS
from backend.dashboard.panel import Panel, Table
from backend.dashboard.reading import read_only
from backend.dashboard.rollout_panels import RolloutReader
from core.actions import Action
from delivery import tables
from serving.record_format import Answer, DecisionFacts
from trading import switch
from trading.manual import Requests

Row = tuple[float, str, str, str, str]  # Unix s, source, event, who, what

DECISIONS, ROWS = 60, 300
SHOWN = {  # columns of the decisions, and their kinds
    "time": "time",
    "symbol": "text",
    "action": "mark",
    "quantity": "count",
    "by": "text",
    "segments": "count",
    "halted by": "text",
    "complexity": "decimal",
    "latency": "ms",
    "other arm": "text",
    "id": "decision",
}


def decisions(newest: Sequence[DecisionFacts]) -> Panel:
    if not newest:
        return Panel(empty=NO_DECISIONS)
    rows = [_decision(facts) for facts in reversed(newest[-DECISIONS:])]
    return Panel(as_of=newest[-1].at, table=Table(list(SHOWN), list(SHOWN.values()), rows))


def _decision(facts: DecisionFacts) -> tuple[Any, ...]:
    answer = facts.answer
    by = f"{answer.role} {answer.model or 'no model'}{' (fallback)' if facts.fallback else ''}"
    rung = "" if facts.rung == "full" else f", rung {facts.rung}"
    thought = (answer.segments, answer.halt_reason.replace("_", " ") + rung, facts.complexity, facts.latency_ms)
    ends = (_said(facts.shadow), facts.decision_id)
    return (facts.at, facts.symbol, _action(answer), answer.quantity, by, *thought, *ends)


def _said(shadow: Answer | None) -> str:
    return "" if shadow is None else f"{_action(shadow)} by {shadow.model}"


def _action(answer: Answer) -> str:
    return Action(answer.action).name.replace("_", " ").lower()


def log(state_dir: Path, reader: RolloutReader) -> Panel:
    """Of every source the newest rows."""
    rows = _switched(state_dir) + _by_hand(state_dir)
    if reader.exists:
        with reader.connection() as connection:
            rows += [_change(event) for event in reader.events(connection)]
            rows += [_refusal(row) for row in _refusals(connection)]
    for file in ledger_reads.ledger_files(state_dir):
        with read_only(file) as connection:
            rows += [(at, file.stem, kind, who, what) for at, kind, who, what in ledger_reads.log_rows(connection)]
    if not rows:
        return Panel(empty="Nothing has happened yet. Start the service (`hrm serve`) and trade (`hrm trade`).")
    rows.sort(key=lambda row: row[0], reverse=True)
    columns, kinds = ("time", "source", "event", "who", "what"), ("time", "text", "mark", "text", "text")
    return Panel(as_of=rows[0][0], table=Table(columns, kinds, rows[:ROWS]))


def _switched(state_dir: Path) -> list[Row]:
    """The last time that somebody threw the switch."""
    stands = switch.read(state_dir)
    if stands.at_ns == 0:
        return []
    return [(stands.at_ns / 1e9, "trading", f"switch: {stands.state}", stands.by, stands.reason)]


def _by_hand(state_dir: Path) -> list[Row]:
    """The newest orders that people asked for, whatever became of them."""
    asked = Requests(state_dir).newest(ROWS)
    what = "{0.units:+d} units of {0.symbol} in {0.ledger}{1} (trade {0.trade_id})"
    said = [(each, f": {each.reason}" if each.reason else "") for each in asked]
    return [(each.at_ns / 1e9, "by hand", "order asked for", each.by, what.format(each, why)) for each, why in said]


def _change(event: Any) -> Row:
    state = tables.state_from(event.state)
    stands = f"{state.phase.replace('_', ' ')}, weight {state.weight} %, version {event.version}"
    return event.at, "rollout", event.command, event.actor, f"{stands}: {event.reason}" if event.reason else stands


def _refusal(row: Any) -> Row:
    times = "" if row.times == 1 else f", {row.times} times"
    return row.at, "rollout", f"{row.command} refused", row.actor, f"{row.code}{times}: {row.reason}"


def _refusals(connection: sa.Connection) -> Sequence[sa.Row[Any]]:
    rows = tables.refusal
    return connection.execute(sa.select(rows).order_by(rows.c.seq.desc()).limit(ROWS)).all()
