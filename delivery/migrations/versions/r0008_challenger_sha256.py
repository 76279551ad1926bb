"""What a rollout was started with, by digest: whoever loads another model under the same name knows it.

An attempt that began before has none, and is not compared.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision, down_revision = "0008", "0007"


def upgrade() -> None:
    op.add_column("rollout", sa.Column("challenger_sha256", sa.String))
