"""Who may begin to trade live, and when: what `hrm trade --live` asks before anything else. Each failure is named."""

from __future__ import annotations

import fcntl
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from core.errors import ConfigError

if TYPE_CHECKING:
    from trading.fyers.client import Access
    from trading.ledger import Ledger

LOOKED_AT_S = 0.2
BEHIND_S = 60  # of the log's newest event: for so long a log may stand still


def require_confirmation(client_id: str, *, real_orders: bool, confirm: str | None) -> None:
    """Raises ConfigError unless somebody has said whose account real orders are for."""
    if confirm is None and not real_orders:
        raise ConfigError(
            f"live.broker is fyers: orders are real. Say so: --real-orders, and type the client id when asked, "
            f"or --confirm {client_id} where nobody is there to type",
            code="not_confirmed",
        )
    if confirm is None and not sys.stdin.isatty():
        raise ConfigError(
            f"--real-orders asks a person, and nobody is there; write --confirm {client_id}", code="not_confirmed"
        )
    said = confirm if confirm is not None else str(typer.prompt(f"Real orders for {client_id}. Type it", err=True))
    if said != client_id:
        raise ConfigError(f"'{said}' is not the account's client id, {client_id}; nothing began", code="not_confirmed")


@contextmanager
def alone(ledger: Path) -> Iterator[Path]:
    """One process for each ledger; who dies lets go. Raises ConfigError where there is one already."""
    ledger.parent.mkdir(parents=True, exist_ok=True)
    with ledger.with_suffix(".lock").open("a") as file:
        if not _locked(file.fileno()):
            told = f"{ledger} is traded by another process; end that one first"
            raise ConfigError(told, code="already_running")
        yield ledger


def _locked(descriptor: int) -> bool:
    """Somebody who only looks whether it is locked has it for an instant: that is waited for."""
    give_up = time.monotonic() + LOOKED_AT_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > give_up:
                return False
            time.sleep(0.01)
        else:
            return True


def require_token_for(access: Access, closes_ns: int) -> None:
    """Raises ConfigError (`logged_out`) for a login that ends within the session: then nothing could be closed."""
    from trading.switch import SECOND_NS, utc

    expires_s = access.credentials.expires_s
    if access.base_url is None and expires_s is not None and expires_s * SECOND_NS < closes_ns:
        told = (
            f"the Fyers token ends at {utc(int(expires_s) * SECOND_NS)}, before the session does; run `hrm fyers login`"
        )
        raise ConfigError(told, code="logged_out")


def require_later(ledger: Ledger, now_ns: int) -> None:
    """Raises ConfigError (`clock_behind`) where the log has a later time: it would stand still until that comes."""
    from trading.events import EventLog
    from trading.switch import SECOND_NS, utc

    newest_ns = EventLog(ledger).now_ns
    if newest_ns > now_ns + BEHIND_S * SECOND_NS:
        told = f"{ledger.path}: its newest event is of {utc(newest_ns)}, and the clock says {utc(now_ns)}"
        remedy = "set the clock, or give an emulator that plays an earlier time a --state-dir of its own"
        raise ConfigError(f"{told}; {remedy}", code="clock_behind")
