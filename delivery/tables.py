"""The tables of the state database, alike on SQLite and Postgres.

    rollout        one row, the state; its `version` is what changes are compared and set on
    plan           frozen plans of attempts, by digest
    event          the log, append-only and hash-chained: one row for every version
    measurement    what the controller measured, append-only
    reading        what each worker has seen of the candidate (delivery/seen.py)
    outcome        what both arms earned, one by one, append-only (delivery/earned.py)
    refusal        commands that were refused, append-only, on a chain of its own (delivery/refusals.py)
    lease          who is the controller, until when, and its fencing token
    equity         both arms' money (delivery/losses.py)

A change here is a new migration in delivery/migrations/versions, and its name in HEAD.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import sqlalchemy as sa

from delivery.transitions import Phase, RolloutState

HEAD = "0009"  # the migration that these tables are the result of
CONTROLLER = "rollout"

metadata = sa.MetaData()
whole_number = sa.BigInteger().with_variant(sa.Integer(), "sqlite")  # of 64 bits; SQLite counts only INTEGER keys up

rollout = sa.Table(
    "rollout",
    metadata,
    sa.Column("id", sa.Integer, sa.CheckConstraint("id = 1"), primary_key=True),
    sa.Column("version", whole_number, nullable=False),
    sa.Column("epoch", whole_number, nullable=False),
    sa.Column("phase", sa.String, nullable=False),
    sa.Column("champion", sa.String),
    sa.Column("challenger", sa.String),
    sa.Column("fallback", sa.String),
    sa.Column("step", sa.Integer, nullable=False),
    sa.Column("weight", sa.Integer, nullable=False),
    sa.Column("paused", sa.Boolean, nullable=False),
    sa.Column("reason", sa.String, nullable=False),
    sa.Column("rejected", sa.String),  # model ids with spaces between; they hold none
    sa.Column("rolled_back_at", sa.Float),
    sa.Column("attempt", whole_number, nullable=False),
    sa.Column("plan_sha256", sa.String),
    sa.Column("gate", sa.Integer, nullable=False),
    sa.Column("stage_at", sa.Float, nullable=False),
    sa.Column("gate_at", sa.Float, nullable=False),
    sa.Column("watched_since", sa.Float, nullable=False),
    sa.Column("started_by", sa.String, nullable=False),
    sa.Column("approved_by", sa.String, nullable=False),  # JSON: actors may hold any character
    sa.Column("trigger", sa.String, nullable=False),
    sa.Column("rolled_back_from", sa.String),
    sa.Column("handover_sha256", sa.String),
    sa.Column("challenger_sha256", sa.String),
)
plan = sa.Table(
    "plan",
    metadata,
    sa.Column("sha256", sa.String, primary_key=True),
    sa.Column("json", sa.Text, nullable=False),
)
event = sa.Table(
    "event",
    metadata,
    sa.Column("version", whole_number, primary_key=True, autoincrement=False),
    sa.Column("at", sa.Float, nullable=False),
    sa.Column("actor", sa.String, nullable=False),
    sa.Column("command", sa.String, nullable=False),
    sa.Column("reason", sa.String, nullable=False),
    sa.Column("state", sa.String, nullable=False),
    sa.Column("prev_hash", sa.String, nullable=False),
    sa.Column("hash", sa.String, nullable=False, unique=True),
)
measurement = sa.Table(
    "measurement",
    metadata,
    sa.Column("id", whole_number, primary_key=True),
    sa.Column("attempt", whole_number, nullable=False, index=True),
    sa.Column("run", sa.String, nullable=False),  # stage and gate, or what it watches
    sa.Column("metric", sa.String, nullable=False),
    sa.Column("at", sa.Float, nullable=False),
    sa.Column("phase", sa.String, nullable=False),
    sa.Column("value", sa.Float),
    sa.Column("detail", sa.String, nullable=False),
    sa.Column("samples", whole_number),  # and hits: behind the value; none of an error
    sa.Column("hits", whole_number),
)
reading = sa.Table(
    "reading",
    metadata,
    sa.Column("attempt", whole_number, primary_key=True, autoincrement=False),
    sa.Column("role", sa.String, primary_key=True),  # the candidate's: champion once it was promoted
    sa.Column("worker", sa.String, primary_key=True),  # another one with every start of a process
    sa.Column("at", sa.Float, nullable=False),  # Unix time of the database's clock, s
    sa.Column("runs", whole_number, nullable=False),
    sa.Column("failed", whole_number, nullable=False),
    sa.Column("slow", whole_number, nullable=False),
    sa.Column("latency_buckets", sa.Text, nullable=False),  # JSON, of the latest runs: how many by bucket
    sa.Column("rss_gb", sa.Float, nullable=False),
)
outcome = sa.Table(
    "outcome",
    metadata,
    sa.Column("attempt", whole_number, primary_key=True, autoincrement=False),
    sa.Column("id", whole_number, primary_key=True, autoincrement=False),  # grows with every commit of an attempt
    sa.Column("at", sa.Float, nullable=False),
    sa.Column("symbol", sa.String, nullable=False),
    sa.Column("day", sa.String, nullable=False),
    sa.Column("champion_bps", sa.Float, nullable=False),
    sa.Column("challenger_bps", sa.Float, nullable=False),
)
refusal = sa.Table(
    "refusal",
    metadata,
    sa.Column("seq", whole_number, primary_key=True, autoincrement=False),
    sa.Column("at", sa.Float, nullable=False),
    sa.Column("actor", sa.String, nullable=False),
    sa.Column("command", sa.String, nullable=False),
    sa.Column("reason", sa.String, nullable=False),
    sa.Column("code", sa.String, nullable=False),
    sa.Column("version", whole_number, nullable=False),  # of the state, where it was refused
    sa.Column("times", whole_number, nullable=False),
    sa.Column("prev_hash", sa.String, nullable=False),
    sa.Column("hash", sa.String, nullable=False, unique=True),
)
lease = sa.Table(
    "lease",
    metadata,
    sa.Column("controller", sa.String, primary_key=True),
    sa.Column("holder", sa.String, nullable=False),
    sa.Column("token", whole_number, nullable=False),  # grows with every new holder
    sa.Column("expires_at", sa.Float, nullable=False),  # Unix time of the database's clock, s
)


def row_of(state: RolloutState) -> dict[str, Any]:
    return asdict(state) | {"rejected": " ".join(state.rejected), "approved_by": json.dumps(state.approved_by)}


def state_of(row: sa.RowMapping) -> RolloutState:
    fields = {name: row[name] for name in RolloutState.__dataclass_fields__}
    lists = {
        "rejected": tuple((row["rejected"] or "").split()),
        "approved_by": tuple(json.loads(row["approved_by"])),
    }
    ended = row["rolled_back_from"]
    phases = {"phase": Phase(row["phase"]), "rolled_back_from": Phase(ended) if ended else None}
    return RolloutState(**fields | lists | phases)


def state_from(text: str) -> RolloutState:
    """Of an event: canonical JSON, maybe of a release that knew less."""
    told = json.loads(text)
    known = {name: told[name] for name in RolloutState.__dataclass_fields__ if name in told}
    ended = known.get("rolled_back_from")
    parsed: dict[str, Any] = {
        "phase": Phase(told["phase"]),
        "rejected": tuple(known.get("rejected", ())),
        "approved_by": tuple(known.get("approved_by", ())),
        "rolled_back_from": Phase(ended) if ended else None,
    }
    return RolloutState(**known | parsed)
