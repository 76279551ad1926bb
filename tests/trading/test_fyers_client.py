"""Calls of the real SDK: every refusal is named, the pace is kept, and the SDK writes and shows nothing."""

from __future__ import annotations

import socket
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from fyers_account import INDEX, calls, elsewhere
from hypothesis import given
from hypothesis import strategies as st

import trading.fyers
from core.errors import BrokerError, ConfigError, DataError, HrmSystemError
from tests.fyers_emulator.process import Emulator
from trading.fyers import pace
from trading.fyers.client import Access, Clients, RateLimitError, Reply
from trading.fyers.pace import Pace, Share

FUNDS = "GET /api/v3/funds"


@pytest.mark.parametrize(
    ("fault", "kind", "code", "retryable"),
    [
        ({"kind": "unauthorized"}, ConfigError, "logged_out", False),
        ({"kind": "rate_limited", "retry_after_s": 7}, RateLimitError, "rate_limited", True),
        ({"kind": "bad_gateway"}, BrokerError, "unavailable", True),
        ({"kind": "hang", "hang_s": 0.1}, BrokerError, "unavailable", True),
        ({"kind": "lost_ack"}, BrokerError, "unavailable", True),
        ({"kind": "refused", "message": "not today"}, BrokerError, "refused", False),
    ],
)
def test_every_refusal_is_a_named_error(
    emulator: Emulator, access: Access, fault: dict[str, object], kind: type[HrmSystemError], code: str, retryable: bool
) -> None:
    emulator.post("faults", {"route": FUNDS, **fault})
    client = Clients(access).here()
    with pytest.raises(kind, match="Fyers funds") as refused:
        client.ask("funds", what="funds")
    client.close()
    assert (refused.value.code, refused.value.retryable) == (code, retryable)


def test_an_expired_token_says_who_mends_it(emulator: Emulator, access: Access) -> None:
    emulator.fault("token_expiry")
    client = Clients(access).here()
    with pytest.raises(ConfigError, match="hrm fyers login") as refused:
        client.ask("funds", what="funds")
    client.close()
    assert refused.value.code == "logged_out"


def test_bad_input_is_told_from_a_broken_network(emulator: Emulator, access: Access) -> None:
    clients = Clients(access)
    with pytest.raises(DataError, match="check the symbol") as refused:
        clients.here().ask("history", {"symbol": "NSE:NONE-EQ", "resolution": "5"}, what="history")
    assert refused.value.code == "bad_request"
    with pytest.raises(BrokerError, match="check the network") as broken:
        Clients(elsewhere(access, "http://127.0.0.1:9")).here().ask("funds", what="funds")
    assert broken.value.code == "unavailable"
    clients.close()


def test_a_server_that_hangs_is_given_up(emulator: Emulator, access: Access, monkeypatch: pytest.MonkeyPatch) -> None:
    clients = Clients(access)
    clients.here().ask("funds", what="funds")
    monkeypatch.setattr("trading.fyers.sdk.TIMEOUT_S", (1.0, 0.2))
    emulator.fault("hang", route=FUNDS)
    with pytest.raises(BrokerError, match="no answer"):
        clients.here().ask("funds", what="funds")
    clients.close()


def test_while_the_account_is_shut_out_nothing_is_sent(emulator: Emulator, access: Access) -> None:
    emulator.fault("rate_limited", route=FUNDS, retry_after_s=60)
    clients, others = Clients(access), Clients(access)
    with pytest.raises(RateLimitError, match="wait 60 s") as refused:
        clients.here().ask("funds", what="funds")
    assert refused.value.retry_after_s == 60
    before = calls(emulator, "/api/v3/funds")
    for asking in (clients, others):  # another process of the same account would read the same file
        with pytest.raises(RateLimitError, match="not sent") as again:
            asking.here().ask("funds", what="funds")
        assert again.value.retry_after_s == pytest.approx(60, abs=10)
    assert calls(emulator, "/api/v3/funds") == before
    clients.close()
    others.close()


@pytest.mark.parametrize(
    ("given", "expected"), [("7", 7.0), ("", None), ("soon", None), ("nan", None), ("-3", 0.0), ("inf", None)]
)
def test_a_time_to_come_again_is_seconds_or_nothing(given: str, expected: float | None) -> None:
    assert Reply(429, {}, {"Retry-After": given}).retry_after_s == expected


def test_a_time_to_come_again_may_be_a_date() -> None:
    assert Reply(429, {}, {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}).retry_after_s == 0.0


def test_each_thread_has_a_client_of_its_own(emulator: Emulator, access: Access) -> None:
    clients, found = Clients(access), []
    threads = [threading.Thread(target=lambda: found.append(clients.here())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(client) for client in found}) == 4
    assert clients.here() is clients.here()
    clients.close()


def test_the_servers_own_time_is_kept_with_the_moment_it_came(emulator: Emulator, access: Access) -> None:
    clients = Clients(replace(access, now_ns=lambda: 42))
    assert clients.http_date is None
    clients.here().ask("funds", what="funds")
    assert clients.http_date == (int(emulator.clock()["now"]) * 10**9, 42)
    clients.close()


