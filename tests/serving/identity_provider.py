"""An identity provider of twenty lines: keys, the JWKS file that tells of them, and tokens, right ones and others."""

from __future__ import annotations

import json
import time
from base64 import urlsafe_b64encode
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from core.files import write_atomically
from core.settings import Jwt

ISSUER, AUDIENCE = "https://login.example", "hrm"
KEYS: dict[str, Any] = {
    "EdDSA": ed25519.Ed25519PrivateKey.generate(),
    "ES256": ec.generate_private_key(ec.SECP256R1()),
    "RS256": rsa.generate_private_key(65537, 2048),
}


def jwk(algorithm: str, key: Any, kid: str) -> dict[str, Any]:
    described = jwt.get_algorithm_by_name(algorithm).to_jwk(key.public_key(), as_dict=True)
    return {**described, "kid": kid, "alg": algorithm, "use": "sig"}


def publish_keys(file: Path, *more: dict[str, Any]) -> Jwt:
    keys = [*(jwk(algorithm, key, algorithm.lower()) for algorithm, key in KEYS.items()), *more]
    write_atomically(file, json.dumps({"keys": keys}).encode())
    return Jwt(issuer=ISSUER, audience=AUDIENCE, jwks_file=file)


def claims(**changes: Any) -> dict[str, Any]:
    """Good for a minute. A change to None leaves the claim out."""
    now = int(time.time())
    made = {"iss": ISSUER, "aud": AUDIENCE, "sub": "desk", "iat": now, "exp": now + 60, "scope": "decide rollout:read"}
    return {name: value for name, value in (made | changes).items() if value is not None}


def token(algorithm: str = "EdDSA", *, kid: str | None = None, key: Any = None, **changes: Any) -> str:
    headers = {"kid": kid or algorithm.lower()}
    return jwt.encode(claims(**changes), key or KEYS[algorithm], algorithm=algorithm, headers=headers)


def by_hand(header: dict[str, Any] | str, payload: dict[str, Any], signature: bytes = b"") -> str:
    """A token that no library would make."""
    parts = [header if isinstance(header, str) else json.dumps(header), json.dumps(payload)]
    return ".".join(urlsafe_b64encode(part).rstrip(b"=").decode() for part in [*(p.encode() for p in parts), signature])
