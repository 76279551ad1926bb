"""The rollout's log as a file for the audit: JSON Lines that prove their own order and completeness.

First the changes, an event each, then the commands that were refused, on a chain of their own. Every line holds the
hash of the one before it, so none can be altered, dropped or put in without the chain breaking at it or at the next.
What a chain cannot show is that its end is missing: keep both last hashes elsewhere.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from pydantic import ValidationError
from sqlalchemy.exc import SQLAlchemyError

from core.errors import ConfigError, DataError
from core.settings import Settings
from delivery import tables
from delivery.chain import Chain
from delivery.state_database import Place, named, open_engine, place_of
from serving import calls
from serving.client import ServiceClient
from serving.schemas_rollout import Event, Refusal

Line = Event | Refusal
READ_ONLY = {"postgresql_readonly": True, "isolation_level": "REPEATABLE READ"}


class Proof:
    """What has gone by, and where a chain broke first."""

    def __init__(self) -> None:
        self.events, self.refusals = Chain(), Chain()
        self._broken = ""

    def add(self, line: Line) -> None:
        what, chain, number = _place(line, self)
        if self._broken or chain.fits(number, line.model_dump()):
            return
        self._broken = (
            f"the chain breaks at {what} {number} ({line.command} by {line.actor}): it was altered, or something "
            f"before it was altered or dropped; {chain.count} {what}s up to there are whole"
        )

    def require_whole(self) -> None:
        """Raises DataError that names the line at which a chain breaks."""
        if self._broken:
            raise DataError(self._broken, code="log_altered")

    def facts(self) -> dict[str, Any]:
        """How many, and the last hashes."""
        return {
            "events": self.events.count,
            "last_hash": self.events.latest,
            "refusals": self.refusals.count,
            "last_refusal_hash": self.refusals.latest,
        }


def from_service(client: ServiceClient, after: int = 0) -> Iterator[Event]:
    """The changes beyond a version, page by page, oldest first. Raises ServiceError."""
    while page := client.call(calls.events(after)).events:
        yield from page
        after = page[-1].version


def all_from_service(client: ServiceClient) -> Iterator[Line]:
    """Changes, then refusals. Raises ServiceError."""
    yield from from_service(client)
    after = 0
    while page := client.call(calls.refusals(after)).refusals:
        yield from page
        after = page[-1].seq


def place_named(text: str, settings: Settings) -> Place:
    """A rollout.db, or the server behind the variable that the settings name. Raises ConfigError."""
    return place_of(settings) if text == settings.rollout.database_url_env else Path(text)


def from_database(place: Place) -> Iterator[Line]:
    """Of a service that need not run. It is only read, so that it stays the evidence.

    Raises ConfigError, and DataError for a row that is neither.
    """
    if isinstance(place, Path) and not place.is_file():
        raise ConfigError(f"{place}: no such file; a service keeps its rollout.db in its state directory")
    engine = _read_only(place)
    try:
        with engine.connect() as connection:
            event, refusal = tables.event.c, tables.refusal.c
            for row in _rows(connection, Event, event.version):
                yield Event(**row)
            if sa.inspect(connection).has_table(tables.refusal.name):  # an older release noted none
                for row in _rows(connection, Refusal, refusal.seq):
                    yield Refusal(**row)
    except SQLAlchemyError as error:
        what = "rollout.db" if isinstance(place, Path) else "database"
        why = " ".join(str(getattr(error, "orig", error)).split())
        raise ConfigError(f"{named(place)}: not a service's {what} ({why})") from None
    except ValidationError as error:
        raise DataError(f"{named(place)}: a row that no service wrote: {error}", code="log_altered") from None
    finally:
        engine.dispose()


def write(lines: Iterable[Line], file: Path) -> Proof:
    """All of them, also where a chain is broken: that is evidence too. Raises ConfigError.

    Nothing is left of a file that did not become whole.
    """
    if file.is_dir():
        raise ConfigError(f"{file} is a folder; name the file to write", code="usage")
    part, proof = file.with_name(f".{file.name}.part"), Proof()
    try:
        with part.open("w", encoding="utf-8") as written:
            for line in lines:
                written.write(line.model_dump_json() + "\n")
                proof.add(line)
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)
    return proof


def read(file: Path) -> Iterator[Line]:
    """Raises ConfigError if there is no such file, DataError that names the line that is neither."""
    try:
        with file.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                yield _line(file, number, line)
    except (FileNotFoundError, IsADirectoryError):
        raise ConfigError(f"{file}: no such file; `hrm rollout export FILE` writes one", code="no_such_file") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not text in UTF-8 ({error.reason}); export it again", code="log_altered") from None


def verified(lines: Iterable[Line]) -> Proof:
    """Raises DataError that names the line at which a chain breaks."""
    proof = Proof()
    for line in lines:
        proof.add(line)
        proof.require_whole()
    return proof


def _line(file: Path, number: int, line: str) -> Line:
    kind = Refusal if _is_refusal(line) else Event
    try:
        return kind.model_validate_json(line, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"])) or "the line"
        raise DataError(
            f"{file}:{number}: no event of a rollout ({place}: {first['msg']})", code="log_altered"
        ) from None


def _is_refusal(line: str) -> bool:
    try:
        said = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(said, dict) and "seq" in said


def _place(line: Line, proof: Proof) -> tuple[str, Chain, int]:
    if isinstance(line, Event):
        return "event", proof.events, line.version
    return "refusal", proof.refusals, line.seq


def _read_only(place: Place) -> sa.Engine:
    if isinstance(place, Path):
        return sa.create_engine(f"sqlite:///{place.resolve().as_uri()}?mode=ro&uri=true", poolclass=sa.NullPool)
    return open_engine(place).execution_options(**READ_ONLY)


def _rows(connection: sa.Connection, kind: type[Line], number: sa.Column[Any]) -> sa.MappingResult:
    """What a line has of a table, by number."""
    columns = [number.table.c[name] for name in kind.model_fields]
    return connection.execute(sa.select(*columns).order_by(number)).mappings()
