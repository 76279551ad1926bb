"""JSON Web Tokens of an identity provider (RFC 7519, RFC 8725), by PyJWT.

Public keys come from a JWKS file; `kid` selects one, and the key says the algorithm: a token cannot choose it, so one
"signed" with a public key or with nothing fails. iss, aud, sub, exp and iat are required. `scope` is the claim of
RFC 8693: names separated by spaces, of which those that are ours count.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from core.errors import ConfigError
from core.settings import Jwt
from serving.scopes import Principal, Scope, Unknown
from serving.watched import Watched

if TYPE_CHECKING:  # only who has `serving.jwt` needs it
    from jwt import PyJWK

ALGORITHMS = ("EdDSA", "ES256", "RS256")
REQUIRED = ("iss", "aud", "sub", "exp", "iat")
LEEWAY_S = 5  # between the provider's clock and ours
REMEMBERED = 256  # tokens whose signature was checked: that takes 60 to 150 us


class TokenVerifier:
    def __init__(self, settings: Jwt) -> None:
        """Raises ConfigError if there is no usable key file now; one that goes bad later opens for nobody."""
        try:
            _parse(settings.jwks_file.read_bytes())
        except (OSError, ConfigError) as error:
            raise ConfigError(
                f"serving.jwt.jwks_file {settings.jwks_file}: {error}; store the provider's keys"
            ) from None
        self._settings = settings
        self._keys: Watched[Mapping[str, PyJWK]] = Watched(settings.jwks_file, _parse, {})
        self._known: dict[bytes, tuple[Mapping[str, PyJWK], Principal, int]] = {}

    def known(self, token: bytes) -> Principal | Unknown:
        """Of a token that was verified with the keys there are now; `UNTRIED` for any other."""
        found = self._known.get(token)
        if found is None or found[0] is not self._keys.content():
            return Unknown.UNTRIED
        return found[1] if time.time() < found[2] else Unknown.EXPIRED

    def who(self, token: bytes) -> Principal | Unknown:
        """Verifies the token, and remembers one that is good."""
        import jwt

        keys = self._keys.content()
        try:
            claims = self._claims(token.decode("ascii"), keys)
        except jwt.ExpiredSignatureError:
            return Unknown.EXPIRED
        except (jwt.PyJWTError, ValueError, RecursionError, OverflowError):
            # Not ASCII; a header nested a thousand deep; a time that is infinite.
            return Unknown.INVALID
        principal = Principal(f"jwt:{claims['sub'][:128]}", _scopes(claims))
        if len(self._known) >= REMEMBERED:
            self._known.clear()
        self._known[token] = keys, principal, int(claims["exp"]) + LEEWAY_S
        return principal

    def _claims(self, token: str, keys: Mapping[str, PyJWK]) -> dict[str, Any]:
        import jwt

        key = keys.get(str(jwt.get_unverified_header(token).get("kid")))
        if key is None:
            raise jwt.InvalidTokenError("unknown kid")
        return jwt.decode(
            token,
            key,
            algorithms=[key.algorithm_name],
            audience=self._settings.audience,
            issuer=self._settings.issuer,
            leeway=LEEWAY_S,
            options={"require": [*REQUIRED], "enforce_minimum_key_length": True},
        )


def _scopes(claims: Mapping[str, Any]) -> frozenset[Scope]:
    named = claims.get("scope", "")
    known = {str(scope) for scope in Scope}
    return frozenset(Scope(name) for name in named.split() if name in known) if isinstance(named, str) else frozenset()


def _parse(data: bytes) -> Mapping[str, PyJWK]:
    import jwt

    try:
        usable = jwt.PyJWKSet.from_dict(json.loads(data)).keys
    except (jwt.PyJWTError, ValueError, AttributeError, TypeError) as error:
        raise ConfigError(f"not a JWKS file: {error}") from None
    keys = {key.key_id: key for key in usable if key.key_id and key.algorithm_name in ALGORITHMS}
    if not keys:
        raise ConfigError(f"holds no key with a `kid` for one of {', '.join(ALGORITHMS)}")
    return keys
