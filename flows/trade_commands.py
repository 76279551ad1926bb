"""`hrm trade kill`, `resume`, `status`, `release`, `closed`: a person's hands. `hrm trade` itself is in cli.py."""

from __future__ import annotations

import getpass
import math
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from core.errors import ConfigError
from core.settings import load_settings
from flows.day_replay import LEDGERS
from flows.options import AsJson
from flows.parity_commands import parity
from flows.terminal import answer

LiveLedger = Annotated[
    str | None, typer.Option("--ledger", help="Of `hrm trade --live`: live.db or live-paper.db, in the state folder.")
]
app = typer.Typer()
app.command()(parity)


@app.command()
def kill(
    flatten: Annotated[
        bool, typer.Option("--flatten", help="Close what is held as well, at the next price; open nothing.")
    ] = False,
    reason: Annotated[str, typer.Option(help="Kept with it, for whoever looks next.")] = "",
    as_json: AsJson = False,
) -> None:
    """Stop trading, now: nothing goes out any more but cancels, until `hrm trade resume`.

    Every process that trades from the state directory looks there before each order it sends. So this needs no service
    and no running loop, and `touch STATE_DIR/KILL` does the same. Open orders are cancelled. What is held stays, unless
    you say --flatten.
    """
    from trading.switch import engage, facts

    state_dir = _state_dir()
    stands = engage(state_dir, "reducing" if flatten else "halted", _person(), reason, flatten=flatten)
    if flatten and not stands.flatten:
        raise ConfigError(
            f"trading is halted (by {stands.by}: {stands.reason}): nothing is sent, so nothing is closed; "
            f"`hrm trade resume --flatten --reason ...` closes what is held and opens nothing",
            code="halted",
        )
    answer(facts(stands) | {"state_dir": str(state_dir)}, as_json)


@app.command()
def resume(
    reason: Annotated[str, typer.Option(help="Why trading may go on: kept, for whoever looks next.")],
    flatten: Annotated[
        bool, typer.Option("--flatten", help="Not quite: close what is held at the next price, and open nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Lift whatever stopped trading: a kill, the KILL file, a drawdown. Says what that was.

    The losses of a day are looked at again at once: while they are beyond the limit, only exits go out until the next
    session.
    """
    from trading.switch import facts, read, release

    state_dir = _state_dir()
    lifted = release(state_dir, _person(), reason, flatten=flatten)
    now = facts(read(state_dir))
    answer(now | {"lifted": facts(lifted), "state_dir": str(state_dir)}, as_json)


@app.command()
def status(as_json: AsJson = False) -> None:
    """May orders go out, who said otherwise and why; what is held, what is open, what today has earned."""
    from rich.console import Console

    from flows.trade_screen import status_screen
    from trading.status import status as found
    from trading.status import today

    document = found(_state_dir(), today())
    if as_json:
        answer(document, as_json)
    else:
        Console().print(status_screen(document))


@app.command()
def release(
    symbol: Annotated[str, typer.Argument(help="As the ledger names it.")],
    ledger: LiveLedger = None,
    as_json: AsJson = False,
) -> None:
    """Let a symbol be traded again that a hand-over froze or restricted; its position stays its owner's.

    On a live ledger its process does it: at once, or when the next one begins.
    """
    if ledger is not None:
        answer(_asked(ledger, symbol, {"command": "release"}), as_json)
        return
    from trading.gateway import OrderGateway
    from trading.ledger import Ledger

    settings = load_settings()
    file = settings.paths.state_dir / "paper.db"
    if not file.exists():
        raise ConfigError(
            f"{file} does not exist: nothing was replayed here; give --state-dir, or for `hrm trade --live` --ledger",
            code="no_ledger",
        )
    paper = Ledger(file)
    try:
        gateway = OrderGateway(paper, settings.trading)
        released = gateway.release(symbol, time.time_ns())
        book = gateway.book(symbol)
    finally:
        paper.close()
    if book.owner is None:
        raise ConfigError(f"{file} knows no symbol {symbol}; names are those of the bars", code="unknown_symbol")
    answer(asdict(book) | {"owner": str(book.owner), "released": released}, as_json)


@app.command()
def closed(
    symbol: Annotated[str, typer.Argument(help="As the ledger names it.")],
    price: Annotated[float, typer.Option(help="In rupees, as the broker's contract note says.")],
    ledger: LiveLedger = None,
    as_json: AsJson = False,
) -> None:
    """Say that the broker closed a position on a day before, while no process ran: it tells of its own day only.

    Books what is held as gone, at that price with the day's charges. Until then the desk does not trade the symbol: the
    ledger holds what the broker does not. The live process does it, at once or when the next one begins.
    """
    if not (math.isfinite(price) and price > 0.0):
        raise ConfigError(f"{price} is no price; give rupees above 0", code="usage")
    if ledger is None:
        raise ConfigError(f"name the ledger: --ledger {' or '.join(LEDGERS)}", code="usage")
    answer(_asked(ledger, symbol, {"command": "closed", "price": price}), as_json)


def _asked(name: str, symbol: str, body: dict[str, Any]) -> dict[str, Any]:
    """Leave it for the live process. Raises ConfigError for a ledger or a symbol that there is not."""
    from trading import hands, manual
    from trading.ledger import Ledger

    file = _state_dir() / name
    if name not in LEDGERS or not file.exists():
        told = f"{file} is no ledger of `hrm trade --live`; they are {' and '.join(LEDGERS)}"
        raise ConfigError(told, code="no_ledger")
    ledger = Ledger(file)
    try:
        held = {each.symbol: each.units for each in ledger.positions()}
    finally:
        ledger.close()
    if symbol not in held:
        raise ConfigError(
            f"{file} knows no {symbol}; it has {', '.join(sorted(held)) or 'nothing'}", code="unknown_symbol"
        )
    hands.ask(file, symbol, body | {"by": _person()})
    when = "now" if manual.is_traded(file) else "when the next live process begins"
    return {"ledger": str(file), "symbol": symbol, "units": held[symbol], "taken_up": when} | body


def _state_dir() -> Path:
    """Where trading is. Raises ConfigError where nothing is: whoever stops it must not believe that they did."""
    state_dir = load_settings().paths.state_dir
    if not state_dir.is_dir():
        raise ConfigError(
            f"{state_dir.absolute()} does not exist: nothing trades from there; give `hrm --state-dir DIR trade ...`",
            code="no_state",
        )
    return state_dir


def _person() -> str:
    """Who types, for the record."""
    try:
        return f"{getpass.getuser()} (hrm trade)"
    except (KeyError, OSError):  # a container's user need have no name
        return f"user {os.getuid()} (hrm trade)"
