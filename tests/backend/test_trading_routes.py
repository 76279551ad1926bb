"""The switch and the status over HTTP: as available as an abort, and closed to everybody else."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import httpx
import pytest
from test_backend_app import backend, settings_of

from backend.app import create_app
from core.settings import load_settings
from serving import keys
from serving.scopes import Scope
from trading.gateway import OrderGateway
from trading.ledger import Ledger, Order
from trading.switch import FILE, KILL, engage, read, release

WITHIN_S = 60.0  # and for ever, if it waited for a thread
OTHERS = tuple(scope for scope in Scope if scope not in (Scope.ROLLOUT_ABORT, Scope.ADMIN))


@pytest.fixture(scope="module")
def state_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("state")


@pytest.fixture(scope="module")
def texts(state_dir: Path) -> dict[tuple[Scope, ...], str]:
    """API keys by their scopes, made before the server starts, which reads them once a second."""
    return {
        scopes: keys.create(state_dir, "asha", scopes)[1]
        for scopes in ((Scope.ROLLOUT_ABORT,), OTHERS, (Scope.DECIDE,))
    }


@pytest.fixture(scope="module")
def url(state_dir: Path, texts: dict[tuple[Scope, ...], str]) -> Iterator[str]:
    del texts  # made by now
    with backend(state_dir) as (_, listening):
        yield f"http://127.0.0.1:{listening['port']}"


@pytest.fixture(autouse=True)
def active(state_dir: Path) -> None:
    release(state_dir, "the test", "a new one")


@pytest.fixture(scope="module")
def caller(state_dir: Path, url: str, texts: dict[tuple[Scope, ...], str]) -> Callable[..., httpx.Client]:
    """A client with the API key of these scopes; of none: with the local token, which may do everything."""

    def client(*scopes: Scope) -> httpx.Client:
        text = texts[scopes] if scopes else (state_dir / "api_token").read_text().strip()
        return httpx.Client(base_url=url, headers={"Authorization": f"Bearer {text}"}, timeout=60.0, trust_env=False)

    return client


def test_a_kill_halts_every_process_and_says_who(state_dir: Path, caller: Callable[..., httpx.Client]) -> None:
    with caller(Scope.ROLLOUT_ABORT) as client:
        answer = client.post("/api/trading/kill", json={"reason": "the feed is wrong"})
    assert answer.status_code == 200
    stands = read(state_dir)
    assert (stands.state, stands.reason) == ("halted", "the feed is wrong")
    assert any(key.id in stands.by for key in keys.read(state_dir))
    assert answer.json() == {
        "state": "halted",
        "flatten": False,
        "by": stands.by,
        "reason": "the feed is wrong",
        "since": answer.json()["since"],
        "until": None,
    }


@pytest.mark.parametrize(
    "sent",
    [
        {},
        {"content": b""},
        {"content": b"stop!"},
        {"content": b'{"reason": 7}'},
        {"content": b'{"reason": "' + 600 * b"a" + b'"}'},
        {"content": b'{"flatten": "perhaps"}'},
        {"content": b'{"because": "x"}'},
        {"content": b"\xff\xfe", "headers": {"Content-Type": "text/plain"}},
    ],
)
def test_no_kill_is_refused_for_its_words(
    state_dir: Path, caller: Callable[..., httpx.Client], sent: dict[str, Any]
) -> None:
    with caller() as client:
        assert client.post("/api/trading/kill", **sent).status_code == 200
    assert read(state_dir).state == "halted"


def test_a_kill_that_closes_reduces_and_after_a_halt_it_says_that_nothing_is_closed(
    state_dir: Path, caller: Callable[..., httpx.Client]
) -> None:
    with caller() as client:
        assert client.post("/api/trading/kill", json={"flatten": True}).json()["state"] == "reducing"
        assert read(state_dir).flatten
        client.post("/api/trading/kill")
        late = client.post("/api/trading/kill", json={"flatten": True})
        assert (late.status_code, late.json()["code"]) == (409, "halted")
        assert read(state_dir).state == "halted"
        closing = client.post("/api/trading/resume", json={"reason": "close it", "flatten": True}).json()
        assert (closing["state"], closing["flatten"], closing["lifted"]["state"]) == ("reducing", True, "halted")


def test_a_resume_needs_a_reason_and_says_what_it_lifted(state_dir: Path, caller: Callable[..., httpx.Client]) -> None:
    engage(state_dir, "reducing", "risk", "drawdown")
    (state_dir / KILL).touch()
    with caller(Scope.ROLLOUT_ABORT) as client:
        for refused in ({}, {"reason": ""}, {"reason": " \n"}, {"reason": "x", "more": 1}):
            answer = client.post("/api/trading/resume", json=refused)
            assert (answer.status_code, answer.json()["code"]) == (422, "request_invalid")
        assert read(state_dir).state == "halted"
        answer = client.post("/api/trading/resume", json={"reason": "looked at it"}).json()
    assert (answer["state"], answer["reason"]) == ("active", "looked at it")
    assert (answer["lifted"]["state"], answer["lifted"]["by"]) == ("halted", KILL)
    assert read(state_dir).state == "active"


def test_other_scopes_neither_stop_nor_resume_and_reading_needs_its_own(
    state_dir: Path, caller: Callable[..., httpx.Client]
) -> None:
    with caller(*OTHERS) as client:
        for path in ("kill", "resume"):
            answer = client.post(f"/api/trading/{path}", json={"reason": "x"})
            assert (answer.status_code, answer.json()["code"]) == (403, "scope_missing")
        assert client.get("/api/trading/status").status_code == 200
    assert read(state_dir).state == "active"
    with caller(Scope.DECIDE) as client:
        assert client.get("/api/trading/status").status_code == 403


def test_the_status_tells_switch_positions_orders_and_the_day(
    state_dir: Path, caller: Callable[..., httpx.Client]
) -> None:
    settings = load_settings(preset="compact", environ={"HRM_PATHS__STATE_DIR": str(state_dir)})
    ledger = Ledger(state_dir / "paper.db")
    order = Order("NIFTY_5:1", "NIFTY_5", 4.0, "champion:ppo/v1", epoch=0, at_ns=10**9, bar_ns=1)
    OrderGateway(ledger, settings.trading).submit(order)
    ledger.close()
    (state_dir / "live.db").write_bytes(b"no database at all" * 100)
    (state_dir / FILE).write_text("{")
    with caller() as client:
        found = client.get("/api/trading/status").json()
    assert found["switch"]["state"] == "halted"
    assert "cannot be read" in found["switch"]["reason"]
    assert found["ledgers"]["paper.db"]["open_orders"] == [
        {
            "order_id": "NIFTY_5:1",
            "symbol": "NIFTY_5",
            "instrument": "",
            "units": 4.0,
            "limit_price": None,
            "open_units": 4.0,
            "status": "open",
            "broker_id": None,
            "since": "1970-01-01T00:00:01+00:00",
        }
    ]
    assert found["ledgers"]["paper.db"]["today"] == {"realised_rupees": 0.0, "costs_rupees": 0.0, "fills": 0}
    assert "not usable" in found["ledgers"]["live.db"]["problem"]
    assert "live-paper.db" not in found["ledgers"]


def test_a_kill_does_not_wait_behind_routes_that_have_every_thread(tmp_path: Path) -> None:
    """Such as backtests that wait for their turn. The real app, in this process, whose threads are seen."""

    async def killed(over: threading.Event) -> int:
        app = create_app(settings_of(tmp_path))
        threads = anyio.to_thread.current_default_thread_limiter()
        busy = [asyncio.create_task(anyio.to_thread.run_sync(over.wait)) for _ in range(int(threads.total_tokens))]
        busy += [asyncio.create_task(asyncio.to_thread(over.wait)) for _ in range(64)]  # asyncio's own, all of them
        try:
            while threads.available_tokens:
                await asyncio.sleep(0.001)
            headers = {"Authorization": f"Bearer {(tmp_path / 'api_token').read_text().strip()}"}
            transport = httpx.ASGITransport(app, client=("127.0.0.1", 1))
            async with httpx.AsyncClient(transport=transport, base_url="http://test", headers=headers) as client:
                answer = await asyncio.wait_for(client.post("/api/trading/kill"), WITHIN_S)
            return answer.status_code
        finally:
            over.set()
            await asyncio.gather(*busy)

    assert asyncio.run(killed(threading.Event())) == 200
    assert read(tmp_path).state == "halted"
