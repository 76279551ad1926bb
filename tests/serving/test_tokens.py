import hmac
import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st
from identity_provider import KEYS, by_hand, claims, jwk, publish_keys, token

from core.errors import ConfigError
from serving.scopes import Principal, Scope, Unknown
from serving.tokens import LEEWAY_S, REMEMBERED, TokenVerifier


@pytest.fixture(scope="module")
def verifier(tmp_path_factory: pytest.TempPathFactory) -> TokenVerifier:
    return TokenVerifier(publish_keys(tmp_path_factory.mktemp("provider") / "jwks.json"))


def who(verifier: TokenVerifier, text: str) -> Principal | Unknown:
    return verifier.who(text.encode())


@pytest.mark.parametrize("algorithm", KEYS)
def test_a_token_of_each_algorithm_opens_what_its_scopes_say(verifier: TokenVerifier, algorithm: str) -> None:
    expected = Principal("jwt:desk", frozenset({Scope.DECIDE, Scope.ROLLOUT_READ}))
    assert who(verifier, token(algorithm)) == expected


@pytest.mark.parametrize(
    ("scope", "known"),
    [
        ("decide", {Scope.DECIDE}),
        ("openid decide profile", {Scope.DECIDE}),
        ("admin", {Scope.ADMIN}),
        ("DECIDE decide:all", set()),
        ("", set()),
        (None, set()),
        (["admin"], set()),
        ({"admin": True}, set()),
    ],
)
def test_scopes_that_are_not_ours_open_nothing(verifier: TokenVerifier, scope: object, known: set[Scope]) -> None:
    found = who(verifier, token(scope=scope))
    assert isinstance(found, Principal)
    assert found.scopes == known


def public_pem(algorithm: str) -> bytes:
    made: bytes = KEYS[algorithm].public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return made


def signed_with_a_public_key(secret: bytes, kid: str) -> str:
    """HS256 with what everybody knows: the classic confusion of algorithms."""
    header = {"alg": "HS256", "typ": "JWT", "kid": kid}
    unsigned = by_hand(header, claims(scope="admin")).rstrip(".")
    return by_hand(header, claims(scope="admin"), hmac.digest(secret, unsigned.encode(), "sha256"))


def flipped(text: str) -> str:
    head, body, signature = text.split(".")
    return f"{head}.{body}.{'A' if signature[0] != 'A' else 'B'}{signature[1:]}"


NOW = time.time
FORGED: dict[str, Callable[[], str]] = {
    "alg none": lambda: by_hand({"alg": "none", "kid": "eddsa"}, claims(scope="admin")),
    "alg None": lambda: by_hand({"alg": "None", "kid": "eddsa"}, claims(scope="admin")),
    "no alg": lambda: by_hand({"kid": "eddsa"}, claims(scope="admin")),
    "HS256 with the RSA public key": lambda: signed_with_a_public_key(public_pem("RS256"), "rs256"),
    "HS256 with the Ed25519 public key": lambda: signed_with_a_public_key(
        KEYS["EdDSA"].public_key().public_bytes_raw(), "eddsa"
    ),
    "another key": lambda: token(key=ed25519.Ed25519PrivateKey.generate()),
    "another key's kid": lambda: token("ES256", kid="rs256"),
    "another algorithm of the key": lambda: token("RS384", kid="rs256", key=KEYS["RS256"]),
    "unknown kid": lambda: token(kid="nobody"),
    "no kid": lambda: by_hand({"alg": "EdDSA"}, claims()),
    "kid of another type": lambda: by_hand({"alg": "EdDSA", "kid": ["eddsa"]}, claims()),
    "a key in its own header": lambda: by_hand(
        {"alg": "EdDSA", "kid": "eddsa", "jwk": jwk("EdDSA", KEYS["EdDSA"], "eddsa")}, claims()
    ),
    "a changed signature": lambda: flipped(token()),
    "no signature": lambda: token().rpartition(".")[0] + ".",
    "wrong audience": lambda: token(aud="another-service"),
    "no audience": lambda: token(aud=None),
    "wrong issuer": lambda: token(iss="https://login.example.evil"),
    "no issuer": lambda: token(iss=None),
    "no expiry": lambda: token(exp=None),
    "no time of issue": lambda: token(iat=None),
    "nobody": lambda: token(sub=None),
    "issued in the future": lambda: token(iat=int(NOW()) + LEEWAY_S + 60),
    "not yet valid": lambda: token(nbf=int(NOW()) + LEEWAY_S + 60),
    "expiry that is no number": lambda: token(exp="soon"),
    "an endless expiry": lambda: token(exp=float("inf")),
    "issued at no time": lambda: token(iat=float("nan")),
    "two parts": lambda: "a.b",
    "four parts": lambda: token() + ".x",
    "not base64": lambda: "!.!.!",
    "a header that is no object": lambda: by_hand("[]", claims()),
    "a header nested too deep": lambda: by_hand('{"a":' + "[" * 40_000, claims()),
    "empty": lambda: "",
}


@pytest.mark.parametrize("how", FORGED)
def test_a_forged_token_opens_nothing(verifier: TokenVerifier, how: str) -> None:
    assert who(verifier, FORGED[how]()) is Unknown.INVALID


