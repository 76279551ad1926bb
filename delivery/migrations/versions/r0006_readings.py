"""What every worker has seen, what both arms earned one by one, and what is behind a measurement.

A measurement of before has no samples: it counts as it did, and cannot be judged again.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision, down_revision = "0006", "0005"


def upgrade() -> None:
    whole_number = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    for name in ("samples", "hits"):
        op.add_column("measurement", sa.Column(name, whole_number))
    op.create_table(
        "reading",
        sa.Column("attempt", whole_number, primary_key=True, autoincrement=False),
        sa.Column("role", sa.String, primary_key=True),
        sa.Column("worker", sa.String, primary_key=True),
        sa.Column("at", sa.Float, nullable=False),
        sa.Column("runs", whole_number, nullable=False),
        sa.Column("failed", whole_number, nullable=False),
        sa.Column("slow", whole_number, nullable=False),
        sa.Column("latency_buckets", sa.Text, nullable=False),
        sa.Column("rss_gb", sa.Float, nullable=False),
    )
    op.create_table(
        "outcome",
        sa.Column("attempt", whole_number, primary_key=True, autoincrement=False),
        sa.Column("id", whole_number, primary_key=True, autoincrement=False),
        sa.Column("at", sa.Float, nullable=False),
        sa.Column("symbol", sa.String, nullable=False),
        sa.Column("day", sa.String, nullable=False),
        sa.Column("champion_bps", sa.Float, nullable=False),
        sa.Column("challenger_bps", sa.Float, nullable=False),
    )
