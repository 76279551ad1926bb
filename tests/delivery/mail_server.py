"""A real mail server (aiosmtpd) in a thread, with or without TLS, that notes what comes."""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default as modern
from pathlib import Path
from typing import Any, cast

from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session
from receiver import LIMIT_S


@dataclass
class MailServer:
    """Takes what comes, unless `refuse` has a code."""

    port: int = 0
    mails: list[EmailMessage] = field(default_factory=list)
    recipients: list[list[str]] = field(default_factory=list)
    logins: list[tuple[bytes, bytes]] = field(default_factory=list)
    refuse: str = ""

    async def handle_RCPT(  # noqa: N802 - aiosmtpd's name
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        if address.startswith("gone"):
            return "550 no such mailbox"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802
        if self.refuse:
            return self.refuse
        content = cast(bytes, envelope.content)
        self.mails.append(cast(EmailMessage, message_from_bytes(content, policy=modern)))
        self.recipients.append(envelope.rcpt_tos)
        return "250 OK"

    def __call__(self, server: SMTP, session: Session, envelope: Envelope, mechanism: str, data: Any) -> AuthResult:
        assert isinstance(data, LoginPassword)
        self.logins.append((data.login, data.password))
        right = data.password == b"s3same"
        return AuthResult(success=right, handled=right)  # not handled: the server says 535


@contextmanager
def mail_server(files: tuple[Path, Path] | None = None, *, implicit: bool = False) -> Iterator[MailServer]:
    """With a certificate it wants TLS and a user."""
    server, context, more = MailServer(), None, {}
    if files:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(*files)
        more = {"authenticator": server, "auth_required": not implicit, "auth_require_tls": not implicit}
        if not implicit:
            more |= {"tls_context": context, "require_starttls": True}
    loop, ready = asyncio.new_event_loop(), threading.Event()

    async def serve() -> asyncio.Server:
        listening = await loop.create_server(
            lambda: SMTP(server, hostname="localhost", loop=loop, **more),
            "127.0.0.1",
            0,
            ssl=context if implicit else None,
        )
        server.port = listening.sockets[0].getsockname()[1]
        ready.set()
        return listening

    def run() -> None:
        asyncio.set_event_loop(loop)  # aiosmtpd asks for it
        listening = loop.run_until_complete(serve())
        loop.run_forever()
        listening.close()
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        loop.run_until_complete(asyncio.sleep(0.01))  # transports close
        loop.close()

    thread = threading.Thread(target=run)
    thread.start()
    assert ready.wait(LIMIT_S)
    try:
        yield server
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(LIMIT_S)
