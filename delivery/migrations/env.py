"""What alembic runs migrations with: the connection that it was given, inside the transaction that is under way."""

from __future__ import annotations

from alembic import context

from delivery.schema import METADATA, VERSION_TABLE

context.configure(
    connection=context.config.attributes["connection"], target_metadata=list(METADATA), version_table=VERSION_TABLE
)
with context.begin_transaction():
    context.run_migrations()
