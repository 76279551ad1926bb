"""One query on somebody's database, for a metric: it reads, it ends in time, and it holds up nothing meanwhile.

The database's URL (SQLAlchemy's) stands in a variable METRICS_<NAME>, or in the file that METRICS_<NAME>_FILE names; a
plan can name such variables only, never the service's own. Writing is refused by SQLite (`mode=ro`, `query_only`) and
Postgres (`READ ONLY`); elsewhere nothing is ever committed. What else a query may do is decided by the user it comes
as: give it one that may only read.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import ArgumentError

from core.errors import ConfigError, DataError
from core.settings_file import secret
from delivery.aside import Aside

NAME = re.compile(r"METRICS_[A-Z0-9_]+")
ONE_SELECT = re.compile(r"\s*(select|with)\b[^;]*;?\s*", re.IGNORECASE)
SQLITE_STEPS = 10_000  # of its virtual machine between two looks at the clock: well below a millisecond


def database_url(name: str, environ: Mapping[str, str]) -> sa.URL:
    """What the variable holds. Raises DataError, which never shows it."""
    if not NAME.fullmatch(name):
        raise DataError(f"url_env '{name}': a metric's database stands in a variable METRICS_<NAME>")
    try:
        held = secret(name, environ)
        if held is None:
            raise DataError(f"{name} is not set; set it, or {name}_FILE, where the service runs")
        return sa.make_url(held.get_secret_value())
    except ConfigError as error:
        raise DataError(str(error)) from None
    except (ArgumentError, ValueError):  # the latter of a port that is no number
        raise DataError(f"{name} holds no SQLAlchemy URL; mend it") from None


async def first_rows(url: sa.URL, query: str, databases: Aside, *, within_s: float) -> list[tuple[Any, ...]]:
    """The first two rows of `query`, which is one SELECT. Raises DataError."""
    if not ONE_SELECT.fullmatch(query):
        raise DataError("a query is one SELECT, or WITH and SELECT, without a semicolon inside")
    try:
        async with asyncio.timeout(within_s):
            return await databases.run(lambda: _first_rows(url, query, within_s))
    except TimeoutError:
        raise DataError(f"no answer within {within_s:g} s") from None
    except DataError:
        raise
    except Exception as error:  # drivers raise what they like; to a measurement all of it is one thing
        raise DataError(_without_password(f"{type(error).__name__}: {_cause(error)}", url)) from None


def _first_rows(url: sa.URL, query: str, within_s: float) -> list[tuple[Any, ...]]:
    engine = sa.create_engine(_read_only(url), poolclass=sa.NullPool)
    with engine.connect() as connection:
        _restrain(connection, within_s)
        connection.execution_options(no_parameters=True)  # a % or : in the query is only that
        return [tuple(row) for row in connection.exec_driver_sql(query).fetchmany(2)]


def _read_only(url: sa.URL) -> sa.URL:
    """SQLite would make a file that does not exist."""
    file = url.database
    if url.get_backend_name() != "sqlite" or not file or file == ":memory:" or file.startswith("file:"):
        return url
    return url.set(database=Path(file).absolute().as_uri()).update_query_dict({"mode": "ro", "uri": "true"})


def _restrain(connection: sa.Connection, within_s: float) -> None:
    """Reads only, and stops by itself: nobody waits for it any more, but it would go on using the machine."""
    if connection.dialect.name == "sqlite":
        until, sqlite = time.monotonic() + within_s, connection.connection.driver_connection
        assert sqlite is not None  # noqa: S101 - of an open connection
        sqlite.execute("PRAGMA query_only = ON").close()
        sqlite.set_progress_handler(lambda: time.monotonic() > until, SQLITE_STEPS)
    elif connection.dialect.name == "postgresql":
        connection.exec_driver_sql("SET TRANSACTION READ ONLY")
        connection.exec_driver_sql(f"SET LOCAL statement_timeout = {1000 * within_s:.0f}")


def _cause(error: Exception) -> str:
    """What the driver said, without SQLAlchemy's repetition of the query."""
    return " ".join(str(getattr(error, "orig", None) or error).split())


def _without_password(text: str, url: sa.URL) -> str:
    passwords = [url.password, *(value for key, value in url.query.items() if "pass" in key)]
    for password in filter(None, map(str, (url.render_as_string(hide_password=False), *filter(None, passwords)))):
        text = text.replace(password, "***")
    return text
