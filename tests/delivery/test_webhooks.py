"""Gates are asked and deny unless a yes comes in time; rollbacks and events are told and never waited for."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr
from receiver import LIMIT_S, Receiver, Says, Seen, delivery_settings, happens, receiving

from core.errors import ConfigError, DataError
from delivery.outbound import Outbound
from delivery.plan import Plan, Webhook
from delivery.sending import Sender
from delivery.transitions import Phase, RolloutState
from delivery.webhooks import TOLERANCE_S, Answer, Asked, Told, Webhooks, body_of, signed, signing_secret, verified

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
ENVIRON = {"HRM_WEBHOOK_SECRET": SECRET}
STATE = RolloutState(
    version=7,
    epoch=3,
    phase=Phase.CANARY,
    champion="ppo/v1",
    challenger="hrm/v2",
    attempt=4,
    plan_sha256="ab" * 32,
    step=1,
    weight=25,
    reason="stage 1",
)


@pytest.fixture(scope="module")
def server() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


@pytest.fixture(autouse=True)
def forget(server: Receiver) -> None:
    server.seen.clear()
    server.says.clear()
    server.decide = lambda _: None


def plan(*webhooks: dict[str, Any]) -> Plan:
    return Plan.model_validate({"steps": [{"setWeight": 25}, {"pause": {}}], "webhooks": list(webhooks)})


def hook(server: Receiver, kind: str, path: str = "/hook", **more: Any) -> dict[str, Any]:
    return {"name": kind.replace("-", "_") + path.replace("/", "_"), "type": kind, "url": f"{server.url}{path}", **more}


Story = Callable[[Webhooks, Sender], Coroutine[Any, Any, Any]]


def during(story: Story, environ: dict[str, str] | None = None, *allowed: str) -> Any:
    async def told() -> Any:
        sender = Sender(first_retry_s=0.05)
        async with asyncio.timeout(LIMIT_S), Outbound(delivery_settings(*(allowed or ("localhost",)))) as outbound:
            try:
                return await story(Webhooks(outbound, sender, ENVIRON if environ is None else environ), sender)
            finally:
                await sender.close(0.0)

    return asyncio.run(told())


def ask(asked: Plan, kind: Asked, environ: dict[str, str] | None = None, *allowed: str) -> tuple[Answer, ...]:
    async def story(webhooks: Webhooks, _: Sender) -> tuple[Answer, ...]:
        return await webhooks.ask(asked, kind, STATE)

    answers: tuple[Answer, ...] = during(story, environ, *allowed)
    return answers


def check(seen: Seen, now: float | None = None, known: dict[str, float] | None = None) -> None:
    now = time.time() if now is None else now
    verified(seen.body, seen.headers, SecretStr(SECRET), now=now, seen={} if known is None else known)


@pytest.mark.parametrize("kind", get_args(Asked))
def test_every_gate_is_asked_with_the_rollout_as_it_is_and_signed(server: Receiver, kind: Asked) -> None:
    others = [hook(server, other, "/other") for other in (*get_args(Asked), *get_args(Told)) if other != kind]
    (answer,) = ask(plan(hook(server, kind), *others), kind)
    assert answer.allowed
    (seen,) = server.seen
    assert (seen.method, seen.path, seen.headers["content-type"]) == ("POST", "/hook", "application/json")
    body = json.loads(seen.body)
    assert body.pop("at") == pytest.approx(time.time(), abs=LIMIT_S)
    assert body == {
        "name": f"{kind.replace('-', '_')}_hook",
        "type": kind,
        "phase": "canary",
        "step": 1,
        "weight": 25,
        "champion": "ppo/v1",
        "challenger": "hrm/v2",
        "epoch": 3,
        "version": 7,
        "plan_sha256": "ab" * 32,
        "trigger": "",
        "reason": "stage 1",
    }
    check(seen)


@pytest.mark.parametrize("status", [200, 202, 204])
def test_any_2xx_is_a_yes(server: Receiver, status: int) -> None:
    server.says["/hook"] = Says(status, b"")
    assert ask(plan(hook(server, "confirm-promotion")), "confirm-promotion")[0].allowed


@pytest.mark.parametrize(
    ("said", "detail"),
    [
        (Says(403, b"desk is closed"), "HTTP 403: desk is closed"),
        (Says(500, b""), "HTTP 500"),
        (Says(302, headers={"location": "/yes"}), "redirects are not followed"),
        (Says(after_s=3.0), "no answer within 0.3 s"),
        (Says(body=b" ", times=200), "no answer within 0.3 s"),
    ],
)
def test_anything_else_denies(server: Receiver, said: Says, detail: str) -> None:
    server.says["/hook"] = said
    timeout = 0.3 if "within" in detail else LIMIT_S
    (answer,) = ask(plan(hook(server, "confirm-traffic-increase", timeout=timeout)), "confirm-traffic-increase")
    assert not answer.allowed
    assert answer.detail.startswith("confirm_traffic_increase_hook (confirm-traffic-increase) does not allow it: ")
    assert detail in answer.detail


@pytest.mark.parametrize(
    ("environ", "allowed", "detail"),
    [
        ({}, "localhost", "HRM_WEBHOOK_SECRET is not set"),
        ({"HRM_WEBHOOK_SECRET": "s3same"}, "localhost", "24 to 64 bytes in base64"),
        ({"HRM_WEBHOOK_SECRET_FILE": "/no/such/file"}, "localhost", "not readable"),
        (ENVIRON, "elsewhere", "not in delivery.allowed_hosts"),
    ],
)
def test_what_cannot_be_asked_denies(server: Receiver, environ: dict[str, str], allowed: str, detail: str) -> None:
    asked = plan(hook(server, "confirm-rollout"))
    (answer,) = ask(asked, "confirm-rollout", environ, allowed)
    assert not answer.allowed and detail in answer.detail and "s3same" not in answer.detail
    assert not server.seen

    async def start(webhooks: Webhooks, _: Sender) -> None:
        webhooks.require_usable(asked)

    with pytest.raises((ConfigError, DataError), match=detail):
        during(start, environ, allowed)


def test_nobody_there_denies(server: Receiver) -> None:
    nobody = {"name": "gone", "type": "confirm-rollout", "url": "http://localhost:1/"}
    assert not ask(plan(nobody), "confirm-rollout")[0].allowed


def test_all_webhooks_of_a_type_are_asked_at_once_and_each_may_deny(server: Receiver) -> None:
    server.says["/slow"] = Says(after_s=0.4)
    server.says["/no"] = Says(403)
    hooks = [hook(server, "confirm-promotion", path) for path in ("/slow", "/no", "/yes")]
    assert [answer.allowed for answer in ask(plan(*hooks), "confirm-promotion")] == [True, False, True]
    assert ask(plan(), "confirm-promotion") == ()


# What is told


@pytest.mark.parametrize("kind", get_args(Told))
def test_what_is_told_is_never_waited_for_and_arrives(server: Receiver, kind: Told) -> None:
    server.says["/hook"] = Says(after_s=0.3)

    async def story(webhooks: Webhooks, sender: Sender) -> None:
        webhooks.tell(plan(hook(server, kind)), kind, STATE)
        assert (sender.waiting, sender.sent, server.seen) == (1, 0, [])
        await happens(lambda: sender.sent == 1)

    during(story)
    assert json.loads(server.seen[0].body)["type"] == kind
    check(server.seen[0])


def test_a_rollback_is_told_again_until_somebody_hears_it_under_the_same_id(server: Receiver) -> None:
    server.decide = lambda _: Says(503) if len(server.seen) < 4 else None

    async def story(webhooks: Webhooks, sender: Sender) -> None:
        webhooks.tell(plan(hook(server, "rollback")), "rollback", STATE)
        await happens(lambda: sender.sent == 1)

    during(story)
    assert len(server.seen) == 4
    assert len({seen.headers["webhook-id"] for seen in server.seen}) == 1
    during(story)  # another process tells of the same change
    assert len({seen.headers["webhook-id"] for seen in server.seen}) == 1


def test_a_refusal_for_good_is_not_repeated_and_is_logged(server: Receiver) -> None:
    server.says["/s3same"] = Says(410, b"gone")
    told = plan({"name": "desk", "type": "event", "url": f"{server.url}/s3same"})

    async def story(webhooks: Webhooks, sender: Sender) -> None:
        webhooks.tell(told, "event", STATE)
        await happens(lambda: sender.dropped == 1)

    with structlog.testing.capture_logs() as logs:
        during(story)
    assert len(server.seen) == 1
    (line,) = logs
    assert (line["event"], line["what"]) == ("message_dropped", "event 7")
    assert "HTTP 410: gone" in line["error"] and "s3same" not in str(line)


def test_telling_works_and_returns_at_once_though_everything_about_it_is_broken(server: Receiver) -> None:
    async def story(webhooks: Webhooks, sender: Sender) -> None:
        webhooks.tell(plan(hook(server, "rollback")), "rollback", STATE)
        await happens(lambda: sender.dropped == 1)

    during(story, {})
    during(story, ENVIRON, "elsewhere")
    assert not server.seen


# Signatures


def test_the_signature_is_the_one_of_standard_webhooks() -> None:
    """The example that the specification's own libraries are tested with."""
    body, at = b'{"test": 2432232314}', 1614265330
    headers = signed(body, "msg_p5jXN8AQM9LWM0D4loKWxJek", SecretStr(SECRET), now=at)
    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    verified(body, headers, SecretStr(SECRET), now=at, seen={})


