"""The state and its log, as they were before there were migrations.

Where these tables are found without a version they are taken for this revision; this is how they were made.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision, down_revision = "0001", None


def upgrade() -> None:
    whole_number = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    op.create_table(
        "rollout",
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
        sa.Column("rejected", sa.String),
        sa.Column("rolled_back_at", sa.Float),
    )
    op.create_table(
        "event",
        sa.Column("version", whole_number, primary_key=True, autoincrement=False),
        sa.Column("at", sa.Float, nullable=False),
        sa.Column("actor", sa.String, nullable=False),
        sa.Column("command", sa.String, nullable=False),
        sa.Column("reason", sa.String, nullable=False),
        sa.Column("state", sa.String, nullable=False),
        sa.Column("prev_hash", sa.String, nullable=False),
        sa.Column("hash", sa.String, nullable=False, unique=True),
    )
