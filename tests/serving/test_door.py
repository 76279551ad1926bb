"""Who may enter, over real HTTP: every route, every scope, and what people try."""

import asyncio
import contextlib
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from fastapi.routing import iter_route_contexts
from identity_provider import publish_keys, token
from raw_http import Answer, bearer, raw
from starlette.routing import Mount
from test_tokens import FORGED
from tiny_models import publish_all, settings_in

from core.settings import Settings
from flows.service_process import service_process
from serving.app import create_app
from serving.keys import create, revoke
from serving.scopes import Access, Directory, Scope, needs
from serving.service import Service

PROBLEM = "application/problem+json"
FORWARDED_FROM = b"X-Forwarded-For: 203.0.113.%d"  # the service believes it of a proxy on loopback


OTHERS = {scope: tuple(set(Scope) - {scope, Scope.ADMIN}) for scope in Scope}


@dataclass
class Running:
    url: str
    state_dir: Path
    local: str
    log: Path
    secrets: list[str]  # that must never be in the log
    keys: dict[frozenset[Scope], str]  # that the service knows

    def key(self, *scopes: Scope) -> str:
        """One with exactly these scopes."""
        return self.keys[frozenset(scopes)]

    def ask(self, method: str, path: str, credentials: str | None) -> httpx.Response:
        headers = {"Authorization": f"Bearer {credentials}"} if credentials is not None else {}
        return httpx.request(method, self.url + path, headers=headers, trust_env=False, timeout=60)

    def until(self, credentials: str, wanted: Callable[[int], bool]) -> None:
        deadline = time.monotonic() + 60
        while not wanted(self.ask("GET", "/docs", credentials).status_code):
            assert time.monotonic() < deadline, "the service did not notice"
            time.sleep(0.05)

    def version(self) -> int:
        """Of the rollout's state: whether anything was commanded."""
        return int(self.ask("GET", "/v1/rollout", self.local).json()["version"])


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("door")
    publish_all(folder / "models")
    jwt = publish_keys(folder / "jwks.json")
    settings = settings_in(folder, rollout={"cool_down_s": 0.0}, serving={"jwt": jwt, "max_body_kb": 64})
    wanted = {frozenset(scopes) for scopes in [*OTHERS.values(), *((scope,) for scope in Scope)]}
    keys = {scopes: create(folder, "test", tuple(scopes))[1] for scopes in wanted}
    with service_process(settings, champion="ppo/v1") as service:
        yield Running(service.url, folder, service.token, service.log, [service.token, *keys.values()], keys)


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> FastAPI:
    return create_app(settings_in(tmp_path_factory.mktemp("app")))


def routes(app: FastAPI) -> list[tuple[str, str, Access]]:
    """(method, a path, what it needs) of every route of the app, whoever added it."""
    return [
        (method, re.sub(r"{\w+}", "v1", route.path or ""), route.endpoint.__access__)
        for route in iter_route_contexts(app.routes)
        for method in sorted(route.methods or ())
    ]


def test_every_route_says_what_it_needs(app: FastAPI) -> None:
    undeclared = [route.path for route in iter_route_contexts(app.routes) if not hasattr(route.endpoint, "__access__")]
    assert undeclared == []
    assert len(routes(app)) > 30


def test_no_route_opens_without_credentials_or_without_its_scope(app: FastAPI, running: Running) -> None:
    """Of each scope: a key that has every other one."""
    before = running.version()
    for method, path, access in routes(app):
        without = running.ask(method, path, None)
        if access.local:
            assert without.status_code in (200, 503), path
            continue
        assert without.status_code == 401, path
        assert without.headers["www-authenticate"] == "Bearer"
        if access.scope is not None:
            refused = running.ask(method, path, running.key(*OTHERS[access.scope]))
            assert refused.status_code == 403, path
            assert refused.headers["content-type"] == PROBLEM
            assert (refused.json()["code"], str(access.scope) in refused.json()["detail"]) == ("scope_missing", True)
            assert f'scope="{access.scope}"' in refused.headers["www-authenticate"]
    assert running.version() == before


def test_each_scope_alone_opens_its_routes(app: FastAPI, running: Running) -> None:
    for method, path, access in routes(app):
        answer = running.ask(method, path, running.key(access.scope or Scope.METRICS_READ))
        assert answer.status_code not in (401, 403, 405, 500), path
    running.ask("POST", "/v1/rollout/abort", running.local)


@pytest.mark.parametrize("path", ["/health", "/health/live", "/health/ready", "/metrics", "/v2/health/live"])
def test_beyond_loopback_health_and_metrics_need_a_key_too(running: Running, path: str) -> None:
    far = FORWARDED_FROM % 1
    assert raw(running.url, path, far).status == 401
    assert raw(running.url, path, far, bearer(running.key(Scope.DECIDE))).status == 403
    assert raw(running.url, path, far, bearer(running.key(Scope.METRICS_READ))).status == 200


