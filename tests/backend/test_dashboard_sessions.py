"""Sessions of the desk's page: what a cookie opens, what it does not, and when it ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.routing import iter_route_contexts
from test_backend_app import settings_of

from backend.app import create_app
from backend.dashboard import sessions as module
from backend.dashboard.sessions import COOKIE, IDLE_S, LIFETIME_S, MOST, MOST_OF_ONE, ROTATE_AFTER_S, Sessions
from serving import keys
from serving.scopes import Scope
from trading.switch import read

Ask = Callable[..., httpx.Response]


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Of every store of sessions that is made in the test."""
    clock = Clock()
    monkeypatch.setattr(module.Sessions.__init__, "__defaults__", (clock,))
    return clock


@contextmanager
def browser(state_dir: Path) -> Iterator[Ask]:
    """Requests to a backend in this process, with one jar of cookies."""
    transport = httpx.ASGITransport(create_app(settings_of(state_dir)))
    jar = httpx.Cookies()

    def ask(method: str, path: str, **options: Any) -> httpx.Response:
        async def once() -> httpx.Response:
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", cookies=jar) as client:
                answer = await client.request(method, path, **options)
                jar.update(client.cookies)
                return answer

        return asyncio.run(once())

    ask.cookies = jar  # type: ignore[attr-defined] # of a function, which takes any
    yield ask


@pytest.fixture
def ask(tmp_path: Path) -> Iterator[Ask]:
    with browser(tmp_path) as ask:
        yield ask


def bearer(state_dir: Path) -> dict[str, str]:
    return {"Authorization": f"Bearer {(state_dir / 'api_token').read_text().strip()}"}


def log_in(ask: Ask, headers: dict[str, str]) -> dict[str, str]:
    """The header that commands need."""
    return {"X-CSRF-Token": ask("POST", "/dashboard/session", headers=headers).json()["csrf"]}


def test_a_session_is_begun_with_credentials_and_its_cookie_holds_none(ask: Ask, tmp_path: Path) -> None:
    answer = ask("POST", "/dashboard/session", headers=bearer(tmp_path))
    assert (answer.status_code, answer.json()["caller"], answer.json()["scopes"]) == (200, "local", ["admin"])
    cookie = answer.headers["set-cookie"]
    assert {"HttpOnly", "SameSite=strict", "Path=/"} <= set(cookie.split("; "))
    token = bearer(tmp_path)["Authorization"].removeprefix("Bearer ")
    assert token not in answer.text + cookie


def test_a_cookie_is_secure_where_the_page_came_by_tls(tmp_path: Path) -> None:
    with browser(tmp_path) as ask:
        answer = ask("POST", "https://desk.example/dashboard/session", headers=bearer(tmp_path))
    assert "Secure" in answer.headers["set-cookie"].split("; ")


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic eDp5"}])
def test_nobody_gets_a_session_without_good_credentials(ask: Ask, headers: dict[str, str]) -> None:
    answer = ask("POST", "/dashboard/session", headers=headers)
    assert (answer.status_code, answer.headers.get("set-cookie")) == (401, None)


def test_with_a_session_one_reads_and_with_its_token_one_acts(ask: Ask, tmp_path: Path) -> None:
    assert ask("GET", "/api/dashboard/summary").status_code == 401
    token = log_in(ask, bearer(tmp_path))
    assert ask("GET", "/api/dashboard/panels/log").status_code == 200
    assert ask("POST", "/api/trading/kill", json={"reason": "x"}).status_code == 401  # as from another site
    assert read(tmp_path).state == "active"
    for wrong in ("", "x", token["X-CSRF-Token"][:-1]):
        assert ask("POST", "/api/trading/kill", json={}, headers={"X-CSRF-Token": wrong}).status_code == 401
    twice = [("X-CSRF-Token", token["X-CSRF-Token"])] * 2
    assert ask("POST", "/api/trading/kill", json={}, headers=twice).status_code == 401
    assert read(tmp_path).state == "active"
    assert ask("POST", "/api/trading/kill", json={"reason": "x"}, headers=token).status_code == 200
    assert (read(tmp_path).state, read(tmp_path).by) == ("halted", "local")


