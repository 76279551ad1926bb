"""Who may publish a model: Ed25519 signatures of manifests (RFC 8032, by `cryptography`) and whom this machine trusts.

    <state_dir>/keys/signing.pem      private key of whoever publishes here (0600), made when first needed
    <state_dir>/keys/trusted/*.pem    public keys that count: the own one, and what an operator puts there

A signature covers the DSSE pre-authentication encoding of the exact bytes of a file, `DSSEv1 length type length bytes`:
the type in it keeps a signature of a manifest from passing for one of anything else made with the same key. Keys lie
beside the models, never among them: whoever may write models could otherwise say whom to trust.
"""

from __future__ import annotations

import os
import secrets
import stat
from base64 import b64decode, b64encode
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from core.errors import ConfigError, ModelError
from core.files import sha256_hex, write_atomically

if TYPE_CHECKING:  # tens of milliseconds to import, and only who signs or verifies needs it
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

TrustedKeys = Mapping[str, "Ed25519PublicKey"]  # by key id
KEYS = "keys"
SIGNING_KEY = "signing.pem"
TRUSTED = "trusted"
MANIFEST_TYPE = "application/vnd.hrm.manifest+json"
OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH
OTHERS_MAY_ANYTHING = stat.S_IRWXG | stat.S_IRWXO


class Signature(BaseModel):
    """What lies beside a signed file, as JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key_id: str = Field(pattern=r"^[0-9a-f]{16}$", description="start of the SHA-256 of the public key's 32 bytes")
    algorithm: Literal["ed25519"] = "ed25519"
    signature: str = Field(pattern=r"^[A-Za-z0-9+/]{86}==$", description="base64 of 64 bytes")


def keys_beside(store: Path) -> Path:
    """The keys of the state directory that holds the model store; of a link, where the link is, not where it leads."""
    return store.absolute().parent / KEYS


def sign(data: bytes, keys: Path) -> bytes:
    """The signature file for `data` with this machine's key, made if there is none. Raises ConfigError."""
    key = _signing_key(keys)
    signed = b64encode(key.sign(_to_be_signed(data))).decode()
    return Signature(key_id=key_id(key.public_key()), signature=signed).model_dump_json(indent=2).encode()


def verify(data: bytes, signature: bytes, trusted: TrustedKeys, what: str) -> None:
    """Raises ModelError unless a trusted key signed exactly `data`; `what` names it for a person."""
    from cryptography.exceptions import InvalidSignature

    try:
        stated = Signature.model_validate_json(signature)
    except ValidationError:
        raise ModelError(
            f"{what}: its signature is not readable; publish the model again, or sign it", code="signature_invalid"
        ) from None
    key = trusted.get(stated.key_id)
    if key is None:
        raise ModelError(
            f"{what}: signed by {stated.key_id}, which is not trusted here; if you know who that is, "
            f"`hrm keys show` there and `hrm keys trust FILE` here",
            code="signer_unknown",
        )
    try:
        key.verify(b64decode(stated.signature), _to_be_signed(data))
    except InvalidSignature:
        raise ModelError(
            f"{what}: differs from what {stated.key_id} signed: it was altered, or the signature is another "
            f"version's; publish the model again under a new version",
            code="signature_invalid",
        ) from None


def trusted_keys(keys: Path) -> TrustedKeys:
    """Public keys by id. Raises ModelError if one is unreadable or others than its owner could have put it there."""
    folder = keys / TRUSTED
    try:
        for place in (keys, folder):
            _require_private(place, OTHERS_MAY_WRITE)
        return {key_id(key): key for key in map(_read_trusted, sorted(folder.glob("*.pem")))}
    except FileNotFoundError:
        return {}
    except (OSError, ConfigError) as error:
        raise ModelError(f"{folder}: {error}", code="trust_unreadable") from None


def trust(pem: bytes, keys: Path) -> str:
    """Trust models signed with this public key from now on; its id. Raises ConfigError if it is none of Ed25519."""
    key = _public_key(pem)
    _write_trusted(key, keys)
    return key_id(key)


def public_pem(keys: Path) -> tuple[str, bytes]:
    """Id and PEM of this machine's public key, for other machines to trust; made if there is none."""
    key = _signing_key(keys).public_key()
    return key_id(key), _pem(key)


def key_id(key: Ed25519PublicKey) -> str:
    return sha256_hex(key.public_bytes_raw())[:16]


def _to_be_signed(data: bytes) -> bytes:
    """DSSE v1.0.2, pre-authentication encoding."""
    return b"DSSEv1 %d %s %d %s" % (len(MANIFEST_TYPE), MANIFEST_TYPE.encode(), len(data), data)


def _signing_key(keys: Path) -> Ed25519PrivateKey:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    file = keys / SIGNING_KEY
    if not file.exists():
        _create(file)
    _require_private(keys, OTHERS_MAY_WRITE)
    _require_private(file, OTHERS_MAY_ANYTHING)
    try:
        key = load_pem_private_key(file.read_bytes(), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm, OSError) as error:
        raise ConfigError(f"{file}: not a readable private key ({error}); move it away for a new one") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(f"{file}: not an Ed25519 key; move it away for a new one")
    return key


def _create(file: Path) -> None:
    """Whole or absent and never readable by others; of two processes that make one, one wins and is trusted."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    key = Ed25519PrivateKey.generate()
    temporary = file.with_name(f".{file.name}.{secrets.token_hex(8)}")
    own = _write_trusted(key.public_key(), file.parent)
    try:
        write_atomically(temporary, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), mode=0o600)
        os.link(temporary, file)
    except FileExistsError:
        own.unlink()
    finally:
        temporary.unlink(missing_ok=True)


def _write_trusted(key: Ed25519PublicKey, keys: Path) -> Path:
    for folder in (keys, keys / TRUSTED):
        folder.mkdir(parents=True, exist_ok=True, mode=0o755)  # whatever the umask: never for others to write
    file = keys / TRUSTED / f"{key_id(key)}.pem"
    write_atomically(file, _pem(key))
    return file


def _read_trusted(file: Path) -> Ed25519PublicKey:
    _require_private(file, OTHERS_MAY_WRITE)
    try:
        return _public_key(file.read_bytes())
    except ConfigError as error:
        raise ConfigError(f"{file.name}: {error}") from None


def _public_key(pem: bytes) -> Ed25519PublicKey:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm):
        raise ConfigError("not a public key in PEM form; `hrm keys show` prints one", code="key_invalid") from None
    if not isinstance(key, Ed25519PublicKey):
        raise ConfigError("not an Ed25519 key; `hrm keys show` prints one", code="key_invalid")
    return key


def _pem(key: Ed25519PublicKey) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def _require_private(place: Path, forbidden: int) -> None:
    """Raises ConfigError if another user than this one and root owns or may use what only they should."""
    state = place.stat()
    if state.st_uid not in (os.geteuid(), 0) or state.st_mode & forbidden:
        raise ConfigError(f"{place}: belongs to or is open to other users; `chown` it to yourself, `chmod go-rwx`")
