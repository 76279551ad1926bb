"""The broker's login: a code by redirect, a token for the code, tokens that expire.

Tokens are JWTs with `exp` and `hsm_key`, signed with a key of this process: the next emulator knows none of them. They
live by the machine's clock, as the SDK judges them, whatever the exchange's clock says.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from typing import Any
from urllib.parse import urlencode

import jwt

from tests.fyers_emulator.exchange import Refused
from tests.fyers_emulator.shapes import FY_ID

CLIENT_ID = "EMULATOR-100"
SECRET = "emulator-secret"
CODE_LIVES_S = 300
TOKEN_LIVES_S = 86_400.0
ALGORITHM = "HS256"


class Logins:
    def __init__(self) -> None:
        self._key = secrets.token_hex(32)
        self._issued = 0
        self._expired_up_to = 0  # tokens with this number and below
        self._logged_out: set[int] = set()
        self._used_codes: set[int] = set()
        self._tokens_of_hsm: dict[str, str] = {}

    def redirect(self, query: dict[str, str]) -> str:
        """Where a browser goes after the login. Raises Refused."""
        if query.get("client_id") != CLIENT_ID:
            raise Refused(-352, "Invalid App ID provided")
        if query.get("response_type") != "code" or not query.get("redirect_uri"):
            raise Refused(-50, "response_type must be code, and redirect_uri is required")
        answer = {"s": "ok", "code": "200", "auth_code": self.code(), "state": query.get("state", "")}
        joint = "&" if "?" in query["redirect_uri"] else "?"
        return query["redirect_uri"] + joint + urlencode(answer)

    def code(self) -> str:
        return self._signed("auth_code", CODE_LIVES_S)

    def token_for(self, body: dict[str, Any]) -> str:
        """Raises Refused."""
        expected = hashlib.sha256(f"{CLIENT_ID}:{SECRET}".encode()).hexdigest()
        if not hmac.compare_digest(str(body.get("appIdHash", "")).encode(), expected.encode()):
            raise Refused(-371, "Invalid app id hash")
        if body.get("grant_type") != "authorization_code":
            raise Refused(-50, "grant_type must be authorization_code")
        claims = self._claims(str(body.get("code", "")), "auth_code")
        if claims is None or claims["exp"] < time.time() or claims["number"] in self._used_codes:
            raise Refused(-437, "Invalid or expired auth code")
        self._used_codes.add(claims["number"])
        return self.token()

    def token(self, lives_s: float = TOKEN_LIVES_S) -> str:
        token = self._signed("access_token", lives_s)
        claims = self._claims(token, "access_token")
        self._tokens_of_hsm[(claims or {})["hsm_key"]] = token
        return token

    def check(self, authorization: str | None) -> None:
        """`APP:TOKEN`. Raises Refused with the broker's codes."""
        if not authorization or ":" not in authorization:
            raise Refused(-16, "Could not authenticate the user", 401)
        app, _, token = authorization.partition(":")
        if app != CLIENT_ID:
            raise Refused(-352, "Invalid App ID provided", 401)
        self.check_token(token)

    def check_token(self, token: str) -> None:
        claims = self._claims(token, "access_token")
        if claims is None or claims["number"] in self._logged_out:
            raise Refused(-15, "Please provide valid token", 401)
        if claims["exp"] < time.time() or claims["number"] <= self._expired_up_to:
            raise Refused(-8, "Your token has expired", 401)

    def knows_hsm(self, key: str) -> bool:
        token = self._tokens_of_hsm.get(key)
        if token is None:
            return False
        try:
            self.check_token(token)
        except Refused:
            return False
        return True

    def log_out(self, authorization: str) -> None:
        claims = self._claims(authorization.partition(":")[2], "access_token")
        self._logged_out.add((claims or {})["number"])

    def expire_all(self) -> None:
        self._expired_up_to = self._issued

    def _signed(self, subject: str, lives_s: float) -> str:
        self._issued += 1
        now = int(time.time())
        claims = {
            "iss": "api.fyers.in",
            "sub": subject,
            "number": self._issued,
            "iat": now,
            "exp": int(now + lives_s),
            "hsm_key": hashlib.sha256(f"{self._key}{self._issued}".encode()).hexdigest()[:52],
            "fy_id": FY_ID,
            "appType": 100,
        }
        return jwt.encode(claims, self._key, ALGORITHM)

    def _claims(self, token: str, subject: str) -> dict[str, Any] | None:
        """Of a token of ours, expired or not."""
        unjudged = {"verify_exp": False, "verify_iat": False, "verify_nbf": False}
        try:
            claims: dict[str, Any] = jwt.decode(token, self._key, [ALGORITHM], options=unjudged)  # type: ignore[arg-type] # a TypedDict
        except jwt.PyJWTError:
            return None
        return claims if claims["sub"] == subject else None
