"""Both arms' money. Services made this table by themselves for a while; where it is there it is as it should be."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision, down_revision = "0004", "0003"


def upgrade() -> None:
    op.create_table(
        "equity",
        sa.Column("attempt", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("day", sa.String, primary_key=True),
        sa.Column("symbol", sa.String, primary_key=True),
        sa.Column("outcomes", sa.Integer, nullable=False),
        sa.Column("champion_bps", sa.Float, nullable=False),
        sa.Column("champion_top_bps", sa.Float, nullable=False),
        sa.Column("challenger_bps", sa.Float, nullable=False),
        sa.Column("challenger_top_bps", sa.Float, nullable=False),
        if_not_exists=True,
    )
