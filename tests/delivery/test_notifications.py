"""Who is to know gets to know: once, the urgent first, however long the receiver is away, and with no secret shown."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import structlog
from certificates import certificate_for
from hypothesis import given
from hypothesis import strategies as st
from mail_server import mail_server
from pydantic import SecretStr
from receiver import LIMIT_S, Receiver, Says, delivery_settings, happens, receiving

from core.delivery_settings import DeliverySettings
from core.errors import ConfigError, DataError
from delivery.notifications import Notification, Notifier, targets_of
from delivery.outbound import Outbound
from delivery.sending import Message, Sender, Severity
from delivery.webhooks import verified

INFO, WARNING, CRITICAL = Severity
Story = Callable[[Notifier, Sender], Coroutine[Any, Any, None]]


def during(
    story: Story, settings: DeliverySettings, environ: dict[str, str] | None = None, within_s: float = LIMIT_S
) -> None:
    async def told() -> None:
        sender = Sender(first_retry_s=0.05)
        async with asyncio.timeout(LIMIT_S), Outbound(settings) as outbound:
            targets = targets_of(settings, outbound, environ or {}, within_s=within_s)
            notifier = Notifier(targets, sender, dedupe_s=settings.notifications.dedupe_s)
            try:
                await story(notifier, sender)
            finally:
                notifier.close()
                await sender.close(LIMIT_S)

    asyncio.run(told())


# By webhook


@pytest.fixture
def server() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


def by_webhook(min_severity: str = "info", dedupe_s: float = 300.0) -> DeliverySettings:
    target = {"name": "desk", "url_env": "DESK_URL", "min_severity": min_severity}
    return delivery_settings("localhost", webhooks=[target], dedupe_s=dedupe_s)


def bodies(server: Receiver) -> list[dict[str, Any]]:
    return [json.loads(seen.body) for seen in server.seen]


def test_a_notification_arrives_readable_and_signed_where_there_is_a_secret(server: Receiver) -> None:
    held = "whsec_" + "A" * 32

    async def story(notifier: Notifier, sender: Sender) -> None:
        notifier.notify(Notification(CRITICAL, "drawdown 4", "hrm/v2 was\nrolled back", "drawdown 3.1 %", at=1e9))
        await happens(lambda: sender.sent == 1)

    for environ in ({}, {"HRM_WEBHOOK_SECRET": held}):
        during(story, by_webhook(), {"DESK_URL": f"{server.url}/s3same", **environ})
    plain, seen = server.seen
    assert "webhook-signature" not in plain.headers
    verified(seen.body, seen.headers, SecretStr(held), now=float(seen.headers["webhook-timestamp"]), seen={})
    body = json.loads(seen.body)
    assert body.pop("host")
    assert body == {
        "text": "[critical] hrm/v2 was rolled back\ndrawdown 3.1 %",
        "severity": "critical",
        "key": "drawdown 4",
        "title": "hrm/v2 was\nrolled back",
        "repeats": 0,
        "at": 1e9,
    }


@pytest.mark.parametrize(("least", "heard"), [("info", "iwc"), ("warning", "wc"), ("critical", "c")])
def test_a_target_hears_from_its_severity_on(server: Receiver, least: str, heard: str) -> None:
    async def story(notifier: Notifier, sender: Sender) -> None:
        for severity in Severity:
            notifier.notify(Notification(severity, "k", "t"))
        await happens(lambda: sender.sent == len(heard))

    during(story, by_webhook(least), {"DESK_URL": server.url})
    assert {body["severity"][0] for body in bodies(server)} == set(heard)


def test_the_same_is_told_once_and_counted(server: Receiver) -> None:
    async def story(notifier: Notifier, sender: Sender) -> None:
        for i in range(6):
            notifier.notify(Notification(WARNING, "latency", f"p95 {i}"))
        notifier.notify(Notification(WARNING, "errors", "another key"))
        notifier.notify(Notification(CRITICAL, "latency", "worse"))
        await happens(lambda: sender.sent >= 3)
        await happens(lambda: sender.sent == 4)  # the time is up
        assert bodies(server)[-1]["text"] == "[warning] p95 5 (5 more)"
        notifier.notify(Notification(WARNING, "latency", "once more"))
        await happens(lambda: sender.sent == 5)
        await happens(lambda: not notifier._counted)  # nothing is kept for ever
        notifier.notify(Notification(WARNING, "latency", "new"))
        await happens(lambda: sender.sent == 6)

    during(story, by_webhook(dedupe_s=1.0), {"DESK_URL": server.url})
    told = bodies(server)
    assert sorted(body["title"] for body in told[:3]) == ["another key", "p95 0", "worse"]
    assert [(body["title"], body["repeats"]) for body in told[3:]] == [("p95 5", 5), ("once more", 1), ("new", 0)]


def test_what_was_counted_is_told_at_the_end(server: Receiver) -> None:
    async def story(notifier: Notifier, sender: Sender) -> None:
        for i in range(3):
            notifier.notify(Notification(INFO, "k", f"t{i}"))

    during(story, by_webhook(), {"DESK_URL": server.url})
    assert sorted((body["title"], body["repeats"]) for body in bodies(server)) == [("t0", 0), ("t2", 2)]


def test_a_receiver_that_is_away_hears_of_it_later_and_the_worst_first(server: Receiver) -> None:
    away = True
    server.decide = lambda _: Says(503) if away else None

    async def story(notifier: Notifier, sender: Sender) -> None:
        nonlocal away
        for severity in (INFO, WARNING, CRITICAL):
            notifier.notify(Notification(severity, "k", "t"))
        await happens(lambda: len(server.seen) >= 2)
        server.seen.clear()
        away = False
        await happens(lambda: sender.sent == 3)

    with structlog.testing.capture_logs() as logs:
        during(story, by_webhook(), {"DESK_URL": f"{server.url}/s3same"})
    assert [body["severity"] for body in bodies(server)] == ["critical", "warning", "info"]
    (line,) = logs  # once, not for every try
    assert (line["event"], line["recipient"]) == ("message_not_sent", "notify desk")
    assert "HTTP 503" in line["error"] and "s3same" not in str(line)


def test_one_target_that_hangs_keeps_no_other_from_hearing(server: Receiver) -> None:
    server.says["/hang"] = Says(after_s=3.0)
    targets = [{"name": name, "url_env": f"{name}_URL", "min_severity": "info"} for name in ("HANG", "FINE")]

    async def story(notifier: Notifier, sender: Sender) -> None:
        notifier.notify(Notification(CRITICAL, "k", "t"))
        await happens(lambda: any(seen.path == "/fine" for seen in server.seen))
        assert sender.sent <= 1
        await happens(lambda: sender.sent == 1)
        server.says.clear()

    urls = {"HANG_URL": f"{server.url}/hang", "FINE_URL": f"{server.url}/fine"}
    during(story, delivery_settings("localhost", webhooks=targets), urls, within_s=0.5)


def test_targets_are_checked_at_the_start() -> None:
    async def start(environ: dict[str, str], settings: DeliverySettings) -> None:
        async with Outbound(settings) as outbound:
            targets_of(settings, outbound, environ)

    email = {
        "host": "localhost",
        "port": 25,
        "tls": "starttls",
        "user": "desk",
        "sender": "hrm@example.org",
        "recipients": ["desk@example.org"],
        "min_severity": "info",
    }
    for environ, settings, error, text in (
        ({}, by_webhook(), ConfigError, "DESK_URL of desk is not set"),
        ({"DESK_URL": "https://hooks.example/s3same"}, by_webhook(), DataError, "not in delivery.allowed_hosts"),
        ({"DESK_URL": "http://localhost", "HRM_WEBHOOK_SECRET": "s3same"}, by_webhook(), ConfigError, "in base64"),
        ({}, delivery_settings(email=email), ConfigError, "HRM_SMTP_PASSWORD of desk is not set"),
    ):
        with pytest.raises(error, match=text) as raised:
            asyncio.run(start(environ, settings))
        assert "s3same" not in str(raised.value)


# By e-mail


def by_email(port: int, tls: str = "none", user: str | None = None, *recipients: str) -> DeliverySettings:
    email = {
        "host": "localhost",
        "port": port,
        "tls": tls,
        "user": user,
        "sender": "hrm@example.org",
        "recipients": recipients or ("desk@example.org", "risk@example.org"),
        "min_severity": "warning",
    }
    return delivery_settings(email=email)


def one(severity: Severity = CRITICAL, title: str = "hrm/v2 was rolled back", text: str = "drawdown") -> Story:
    async def story(notifier: Notifier, sender: Sender) -> None:
        notifier.notify(Notification(severity, "drawdown 4", title, text, at=1e9))
        await happens(lambda: sender.sent + sender.dropped == 1)

    return story


def test_a_mail_arrives_as_it_was_meant() -> None:
    text = "drawdown ≥ 3.1 %\n.\nQUIT\n" + "x" * 2000
    with mail_server() as server:
        during(one(title="hrm/v2 was\r\nBcc: a@b.example\r\nrolled back — now", text=text), by_email(server.port))
    (mail,) = server.mails
    assert server.recipients == [["desk@example.org", "risk@example.org"]]
    assert mail["Subject"] == "[critical] hrm/v2 was Bcc: a@b.example rolled back — now"
    assert (mail["From"], mail["To"]) == ("hrm@example.org", "desk@example.org, risk@example.org")
    assert (mail["Bcc"], mail["Auto-Submitted"]) == (None, "auto-generated")
    assert mail["Date"].datetime.timestamp() == 1e9
    assert mail["Message-ID"].endswith("@example.org>")
    content = cast(str, mail.get_content()).replace("\r\n", "\n")
    assert content.startswith(text) and "drawdown 4 on " in content


@pytest.mark.parametrize("tls", ["starttls", "implicit"])
def test_a_user_logs_in_over_tls_and_the_password_is_shown_nowhere(
    tls: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    files = certificate_for("localhost", tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(files[0]))
    (tmp_path / "password").write_text("wr0ng\n")

    async def story(notifier: Notifier, sender: Sender) -> None:
        notifier.notify(Notification(CRITICAL, "k", "t"))
        await happens(lambda: bool(logs))
        (tmp_path / "password").write_text("s3same\n")  # somebody mends it
        await happens(lambda: sender.sent == 1)

    with (
        mail_server(files, implicit=tls == "implicit") as server,
        caplog.at_level(logging.DEBUG),
        structlog.testing.capture_logs() as logs,
    ):
        during(story, by_email(server.port, tls, "desk"), {"HRM_SMTP_PASSWORD_FILE": str(tmp_path / "password")})
    assert len(server.mails) == 1 and server.logins[-1] == (b"desk", b"s3same")
    (line,) = logs
    assert line["error"] == "localhost: 535 for desk; mend HRM_SMTP_PASSWORD"
    for secret in ("s3same", "wr0ng"):
        assert secret not in caplog.text and secret not in repr(logs)


def test_a_server_that_cannot_prove_who_it_is_gets_nothing(tmp_path: Path) -> None:
    """Its certificate is not known here; or it offers no encryption, though it was to."""
    files = certificate_for("localhost", tmp_path)

    async def story(notifier: Notifier, sender: Sender) -> None:
        notifier.notify(Notification(CRITICAL, "k", "t"))
        await happens(lambda: sender.waiting == 1 and bool(logs))
        notifier.close()
        await sender.close(0.0)

    for served, trouble in ((files, "CERTIFICATE_VERIFY_FAILED"), (None, "STARTTLS extension not supported")):
        with mail_server(served) as server, structlog.testing.capture_logs() as logs:
            during(story, by_email(server.port, "starttls", "desk"), {"HRM_SMTP_PASSWORD": "s3same"})
        assert trouble in logs[0]["error"] and logs[-1]["event"] == "messages_unsent"
        assert not server.mails and not server.logins


def test_a_mail_that_is_refused_for_now_comes_later_and_for_good_is_dropped() -> None:
    async def later(notifier: Notifier, sender: Sender) -> None:
        server.refuse = "451 try again later"
        notifier.notify(Notification(CRITICAL, "k", "t"))
        await happens(lambda: bool(logs))
        server.refuse = ""
        await happens(lambda: sender.sent == 1)

    with mail_server() as server, structlog.testing.capture_logs() as logs:
        during(later, by_email(server.port))
        assert len(server.mails) == 1 and "451 try again later" in logs[0]["error"]
        server.refuse = "554 spam"
        during(one(), by_email(server.port))
        assert logs[-1]["event"] == "message_dropped" and "554 spam" in logs[-1]["error"]
        server.refuse = ""
        during(one(), by_email(server.port, "none", None, "gone@example.org"))
        assert logs[-1]["event"] == "message_dropped" and "550 no such mailbox" in logs[-1]["error"]
        during(one(), by_email(server.port, "none", None, "gone@example.org", "risk@example.org"))
        assert logs[-1] == {
            "event": "mail_refused_for_some",
            "log_level": "warning",
            "recipients": ["gone@example.org"],
        }
        assert server.recipients[-1] == ["risk@example.org"]


def test_a_mail_server_that_says_nothing_costs_a_retry_and_not_the_loop() -> None:
    async def told(port: int) -> int:
        settings, turns = by_email(port), 0
        async with asyncio.timeout(LIMIT_S), Outbound(settings) as outbound:
            sender = Sender()
            targets = targets_of(settings, outbound, {}, within_s=0.3)
            Notifier(targets, sender, dedupe_s=1.0).notify(Notification(CRITICAL, "k", "t"))
            while not logs:
                turns += 1
                await asyncio.sleep(0.01)
            await sender.close(0.0)
        return turns

    with socket.socket() as silent, structlog.testing.capture_logs() as logs:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        assert asyncio.run(told(silent.getsockname()[1])) > 3
    assert logs[0]["event"] == "message_not_sent"


# The queue


def test_a_full_queue_drops_the_oldest_of_the_least_severe() -> None:
    heard: list[str] = []

    async def story() -> Sender:
        sender, gate = Sender(most_waiting=4), asyncio.Event()

        def message(name: str, severity: Severity) -> Message:
            async def send() -> None:
                await gate.wait()
                heard.append(name)

            return Message(name, severity, send)

        for name, severity in (("c1", CRITICAL), ("i1", INFO), ("w1", WARNING), ("i2", INFO), ("w2", WARNING)):
            sender.put("desk", message(name, severity))  # the fifth pushes i1 out
        for name, severity in (("c2", CRITICAL), ("w3", WARNING), ("i3", INFO)):
            sender.put("desk", message(name, severity))  # i2, w1, and i3 itself
        gate.set()
        await happens(lambda: not sender.waiting)
        return sender

    with structlog.testing.capture_logs() as logs:
        sender = asyncio.run(story())
    assert heard == ["c1", "c2", "w2", "w3"]
    assert [line["what"] for line in logs] == ["i1", "i2", "w1", "i3"]
    assert (sender.sent, sender.dropped) == (4, 4)


@given(st.lists(st.sampled_from(Severity), max_size=40), st.integers(1, 8))
def test_what_is_dropped_is_never_more_severe_than_what_is_kept(severities: list[Severity], room: int) -> None:
    heard: list[Severity] = []

    async def story() -> Sender:
        sender, gate = Sender(most_waiting=room), asyncio.Event()

        async def send(severity: Severity) -> None:
            await gate.wait()
            heard.append(severity)

        for severity in severities:
            sender.put("desk", Message("m", severity, lambda severity=severity: send(severity)))  # type: ignore[misc] # of a default
        gate.set()
        await happens(lambda: not sender.waiting)
        return sender

    with structlog.testing.capture_logs():
        sender = asyncio.run(story())
    assert heard == sorted(severities, reverse=True)[:room]
    assert sender.dropped == max(0, len(severities) - room)


def test_a_message_that_cannot_be_made_keeps_no_other_back_and_one_too_old_is_given_up() -> None:
    async def broken() -> None:
        raise ValueError("no such thing")

    async def failing() -> None:
        raise DataError("away", retryable=True)

    async def fine() -> None:
        return None

    async def story() -> tuple[int, int]:
        sender = Sender(first_retry_s=0.01, give_up_after_s=0.05)
        for send, severity in ((broken, CRITICAL), (failing, WARNING), (fine, INFO)):
            sender.put("desk", Message("m", severity, send))
        await happens(lambda: not sender.waiting)
        sender.put("desk", Message("m", INFO, fine))  # and it goes on
        await happens(lambda: not sender.waiting)
        return sender.sent, sender.dropped

    with structlog.testing.capture_logs() as logs:
        assert asyncio.run(story()) == (2, 2)
    assert [line["error"] for line in logs if line["event"] == "message_dropped"] == [
        "ValueError: no such thing",
        "away",
    ]


def test_what_never_got_through_is_counted_at_the_end() -> None:
    async def never() -> None:
        await asyncio.Event().wait()

    async def story() -> None:
        sender = Sender()
        for _ in range(3):
            sender.put("desk", Message("m", INFO, never))
        await sender.close(0.05)
        assert sender.waiting == 0

    with structlog.testing.capture_logs() as logs:
        asyncio.run(story())
    assert logs == [{"event": "messages_unsent", "log_level": "warning", "count": 3, "recipients": ["desk"]}]
