"""Who is told what happens to a rollout: by webhook and by e-mail, each from a severity on.

What has the same severity and key within `dedupe_s` is told once and counted; at the end of that time what was counted
is told in one more message. Delivery is delivery/sending.py's: `notify` neither waits nor raises.
"""

from __future__ import annotations

import asyncio
import json
import smtplib
import socket
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from email.message import EmailMessage
from email.utils import formatdate
from functools import partial
from uuid import uuid4

import httpx
import structlog

from core.delivery_settings import DeliverySettings, Email, NotificationWebhook
from core.errors import ConfigError, DataError
from core.settings_file import secret
from delivery.aside import Aside
from delivery.outbound import Outbound
from delivery.sending import Message, Sender, Severity
from delivery.webhooks import SECRET, signed, signing_secret

log = structlog.get_logger()

WITHIN_S = 10.0
MOST_KEYS = 1000  # that are counted at a time; of more each is told
PASSWORD = "HRM_SMTP_PASSWORD"  # noqa: S105 - the variable's name


@dataclass(frozen=True)
class Notification:
    severity: Severity
    key: str  # what makes two of them the same, for instance the trigger and the attempt
    title: str  # one line
    text: str = ""
    repeats: int = 0  # that were counted instead of told
    at: float = field(default_factory=time.time)  # Unix seconds
    id: str = field(default_factory=lambda: uuid4().hex)

    @property
    def subject(self) -> str:
        repeated = f" ({self.repeats} more)" if self.repeats else ""
        return f"[{self.severity.name.lower()}] {' '.join(self.title.split())}{repeated}"


@dataclass(frozen=True)
class Target:
    name: str
    min_severity: Severity
    send: Callable[[Notification], Awaitable[None]] = field(repr=False)


class Notifier:
    """Used on one event loop, which must be running."""

    def __init__(self, targets: tuple[Target, ...], sender: Sender, *, dedupe_s: float) -> None:
        self._targets, self._sender = targets, sender
        self._dedupe_s = dedupe_s
        self._counted: dict[tuple[Severity, str], Notification] = {}  # the latest of each, with its repeats
        self._timers: dict[tuple[Severity, str], asyncio.TimerHandle] = {}

    def notify(self, notification: Notification) -> None:
        same = (notification.severity, notification.key)
        counted = self._counted.get(same)
        if counted is not None:
            self._counted[same] = replace(notification, repeats=counted.repeats + 1)
            return
        self._tell(notification)
        if len(self._counted) < MOST_KEYS:
            self._count(same, notification)

    def close(self) -> None:
        """Tell what was counted; nothing is counted any more. Before the sender is closed."""
        for timer in self._timers.values():
            timer.cancel()
        for notification in self._counted.values():
            if notification.repeats:
                self._tell(notification)
        self._timers.clear()
        self._counted.clear()

    def _count(self, same: tuple[Severity, str], told: Notification) -> None:
        self._counted[same] = replace(told, repeats=0)
        self._timers[same] = asyncio.get_running_loop().call_later(self._dedupe_s, self._time_is_up, same)

    def _time_is_up(self, same: tuple[Severity, str]) -> None:
        notification = self._counted.pop(same)
        del self._timers[same]
        if notification.repeats:
            self._tell(notification)
            self._count(same, notification)

    def _tell(self, notification: Notification) -> None:
        for target in self._targets:
            if notification.severity >= target.min_severity:
                send = partial(target.send, notification)
                self._sender.put(f"notify {target.name}", Message(notification.subject, notification.severity, send))


def targets_of(
    settings: DeliverySettings, outbound: Outbound, environ: Mapping[str, str], *, within_s: float = WITHIN_S
) -> tuple[Target, ...]:
    """Whom the settings name. Raises ConfigError for a variable that is missing, DataError for a host not allowed."""
    named = settings.notifications
    found = [_webhook(webhook, outbound, environ, within_s) for webhook in named.webhooks]
    if named.email is not None:
        found.append(_email(named.email, environ, within_s))
    return tuple(found)


