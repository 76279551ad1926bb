"""A small file that is read again when it changes: keys are made and revoked without a restart."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

import structlog

from core.errors import ConfigError

log = structlog.get_logger()

Content = TypeVar("Content")
LOOK_EVERY_S = 1.0


class Watched(Generic[Content]):
    """What `parse` makes of a file, at most a second old; `nothing` while it is absent or unusable, which is logged."""

    def __init__(self, file: Path, parse: Callable[[bytes], Content], nothing: Content) -> None:
        """`parse` may raise ConfigError."""
        self._file = file
        self._parse = parse
        self._nothing = self._content = nothing
        self._state: tuple[int, ...] | None = None
        self._look_at = 0.0

    def content(self) -> Content:
        now = time.monotonic()
        if now >= self._look_at:
            self._look_at = now + LOOK_EVERY_S
            self._look()
        return self._content

    def _look(self) -> None:
        try:
            found = self._file.stat()
            state = (found.st_ino, found.st_mtime_ns, found.st_size)
            if state == self._state:
                return
            self._state, self._content = state, self._parse(self._file.read_bytes())
        except FileNotFoundError:
            if self._state is not None:
                log.warning("keys_gone", file=str(self._file))
            self._state, self._content = None, self._nothing
        except (OSError, ConfigError) as error:  # what cannot be read opens for nobody
            self._content = self._nothing
            log.error("keys_unusable", file=str(self._file), error=str(error))
