"""The tables as this code needs them: made, or brought up from an older release's, once however many ask at a time.

    version table says HEAD      nothing to do, and no migration tool is loaded: this is every start but the first
    no table at all              made at once, as the newest migration would leave them
    anything older               alembic, in one transaction (delivery/migrations)

A database of a release before migrations has no version table; it is recognised by its columns.
"""

from __future__ import annotations

import sqlalchemy as sa

from core.errors import ConfigError
from delivery import losses, tables
from delivery.crash import crash_at
from delivery.state_database import MIGRATION_WAIT_MS, writing
from delivery.transitions import RolloutState

METADATA = (tables.metadata, losses.metadata)
VERSION_TABLE = "rollout_alembic_version"  # other people's tools in the same database have a table alembic_version
BASELINE = "0001"
BASELINE_COLUMNS = frozenset(
    "id version epoch phase champion challenger fallback step weight paused reason rejected rolled_back_at".split()  # noqa: SIM905 - one line
)
ONE_AT_A_TIME = 7_604_132_881  # our advisory lock on Postgres: any number


def prepare(engine: sa.Engine) -> None:
    """Raises ConfigError for tables of a newer release, or of none, and sqlalchemy's DatabaseError."""
    with engine.connect() as connection:  # without the lock no more can be said than this
        if _noted(connection) == tables.HEAD:
            return
    with writing(engine, MIGRATION_WAIT_MS) as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(ONE_AT_A_TIME)))
        revision = _revision(connection)  # another process may have been faster
        if revision is None:
            _create(connection)
        elif revision != tables.HEAD:
            _upgrade(connection, revision)
        crash_at("schema_ready")


def require_ready(engine: sa.Engine) -> None:
    """Raises ConfigError unless the tables are as this code needs them; changes nothing."""
    with engine.connect() as connection:
        noted = _noted(connection)
    if noted != tables.HEAD:
        raise ConfigError(f"its tables are of release {noted or BASELINE}, not {tables.HEAD}; start the service once")


def _revision(connection: sa.Connection) -> str | None:
    """Under the lock: of the tables that are there; None without any. Raises ConfigError."""
    noted, inspector = _noted(connection), sa.inspect(connection)
    if noted is not None or not inspector.has_table("rollout"):
        return noted
    if {column["name"] for column in inspector.get_columns("rollout")} != BASELINE_COLUMNS:
        raise ConfigError("its table `rollout` is of no release; move it away to start anew")
    return BASELINE


def _noted(connection: sa.Connection) -> str | None:
    if not sa.inspect(connection).has_table(VERSION_TABLE):
        return None
    return str(connection.execute(sa.text(f"SELECT version_num FROM {VERSION_TABLE}")).scalar_one())  # noqa: S608


def _create(connection: sa.Connection) -> None:
    for metadata in METADATA:
        metadata.create_all(connection)
    connection.execute(sa.insert(tables.rollout).values(id=1, **tables.row_of(RolloutState())))
    connection.execute(sa.insert(tables.lease).values(controller=tables.CONTROLLER, holder="", token=0, expires_at=0.0))
    connection.execute(sa.text(f"CREATE TABLE {VERSION_TABLE} (version_num VARCHAR(32) NOT NULL PRIMARY KEY)"))
    connection.execute(sa.text(f"INSERT INTO {VERSION_TABLE} VALUES (:head)"), {"head": tables.HEAD})  # noqa: S608


def _upgrade(connection: sa.Connection, revision: str) -> None:
    from alembic.util import CommandError

    from delivery.migrations import upgrade

    try:
        upgrade(connection, revision)
    except CommandError as error:
        raise ConfigError(f"it is of another release ({error}); run that one, or a newer one") from None
