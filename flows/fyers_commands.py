"""`hrm fyers ...`: the day's login at the broker, and a broker to try everything with."""

from __future__ import annotations

import secrets
import sys
from datetime import UTC, datetime

import typer

from core.settings import load_settings
from flows.emulate_command import emulate
from flows.options import AsJson
from flows.terminal import answer

app = typer.Typer(no_args_is_help=True, help="The broker: log in for the day, or try everything without an account.")


app.command()(emulate)


@app.command()
def login(as_json: AsJson = False) -> None:
    """Log in for the day; the broker ends every session each night.

    Needs FYERS_CLIENT_ID, FYERS_SECRET (or FYERS_SECRET_FILE) and FYERS_REDIRECT_URI of your app. Open the address that
    is shown, log in, and paste the address that the browser is sent to (its page need not load). The token is kept in
    the state directory, readable by you alone.
    """
    from trading.fyers.login import App, code_in, exchange, login_page, store

    settings = load_settings()
    own, state = App.from_environment(), secrets.token_urlsafe(16)
    typer.echo(f"Open this address and log in:\n\n  {login_page(own, state, settings.fyers.base_url)}\n", err=True)
    code = code_in(_pasted(), state)
    found = exchange(own, code, settings.fyers.base_url)
    file = store(found, settings.paths.state_dir)
    ends = None if found.expires_s is None else datetime.fromtimestamp(found.expires_s, UTC).isoformat()
    answer({"client_id": found.client_id, "expires": ends, "file": str(file)}, as_json)


def _pasted() -> str:
    """What is pasted is not shown: terminals are recorded."""
    if not sys.stdin.isatty():
        return sys.stdin.readline()
    pasted: str = typer.prompt("Paste the address you were sent to (it is not shown)", hide_input=True, err=True)
    return pasted
