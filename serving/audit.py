"""Reads decision records (serving/records.py): by id, by request, by time. Live files, and the archive alike.

A frame that was torn by a crash, or damaged, is left out with a warning that names the place; what follows it is read.
"""

from __future__ import annotations

import heapq
import json
import mmap
import re
import zlib
from collections.abc import Collection, Iterator
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path

import structlog

from core.errors import DataError
from serving.record_format import FRAME, ID_PATTERN, LENGTH, MAGIC, Record, decode, file_name
from serving.records import ARCHIVE, FILE_PATTERN

log = structlog.get_logger()


def find(folder: Path, decision_id: str) -> Record:
    """The record of one decision. Raises DataError."""
    if not re.fullmatch(ID_PATTERN, decision_id):
        raise DataError(f"'{decision_id}' is no decision id; `decision_id` of an answer is one", code="no_decision_id")
    for place in (folder, folder / ARCHIVE):
        if (place / file_name(decision_id)).exists():
            for record in _containing(place / file_name(decision_id), decision_id):
                if record.facts.decision_id == decision_id:
                    return record
    raise DataError(
        f"{folder}: no record of {decision_id}; if its answer said recorded: false there is none, if it is old the "
        f"archive may have been moved",
        code="decision_not_found",
    )


def find_request(folder: Path, request_id: str) -> list[Record]:
    """Every decision on that request, in the order of their ids: callers choose request ids, and may repeat them."""
    found = (record for file in _files(folder) for record in _containing(file, request_id))
    return sorted((record for record in found if record.facts.request_id == request_id), key=_id)


def between(folder: Path, since: float, until: float) -> Iterator[Record]:
    """Decisions from `since` to before `until`, Unix s, by id; those of one process in the order they were made in."""
    first, last = (f"{datetime.fromtimestamp(at, UTC):%Y%m%d}" for at in (since, until))
    files = [file for file in _files(folder) if first <= file.name[:8] <= last]
    for _, days in groupby(files, key=lambda file: file.name[:8]):
        for record in heapq.merge(*(read(file) for file in days), key=_id):
            if since <= record.facts.at < until:
                yield record


def of_ids(folder: Path, ids: Collection[str]) -> Iterator[Record]:
    """Those of these decisions that are on record, whenever they were made: an id says in which file."""
    files = {file_name(each) for each in ids if re.fullmatch(ID_PATTERN, each)}
    for file in _files(folder):
        if file.name in files:
            yield from (record for record in read(file) if record.facts.decision_id in ids)


def read(file: Path) -> Iterator[Record]:
    """Every whole record of a file, in the order it was written in; the file may still be growing. Raises DataError."""
    return (_decode(body, file) for body in _bodies(file))


def _containing(file: Path, text: str) -> Iterator[Record]:
    """Records whose bytes contain `text` as a JSON string: those that are worth parsing."""
    needle = json.dumps(text, ensure_ascii=False).encode()
    return (_decode(body, file) for body in _bodies(file) if needle in body)


def _files(folder: Path) -> list[Path]:
    """By day, then worker."""
    found = [file for place in (folder / ARCHIVE, folder) if place.is_dir() for file in place.iterdir()]
    return sorted((file for file in found if FILE_PATTERN.fullmatch(file.name)), key=lambda file: file.name)


def _id(record: Record) -> str:
    return record.facts.decision_id


def _bodies(file: Path) -> Iterator[bytes]:
    with file.open("rb") as stream:
        if stream.seek(0, 2) == 0:
            return
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            at = end = 0
            while (at := data.find(MAGIC, at)) >= 0:
                body = _body(data, at)
                if body is None:  # torn, or these bytes are part of something else
                    at += 1
                    continue
                if at > end:
                    log.warning("records_damaged", file=str(file), from_byte=end, to_byte=at)
                yield body
                at = end = at + FRAME.size + len(body)


def _body(data: mmap.mmap, at: int) -> bytes | None:
    """The body of the frame that begins at `at`, if it is whole."""
    if at + FRAME.size > len(data):
        return None
    _, length, checksum = FRAME.unpack_from(data, at)
    start = at + FRAME.size
    if length < LENGTH.size or start + length > len(data):  # zeros after the first bytes: a page that was never written
        return None
    body = data[start : start + length]
    return body if zlib.crc32(body) == checksum else None


def _decode(body: bytes, file: Path) -> Record:
    """Raises DataError where whole bytes are no record of a version that is known."""
    try:
        return decode(body)
    except ValueError as error:
        raise DataError(
            f"{file}: holds a record that this version cannot read ({error}); read it with the version that wrote it",
            code="record_unreadable",
        ) from None
