"""Plans drive rollouts: stages with gates, an attempt, who started and approved it.

A rollout that is under way goes on by the settings' default plan; its stage begins anew now, so that no deadline has
passed while there was none. The log is not touched: its chain still verifies.
"""

from __future__ import annotations

import time

import sqlalchemy as sa
from alembic import op

revision, down_revision = "0002", "0001"

UNDER_WAY = sa.text(
    "UPDATE rollout SET stage_at = :now, gate_at = :now, watched_since = :now,"
    " attempt = (SELECT version FROM event WHERE command = 'start' ORDER BY version DESC LIMIT 1),"
    " started_by = (SELECT actor FROM event WHERE command = 'start' ORDER BY version DESC LIMIT 1)"
    " WHERE EXISTS (SELECT 1 FROM event WHERE command = 'start')"
)


def upgrade() -> None:
    whole_number = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    for column in (
        sa.Column("attempt", whole_number, nullable=False, server_default="0"),
        sa.Column("plan_sha256", sa.String),
        sa.Column("gate", sa.Integer, nullable=False, server_default="0"),
        sa.Column("stage_at", sa.Float, nullable=False, server_default="0"),
        sa.Column("gate_at", sa.Float, nullable=False, server_default="0"),
        sa.Column("watched_since", sa.Float, nullable=False, server_default="0"),
        sa.Column("started_by", sa.String, nullable=False, server_default=""),
        sa.Column("approved_by", sa.String, nullable=False, server_default="[]"),
        sa.Column("trigger", sa.String, nullable=False, server_default=""),
    ):
        op.add_column("rollout", column)
    op.create_table(
        "plan",
        sa.Column("sha256", sa.String, primary_key=True),
        sa.Column("json", sa.Text, nullable=False),
    )
    op.get_bind().execute(UNDER_WAY, {"now": time.time()})
