"""Flagger's gates, signed as Standard Webhooks (standardwebhooks.com) prescribes.

    asked, 2xx in time says yes     confirm-rollout             before a rollout starts
                                    pre-rollout                 once, before the first traffic
                                    rollout                     before every step, and before a gate counts as passed
                                    confirm-traffic-increase    before each larger weight
                                    confirm-promotion           before the challenger becomes champion
    told, and never waited for      post-rollout                it is over, either way
                                    rollback                    the challenger was taken back
                                    event                       every change of the state

    webhook-id         of the message; the same when it is sent again
    webhook-timestamp  Unix seconds, of this attempt
    webhook-signature  v1,base64(HMAC-SHA256(secret, "<id>.<timestamp>.<body>"))

A receiver lets `verified` decide, or any library of Standard Webhooks: the signature is right, the time is at most five
minutes off, and the id is new; so what was recorded on the way cannot be played again, neither later nor at once.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import re
import time
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass
from functools import partial
from typing import Literal
from uuid import uuid4

from pydantic import SecretStr

from core.errors import ConfigError, DataError, HrmSystemError
from core.settings_file import secret
from delivery.outbound import Outbound
from delivery.plan import Plan, Webhook
from delivery.sending import Message, Sender, Severity
from delivery.transitions import RolloutState

SECRET = "HRM_WEBHOOK_SECRET"  # noqa: S105 - the variable's name
PREFIX = "whsec_"
TOLERANCE_S = 300.0
UNIX_SECONDS = re.compile(r"[0-9]{1,12}")
Asked = Literal["confirm-rollout", "pre-rollout", "rollout", "confirm-traffic-increase", "confirm-promotion"]
Told = Literal["post-rollout", "rollback", "event"]
_SEVERITY: Mapping[Told, Severity] = {
    "event": Severity.INFO,
    "post-rollout": Severity.WARNING,
    "rollback": Severity.CRITICAL,
}
_FACTS = ("phase", "step", "weight", "champion", "challenger", "epoch", "version", "plan_sha256", "trigger", "reason")


@dataclass(frozen=True)
class Answer:
    webhook: str
    allowed: bool
    detail: str  # why not, for a person


class Webhooks:
    def __init__(
        self,
        outbound: Outbound,
        sender: Sender,
        environ: Mapping[str, str],
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._outbound, self._sender = outbound, sender
        self._environ = environ
        self._clock = clock

    def require_usable(self, plan: Plan) -> None:
        """Hosts and the secret of a plan's webhooks, before it starts. Raises DataError or ConfigError."""
        for webhook in plan.webhooks:
            self._outbound.require_allowed(webhook.url)
        if plan.webhooks:
            signing_secret(self._environ)

    async def ask(self, plan: Plan, kind: Asked, state: RolloutState) -> tuple[Answer, ...]:
        """What each webhook of this type says: go on if all allow it. No answer in time is a no. Never raises."""
        asked = [webhook for webhook in plan.webhooks if webhook.type == kind]
        return tuple(await asyncio.gather(*(self._ask(webhook, state) for webhook in asked)))

    def tell(self, plan: Plan, kind: Told, state: RolloutState) -> None:
        """At least once, in the background, in no order: receivers have `version`. After the fact, never before it."""
        for webhook in plan.webhooks:
            if webhook.type == kind:
                self._tell(webhook, kind, state)

    async def _ask(self, webhook: Webhook, state: RolloutState) -> Answer:
        try:
            await self._post(webhook, f"msg_{uuid4().hex}", body_of(webhook, state, self._clock()))
        except HrmSystemError as error:
            return Answer(webhook.name, False, f"{webhook.name} ({webhook.type}) does not allow it: {error}")
        return Answer(webhook.name, True, "")

    def _tell(self, webhook: Webhook, kind: Told, state: RolloutState) -> None:
        body = body_of(webhook, state, self._clock())
        # Whoever tells of this change again, after a restart or from another process, does so under the same id.
        event = f"{webhook.name} {kind} {state.attempt} {state.version} {state.plan_sha256}"
        message_id = f"msg_{hashlib.sha256(event.encode()).hexdigest()[:32]}"
        send = partial(self._post, webhook, message_id, body)
        self._sender.put(f"webhook {webhook.name}", Message(f"{kind} {state.version}", _SEVERITY[kind], send))

    async def _post(self, webhook: Webhook, message_id: str, body: bytes) -> None:
        headers = signed(body, message_id, signing_secret(self._environ), now=self._clock())
        await self._outbound.post(webhook.url, body, headers, timeout_s=webhook.timeout)


def body_of(webhook: Webhook, state: RolloutState, now: float) -> bytes:
    """JSON: who asks or tells, when (Unix seconds), and the rollout as it is."""
    facts = {name: getattr(state, name) for name in _FACTS}
    return json.dumps({"name": webhook.name, "type": webhook.type, "at": now, **facts}, allow_nan=False).encode()


def signing_secret(environ: Mapping[str, str]) -> SecretStr:
    """Raises ConfigError, which never shows it."""
    held = secret(SECRET, environ)
    if held is None:
        raise ConfigError(f"{SECRET} is not set; make one by: echo {PREFIX}$(openssl rand -base64 32)")
    _key(held)
    return held


def signed(body: bytes, message_id: str, held: SecretStr, *, now: float) -> dict[str, str]:
    """The three headers of one attempt at `now`, Unix seconds."""
    at = f"{now:.0f}"
    return {
        "webhook-id": message_id,
        "webhook-timestamp": at,
        "webhook-signature": f"v1,{_signature(_key(held), message_id, at, body)}",
    }


def verified(
    body: bytes,
    headers: Mapping[str, str],
    held: SecretStr,
    *,
    now: float,
    seen: MutableMapping[str, float],
) -> None:
    """The receiver's check: raises DataError unless exactly these bytes were signed, just now and for the first time.

    `headers` by lower-case names; `seen` are the ids of the last minutes, kept up to date here. A receiver of several
    processes keeps them where all of them look.
    """
    message_id, at = headers.get("webhook-id", ""), headers.get("webhook-timestamp", "")
    if not UNIX_SECONDS.fullmatch(at) or abs(now - int(at)) > TOLERANCE_S:
        raise DataError(f"its time is not within {TOLERANCE_S:g} s of now; compare the clocks", code="webhook_stale")
    expected = _signature(_key(held), message_id, at, body).encode()
    offered = [one.removeprefix("v1,") for one in headers.get("webhook-signature", "").split(" ") if one[:3] == "v1,"]
    if not any(hmac.compare_digest(expected, one.encode()) for one in offered):
        raise DataError("its signature is not by the secret that both sides know", code="webhook_forged")
    for old in [known for known, until in seen.items() if until < now]:
        del seen[old]
    if message_id in seen:
        raise DataError(f"{message_id} has come before; answer as then, do nothing", code="webhook_repeated")
    seen[message_id] = now + 2 * TOLERANCE_S


def _signature(key: bytes, message_id: str, at: str, body: bytes) -> str:
    signed_bytes = f"{message_id}.{at}.".encode() + body
    return b64encode(hmac.new(key, signed_bytes, hashlib.sha256).digest()).decode()


def _key(held: SecretStr) -> bytes:
    text = held.get_secret_value()
    try:
        key = b64decode(text.removeprefix(PREFIX), validate=True)
    except ValueError:
        key = b""
    if not text.startswith(PREFIX) or not 24 <= len(key) <= 64:
        raise ConfigError(f"{SECRET} is {PREFIX} and 24 to 64 bytes in base64; echo {PREFIX}$(openssl rand -base64 32)")
    return key
