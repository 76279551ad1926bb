"""Whose credentials these are: the local token, an API key (serving/keys.py) or a JSON Web Token (serving/tokens.py).

The token in `<state_dir>/api_token` may do everything: who can read it owns the service's files anyway.
"""

from __future__ import annotations

import hmac
import os
import secrets
from collections.abc import Sequence
from pathlib import Path

from core.errors import ConfigError
from core.settings import Settings
from serving.keys import PREFIX, KeyRing
from serving.scopes import Principal, Scope, Unknown
from serving.tokens import TokenVerifier

TOKEN_FILE = "api_token"  # noqa: S105 - a file name
MIN_TOKEN_LENGTH = 16
LOCAL = Principal("local", frozenset({Scope.ADMIN}))


class Authenticator:
    def __init__(self, settings: Settings) -> None:
        """Raises ConfigError for an unusable token file."""
        state_dir, jwt = settings.paths.state_dir, settings.serving.jwt
        self._local = read_or_create_token(state_dir).encode()
        self._keys = KeyRing(state_dir)
        self._tokens = TokenVerifier(jwt) if jwt else None

    def who(self, authorization: Sequence[bytes]) -> Principal | Unknown:
        """Of the values of all Authorization headers, in microseconds: `UNTRIED` is a token not seen before."""
        if len(authorization) != 1:
            return Unknown.AMBIGUOUS if authorization else Unknown.MISSING
        scheme, _, credentials = authorization[0].partition(b" ")
        if scheme.lower() != b"bearer":
            return Unknown.INVALID
        if hmac.compare_digest(credentials, self._local):
            return LOCAL
        if credentials.startswith(PREFIX):
            return self._keys.who(credentials)
        return self._tokens.known(credentials) if self._tokens else Unknown.INVALID

    def look_into(self, authorization: bytes) -> Principal | Unknown:
        """Of an untried token: its signature is checked, which takes some hundred microseconds."""
        return self._tokens.who(authorization.partition(b" ")[2]) if self._tokens else Unknown.INVALID


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