def test_the_sdk_writes_nothing_where_it_stands(
    emulator: Emulator, access: Access, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    clients = Clients(access)
    emulator.fault("refused", route=FUNDS)
    with pytest.raises(BrokerError):
        clients.here().ask("funds", what="funds")
    clients.close()
    assert not list((tmp_path / "cwd").iterdir())
    assert access.log_dir.stat().st_mode & 0o777 == 0o700
    assert "refused by the emulator" in (access.log_dir / "fyers_sdk.log").read_text()


def test_without_the_sdk_the_error_names_the_extra(access: Access, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "trading.fyers.sdk", raising=False)
    monkeypatch.delattr(trading.fyers, "sdk", raising=False)
    monkeypatch.setitem(sys.modules, "fyers_apiv3", None)
    with pytest.raises(ConfigError, match=r"extra \[fyers\]"):
        Clients(access).here()


def test_a_redirect_is_not_followed(access: Access) -> None:
    """The token would follow it."""
    asked = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                asked.append(connection.recv(65536))
                location = f"Location: http://127.0.0.1:{server.getsockname()[1]}/elsewhere"
                connection.sendall(f"HTTP/1.1 307 Moved\r\n{location}\r\nContent-Length: 0\r\n\r\n".encode())

        thread = threading.Thread(target=answer)
        thread.start()
        clients = Clients(elsewhere(access, f"http://127.0.0.1:{server.getsockname()[1]}"))
        with pytest.raises(BrokerError, match="no JSON"):
            clients.here().ask("funds", what="funds")
        clients.close()
        thread.join()
    assert len(asked) == 1


class Clock:
    """Moves when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@given(
    st.lists(st.tuples(st.booleans(), st.floats(0.0, 3.0)), min_size=1, max_size=60),
    st.integers(1, 5),
    st.integers(5, 12),
)
def test_no_second_and_no_minute_has_too_many_calls(
    tmp_path_factory: pytest.TempPathFactory, turns: list[tuple[bool, float]], per_second: int, per_minute: int
) -> None:
    clock, share = Clock(), Share(per_second, per_minute)
    file = tmp_path_factory.mktemp("pace") / "calls"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pace, "time", clock)
        mine, others = Pace(file, sleep=clock.sleep), Pace(file, sleep=clock.sleep)
        made = []
        for own, pause_s in turns:
            clock.sleep(pause_s)
            assert (mine if own else others).wait(share) == 0.0
            made.append(clock.now)
    for window_s, most in ((1.0, per_second), (60.0, per_minute)):
        assert all(later - sooner >= window_s - 1e-6 for sooner, later in zip(made, made[most:], strict=False))


def test_a_download_leaves_calls_to_the_desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(pace, "time", clock)
    own = Pace(tmp_path / "calls", sleep=clock.sleep)
    began = clock.now
    while clock.now - began < 59.0:
        own.wait(Share(4, 100))
    waiting = clock.now
    for _ in range(5):
        own.wait(Share(9, 190))
    assert clock.now - waiting <= 1.0


def test_threads_share_one_pace(tmp_path: Path) -> None:
    made: list[float] = []

    def ask() -> None:
        own = Pace(tmp_path / "calls")
        for _ in range(4):
            own.wait(Share(5, 1000))
            made.append(time.monotonic())

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(made) - min(made) >= 2.9  # 16 calls, 5 a second


@pytest.mark.parametrize("content", [b"", b"x", b"\xff" * 4096, b"\0" * 17])
def test_a_torn_file_of_calls_is_begun_anew(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "calls").write_bytes(content)
    assert Pace(tmp_path / "calls").wait(Share(2, 3)) == 0.0


def test_a_block_ends_and_outlives_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(pace, "time", clock)
    Pace(tmp_path / "calls").block(30.0)
    Pace(tmp_path / "calls").block(5.0)
    assert Pace(tmp_path / "calls").wait() == 30.0
    clock.sleep(31.0)
    assert Pace(tmp_path / "calls").wait() == 0.0


def test_symbols_and_addresses_of_the_sdk_are_as_expected(access: Access) -> None:
    from trading.fyers import feed, order_stream, sdk, sockets

    data = sockets.made(sockets.module("data_ws").FyersDataSocket, access, access_token="a.b.c")
    orders = sockets.made(sockets.module("order_ws").FyersOrderSocket, access, access_token="a")
    assert data._FyersDataSocket__url == feed.URL
    assert orders._FyersOrderSocket__url == order_stream.URL
    conversion = sockets.module("data_ws").SymbolConversion("t", "SymbolUpdate", "")
    assert sdk.at(conversion.symbols_token_api, "http://127.0.0.1:1") == "http://127.0.0.1:1/data/symbol-token"
    assert (sdk.API, f"{sdk.HOST}/data") == (sdk.fyersModel.Config.API, sdk.fyersModel.Config.DATA_API)
    assert sdk.at(sdk.API, "http://127.0.0.1:1") == "http://127.0.0.1:1/api/v3"
    assert sdk.at(sdk.fyersModel.Config.DATA_API, "http://127.0.0.1:1") == "http://127.0.0.1:1/data"
    assert INDEX in sockets.files("fyers_apiv3.FyersWebsocket").joinpath("map.json").read_text()


def test_an_order_is_counted_and_never_held_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kill switch was looked at right before."""
    clock = Clock()
    monkeypatch.setattr(pace, "time", clock)
    own = Pace(tmp_path / "calls", sleep=clock.sleep)
    for _ in range(300):
        own.wait(pace.AT_ONCE)
    assert clock.now == 1000.0
    own.wait(pace.DESK)
    assert clock.now >= 1060.0