@pytest.fixture
def grown(settings: Settings) -> Iterator[httpx.AsyncClient]:
    """An app with routes that somebody forgot to declare, in this process."""
    app = create_app(settings)
    app.state.service = Service(settings)

    @app.get("/v1/forgotten")
    async def forgotten() -> str:
        raise AssertionError("it was called")

    @app.get("/v1/declared/{name}")
    @needs(Scope.DECIDE)
    async def declared(name: str) -> str:
        return name

    @app.get("/v1/broken")
    @needs(Scope.DECIDE)
    async def broken() -> None:
        raise RuntimeError("a secret of the inside")

    async def mounted(*_: object) -> None:
        raise AssertionError("it was called")

    app.router.routes.append(Mount("/files", mounted))
    token = (settings.paths.state_dir / "api_token").read_text().strip()
    yield httpx.AsyncClient(
        transport=httpx.ASGITransport(app, raise_app_exceptions=False, client=("127.0.0.1", 1)),
        base_url="http://service",
        headers={"Authorization": f"Bearer {token}"},
    )


@pytest.mark.parametrize("path", ["/v1/forgotten", "/files/a/b", "/files/"])
def test_what_says_nothing_is_shut_even_for_admin(grown: httpx.AsyncClient, path: str) -> None:
    answer = asyncio.run(grown.get(path))
    assert (answer.status_code, answer.json()["code"]) == (403, "not_declared")
    assert asyncio.run(grown.get("/v1/declared/x")).json() == "x"


def test_what_breaks_tells_nothing_and_is_not_kept_either(grown: httpx.AsyncClient) -> None:
    answer = asyncio.run(grown.get("/v1/broken"))
    assert (answer.status_code, answer.json()["code"]) == (500, "internal_error")
    assert "secret" not in answer.text
    assert answer.headers.get_list("x-content-type-options") == ["nosniff"]
    assert answer.headers.get_list("cache-control") == ["no-store"]


def test_the_documentation_needs_a_key_and_any_will_do(running: Running) -> None:
    key = running.key(Scope.METRICS_READ)
    for path in ("/docs", "/redoc", "/openapi.json", "/docs/oauth2-redirect"):
        assert running.ask("GET", path, None).status_code == 401
        assert running.ask("GET", path, key).status_code == 200


def test_keys_come_and_go_while_the_service_runs(running: Running) -> None:
    key, text = create(running.state_dir, "short-lived", (Scope.ROLLOUT_READ,))
    running.secrets.append(text)
    running.until(text, lambda status: status == 200)
    assert running.ask("GET", "/v1/rollout", text).status_code == 200
    revoke(running.state_dir, key.id)
    running.until(text, lambda status: status == 401)


def test_an_expired_key_is_told_so(running: Running) -> None:
    expired = create(running.state_dir, "gone", (Scope.ADMIN,), expires_at=datetime.now(UTC) - timedelta(seconds=1))[1]
    current = create(running.state_dir, "here", (Scope.ADMIN,))[1]
    running.secrets += [expired, current]
    running.until(current, lambda status: status == 200)  # so the file has been read since
    answer = running.ask("GET", "/v1/rollout", expired)
    assert (answer.status_code, "expired" in answer.json()["detail"]) == (401, True)


def test_a_token_of_the_identity_provider_opens_what_its_scopes_say(running: Running) -> None:
    text = token(scope="rollout:read")
    running.secrets.append(text)
    assert running.ask("GET", "/v1/rollout", text).status_code == 200
    assert running.ask("POST", "/v1/rollout/abort", text).status_code == 403


@pytest.mark.parametrize("how", FORGED)
def test_a_forged_token_opens_nothing(running: Running, how: str) -> None:
    text = FORGED[how]()
    answer = raw(running.url, "/v1/rollout", bearer(text))
    assert (answer.status, answer.code) == (401, "unauthorized")
    if len(text) > 40:
        running.secrets.append(text)


def nearly(running: Running) -> list[bytes]:
    """Authorization headers that are almost right."""
    key, local = running.key(Scope.ADMIN), running.local
    return [
        b"Authorization: " + local.encode(),
        b"Authorization: Basic " + local.encode(),
        b"Authorization: Bearer  " + local.encode(),
        b"Authorization: Bearer " + local.encode() + b" x",
        b"Authorization: Bearer " + local[:-1].encode(),
        b"Authorization: Bearer " + key.encode() + b"A",
        b"Authorization: Bearer hrm_" + b"0" * 12 + key[16:].encode(),
        b"Authorization: Bearer \xff\xfe\xc3\xa9",
        b"Authorization: Bearer hrm_\xff\xfe" + b"x" * 60,
        b"Authorization: Bearer " + b"." * 5000,
        b"Authorization: Bearer",
        b"Authorization:",
        b"X-Authorization: Bearer " + local.encode(),
        b"Cookie: token=" + local.encode(),
    ]


def test_credentials_that_are_nearly_right_are_wrong(running: Running) -> None:
    for header in nearly(running):
        assert raw(running.url, "/v1/rollout", header).status == 401, header[:40]
        assert raw(running.url, f"/v1/rollout?token={running.local}&access_token={running.local}").status == 401


