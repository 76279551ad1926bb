"""Which phase a rollback ended: after a promotion it is the champion's positions that are handed over."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision, down_revision = "0005", "0004"


def upgrade() -> None:
    op.add_column("rollout", sa.Column("rolled_back_from", sa.String))
