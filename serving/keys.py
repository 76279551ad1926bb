"""API keys: `hrm_<id>_<secret>`, shown once; what is kept tells who holds one but cannot be used as one.

    <state_dir>/api_keys.json    of each key its id, name, scopes, times and HMAC-SHA256(pepper, key)  (0600)
    <state_dir>/keys/pepper      32 random bytes, in hex: without it the file above says nothing       (0600)

A secret has 256 random bits, so that a plain HMAC is enough: there is nothing to guess.
"""

from __future__ import annotations

import fcntl
import hmac
import os
import secrets
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from core.errors import ConfigError
from core.files import write_atomically
from core.signing import KEYS
from serving.scopes import Principal, Scope, Unknown
from serving.watched import Watched

KEYS_FILE = "api_keys.json"
PEPPER_FILE = "pepper"
PREFIX = b"hrm_"
ID_BYTES, SECRET_BYTES, PEPPER_BYTES = 6, 32, 32
ID_END = len(PREFIX) + 2 * ID_BYTES
NEVER = float("inf")


class ApiKey(BaseModel):
    """A key as it is kept."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(pattern=r"^[0-9a-f]{12}$")
    name: str = Field(pattern=r"^[\w.@ -]{1,64}$", description="whose it is, for a person")
    mac: str = Field(pattern=r"^[0-9a-f]{64}$", description="HMAC-SHA256 of the whole key")
    scopes: tuple[Scope, ...] = Field(min_length=1)
    created_at: AwareDatetime
    expires_at: AwareDatetime | None = None


class KeyFile(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    keys: tuple[ApiKey, ...] = ()


class _Kept(NamedTuple):
    mac: bytes
    expires_s: float  # Unix time
    principal: Principal


class KeyRing:
    """The keys that a running service accepts; those made or revoked meanwhile count within a second or two."""

    def __init__(self, state_dir: Path) -> None:
        self._pepper = state_dir / KEYS / PEPPER_FILE
        self._kept: Watched[tuple[bytes, Mapping[bytes, _Kept]]] = Watched(
            state_dir / KEYS_FILE, self._parse, (b"", {})
        )

    def who(self, key: bytes) -> Principal | Unknown:
        """Whose key this is. Takes as long for a wrong secret as for a right one."""
        pepper, kept = self._kept.content()
        found = kept.get(key[len(PREFIX) : ID_END])
        if found is None or not hmac.compare_digest(hmac.digest(pepper, key, "sha256"), found.mac):
            return Unknown.INVALID
        return found.principal if time.time() < found.expires_s else Unknown.EXPIRED

    def _parse(self, data: bytes) -> tuple[bytes, Mapping[bytes, _Kept]]:
        keys = _parse(data).keys
        return _read_pepper(self._pepper), {key.id.encode(): _kept(key) for key in keys}


def create(
    state_dir: Path, name: str, scopes: tuple[Scope, ...], *, expires_at: datetime | None = None
) -> tuple[ApiKey, str]:
    """A new key, and its text, which is kept nowhere. Raises ConfigError."""
    with _changing(state_dir) as pepper:
        known = read(state_dir)
        identity = secrets.token_hex(ID_BYTES)
        text = f"{PREFIX.decode()}{identity}_{secrets.token_urlsafe(SECRET_BYTES)}"
        try:
            key = ApiKey(
                id=identity,
                name=name,
                mac=hmac.digest(pepper, text.encode(), "sha256").hex(),
                scopes=tuple(sorted(set(scopes))),
                created_at=datetime.now(UTC),
                expires_at=expires_at,
            )
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            raise ConfigError(f"a key's {first['loc'][0]}: {first['msg']}", code="usage") from None
        _write(state_dir, KeyFile(keys=(*known, key)))
    return key, text


def revoke(state_dir: Path, key_id: str) -> ApiKey:
    """The key that is none any more. Raises ConfigError if there is no such key."""
    with _changing(state_dir):
        known = read(state_dir)
        gone = [key for key in known if key.id == key_id]
        if not gone:
            raise ConfigError(
                f"no key has the id '{key_id}'; `hrm keys list` shows those there are", code="no_such_key"
            )
        _write(state_dir, KeyFile(keys=tuple(key for key in known if key.id != key_id)))
    return gone[0]


def read(state_dir: Path) -> tuple[ApiKey, ...]:
    """Every key, oldest first. Raises ConfigError if the file is damaged."""
    file = state_dir / KEYS_FILE
    try:
        return _parse(file.read_bytes()).keys
    except FileNotFoundError:
        return ()
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from None


def lifetime(days: int) -> datetime:
    return datetime.now(UTC) + timedelta(days=days)


def _parse(data: bytes) -> KeyFile:
    try:
        return KeyFile.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"not a file of keys ({place}: {first['msg']}); restore it, or delete it") from None


def _kept(key: ApiKey) -> _Kept:
    expires_s = key.expires_at.timestamp() if key.expires_at else NEVER
    return _Kept(bytes.fromhex(key.mac), expires_s, Principal(f"key:{key.id}", frozenset(key.scopes)))


def _write(state_dir: Path, keys: KeyFile) -> None:
    write_atomically(state_dir / KEYS_FILE, keys.model_dump_json(indent=2).encode(), mode=0o600)


@contextmanager
def _changing(state_dir: Path) -> Iterator[bytes]:
    """One change at a time, so that none undoes another; gives the pepper, made on first use."""
    folder = state_dir / KEYS
    folder.mkdir(parents=True, exist_ok=True, mode=0o755)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        file = folder / PEPPER_FILE
        if not file.exists():
            write_atomically(file, secrets.token_hex(PEPPER_BYTES).encode() + b"\n", mode=0o600)
        yield _read_pepper(file)
    finally:
        os.close(descriptor)


def _read_pepper(file: Path) -> bytes:
    try:
        if file.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise ConfigError(f"{file}: open to other users; `chmod 600`, and make new keys")
        pepper = bytes.fromhex(file.read_text(encoding="ascii").strip())
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{file}: not readable ({error}); restore it, or revoke every key and make new ones"
        ) from None
    if len(pepper) != PEPPER_BYTES:
        raise ConfigError(f"{file}: not {PEPPER_BYTES} bytes in hex; restore it, or revoke every key and make new ones")
    return pepper
