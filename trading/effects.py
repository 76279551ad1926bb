"""What the desk wants done. The process around it (trading/live.py) does it and tells what came of it as an event."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from typing import Any, Literal

from trading.broker import Ticket
from trading.stream import Bar
from trading.switch import State

Severity = Literal["info", "warning", "critical"]


@dataclass(frozen=True)
class Ask:
    """The service, what to do after a bar: comes back as `answer`."""

    symbol: str
    bar: Bar
    request: dict[str, Any]


@dataclass(frozen=True)
class Send:
    """A ticket, once and never again: comes back as `placed`, `declined`, `unknown` or `unsent`."""

    ticket: Ticket
    not_before_ns: int  # the exchange takes so many orders a second


@dataclass(frozen=True)
class CancelOrder:
    """May be asked for again: that it is cancelled is known from a report or a snapshot only."""

    broker_id: str


@dataclass(frozen=True)
class TakeSnapshot:
    """Soon, whenever the next one is due."""


@dataclass(frozen=True)
class Report:
    """What the decision at the bar before earned in each arm's own portfolio, for the service."""

    symbol: str
    day: date
    champion_bps: float
    challenger_bps: float


@dataclass(frozen=True)
class Alert:
    """For a person."""

    severity: Severity
    text: str


@dataclass(frozen=True)
class Engage:
    """The switch, because of losses."""

    state: State
    reason: str
    until_ns: int | None


Effect = Ask | Send | CancelOrder | TakeSnapshot | Report | Alert | Engage
