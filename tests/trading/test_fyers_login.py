"""The day's login: from the broker's page to a token that only its owner can read."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from fyers_account import elsewhere
from pydantic import SecretStr
from test_fyers_history import SYMBOL, candles

from core.errors import BrokerError, ConfigError
from tests.fyers_emulator.process import Emulator
from trading.fyers.client import Access, Clients
from trading.fyers.login import App, Credentials, code_in, credentials, exchange, login_page, store

REDIRECT = "https://127.0.0.1/redirected"
HRM = Path(sys.executable).parent / "hrm"


@pytest.fixture
def app(emulator: Emulator) -> App:
    return App(emulator.client_id, SecretStr(emulator.secret), REDIRECT)


def redirected(page: str) -> str:
    """What a browser shows after the login."""
    return httpx.get(page, trust_env=False).headers["location"]


def token(**claims: object) -> str:
    payload = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")
    return f"e30.{payload}.c2ln"


def test_a_login_ends_with_a_token_that_the_broker_takes(
    emulator: Emulator, app: App, access: Access, tmp_path: Path
) -> None:
    page = login_page(app, "state-1", emulator.url)
    assert parse_qs(urlsplit(page).query)["redirect_uri"] == [REDIRECT]
    found = exchange(app, code_in(redirected(page), "state-1"), emulator.url)
    file = store(found, tmp_path / "new")
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.parent.stat().st_mode & 0o777 == 0o700
    assert credentials(tmp_path / "new", {}) == found
    assert found.expires_s == pytest.approx(time.time() + 86_400, abs=120)
    clients = Clients(Access(found, tmp_path / "new", emulator.url))
    assert clients.here().ask("get_profile", what="profile")["data"]["fy_id"]
    clients.close()


def test_an_address_of_another_login_is_refused(emulator: Emulator, app: App) -> None:
    pasted = redirected(login_page(app, "state-1", emulator.url))
    with pytest.raises(ConfigError, match="another login"):
        code_in(pasted, "state-2")


@pytest.mark.parametrize(
    ("pasted", "remedy"),
    [
        ("", "paste the whole address"),
        ("two words", "paste the whole address"),
        ("s=ok&auth_code=x", "paste the whole address"),
        ("https://x/?s=error&message=no%20consent", "no consent"),
        ("https://x/?s=ok&state=s", "no auth_code"),
    ],
)
def test_what_was_pasted_wrongly_is_named(pasted: str, remedy: str) -> None:
    with pytest.raises(ConfigError, match=remedy):
        code_in(pasted, "s")


def test_a_bare_code_will_do() -> None:
    assert code_in(" eyJ-code\n", "s").get_secret_value() == "eyJ-code"


def test_a_code_buys_one_token_and_a_wrong_secret_none(emulator: Emulator, app: App) -> None:
    code = code_in(redirected(login_page(app, "s", emulator.url)), "s")
    wrong = App(app.client_id, SecretStr("wrong-secret"), REDIRECT)
    with pytest.raises(ConfigError, match="-371") as refused:
        exchange(wrong, code, emulator.url)
    assert code.get_secret_value() not in str(refused.value)
    exchange(app, code, emulator.url)
    with pytest.raises(ConfigError, match="try again") as used:
        exchange(app, code, emulator.url)
    assert used.value.code == "login_refused"


def test_a_broker_that_does_not_answer_is_no_refusal(app: App) -> None:
    with pytest.raises(BrokerError, match="does not answer"):
        exchange(app, SecretStr("c"), "http://127.0.0.1:9")


def test_missing_facts_of_the_app_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="FYERS_CLIENT_ID and FYERS_SECRET and FYERS_REDIRECT_URI not set"):
        App.from_environment({})
    (tmp_path / "secret").write_text("s3cret\n")
    own = App.from_environment(
        {"FYERS_CLIENT_ID": "A", "FYERS_SECRET_FILE": str(tmp_path / "secret"), "FYERS_REDIRECT_URI": REDIRECT}
    )
    assert own.secret.get_secret_value() == "s3cret"
    assert "s3cret" not in repr(own)


def test_the_environment_goes_before_the_file(tmp_path: Path) -> None:
    store(Credentials("A", SecretStr("of-the-file")), tmp_path)
    given = {"FYERS_CLIENT_ID": "B", "FYERS_ACCESS_TOKEN": "of-the-environment"}
    assert credentials(tmp_path, given) == Credentials("B", SecretStr("of-the-environment"))
    assert credentials(tmp_path, {}).access_token.get_secret_value() == "of-the-file"
    assert credentials(tmp_path, {"FYERS_CLIENT_ID": "A"}).client_id == "A"


@pytest.mark.parametrize(
    ("environ", "code"),
    [
        ({}, "no_credentials"),
        ({"FYERS_ACCESS_TOKEN": "t"}, "no_credentials"),
        ({"FYERS_CLIENT_ID": "A"}, "no_credentials"),
        ({"FYERS_CLIENT_ID": "A", "FYERS_ACCESS_TOKEN": token(exp=1)}, "logged_out"),
    ],
)
def test_without_a_token_of_today_the_remedy_is_named(tmp_path: Path, environ: dict[str, str], code: str) -> None:
    with pytest.raises(ConfigError, match=r"hrm fyers login|FYERS_CLIENT_ID") as refused:
        credentials(tmp_path, environ)
    assert refused.value.code == code


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"client_id": "A"}', b'{"client_id": "", "access_token": "t"}', b"\xff\xfe"]
)
def test_a_token_file_that_cannot_be_read_is_named(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "fyers_token.json"
    file.write_bytes(content)
    file.chmod(0o600)
    with pytest.raises(ConfigError, match="hrm fyers login") as refused:
        credentials(tmp_path, {})
    assert refused.value.code == "bad_credentials"


def test_a_token_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    store(Credentials("A", SecretStr("t")), tmp_path).chmod(0o640)
    with pytest.raises(ConfigError, match="chmod 600"):
        credentials(tmp_path, {})


def test_a_token_of_another_app_is_refused(tmp_path: Path) -> None:
    store(Credentials("A", SecretStr("t")), tmp_path)
    with pytest.raises(ConfigError, match="another app"):
        credentials(tmp_path, {"FYERS_CLIENT_ID": "B"})


@pytest.mark.parametrize("text", ["t", "a.b.c", "a.e30.c", token(exp="soon"), token(exp=None), token(exp=[1]), "..."])
def test_an_end_that_cannot_be_read_is_not_known(text: str) -> None:
    assert Credentials("A", SecretStr(text)).expires_s is None


def test_a_person_logs_in_and_fetches_history(emulator: Emulator, tmp_path: Path) -> None:
    import datetime as dt

    emulator.history(SYMBOL, candles(dt.date(2023, 1, 2), dt.date(2023, 1, 6)))
    environment = os.environ | {
        "HRM_PATHS__STATE_DIR": str(tmp_path),
        "HRM_FYERS__BASE_URL": emulator.url,
        "FYERS_CLIENT_ID": emulator.client_id,
        "FYERS_SECRET": emulator.secret,
        "FYERS_REDIRECT_URI": REDIRECT,
    }
    login = subprocess.Popen(
        [HRM, "fyers", "login", "--json"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert login.stdin is not None
    assert login.stderr is not None
    page = next(line.strip() for line in login.stderr if "generate-authcode" in line)
    said, complaint = login.communicate(redirected(page) + "\n", timeout=60)
    assert login.returncode == 0, complaint
    assert json.loads(said)["client_id"] == emulator.client_id
    secret = json.loads((tmp_path / "fyers_token.json").read_text())["access_token"]
    assert secret not in said + complaint
    span = ["--from", "2023-01-02", "--to", "2023-01-06", "--json"]
    fetched = subprocess.run(
        [HRM, "data", "fetch", SYMBOL, *span], capture_output=True, text=True, env=environment, timeout=60, check=False
    )
    assert fetched.returncode == 0, fetched.stderr
    assert json.loads(fetched.stdout.splitlines()[-1])["rows"] == 100
    assert (tmp_path / "data" / "NIFTY50-INDEX.parquet").is_file()
    assert "quarters" in fetched.stderr
    refused = subprocess.run(
        [HRM, "fyers", "login"], input="x\n", capture_output=True, text=True, env=environment, check=False
    )
    assert refused.returncode == 2
    assert "try again" in refused.stderr


def test_a_dead_address_of_the_broker_is_unavailable(access: Access) -> None:
    clients = Clients(elsewhere(access, "http://127.0.0.1:9"))
    with pytest.raises(BrokerError):
        clients.here().ask("get_profile", what="profile")
    clients.close()