def fresh(now: float = 1e9) -> tuple[bytes, dict[str, str]]:
    webhook = Webhook(name="desk", type="event", url="https://desk.example/")
    body = body_of(webhook, STATE, now)
    return body, signed(body, "msg_1", SecretStr(SECRET), now=now)


def code_of(body: bytes, headers: dict[str, str], *, now: float, seen: dict[str, float] | None = None) -> str:
    with pytest.raises(DataError) as raised:
        verified(body, headers, SecretStr(SECRET), now=now, seen={} if seen is None else seen)
    assert SECRET not in str(raised.value)
    return raised.value.code


def test_a_message_counts_once_within_five_minutes_and_never_again() -> None:
    body, headers = fresh()
    for late_s in (-TOLERANCE_S, 0.0, TOLERANCE_S):
        verified(body, headers, SecretStr(SECRET), now=1e9 + late_s, seen={})
    for late_s in (-TOLERANCE_S - 1, TOLERANCE_S + 1, 1e6):
        assert code_of(body, headers, now=1e9 + late_s) == "webhook_stale"
    seen: dict[str, float] = {}
    verified(body, headers, SecretStr(SECRET), now=1e9 - TOLERANCE_S, seen=seen)
    for late_s in (-TOLERANCE_S, 0.0, TOLERANCE_S):
        assert code_of(body, headers, now=1e9 + late_s, seen=seen) == "webhook_repeated"


