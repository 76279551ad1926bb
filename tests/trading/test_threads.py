"""Calls in threads, and the order in which what comes of them is run."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from functools import partial

import pytest

from trading.threads import Threads

DEADLINE_S = 60.0


@pytest.fixture
def threads() -> Iterator[Threads]:
    threads = Threads({"ask": 2, "send": 1}, first=["ask"])
    yield threads
    threads.close()


def arrived(threads: Threads, messages: int) -> None:
    give_up = time.monotonic() + DEADLINE_S
    while threads._inbox.qsize() < messages:
        assert time.monotonic() < give_up
        time.sleep(0.001)


def test_what_comes_of_the_first_pools_is_run_before_all_that_waits(threads: Threads) -> None:
    ran: list[str] = []
    threads.put(lambda: ran.append("a tick"))
    threads.do("send", lambda: "an order", ran.append)
    arrived(threads, 2)
    threads.do("ask", lambda: "an answer", ran.append)
    arrived(threads, 3)
    for _ in range(4):
        threads.handle(0.0)
    assert ran == ["an answer", "a tick", "an order"]


def test_each_is_run_once_and_in_its_order(threads: Threads) -> None:
    ran: list[int] = []
    for number in range(20):
        threads.do("ask", partial(abs, number), ran.append)
        arrived(threads, number + 1)
    threads.finish("ask", wait_s=DEADLINE_S)
    assert ran == list(range(20))
    threads.handle(0.0)
    assert len(ran) == 20


def test_a_reader_that_waits_is_woken(threads: Threads) -> None:
    let_go = threading.Event()
    ran: list[bool] = []
    threads.do("ask", let_go.wait, ran.append)
    threading.Timer(0.05, let_go.set).start()
    began = time.monotonic()
    threads.handle(DEADLINE_S)
    assert ran == [True]
    assert time.monotonic() - began < DEADLINE_S


def test_what_a_call_raises_is_raised_where_messages_are_run(threads: Threads) -> None:
    threads.do("ask", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        threads.finish("ask", wait_s=DEADLINE_S)
