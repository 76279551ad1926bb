"""Whose credentials these are: the local token, an API key (serving/keys.py) or a JSON Web Token (serving/tokens.py).

The token in `<state_dir>/api_token` may do everything: who can read it owns the service's files anyway.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence

from core.settings import Settings
from serving.keys import PREFIX, KeyRing
from serving.local_token import read_or_create_token
from serving.scopes import Principal, Scope, Unknown
from serving.tokens import TokenVerifier

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
