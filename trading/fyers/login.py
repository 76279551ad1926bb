"""The day's login: a page of the broker's, the address it sends the browser to, and the token that its code buys.

The broker ends every session each day and wants its two factors again, so a person does this once a day
(`hrm fyers login`). The token lies in `<state_dir>/fyers_token.json`, which only its owner may read. When it ends is
read from the token itself, to say so early; whether it holds is the broker's to judge.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError

from core.errors import BrokerError, ConfigError
from core.files import write_atomically
from core.settings_file import secret

TOKEN_FILE = "fyers_token.json"  # noqa: S105 - a file's name
LOG_IN = "run `hrm fyers login`"
HIDDEN = "***"


@dataclass(frozen=True)
class Credentials:
    """App id and the day's access token. The token never appears in a repr, a log or an error."""

    client_id: str
    access_token: SecretStr

    @property
    def header(self) -> str:
        return f"{self.client_id}:{self.access_token.get_secret_value()}"

    @property
    def expires_s(self) -> float | None:
        """Seconds since the epoch, as the token says; None if it says nothing that can be read."""
        try:
            payload = self.access_token.get_secret_value().split(".")[1]
            return float(json.loads(base64.urlsafe_b64decode(payload + "==="))["exp"])
        except (IndexError, KeyError, TypeError, ValueError, binascii.Error):
            return None

    def hide(self, text: str) -> str:
        return text.replace(self.access_token.get_secret_value(), HIDDEN)


@dataclass(frozen=True)
class App:
    """What the broker knows this program by. Secret and codes never appear in a repr, a log or an error."""

    client_id: str
    secret: SecretStr
    redirect_uri: str

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None) -> App:
        """From FYERS_CLIENT_ID, FYERS_SECRET (or FYERS_SECRET_FILE) and FYERS_REDIRECT_URI.

        Raises ConfigError naming what is not set.
        """
        environ = os.environ if environ is None else environ
        client_id, redirect_uri = environ.get("FYERS_CLIENT_ID", ""), environ.get("FYERS_REDIRECT_URI", "")
        own = secret("FYERS_SECRET", environ)
        given = {"FYERS_CLIENT_ID": client_id, "FYERS_SECRET": own, "FYERS_REDIRECT_URI": redirect_uri}
        missing = [name for name, value in given.items() if not value]
        if missing or own is None:
            raise ConfigError(
                f"environment: {' and '.join(missing)} not set; copy them from your app on the broker's API dashboard",
                code="no_credentials",
            )
        return cls(client_id, own, redirect_uri)


class _TokenFile(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True)

    client_id: str = Field(min_length=1)
    access_token: SecretStr = Field(min_length=1)


def credentials(state_dir: Path, environ: Mapping[str, str] | None = None) -> Credentials:
    """Of today: FYERS_CLIENT_ID and FYERS_ACCESS_TOKEN (or FYERS_ACCESS_TOKEN_FILE), else what `store` wrote.

    Raises ConfigError `no_credentials`, `bad_credentials` or, after the token's own end, `logged_out`.
    """
    environ = os.environ if environ is None else environ
    client_id, token = environ.get("FYERS_CLIENT_ID", ""), secret("FYERS_ACCESS_TOKEN", environ)
    if token is not None and not client_id:
        raise ConfigError("environment: FYERS_ACCESS_TOKEN without FYERS_CLIENT_ID; set both", code="no_credentials")
    found = _stored(state_dir / TOKEN_FILE) if token is None else Credentials(client_id, token)
    if client_id not in ("", found.client_id):
        raise ConfigError(
            f"{state_dir / TOKEN_FILE}: of another app than FYERS_CLIENT_ID; {LOG_IN}", code="bad_credentials"
        )
    if found.expires_s is not None and found.expires_s <= time.time():
        ended = datetime.fromtimestamp(found.expires_s, UTC)
        raise ConfigError(f"the Fyers token ended at {ended:%Y-%m-%d %H:%M} UTC; {LOG_IN}", code="logged_out")
    return found


