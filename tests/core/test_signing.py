import base64
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_public_key,
)
from hypothesis import given
from hypothesis import strategies as st

from core.errors import ConfigError, ModelError
from core.files import write_atomically
from core.signing import SIGNING_KEY, TRUSTED, keys_beside, public_pem, sign, trust, trusted_keys, verify

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    return tmp_path / "keys"


def test_what_was_signed_here_is_trusted_here(keys: Path) -> None:
    verify(b"manifest", sign(b"manifest", keys), trusted_keys(keys), "it")


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    keys = tmp_path_factory.mktemp("state") / "keys"
    return keys, sign(b"manifest", keys)


@given(st.binary(max_size=40).filter(lambda data: data != b"manifest"))
def test_a_signature_holds_for_no_other_bytes(signed: tuple[Path, bytes], data: bytes) -> None:
    keys, signature = signed
    with pytest.raises(ModelError) as error:
        verify(data, signature, trusted_keys(keys), "it")
    assert error.value.code == "signature_invalid"


@given(st.binary(max_size=200))
def test_what_is_no_signature_is_refused(signed: tuple[Path, bytes], junk: bytes) -> None:
    with pytest.raises(ModelError) as error:
        verify(b"manifest", junk, trusted_keys(signed[0]), "it")
    assert error.value.code == "signature_invalid"


def test_a_signature_is_over_what_dsse_says(keys: Path) -> None:
    """Anyone with the public key can check it without our code."""
    signature = sign(b"{}", keys)
    name = next((keys / TRUSTED).glob("*.pem")).stem
    assert f'"key_id": "{name}"'.encode() in signature
    public = load_pem_public_key(public_pem(keys)[1])
    payload = b"DSSEv1 33 application/vnd.hrm.manifest+json 2 {}"
    assert isinstance(public, ed25519.Ed25519PublicKey)
    public.verify(base64.b64decode(json.loads(signature)["signature"]), payload)


def test_the_private_key_is_only_its_owners(keys: Path) -> None:
    sign(b"", keys)
    assert (keys / SIGNING_KEY).stat().st_mode & 0o777 == 0o600
    assert sorted(file.name for file in keys.iterdir()) == [SIGNING_KEY, TRUSTED]


def test_another_machines_signature_counts_once_its_key_is_trusted(keys: Path, tmp_path: Path) -> None:
    there = tmp_path / "there"
    signature = sign(b"manifest", there)
    with pytest.raises(ModelError, match="hrm keys trust") as error:
        verify(b"manifest", signature, trusted_keys(keys), "it")
    assert error.value.code == "signer_unknown"
    name, pem = public_pem(there)
    assert trust(pem, keys) == name
    verify(b"manifest", signature, trusted_keys(keys), "it")
    assert not (keys / SIGNING_KEY).exists()  # who only serves signs nothing


def test_a_key_that_is_no_longer_trusted_no_longer_counts(keys: Path) -> None:
    signature = sign(b"manifest", keys)
    next((keys / TRUSTED).glob("*.pem")).unlink()
    sign(b"another", keys)  # publishing again does not bring the trust back
    with pytest.raises(ModelError, match="not trusted"):
        verify(b"manifest", signature, trusted_keys(keys), "it")


def test_of_processes_that_make_a_key_at_once_one_wins(keys: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        names = set(pool.map(lambda _: public_pem(keys)[0], range(8)))
    assert {file.stem for file in (keys / TRUSTED).iterdir()} == names
    assert len(names) == 1


@pytest.mark.parametrize("place", ["", SIGNING_KEY, TRUSTED])
def test_keys_that_others_may_write_are_not_used(keys: Path, place: str) -> None:
    signature = sign(b"manifest", keys)
    (keys / place).chmod(0o666 if place == SIGNING_KEY else 0o777)
    with pytest.raises((ConfigError, ModelError), match="other users"):
        verify(b"manifest", signature, trusted_keys(keys), "it")
        sign(b"manifest", keys)


def test_a_trusted_key_that_others_may_replace_is_not_used(keys: Path) -> None:
    signature = sign(b"manifest", keys)
    next((keys / TRUSTED).iterdir()).chmod(0o664)  # as a copy is under many a umask
    with pytest.raises(ModelError, match="other users") as error:
        verify(b"manifest", signature, trusted_keys(keys), "it")
    assert error.value.code == "trust_unreadable"


def test_a_permissive_umask_opens_nothing(keys: Path) -> None:
    before = os.umask(0)
    try:
        verify(b"manifest", sign(b"manifest", keys), trusted_keys(keys), "it")
    finally:
        os.umask(before)


def private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def test_keys_of_another_kind_are_refused_by_name(keys: Path) -> None:
    other = ec.generate_private_key(ec.SECP256R1())
    for pem in (b"", b"junk", other.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)):
        with pytest.raises(ConfigError, match="hrm keys show"):
            trust(pem, keys)
    for pem in (b"junk", private_pem(other)):
        write_atomically(keys / SIGNING_KEY, pem, mode=0o600)
        with pytest.raises(ConfigError, match=r"signing\.pem"):
            sign(b"", keys)


def test_a_trusted_file_that_is_no_key_is_named_not_passed_over(keys: Path) -> None:
    sign(b"", keys)
    (keys / TRUSTED / "copied.pem").write_text("half")
    with pytest.raises(ModelError, match=r"copied\.pem") as error:
        trusted_keys(keys)
    assert error.value.code == "trust_unreadable"


def test_of_a_linked_store_the_keys_are_beside_the_link(tmp_path: Path) -> None:
    (tmp_path / "real/models").mkdir(parents=True)
    (tmp_path / "run").mkdir()
    link = tmp_path / "run/models"
    link.symlink_to(tmp_path / "real/models")
    assert keys_beside(link) == tmp_path / "run/keys"


def test_manifests_are_read_without_the_weight_of_cryptography() -> None:
    code = "import sys, core.manifest; print('cryptography' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"