def test_credentials_of_ones_own_count_before_a_cookie(ask: Ask, tmp_path: Path) -> None:
    log_in(ask, bearer(tmp_path))
    assert ask("GET", "/api/dashboard/panels/log", headers={"Authorization": "Bearer wrong"}).status_code == 401


def test_a_session_ends_with_its_key_and_has_no_scope_beyond_it(ask: Ask, tmp_path: Path) -> None:
    info, text = keys.create(tmp_path, "asha", (Scope.ROLLOUT_READ,))
    with browser(tmp_path) as asha:
        token = log_in(asha, {"Authorization": f"Bearer {text}"})
        assert asha("GET", "/dashboard/session").json()["scopes"] == ["rollout:read"]
        assert asha("POST", "/api/trading/kill", headers=token).json()["code"] == "scope_missing"
        assert asha("POST", "/api/rollout/abort", headers=token).json()["code"] == "scope_missing"
    keys.revoke(tmp_path, info.id)
    with browser(tmp_path) as late:
        late.cookies.update(asha.cookies)  # type: ignore[attr-defined]
        assert late("GET", "/api/dashboard/panels/log").status_code == 401


def test_a_log_out_ends_it_at_the_backend_too(ask: Ask, tmp_path: Path) -> None:
    token = log_in(ask, bearer(tmp_path))
    number = ask.cookies[COOKIE]  # type: ignore[attr-defined]
    assert ask("DELETE", "/dashboard/session").status_code == 401  # nobody else logs one out
    assert ask("DELETE", "/dashboard/session", headers=token).status_code == 204
    kept = {"Cookie": f"{COOKIE}={number}"}
    assert ask("GET", "/api/dashboard/panels/log", headers=kept).status_code == 401


def test_a_log_in_leaves_nothing_of_the_session_before(ask: Ask, tmp_path: Path) -> None:
    log_in(ask, bearer(tmp_path))
    before = ask.cookies[COOKIE]  # type: ignore[attr-defined]
    log_in(ask, bearer(tmp_path))
    assert ask.cookies[COOKIE] != before  # type: ignore[attr-defined]
    with browser(tmp_path) as thief:
        assert thief("GET", "/dashboard/session", headers={"Cookie": f"{COOKIE}={before}"}).status_code == 401


def test_no_session_makes_another_one(ask: Ask, tmp_path: Path) -> None:
    token = log_in(ask, bearer(tmp_path))
    assert ask("POST", "/dashboard/session", headers=token).status_code == 401


def test_cookies_of_others_on_the_same_host_are_in_nobodys_way(ask: Ask, tmp_path: Path) -> None:
    log_in(ask, bearer(tmp_path))
    number = ask.cookies[COOKIE]  # type: ignore[attr-defined]
    others = f'a={{"x": [1, 2]}}; "b; c\xe9=\xff; {COOKIE}={number}; d'.encode("latin-1")
    with browser(tmp_path) as elsewhere:
        assert elsewhere("GET", "/dashboard/session", headers={"Cookie": others}).status_code == 401  # another process
    assert ask("GET", "/dashboard/session", headers={"Cookie": others}).status_code == 200


def test_a_session_ends_when_nobody_uses_it_and_after_a_day_in_any_case(clock: Clock) -> None:
    store = Sessions(clock)
    begun = store.begin("asha", b"Bearer x")
    assert begun is not None
    clock.now = IDLE_S - 1
    assert store.find(begun[0])
    clock.now = 2 * IDLE_S - 2
    assert store.find(begun[0])
    clock.now = 3 * IDLE_S
    assert store.find(begun[0]) is None
    begun = store.begin("asha", b"Bearer x")
    assert begun is not None
    end = clock.now + LIFETIME_S
    while clock.now < end:
        assert store.find(begun[0])
        clock.now += IDLE_S / 2
    assert store.find(begun[0]) is None


