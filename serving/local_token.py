"""The service's own token, `<state_dir>/api_token`: whoever can read it owns the files beside it anyway."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from core.errors import ConfigError

TOKEN_FILE = "api_token"  # noqa: S105 - a file name
MIN_TOKEN_LENGTH = 16


def read_or_create_token(state_dir: Path) -> str:
    """The service's token from `<state_dir>/api_token` (0600), made on first use. Raises ConfigError."""
    file = state_dir / TOKEN_FILE
    try:
        state_dir.mkdir(parents=True, exist_ok=True)
        _create(file)
        token = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: the API token is not readable: {error}; check its owner and mode") from None
    if len(token) < MIN_TOKEN_LENGTH:
        raise ConfigError(f"{file}: token shorter than {MIN_TOKEN_LENGTH} characters; delete it for a new one")
    return token


def _create(file: Path) -> None:
    """Whole or absent, and never readable by others: written beside, then linked, so that one of two wins."""
    if file.exists():
        return
    temporary = file.with_name(f".{file.name}.{secrets.token_hex(8)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w") as stream:
            stream.write(secrets.token_urlsafe(32) + "\n")
        os.link(temporary, file)
    except FileExistsError:
        pass  # another process made one first: that one counts
    finally:
        temporary.unlink(missing_ok=True)