def test_the_tokens_above_are_wrong_in_one_thing_each(verifier: TokenVerifier) -> None:
    """What they are made from is good: none is refused for a slip of the test."""
    assert isinstance(who(verifier, token(nbf=int(NOW()), aud=["another-service", "hrm"])), Principal)


def test_expiry_counts_from_a_few_seconds_after(verifier: TokenVerifier) -> None:
    assert who(verifier, token(exp=int(NOW()) - LEEWAY_S - 1)) is Unknown.EXPIRED
    assert isinstance(who(verifier, token(exp=int(NOW()))), Principal)


@given(st.binary(max_size=60))
def test_what_is_no_token_opens_nothing(verifier: TokenVerifier, junk: bytes) -> None:
    assert verifier.known(junk) is Unknown.UNTRIED
    assert verifier.who(junk) is Unknown.INVALID


def test_a_token_is_looked_into_once(tmp_path: Path) -> None:
    verifier = TokenVerifier(publish_keys(tmp_path / "jwks.json"))
    text = token().encode()
    assert verifier.known(text) is Unknown.UNTRIED
    assert verifier.who(text) == verifier.known(text)
    assert verifier.known(text[:-1]) is Unknown.UNTRIED
    forged = token(key=ed25519.Ed25519PrivateKey.generate()).encode()
    verifier.who(forged)
    assert verifier.known(forged) is Unknown.UNTRIED


def test_a_remembered_token_expires_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    verifier = TokenVerifier(publish_keys(tmp_path / "jwks.json"))
    text = token(exp=int(NOW()) + 30).encode()
    assert isinstance(verifier.who(text), Principal)
    monkeypatch.setattr("serving.tokens.time.time", lambda: NOW() + 31 + LEEWAY_S)
    assert verifier.known(text) is Unknown.EXPIRED


def test_what_is_remembered_is_bounded(tmp_path: Path) -> None:
    verifier = TokenVerifier(publish_keys(tmp_path / "jwks.json"))
    texts = [token(sub=str(i)).encode() for i in range(REMEMBERED + 1)]
    for text in texts:
        verifier.who(text)
    assert sum(verifier.known(text) is not Unknown.UNTRIED for text in texts) <= REMEMBERED


def test_a_key_that_the_provider_withdraws_takes_its_tokens_along(tmp_path: Path) -> None:
    file = tmp_path / "jwks.json"
    new = ed25519.Ed25519PrivateKey.generate()
    verifier = TokenVerifier(publish_keys(file, jwk("EdDSA", new, "old")))
    text = token(kid="old", key=new).encode()
    assert isinstance(verifier.who(text), Principal)
    publish_keys(file)
    deadline = time.monotonic() + 60
    while verifier.known(text) is not Unknown.UNTRIED:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert verifier.who(text) is Unknown.INVALID


def test_a_key_too_short_to_protect_anything_is_not_used(tmp_path: Path) -> None:
    weak = rsa.generate_private_key(65537, 1024)
    verifier = TokenVerifier(publish_keys(tmp_path / "jwks.json", jwk("RS256", weak, "weak")))
    header, payload = {"alg": "RS256", "kid": "weak"}, claims()
    unsigned = by_hand(header, payload).rstrip(".").encode()
    signature = weak.sign(unsigned, padding.PKCS1v15(), hashes.SHA256())
    assert who(verifier, by_hand(header, payload, signature)) is Unknown.INVALID


@pytest.mark.parametrize(
    "document",
    [
        "{",
        "[]",
        "{}",
        '{"keys": []}',
        '{"keys": [{"kty": "oct", "kid": "eddsa", "k": "c2VjcmV0", "alg": "HS256"}]}',
        '{"keys": ["eddsa"]}',
    ],
)
def test_a_file_without_a_public_key_opens_for_nobody(tmp_path: Path, document: str) -> None:
    file = tmp_path / "jwks.json"
    settings = publish_keys(file)
    verifier = TokenVerifier(settings)
    file.write_text(document)
    assert who(verifier, token()) is Unknown.INVALID
    with pytest.raises(ConfigError, match="jwks_file"):  # nor does a service start with it
        TokenVerifier(settings)


def test_a_file_that_goes_away_takes_its_keys_along(tmp_path: Path) -> None:
    settings = publish_keys(tmp_path / "jwks.json")
    verifier = TokenVerifier(settings)
    settings.jwks_file.unlink()
    assert who(verifier, token()) is Unknown.INVALID
    with pytest.raises(ConfigError, match="jwks_file"):
        TokenVerifier(settings)


def test_a_symmetric_key_beside_public_ones_is_passed_over(tmp_path: Path) -> None:
    secret = {"kty": "oct", "kid": "shared", "k": "c2VjcmV0" * 8, "alg": "HS256"}
    verifier = TokenVerifier(publish_keys(tmp_path / "jwks.json", secret))
    assert json.loads((tmp_path / "jwks.json").read_text())["keys"][-1] == secret
    assert isinstance(who(verifier, token()), Principal)
    assert who(verifier, token("HS256", kid="shared", key=b"secret" * 8)) is Unknown.INVALID