def _stored(file: Path) -> Credentials:
    try:
        open_to = file.stat().st_mode & 0o077
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(
            f"no Fyers token: {LOG_IN}, or set FYERS_CLIENT_ID and FYERS_ACCESS_TOKEN", code="no_credentials"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: not readable ({type(error).__name__}); {LOG_IN}", code="bad_credentials") from None
    if open_to:
        raise ConfigError(f"{file}: others may read it; chmod 600 it, and {LOG_IN}", code="bad_credentials")
    try:
        kept = _TokenFile.model_validate_json(text)
    except ValidationError:  # its text may show the token
        raise ConfigError(f"{file}: not as it was written; {LOG_IN}", code="bad_credentials") from None
    return Credentials(kept.client_id, kept.access_token)


def store(found: Credentials, state_dir: Path) -> Path:
    """Keep the day's token where `credentials` finds it; whole or not at all, for its owner alone."""
    state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    content = {
        "client_id": found.client_id,
        "access_token": found.access_token.get_secret_value(),
        "expires": found.expires_s,
    }
    file = state_dir / TOKEN_FILE
    write_atomically(file, json.dumps(content).encode(), mode=0o600)
    return file


def login_page(app: App, state: str, base_url: str | None = None) -> str:
    """The broker's page to log in on. `state` comes back with the code: it is nobody else's login then."""
    from trading.fyers import client

    sdk = client.sdk()
    page: str = sdk.at(_session(sdk, app, state).generate_authcode(), base_url)
    return page


def code_in(pasted: str, state: str) -> SecretStr:
    """The code out of the address that the browser was sent to, or the bare code. Raises ConfigError."""
    text = pasted.strip()
    if "://" not in text:
        if not text or any(letter.isspace() or letter in "?&=" for letter in text):
            raise ConfigError("login: paste the whole address that the browser shows, or its auth_code", code="usage")
        return SecretStr(text)
    answer = {name: values[0] for name, values in parse_qs(urlsplit(text).query).items()}
    if answer.get("s") == "error" or not answer.get("auth_code"):
        said = answer.get("message", "no auth_code in the address")
        raise ConfigError(f"login: the broker refused it ({said[:200]}); try again", code="login_refused")
    if answer.get("state") != state:
        raise ConfigError("login: the address is of another login (its state differs); try again", code="login_refused")
    return SecretStr(answer["auth_code"])


def exchange(app: App, code: SecretStr, base_url: str | None = None) -> Credentials:
    """The day's token for a code.

    Raises ConfigError `login_refused`, BrokerError `unavailable` (`retryable`: with a new code).
    """
    from trading.fyers import client

    sdk = client.sdk()
    request = {
        "grant_type": "authorization_code",
        "appIdHash": _session(sdk, app, "").get_hash().hexdigest(),
        "code": code.get_secret_value(),
    }
    with sdk.requests.Session() as session:
        wire = sdk.Wire(session, base_url)
        try:
            session.post(f"{sdk.API}/validate-authcode", json=request)
        except sdk.requests.RequestException as error:
            kind = type(error).__name__
            raise BrokerError(
                f"login: Fyers does not answer ({kind}); try again", code="unavailable", retryable=True
            ) from None
        reply = client.Reply.of(wire.answer)
    token = reply.body.get("access_token")
    if reply.body.get("s") != "ok" or not isinstance(token, str) or not token:
        hidden = (request["code"], request["appIdHash"], app.secret.get_secret_value())
        raise ConfigError(f"login: Fyers refused it: {_said(reply, hidden)}; try again", code="login_refused")
    return Credentials(app.client_id, SecretStr(token))


def _said(reply: Any, hidden: tuple[str, ...]) -> str:
    said = reply.said
    for one in hidden:
        said = said.replace(one, HIDDEN)
    return f"{said[:200]} ({reply.code})"


def _session(sdk: Any, app: App, state: str) -> Any:
    return sdk.fyersModel.SessionModel(
        client_id=app.client_id,
        redirect_uri=app.redirect_uri,
        response_type="code",
        state=state,
        secret_key=app.secret.get_secret_value(),
        grant_type="authorization_code",
    )
