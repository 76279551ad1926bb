"""What is asked and told by HTTP goes where it may, and nowhere else, and never for long."""

from __future__ import annotations

import asyncio
import gzip
import logging
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from certificates import certificate_for
from hypothesis import given
from hypothesis import strategies as st
from receiver import LIMIT_S, Receiver, Says, delivery_settings, receiving

from core.errors import DataError
from delivery import outbound
from delivery.aside import Aside
from delivery.outbound import MOST_BYTES, Outbound, permitted


@pytest.fixture(scope="module")
def server() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


@pytest.fixture(scope="module")
def local() -> Outbound:
    return Outbound(delivery_settings("localhost"))


def get(url: str, *allowed: str, timeout_s: float = LIMIT_S, private_networks: bool = False) -> bytes:
    async def asked() -> bytes:
        settings = delivery_settings(*(allowed or ("localhost",)), private_networks=private_networks)
        async with Outbound(settings) as http:
            return await http.get(url, timeout_s=timeout_s)

    return asyncio.run(asked())


def refused(url: str, *allowed: str, **limits: float) -> DataError:
    with pytest.raises(DataError) as raised:
        get(url, *allowed, **limits)  # type: ignore[arg-type] # of tests
    return raised.value


def test_an_allowed_host_is_asked_under_its_own_name(server: Receiver) -> None:
    server.says["/number"] = Says(body=b'{"x": 1}')
    assert get(f"{server.url}/number?a=b") == b'{"x": 1}'
    request = server.seen[-1]
    assert (request.method, request.path, request.query) == ("GET", "/number", "a=b")
    assert request.headers["host"] == f"localhost:{server.port}"
    assert "authorization" not in request.headers and "cookie" not in request.headers


@pytest.mark.parametrize("allowed", ["localhost", "LOCALHOST", "localhost:{port}"])
def test_a_host_is_allowed_by_name_or_with_its_port(server: Receiver, allowed: str) -> None:
    assert get(server.url, allowed.format(port=server.port)) == b"{}"


@pytest.mark.parametrize("allowed", ["localhost:1", "ocalhost", "a.localhost", "127.0.0.1"])
def test_what_is_not_on_the_list_is_not_asked(server: Receiver, allowed: str) -> None:
    before = len(server.seen)
    error = refused(server.url, allowed)
    assert (error.code, error.retryable) == ("outbound_refused", False)
    assert f"localhost:{server.port} is not in delivery.allowed_hosts" in str(error)
    assert len(server.seen) == before


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost",
        "file:///etc/passwd",
        "ftp://localhost/",
        "http://",
        "http:///x",
        "http://local host/",
        "http://[::1",
        "http://localhost:0/",
        "http://localhost:65536/",
        "http://localhost/\0",
    ],
)
def test_what_is_no_web_address_is_refused(url: str) -> None:
    assert refused(url).code == "outbound_refused"


@given(st.text(max_size=30) | st.text(max_size=20).map("http://localhost{}".format))
def test_a_text_whatever_is_a_url_of_an_allowed_host_or_refused(local: Outbound, text: str) -> None:
    try:
        parsed = local.require_allowed(text)
    except DataError as error:
        assert error.code == "outbound_refused"
    else:
        assert parsed.raw_host == b"localhost" and not parsed.userinfo


def test_credentials_in_a_url_are_refused_and_not_shown() -> None:
    error = refused("http://desk:sesame@localhost/")
    assert "no credentials in a URL" in str(error) and "sesame" not in str(error)


@pytest.mark.parametrize(
    "address",
    [
        "169.254.169.254",
        "[fe80::1]",
        "[::ffff:169.254.169.254]",
        "[2002:a9fe:a9fe::]",
        "[64:ff9b::a9fe:a9fe]",
        "0.0.0.0",
    ],
)
def test_link_local_addresses_are_refused_even_when_allowed(address: str) -> None:
    error = refused(f"http://{address}/latest/meta-data", address, private_networks=True)
    assert error.code == "outbound_refused" and "is not connected to" in str(error)


@pytest.mark.parametrize("address", ["10.0.0.1", "172.16.0.1", "192.168.1.1", "100.64.0.1", "[fd00::1]"])
def test_private_networks_need_a_setting(address: str) -> None:
    assert "delivery.private_networks" in str(refused(f"http://{address}/", address))
    assert permitted(address.strip("[]"), private_networks=True)


def test_public_and_loopback_addresses_are_permitted_and_groups_are_not() -> None:
    for address in ("93.184.216.34", "2606:4700::1111", "127.0.0.1", "::1", "::ffff:127.0.0.1"):
        assert permitted(address, private_networks=False), address
    for address in ("224.0.0.1", "255.255.255.255", "ff02::1", "::", "240.0.0.1"):
        assert not permitted(address, private_networks=True), address


def answers(*addresses: str) -> list[tuple[object, ...]]:
    """What a resolver says; a real one cannot be made to say this here."""
    return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 80)) for address in addresses]


def test_a_name_with_one_forbidden_address_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    found = answers("127.0.0.1", "169.254.169.254")
    monkeypatch.setattr(outbound.socket, "getaddrinfo", lambda *_, **__: found)
    assert "169.254.169.254" in str(refused("http://metrics.example/", "metrics.example"))


