"""Commands that were refused, on a chain of their own."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision, down_revision = "0009", "0008"


def upgrade() -> None:
    whole_number = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    op.create_table(
        "refusal",
        sa.Column("seq", whole_number, primary_key=True, autoincrement=False),
        sa.Column("at", sa.Float, nullable=False),
        sa.Column("actor", sa.String, nullable=False),
        sa.Column("command", sa.String, nullable=False),
        sa.Column("reason", sa.String, nullable=False),
        sa.Column("code", sa.String, nullable=False),
        sa.Column("version", whole_number, nullable=False),
        sa.Column("times", whole_number, nullable=False),
        sa.Column("prev_hash", sa.String, nullable=False),
        sa.Column("hash", sa.String, nullable=False, unique=True),
    )