def test_its_number_is_renewed_and_the_old_one_lives_on_for_what_is_on_its_way(clock: Clock) -> None:
    store = Sessions(clock)
    begun = store.begin("asha", b"Bearer x")
    assert begun is not None
    number, session = begun
    assert store.rotated(number) == number
    clock.now = ROTATE_AFTER_S
    renewed = store.rotated(number)
    assert renewed != number
    assert store.rotated(number) == number  # a second tab, at the same time: nothing grows
    assert store.find(number) is store.find(renewed) is session
    clock.now += module.GRACE_S
    assert store.find(number) is None
    assert store.find(renewed) is session
    store.end(renewed)
    assert store.find(renewed) is None


def test_there_are_never_too_many_and_one_caller_takes_no_room_from_another(clock: Clock) -> None:
    store = Sessions(clock)
    numbers = [begun[0] for _ in range(MOST_OF_ONE + 5) if (begun := store.begin("asha", b"Bearer x"))]
    assert len(store) == MOST_OF_ONE
    assert [number for number in numbers if store.find(number)] == numbers[5:]
    for caller in range(2 * MOST // MOST_OF_ONE):
        for _ in range(MOST_OF_ONE):
            store.begin(f"caller {caller}", b"Bearer y")
    assert len(store) == MOST
    assert store.begin("new", b"Bearer z") is None
    assert store.find(numbers[-1])
    clock.now = IDLE_S
    assert store.begin("new", b"Bearer z") is not None
    assert len(store) == 1


def test_no_secret_is_in_what_a_session_looks_like() -> None:
    begun = Sessions().begin("asha", b"Bearer secret-key")
    assert begun is not None
    assert "secret-key" not in repr(begun[1])
    assert begun[1].csrf not in repr(begun[1])


@pytest.mark.parametrize(
    "cookie", ["", "hrm_session", "hrm_session=", "hrm_session=\xff", 'hrm_session="', "a=b; ;;=", "x" * 4000]
)
def test_whatever_a_cookie_is_it_opens_nothing_and_breaks_nothing(ask: Ask, cookie: str) -> None:
    headers = {"Cookie": cookie.encode("latin-1")}
    assert ask("GET", "/api/dashboard/panels/log", headers=headers).status_code == 401
    assert ask("GET", "/dashboard", headers=headers).status_code == 200


def test_all_that_is_open_to_everybody_is_the_bare_page_and_its_small_files(tmp_path: Path) -> None:
    routes = list(iter_route_contexts(create_app(settings_of(tmp_path)).routes))
    access = {str(route.path): getattr(route.endpoint, "__access__", None) for route in routes}
    public = {path for path, needs in access.items() if needs is not None and needs.public}
    assert {path for path in public if not path.startswith("/dashboard/static/")} == {"/dashboard"}
    assert all(path.endswith((".js", ".css", ".svg")) for path in public - {"/dashboard"})
    assert {path for path, needs in access.items() if needs is not None and needs.local} == {"/health/live", "/metrics"}


def test_every_route_is_told_at_docs_to_whoever_is_logged_in_and_by_no_script_of_another_host(
    ask: Ask, tmp_path: Path
) -> None:
    assert ask("GET", "/docs").status_code == 401
    log_in(ask, bearer(tmp_path))
    told = ask("GET", "/docs")
    assert told.status_code == 200
    assert "default-src 'none'" in told.headers["content-security-policy"]
    assert "<script" not in told.text
    assert "//" not in told.text.replace("<!doctype", "")
    for path in ("POST /api/trading/manual-trade", "GET /api/trading/positions", "POST /api/backtest/run"):
        assert path in told.text
    assert {ask("GET", path).status_code for path in ("/redoc", "/docs/oauth2-redirect")} == {404}


def test_the_page_runs_nothing_inline_and_is_framed_by_nobody(ask: Ask, tmp_path: Path) -> None:
    answer = ask("GET", "/dashboard")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self';" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe-eval" not in policy
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-store"
    assert "<script>" not in answer.text
    assert "style=" not in answer.text
    assert "//" not in answer.text.replace("<!doctype", "")  # nothing of another host
    assert ask("GET", "/dashboard/plotly.js").status_code == 401  # large: not for everybody
    library = ask("GET", "/dashboard/plotly.js", headers=bearer(tmp_path))
    assert "immutable" in library.headers["cache-control"]
    assert "plotly.js v" in library.text[:40]