def test_the_address_that_was_judged_is_the_one_connected_to(server: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that says something else the second time it is looked up is not looked up a second time."""
    looked_up = []

    def rebinding(host: str, *_: object, **__: object) -> list[tuple[object, ...]]:
        looked_up.append(host)
        return answers("127.0.0.1" if len(looked_up) == 1 else "169.254.169.254")

    monkeypatch.setattr(outbound.socket, "getaddrinfo", rebinding)
    assert get(f"http://metrics.example:{server.port}/", "metrics.example") == b"{}"
    assert looked_up == ["metrics.example"]
    assert server.seen[-1].headers["host"] == f"metrics.example:{server.port}"


def test_the_next_address_is_tried_where_nobody_listens(server: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    found = answers("127.0.0.2", "127.0.0.1")
    monkeypatch.setattr(outbound.socket, "getaddrinfo", lambda *_, **__: found)
    assert get(f"http://metrics.example:{server.port}/", "metrics.example") == b"{}"


def test_a_redirect_is_not_followed(server: Receiver) -> None:
    server.says["/moved"] = Says(302, headers={"location": f"{server.url}/elsewhere"})
    error = refused(f"{server.url}/moved")
    assert "HTTP 302: redirects are not followed" in str(error) and not error.retryable
    assert server.seen[-1].path == "/moved"


@pytest.mark.parametrize(("status", "retryable"), [(400, False), (404, False), (429, True), (500, True), (503, True)])
def test_an_answer_that_says_no_is_shown_without_the_path(server: Receiver, status: int, retryable: bool) -> None:
    server.says["/T0KEN"] = Says(status, b"bad\n\x1b[31m query " + b"x" * 999)
    error = refused(f"{server.url}/T0KEN?key=T0KEN")
    assert f"HTTP {status}: bad [31m query xxx" in str(error) and error.retryable is retryable
    assert "T0KEN" not in str(error) and len(str(error)) < 300


def test_an_answer_has_to_come_in_time_however_slowly_it_comes(server: Receiver) -> None:
    server.says["/late"] = Says(after_s=5.0)
    server.says["/drip"] = Says(body=b" ", times=500)
    for path in ("/late", "/drip"):
        error = refused(f"{server.url}{path}", timeout_s=0.3)
        assert "no answer within 0.3 s" in str(error) and error.retryable


def test_an_answer_has_to_be_small_also_when_it_is_unpacked(server: Receiver) -> None:
    server.says["/large"] = Says(body=b" " * (MOST_BYTES + 1))
    server.says["/packed"] = Says(body=gzip.compress(b" " * 10**7), headers={"content-encoding": "gzip"})
    assert "larger than 256 KiB" in str(refused(f"{server.url}/large"))
    assert "compressed" in str(refused(f"{server.url}/packed"))
    assert server.seen[-1].headers["accept-encoding"] == "identity"


def test_nobody_there_and_nonsense_are_both_no_answer() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = refused(f"http://localhost:{free.getsockname()[1]}/")
        free.listen(1)
        babble = threading.Thread(target=_babble, args=(free,))
        babble.start()
        nonsense = refused(f"http://localhost:{free.getsockname()[1]}/")
        babble.join()
    assert "ConnectError" in str(nobody) and nobody.retryable
    assert "RemoteProtocolError" in str(nonsense) and nonsense.retryable
    assert refused(f"http://{'a' * 64}.example/", f"{'a' * 64}.example").code.startswith("outbound_")


def _babble(listener: socket.socket) -> None:
    peer, _ = listener.accept()
    with peer:
        peer.recv(1000)
        peer.sendall(b"220 mail.example ESMTP\r\n\r\n")


def test_the_certificate_has_to_be_the_hosts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though the connection goes to an address, it is the name that is checked."""
    for name, fits in (("localhost", True), ("another.example", False)):
        files = certificate_for(name, tmp_path)
        monkeypatch.setenv("SSL_CERT_FILE", str(files[0]))
        with receiving(files) as secure:
            if fits:
                assert get(secure.url) == b"{}"
            else:
                assert "CERTIFICATE_VERIFY_FAILED" in str(refused(secure.url))


def test_neither_a_proxy_nor_netrc_nor_a_log_line_has_a_part(
    server: Receiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine localhost login desk password sesame\n")
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    with caplog.at_level(logging.INFO):
        assert get(f"{server.url}/S3CRET") == b"{}"
    assert "authorization" not in server.seen[-1].headers
    assert "S3CRET" not in caplog.text


def test_calls_that_hang_hold_up_neither_the_loop_nor_its_own_threads() -> None:
    async def story() -> str:
        hang, aside = threading.Event(), Aside("databases", at_once=2)
        stuck = [asyncio.create_task(aside.run(hang.wait)) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(DataError, match="databases: too many earlier calls hang") as raised:
            await aside.run(lambda: None)
        assert raised.value.retryable
        for task in stuck:
            task.cancel()
        assert await asyncio.to_thread(lambda: "free") == "free"
        hang.set()
        while True:  # their places come back
            try:
                return await aside.run(lambda: "again")
            except DataError:
                await asyncio.sleep(0.01)

    async def within_limit() -> str:
        async with asyncio.timeout(LIMIT_S):
            return await story()

    assert asyncio.run(within_limit()) == "again"