def test_two_authorization_headers_are_one_too_many(running: Running) -> None:
    """Which of them counts is a question that a proxy before us may answer differently."""
    wrong, right = bearer("wrong"), bearer(running.local)
    for pair in ((wrong, right), (right, wrong), (right, right)):
        assert raw(running.url, "/v1/rollout", *pair).status == 401


def test_a_header_of_ten_megabytes_ends_its_connection_and_nothing_else(running: Running) -> None:
    with contextlib.suppress(ConnectionError):  # closed while it was still sending
        assert raw(running.url, "/v1/rollout", b"Authorization: Bearer " + b"x" * 10_000_000).status in (400, 431)
    assert running.ask("GET", "/v1/rollout", running.local).status_code == 200


TARGETS = [
    "/v1/rollout/abort",
    "//v1/rollout/abort",
    "/v1//rollout/abort",
    "/v1/rollout/abort/",
    "/v1/rollout/./abort",
    "/v1/health/../rollout/abort",
    "/health/live/../../v1/rollout/abort",
    "/health/live%2f..%2f..%2fv1/rollout/abort",
    "/v1/rollout%2Fabort",
    "/v1%2frollout%2fabort",
    "/%76%31/rollout/abort",
    "/v1/rollout/abort%00",
    "/v1/rollout/abort%0a",
    "/v1/rollout/abort;x=1",
    "/V1/ROLLOUT/ABORT",
    "/v1/rollout/abort?x=/health/live",
    "/health/live?/v1/rollout/abort",
    "/v1/rollout\\abort",
    "/metrics/../v1/rollout/abort",
    "http://service/v1/rollout/abort",
    "http://service/health/live",
    "/\u00e9",
    "/v1/rollout/abort%ff",
]


@pytest.mark.parametrize("target", TARGETS)
def test_no_spelling_of_a_path_leads_around_the_door(running: Running, target: str) -> None:
    """With a key that may decide, and without one: nothing is commanded."""
    before, key = running.version(), running.key(Scope.DECIDE)
    for headers, wanted in ((), (400, 401, 405)), ((bearer(key),), (400, 403, 404, 405)):
        answer = raw(running.url, target, b"Content-Length: 0", *headers, method="POST")
        assert answer.status in wanted
    assert running.version() == before


@pytest.mark.parametrize("method", ["HEAD", "OPTIONS", "PUT", "DELETE", "TRACE", "PATCH"])
def test_other_methods_do_nothing(running: Running, method: str) -> None:
    assert raw(running.url, "/v1/rollout/abort", b"Content-Length: 0", method=method).status == 401
    answer = raw(running.url, "/v1/rollout/abort", b"Content-Length: 0", bearer(running.local), method=method)
    assert (answer.status, answer.headers["allow"]) == (405, "POST")
    over = b"X-HTTP-Method-Override: POST"
    assert raw(running.url, "/v1/rollout/abort", over, bearer(running.local)).status == 405


def every_kind(running: Running) -> list[Answer]:
    local, large = bearer(running.local), b"Content-Length: 99999"
    return [
        raw(running.url, "/v1/rollout", local),
        raw(running.url, "/health/live"),
        raw(running.url, "/v1/rollout"),
        raw(running.url, "/v1/rollout", bearer(running.key(Scope.DECIDE))),
        raw(running.url, "/nowhere", local),
        raw(running.url, "/v1/decisions", local),
        raw(running.url, "/v1/decisions", local, large, method="POST"),
        raw(running.url, "/v1/decisions", local, b"Content-Length: 2", method="POST", body=b"{}"),
        raw(running.url, "/docs", local),
    ]


def test_every_answer_forbids_guessing_and_keeping(running: Running) -> None:
    answers = every_kind(running)
    assert [answer.status for answer in answers] == [200, 200, 401, 403, 404, 405, 413, 422, 200]
    for answer in answers:
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"


def test_directory_finds_what_the_router_does_in_its_order(settings: Settings) -> None:
    app = FastAPI()
    for path, scope in (("/a/{name}", Scope.DECIDE), ("/a/b", Scope.ADMIN)):
        app.get(path)(needs(scope)(lambda: None))
    found = Directory(app.routes).find("GET", "/a/b")
    assert found.access.scope is Scope.DECIDE  # the router calls the first that matches, too


def test_refusals_are_logged_and_counted_and_the_log_holds_no_secret(running: Running) -> None:
    """Runs last: what all the tests above sent."""
    guess = running.local[:20] + "guessed"
    running.ask("GET", "/v1/rollout", guess)
    running.ask("POST", "/v1/rollout/pause", running.key(Scope.DECIDE))
    log = running.log.read_text()
    assert '"event": "refused"' in log or '"event":"refused"' in log
    assert "scope_missing" in log
    for secret in [*running.secrets, guess]:
        assert secret not in log
        assert secret[-20:] not in log
    counted = running.ask("GET", "/metrics", running.local).text
    for code in ("unauthorized", "scope_missing", "not_found", "method_not_allowed", "body_too_large"):
        assert re.search(rf'hrm_http_refused_total{{code="{code}"}} [1-9]', counted), code
