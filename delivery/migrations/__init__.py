"""Migrations of the state database, by alembic. Each is a file in versions/ that says what it changes and why.

There is no alembic.ini: services migrate what they open (delivery/schema.py), in one transaction with whatever else is
to be true then. There is no way down: an older release's code is served by a copy from before.
"""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config


def config(connection: sa.Connection | None = None) -> Config:
    """`connection`: already in a transaction."""
    found = Config(attributes={"connection": connection})
    found.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    found.set_main_option("path_separator", "os")
    return found


def upgrade(connection: sa.Connection, revision: str) -> None:
    """From `revision`, which is noted if it was not, to the newest. Raises alembic's CommandError."""
    if revision == "0001":
        command.stamp(config(connection), revision)
    command.upgrade(config(connection), "head")
