"""The binary protocol of the data socket, both ways, as the SDK (data_ws.py of fyers-apiv3 3.2.0) speaks it.

    frame      length (2, big-endian, without itself; clients often send 0), type (1), body
    answer     count of fields (1), then fields: id (1), length (2), value; "K" means yes
    datafeed   type 6: number (4), count of items (2), items
    snapshot   'S', topic id (2), name, count and values, 2 unused, multiplier (2), precision (1), three strings
    update     'U', topic id (2), count and values; UNCHANGED stands for what did not change
    lite       'L', topic id (2), last price

Strings are length (1) and bytes; values int32, prices times 10^PRECISION. The SDK reads topic ids in its machine's
byte order, and so they are written.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

AUTH, ACKNOWLEDGED, SUBSCRIBE, UNSUBSCRIBE, DATAFEED, PAUSE, RESUME, PING, MODE = 1, 3, 4, 5, 6, 7, 8, 11, 12
NOTICE = 51

UNCHANGED = -(2**31)
PRECISION = 2
SCALE = 100  # 10^PRECISION
LITE_MODE = 76
ACKNOWLEDGE_EVERY = 50  # datafeed frames

INDEX_FIELDS = 6  # price, previous close, time, high, low, open
SHARE_FIELDS = 21
DEPTH_FIELDS = 30


class FrameError(ValueError):
    """Not what a client of this protocol sends."""


@dataclass(frozen=True)
class Request:
    type: int
    key: str = ""  # of AUTH
    topics: tuple[str, ...] = ()  # of SUBSCRIBE and UNSUBSCRIBE
    channels: tuple[int, ...] = ()
    lite: bool = False  # of MODE


def parse(frame: bytes) -> Request:
    """Raises FrameError."""
    if len(frame) < 3:
        raise FrameError(f"a frame of {len(frame)} bytes")
    kind = frame[2]
    try:
        fields = {} if kind == PING else _fields(frame)
        if kind == AUTH:
            return Request(kind, key=fields[1].decode())
        if kind in (SUBSCRIBE, UNSUBSCRIBE):
            return Request(kind, topics=_topics(fields[1]), channels=(fields[2][0],))
        if kind in (PAUSE, RESUME):
            return Request(kind, channels=_channels(fields[1]))
        if kind == MODE:
            return Request(kind, channels=_channels(fields[1]), lite=fields[2][0] == LITE_MODE)
        return Request(kind)
    except (KeyError, IndexError, struct.error, UnicodeDecodeError) as error:
        raise FrameError(f"a frame of type {kind} that cannot be read: {error!r}") from None


def _fields(frame: bytes) -> dict[int, bytes]:
    fields, at = {}, 4
    for _ in range(frame[3]):
        (length,) = struct.unpack_from(">H", frame, at + 1)
        value = frame[at + 3 : at + 3 + length]
        if len(value) < length:
            raise FrameError("a truncated field")
        fields[frame[at]] = value
        at += 3 + length
    return fields


def _topics(value: bytes) -> tuple[str, ...]:
    (count,) = struct.unpack_from(">H", value)
    topics, at = [], 2
    for _ in range(count):
        topics.append(value[at + 1 : at + 1 + value[at]].decode("ascii"))
        at += 1 + value[at]
    return tuple(topics)


def _channels(value: bytes) -> tuple[int, ...]:
    (bits,) = struct.unpack(">Q", value)
    return tuple(channel for channel in range(64) if bits >> channel & 1)


def authenticated(granted: bool) -> bytes:
    return _answer(AUTH, b"K" if granted else b"N", struct.pack(">I", ACKNOWLEDGE_EVERY))


def done(kind: int, granted: bool = True) -> bytes:
    """The answer to SUBSCRIBE, UNSUBSCRIBE, PAUSE, RESUME and MODE."""
    return _answer(kind, b"K" if granted else b"N")


def notice(code: int, message: str, about: int) -> bytes:
    """A message with a code, such as 51001: more symbols than the plan has."""
    return _answer(NOTICE, struct.pack(">i", code), message.encode(), bytes([about]))


def _answer(kind: int, *values: bytes) -> bytes:
    fields = b"".join(struct.pack(">BH", i + 1, len(value)) + value for i, value in enumerate(values))
    return _frame(bytes([kind, len(values)]) + fields)


def _frame(body: bytes) -> bytes:
    return struct.pack(">H", len(body)) + body


def datafeed(number: int, *items: bytes) -> bytes:
    return _frame(struct.pack(">BIH", DATAFEED, number, len(items)) + b"".join(items))


def snapshot(topic_id: int, topic: str, values: Sequence[int], names: tuple[str, str, str]) -> bytes:
    """`names`: exchange, the exchange's token, symbol."""
    head = b"S" + struct.pack("=H", topic_id) + _text(topic) + _values(values)
    return head + b"\0\0" + struct.pack(">HB", 1, PRECISION) + b"".join(map(_text, names))


def update(topic_id: int, values: Sequence[int]) -> bytes:
    return b"U" + struct.pack("=H", topic_id) + _values(values)


def lite(topic_id: int, price: int) -> bytes:
    return b"L" + struct.pack("=H", topic_id) + struct.pack(">i", price)


def scaled(price: float) -> int:
    return round(price * SCALE)


def _values(values: Sequence[int]) -> bytes:
    return struct.pack(f">B{len(values)}i", len(values), *values)


def _text(text: str) -> bytes:
    encoded = text.encode()
    return bytes([len(encoded)]) + encoded
