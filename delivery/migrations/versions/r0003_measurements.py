"""What the controller measures, and the lease that makes one process the controller."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision, down_revision = "0003", "0002"


def upgrade() -> None:
    whole_number = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    op.create_table(
        "measurement",
        sa.Column("id", whole_number, primary_key=True),
        sa.Column("attempt", whole_number, nullable=False, index=True),
        sa.Column("run", sa.String, nullable=False),
        sa.Column("metric", sa.String, nullable=False),
        sa.Column("at", sa.Float, nullable=False),
        sa.Column("phase", sa.String, nullable=False),
        sa.Column("value", sa.Float),
        sa.Column("detail", sa.String, nullable=False),
    )
    lease = op.create_table(
        "lease",
        sa.Column("controller", sa.String, primary_key=True),
        sa.Column("holder", sa.String, nullable=False),
        sa.Column("token", whole_number, nullable=False),
        sa.Column("expires_at", sa.Float, nullable=False),
    )
    op.bulk_insert(lease, [{"controller": "rollout", "holder": "", "token": 0, "expires_at": 0.0}])