def _webhook(webhook: NotificationWebhook, outbound: Outbound, environ: Mapping[str, str], within_s: float) -> Target:
    url = secret(webhook.url_env, environ)
    if url is None:
        raise ConfigError(f"delivery.notifications.webhooks: {webhook.url_env} of {webhook.name} is not set; set it")
    outbound.require_allowed(url.get_secret_value())
    if secret(SECRET, environ) is not None:
        signing_secret(environ)  # a broken one is found now

    async def send(notification: Notification) -> None:
        body = _json_of(notification)
        held = secret(SECRET, environ)  # many receivers (Slack's, Mattermost's) check none
        headers = {} if held is None else signed(body, f"msg_{notification.id}", held, now=time.time())
        await outbound.post(url.get_secret_value(), body, headers, timeout_s=within_s)

    return Target(webhook.name, Severity[webhook.min_severity.upper()], send)


def _json_of(notification: Notification) -> bytes:
    """`text` is what chat services show."""
    return json.dumps(
        {
            "text": "\n".join(filter(None, (notification.subject, notification.text))),
            "severity": notification.severity.name.lower(),
            "key": notification.key,
            "title": notification.title,
            "repeats": notification.repeats,
            "at": notification.at,
            "host": socket.gethostname(),
        }
    ).encode()


def _email(settings: Email, environ: Mapping[str, str], within_s: float) -> Target:
    if settings.user is not None and secret(PASSWORD, environ) is None:
        raise ConfigError(f"delivery.notifications.email: {PASSWORD} of {settings.user} is not set; set it")
    trusted = httpx.create_ssl_context()  # once: it reads every certificate of its store
    mails = Aside("mail", at_once=2)

    async def send(notification: Notification) -> None:
        message = _mail_of(notification, settings)
        try:
            async with asyncio.timeout(within_s):
                await mails.run(lambda: _hand_over(message, settings, trusted, environ, within_s))
        except TimeoutError:
            raise DataError(f"{settings.host}: no answer within {within_s:g} s", retryable=True) from None
        except smtplib.SMTPRecipientsRefused as error:
            raise _refused(settings, *min(error.recipients.values())) from None
        except smtplib.SMTPAuthenticationError as error:  # the right password may come yet: it is read each time
            said = f"{error.smtp_code} for {settings.user}; mend {PASSWORD}"
            raise DataError(f"{settings.host}: {said}", retryable=True) from None
        except smtplib.SMTPResponseException as error:
            raise _refused(settings, error.smtp_code, error.smtp_error) from None
        except (smtplib.SMTPException, OSError) as error:
            raise DataError(f"{settings.host}: {type(error).__name__}: {error}", retryable=True) from None

    return Target("email", Severity[settings.min_severity.upper()], send)


def _mail_of(notification: Notification, settings: Email) -> EmailMessage:
    message = EmailMessage()
    message["Subject"] = notification.subject
    message["From"] = settings.sender
    message["To"] = ", ".join(settings.recipients)
    message["Date"] = formatdate(notification.at)
    message["Message-ID"] = f"<{notification.id}@{settings.sender.partition('@')[2]}>"  # the same when sent again
    message["Auto-Submitted"] = "auto-generated"
    message.set_content(f"{notification.text}\n\n{notification.key} on {socket.gethostname()}\n")
    return message


def _hand_over(
    message: EmailMessage, settings: Email, trusted: ssl.SSLContext, environ: Mapping[str, str], within_s: float
) -> None:
    """Blocks. To the mail server, which delivers; recipients it refuses while it takes others are logged."""
    address = (settings.host, settings.port)
    name = settings.sender.partition("@")[2]  # by itself smtplib would resolve this machine's
    with (
        smtplib.SMTP_SSL(*address, local_hostname=name, timeout=within_s, context=trusted)
        if settings.tls == "implicit"
        else smtplib.SMTP(*address, local_hostname=name, timeout=within_s)
    ) as server:
        if settings.tls == "starttls":
            server.starttls(context=trusted)
        password = secret(PASSWORD, environ)
        if settings.user is not None and password is not None:
            server.login(settings.user, password.get_secret_value())
        refused = server.send_message(message)
    if refused:
        log.warning("mail_refused_for_some", recipients=sorted(refused))


def _refused(settings: Email, code: int, said: bytes | str) -> DataError:
    """4xx: later perhaps. 5xx: never."""
    text = said.decode("utf-8", "replace") if isinstance(said, bytes) else said
    return DataError(f"{settings.host}: {code} {' '.join(text.split())}", retryable=code < 500)
