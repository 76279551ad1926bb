"""The last step before the network: a ticket goes out once, if the switch lets it, or it never does.

The switch is read immediately before the call, by whichever thread makes it: from the moment somebody stopped trading
no call begins. What is not sent is `Unsent` for ever; what was begun and broke is unknown, and looked for by its tag.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from pathlib import Path

import structlog

from core.errors import BrokerError
from delivery.crash import crash_at
from trading import switch
from trading.broker import Broker, Declined, Placed, Ticket, Unknown
from trading.gateway import OrderGateway

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Unsent:
    """It never went out, and never will."""

    reason: str


Outcome = Placed | Declined | Unknown | Unsent


class Sender:
    """Sends tickets from any thread, until `ending` is set."""

    def __init__(self, broker: Broker, gateway: OrderGateway, state_dir: Path, ending: threading.Event) -> None:
        self.broker, self.gateway, self.state_dir, self.ending = broker, gateway, state_dir, ending

    def send(self, ticket: Ticket, due_s: float) -> Outcome:
        """Wait until `due_s` of the monotonic clock, which the exchange's order rate asks for, and send."""
        self.ending.wait(max(0.0, due_s - time.monotonic()))
        why = self._forbidden(ticket)
        if why is not None:
            return Unsent(why)
        crash_at("about_to_send")
        try:
            outcome = self.broker.place(ticket)
        except Exception as error:  # the call had begun: whatever broke, the order may be at the exchange
            log.exception("order_call_broke", order_id=ticket.order_id)
            outcome = Unknown(type(error).__name__)
        crash_at("sent")
        return outcome

    def _forbidden(self, ticket: Ticket) -> str | None:
        if self.ending.is_set():
            return "the process ends"
        now = switch.read(self.state_dir)
        if now.state == "halted" or (now.state == "reducing" and not self._reduces(ticket)):
            return f"{now.state} by {now.by}: {now.reason}"
        return None

    def _reduces(self, ticket: Ticket) -> bool:
        state = self.gateway.ledger.order(ticket.order_id)
        if state is None:
            raise BrokerError(f"{ticket.order_id} was never accepted by the gateway", code="unknown_order")
        return self.gateway.book(state.order.symbol).reduces(float(ticket.units), 0.0)
