"""Whose plan says what becomes of positions that a rollback left: it is told until the next attempt has a weight."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision, down_revision = "0007", "0006"


def upgrade() -> None:
    op.add_column("rollout", sa.Column("handover_sha256", sa.String))
    op.execute("UPDATE rollout SET handover_sha256 = plan_sha256 WHERE phase = 'rolled_back'")
