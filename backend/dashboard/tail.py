"""The newest decisions on record, followed as they are written: each byte is read once, and never too many of them.

What a record is: serving/record_format.py. Only the facts are looked at, none of the arrays. Bytes that are no whole
record are passed over, as everywhere (serving/audit.py); at the end of a file they may be one that is being written.
"""

from __future__ import annotations

import threading
import zlib
from collections.abc import Iterator
from pathlib import Path

from pydantic import ValidationError

from core.errors import DataError
from serving.record_format import FRAME, LENGTH, MAGIC, DecisionFacts, Header
from serving.records import FILE_PATTERN

KEPT = 5000  # decisions
FILES = 16  # that were written to last
MOST_BYTES = 16_000_000  # at a time; what is older than these is not shown


class Tail:
    """Safe in threads."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._read: dict[Path, int] = {}  # up to this byte
        self._kept: list[DecisionFacts] = []

    def decisions(self) -> list[DecisionFacts]:
        """The newest ones of all processes, oldest first. Raises OSError, DataError."""
        with self._lock:
            return self._newest()

    def _newest(self) -> list[DecisionFacts]:
        room = MOST_BYTES
        for file in self._files():
            size = file.stat().st_size
            start = max(self._read.get(file, 0), size - room)
            room -= max(0, size - start)
            found, end = _read(file, start, size)
            if found:  # kept before the next file is opened, which may be gone by now
                self._kept = sorted([*self._kept, *found], key=lambda facts: facts.decision_id)[-KEPT:]
            self._read[file] = end
        return self._kept

    def _files(self) -> list[Path]:
        """Those written to last, the newest first."""
        if not self._folder.is_dir():
            return []
        found = [file for file in self._folder.iterdir() if FILE_PATTERN.fullmatch(file.name)]
        return sorted(found, key=lambda file: (file.stat().st_mtime, file.name), reverse=True)[:FILES]


def _read(file: Path, start: int, size: int) -> tuple[list[DecisionFacts], int]:
    """Decisions between two bytes, and up to where the file is done with."""
    if start >= size:
        return [], start
    with file.open("rb") as stream:
        stream.seek(start)
        data = stream.read(size - start)
    found, end = [], 0
    for at, header in _headers(data):
        end = at
        if isinstance(header.facts, DecisionFacts):
            found.append(header.facts)
    return found, start + end


def _headers(data: bytes) -> Iterator[tuple[int, Header]]:
    """Of every whole record, with the byte after it."""
    at = 0
    while (at := data.find(MAGIC, at)) >= 0 and at + FRAME.size <= len(data):
        _, length, checksum = FRAME.unpack_from(data, at)
        body = data[at + FRAME.size : at + FRAME.size + length]
        if len(body) < max(length, LENGTH.size) or zlib.crc32(body) != checksum:
            at += 1
            continue
        at += FRAME.size + length
        (header,) = LENGTH.unpack_from(body)
        yield at, _header(body[LENGTH.size : LENGTH.size + header])


def _header(text: bytes) -> Header:
    try:
        return Header.model_validate_json(text)
    except ValidationError as error:
        what = f"a decision is on record that this version cannot read ({error.error_count()} problems)"
        raise DataError(f"{what}; run the backend of the version that wrote it", code="record_unreadable") from None
