"""Where the rollout's state is, and transactions on it: SQLite of one host, or a Postgres server for several.

    null                       <state_dir>/rollout.db: WAL, synced at every commit; BEGIN IMMEDIATE, so writers queue
    rollout.database_url_env   a Postgres server; READ COMMITTED: an UPDATE that names the version it replaces waits for
                               the row, looks at it again, and changes nothing if somebody was faster

No transaction waits long for another one: a rollback is in force before it is durable, and its writer tries again.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import ArgumentError

from core.errors import ConfigError
from core.settings import Settings
from core.settings_file import secret

LOCK_WAIT_MS = 2000
MIGRATION_WAIT_MS = 60_000
# Whoever stops within a transaction, with its machine perhaps, would keep the row locked for as long as TCP hopes.
IDLE_LIMIT_MS = 5000
CONNECT_LIMIT_S = 2
CHANNEL = "hrm_rollout"
KEEP_ALIVE = {"keepalives": 1, "keepalives_idle": 1, "keepalives_interval": 1, "keepalives_count": 3}

Place = Path | sa.URL  # SQLite's file, or Postgres's address


def place_of(settings: Settings, environ: Mapping[str, str] | None = None) -> Place:
    """Where these settings keep the state. Raises ConfigError, which never shows the address."""
    name = settings.rollout.database_url_env
    if name is None:
        return settings.paths.state_dir / "rollout.db"
    held = secret(name, os.environ if environ is None else environ)
    if held is None:
        raise ConfigError(f"rollout.database_url_env: {name} is not set; set it, or {name}_FILE")
    try:
        url = sa.make_url(held.get_secret_value())
    except (ArgumentError, ValueError):  # the latter of a port that is no number
        raise ConfigError(f"{name} holds no SQLAlchemy URL; mend it: postgresql://user:password@host/name") from None
    if url.get_backend_name() != "postgresql":
        raise ConfigError(
            f"{name}: a {url.get_backend_name()} URL; only postgresql:// is supported, or null for SQLite"
        )
    return url.set(drivername="postgresql+psycopg")


def named(place: Place) -> str:
    """For messages: no password, which may stand anywhere in an address."""
    return str(place) if isinstance(place, Path) else f"postgresql://{place.host or 'local'}/{place.database or ''}"


def open_engine(place: Place) -> sa.Engine:
    """Connections are made when they are needed. Raises ConfigError where the driver is not installed."""
    if isinstance(place, Path):
        place.parent.mkdir(parents=True, exist_ok=True)
        url = sa.URL.create("sqlite", database=str(place))
        engine = sa.create_engine(url, connect_args={"timeout": LOCK_WAIT_MS / 1000})
        sa.event.listen(engine, "connect", _configure_sqlite)
        return engine
    try:
        return sa.create_engine(place, pool_pre_ping=True, connect_args=_libpq_options())
    except ImportError as error:
        raise ConfigError(f"{named(place)}: {error}; pip install 'hrm-trading[postgres]'") from None


def libpq_arguments(url: sa.URL) -> dict[str, Any]:
    """Of a connection of one's own, for psycopg."""
    return dict(url.get_dialect()().create_connect_args(url)[1]) | _libpq_options()


def _libpq_options() -> dict[str, Any]:
    """So that a server that is gone is found out within seconds."""
    limits = {"connect_timeout": CONNECT_LIMIT_S, "tcp_user_timeout": 1000 * CONNECT_LIMIT_S}
    return limits | KEEP_ALIVE | {"application_name": "hrm rollout"}


@contextmanager
def writing(engine: sa.Engine, wait_ms: int = LOCK_WAIT_MS) -> Iterator[sa.Connection]:
    """One durable transaction: committed at the end of the block, or not at all."""
    with engine.begin() as connection:
        if engine.dialect.name == "sqlite":
            connection.exec_driver_sql(f"PRAGMA busy_timeout={wait_ms}")
            connection.exec_driver_sql("BEGIN IMMEDIATE")  # the write lock first: no upgrade, so no deadlock
        else:
            connection.execute(_LIMITS, {"wait": f"{wait_ms}ms", "idle": f"{IDLE_LIMIT_MS}ms"})
        yield connection


_LIMITS = sa.text(
    "SELECT set_config('lock_timeout', :wait, true),"
    " set_config('idle_in_transaction_session_timeout', :idle, true),"
    " CASE WHEN current_setting('synchronous_commit') = 'off' THEN set_config('synchronous_commit', 'on', true) END"
)
_CLOCKS = {
    "sqlite": "(julianday('now') - 2440587.5) * 86400.0",
    "postgresql": "CAST(extract(epoch FROM clock_timestamp()) AS double precision)",
}


def database_time(connection: sa.Connection) -> sa.ColumnElement[float]:
    """The database's own clock in a statement, Unix time in seconds: the one clock that all its clients share."""
    return sa.literal_column(_CLOCKS[connection.dialect.name], sa.Float)


def notify(connection: sa.Connection, version: int) -> None:
    """Tell the followers, if this transaction commits. A hint: they look by themselves too."""
    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(sa.func.pg_notify(CHANNEL, str(version))))


def _configure_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # transactions are begun by `writing`
    for pragma in (f"busy_timeout={LOCK_WAIT_MS}", "journal_mode=WAL", "synchronous=FULL"):
        connection.execute(f"PRAGMA {pragma}").close()
