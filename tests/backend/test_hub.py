"""The stream of messages: numbered without a hole, filtered, resumed exactly, and never held up by a slow client."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.hub import MOST_LATEST, MOST_WAITING, RING, STUCK_S, Client, Hub, Message, News, now

SYMBOLS = ("NIFTY", "BANKNIFTY", None)


def news(symbol: str | None = None, *, state: str | None = None, **data: object) -> News:
    return News("decision", data, now(), symbol, state)


async def taken(client: Client) -> list[dict[str, object]]:
    """All that waits."""
    found = []
    while client._queue:
        found.append(json.loads(str(await client.next())))
    return found


@given(st.lists(st.sampled_from(SYMBOLS), max_size=60), st.integers(-2, 70), st.sampled_from([None, ("NIFTY",), ()]))
def test_who_resumes_gets_exactly_what_came_after_and_is_theirs(
    symbols: Sequence[str | None], seq: int, wanted: Sequence[str] | None
) -> None:
    hub, only = Hub(), None if wanted is None else frozenset(wanted)
    for symbol in symbols:
        hub.publish(news(symbol))
    missed = hub.since(hub.epoch, seq)
    assert (missed is None) == (not 0 <= seq <= len(symbols))  # from the future, or before the first
    if missed is not None:
        told = asyncio.run(taken(hub.join(only, [], missed)))
        mine = [n for n, symbol in enumerate(symbols, 1) if only is None or symbol is None or symbol in only]
        assert [message["seq"] for message in told] == [n for n in mine if n > seq]


def test_another_stream_or_too_long_ago_cannot_be_resumed() -> None:
    hub = Hub()
    for _ in range(RING + 10):
        hub.publish(news())
    assert hub.since("another", hub.seq) is None
    assert hub.since(Hub().epoch, hub.seq) is None
    assert hub.since(hub.epoch, 9) is None
    oldest = hub.since(hub.epoch, 10)
    assert oldest is not None
    assert [oldest[0].seq, len(oldest)] == [11, RING]
    assert hub.since(hub.epoch, hub.seq) == []


def test_a_slow_client_is_dropped_and_counted_and_nobody_waits() -> None:
    async def played() -> None:
        hub = Hub()
        slow, quick, other = hub.join(None, [], []), hub.join(None, [], []), hub.join(frozenset({"X"}), [], [])
        for _ in range(MOST_WAITING + 5):
            hub.publish(news("NIFTY"))
            assert await quick.next() is not None
        assert slow.slow
        assert await slow.next() is None
        assert hub.dropped_slow == 1
        assert hub.clients == {quick, other}
        assert await taken(other) == []

    asyncio.run(played())


def test_a_client_that_takes_nothing_for_long_is_slow_however_little_waits() -> None:
    async def played() -> None:
        now_s = [0.0]
        client = Client(None, [], [], lambda: now_s[0])
        message = Message(1, None, "{}")
        now_s[0] += 3600.0  # nothing waits: nobody is slow
        assert client.offer(message)
        now_s[0] += STUCK_S
        assert client.offer(message)
        assert await client.next() is not None
        now_s[0] += STUCK_S
        assert client.offer(message)
        now_s[0] += 0.001
        assert not client.offer(message)
        assert await client.next() is None

    asyncio.run(played())


def test_what_was_missed_does_not_count_as_slow() -> None:
    hub = Hub()
    for _ in range(RING):
        hub.publish(news())
    client = hub.join(None, ["resumed"], hub.since(hub.epoch, 0) or [])
    for _ in range(MOST_WAITING):
        hub.publish(news())
    assert not client.slow
    hub.publish(news())
    assert client.slow


def test_a_snapshot_has_the_newest_of_each_state_in_order_and_is_bounded() -> None:
    hub = Hub()
    for number in range(3):
        hub.publish(news("NIFTY", state="decision:NIFTY", number=number))
        hub.publish(news("BANKNIFTY", state="decision:BANKNIFTY", number=number))
    hub.publish(news(number="of none"))
    shown = json.loads(hub.snapshot(frozenset({"NIFTY"})))
    assert (shown["type"], shown["seq"], shown["epoch"]) == ("snapshot", 7, hub.epoch)
    assert [message["data"]["number"] for message in shown["data"]["messages"]] == [2]
    assert [message["seq"] for message in json.loads(hub.snapshot(None))["data"]["messages"]] == [5, 6]
    for number in range(MOST_LATEST + 3):
        hub.publish(news(state=f"s{number}"))
    assert len(json.loads(hub.snapshot(None))["data"]["messages"]) == MOST_LATEST


def test_a_number_that_is_none_is_not_sent() -> None:
    with pytest.raises(ValueError, match="JSON"):
        Hub().publish(news(price=float("nan")))