def test_ids_are_forgotten_when_their_time_makes_them_harmless() -> None:
    seen: dict[str, float] = {}
    for i in range(100):
        now = 1e9 + 60.0 * i
        body = str(i).encode()
        verified(body, signed(body, f"msg_{i}", SecretStr(SECRET), now=now), SecretStr(SECRET), now=now, seen=seen)
    assert len(seen) == 2 * TOLERANCE_S / 60.0 + 1


@pytest.mark.parametrize(
    ("name", "value", "code"),
    [
        ("webhook-id", "msg_2", "webhook_forged"),
        ("webhook-id", None, "webhook_forged"),
        ("webhook-timestamp", "1000000001", "webhook_forged"),
        ("webhook-timestamp", None, "webhook_stale"),
        ("webhook-timestamp", "1e9", "webhook_stale"),
        ("webhook-timestamp", "9" * 5000, "webhook_stale"),
        ("webhook-timestamp", "\N{ARABIC-INDIC DIGIT ONE}" * 10, "webhook_stale"),
        ("webhook-signature", None, "webhook_forged"),
        ("webhook-signature", "", "webhook_forged"),
        ("webhook-signature", "v1,", "webhook_forged"),
        ("webhook-signature", "v2,AAAA", "webhook_forged"),
        ("webhook-signature", "v1,é", "webhook_forged"),
    ],
)
def test_what_is_signed_cannot_be_changed(name: str, value: str | None, code: str) -> None:
    body, headers = fresh()
    changed = {key: text for key, text in {**headers, name: value}.items() if text is not None}
    assert code_of(body, changed, now=1e9) == code


@given(st.binary(max_size=50), st.binary(max_size=50))
def test_no_other_body_and_no_other_secret_pass(body: bytes, other: bytes) -> None:
    headers = signed(body, "msg_1", SecretStr(SECRET), now=1e9)
    verified(body, headers, SecretStr(SECRET), now=1e9, seen={})
    if other != body:
        assert code_of(other, headers, now=1e9) == "webhook_forged"
    with pytest.raises(DataError):
        verified(body, headers, SecretStr("whsec_" + "A" * 32), now=1e9, seen={})


def test_while_secrets_rotate_one_of_several_signatures_is_enough() -> None:
    body, headers = fresh()
    several = {**headers, "webhook-signature": f"v1a,x v1,bm90aGluZw== {headers['webhook-signature']}"}
    verified(body, several, SecretStr(SECRET), now=1e9, seen={})


@pytest.mark.parametrize(
    "text", ["s3same", SECRET.removeprefix("whsec_"), "whsec_", "whsec_AAAA", "whsec_é", "whsec_a b"]
)
def test_a_weak_or_broken_secret_is_refused_and_not_shown(text: str) -> None:
    with pytest.raises(ConfigError, match=r"24 to 64 bytes in base64; echo whsec_\$\(openssl rand") as raised:
        signing_secret({"HRM_WEBHOOK_SECRET": text})
    assert "s3same" not in str(raised.value)


def test_a_new_secret_in_the_file_counts_at_once(server: Receiver, tmp_path: Path) -> None:
    file = tmp_path / "secret"
    asked = plan(hook(server, "confirm-rollout"))
    for held in ("whsec_" + "A" * 32, SECRET):
        file.write_text(held + "\n")
        assert ask(asked, "confirm-rollout", {"HRM_WEBHOOK_SECRET_FILE": str(file)})[0].allowed
    with pytest.raises(DataError):
        check(server.seen[0])
    check(server.seen[1])


def test_the_secret_is_in_no_repr_and_in_no_log(server: Receiver, caplog: pytest.LogCaptureFixture) -> None:
    server.says["/hook"] = Says(503)

    async def story(webhooks: Webhooks, sender: Sender) -> str:
        webhooks.tell(plan(hook(server, "rollback")), "rollback", STATE)
        await happens(lambda: len(server.seen) > 1)
        return repr([vars(sender), webhooks, sender, signing_secret(ENVIRON)])

    with caplog.at_level(logging.DEBUG), structlog.testing.capture_logs() as logs:
        shown = during(story)
    assert logs[0]["event"] == "message_not_sent"
    key = SECRET.removeprefix("whsec_")
    assert key not in shown and key not in caplog.text and key not in repr(logs)
