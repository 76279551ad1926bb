"""`hrm trade --live`: which broker, feed and history a live process has, and that it may have them.

Paper is the default: prices are real, fills are simulated (trading/sandbox.py). Real orders need the setting
`live.broker: fyers`, a login of today, and a person who types the account's client id or starts it with --confirm.
"""

from __future__ import annotations

import signal
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from core.errors import ConfigError, DataError
from core.settings import Settings
from flows.live_checks import alone, require_confirmation, require_later, require_token_for
from flows.terminal import answer

if TYPE_CHECKING:
    from trading.clock import Clock
    from trading.fyers.client import Access
    from trading.ledger import Ledger
    from trading.live_ports import Ports
    from trading.session_grid import Grid

IsLive = Annotated[
    bool, typer.Option("--live", help="Trade today's session at Fyers' prices; the fills are simulated (live.broker).")
]
RealOrders = Annotated[
    bool, typer.Option("--real-orders", help="With live.broker: fyers. Asks for the account's client id.")
]
Confirm = Annotated[
    str | None, typer.Option(metavar="CLIENT_ID", help="Real orders where nobody is there to be asked.")
]
LEDGERS = {"paper": "live-paper.db", "fyers": "live.db"}


def trade_live(settings: Settings, data: Path | None, *, real_orders: bool, confirm: str | None, as_json: bool) -> None:
    """Trade today's session, from wherever the ledger left off, until it is over or the process is told to end.

    Args:
        data: bars before today, of the one symbol; None: Fyers is asked.
        real_orders: a person is there to confirm them. confirm: the client id, where nobody is.

    Raises ConfigError naming what is missing, DataError on a day without a session or where a symbol cannot be traded.
    """
    from core.log import configure_service_logging

    access = _access(settings)
    if settings.live.broker == "fyers":
        require_confirmation(access.credentials.client_id, real_orders=real_orders, confirm=confirm)
    elif real_orders or confirm is not None:
        raise ConfigError(
            "live.broker is paper: no real order is sent; set it to fyers, or leave out --real-orders and --confirm",
            code="paper_broker",
        )
    with alone(settings.paths.state_dir / LEDGERS[settings.live.broker]) as file:
        configure_service_logging()
        answer(_trade(settings, access, file, data), as_json)


def _trade(settings: Settings, access: Access, file: Path, data: Path | None) -> dict[str, Any]:
    from trading.ledger import Ledger
    from trading.live import Live
    from trading.market import day_of
    from trading.opening import live_desk, name_desk

    clock = _clock(settings)
    day = day_of(clock())
    grids = _grids(settings, day)
    require_token_for(access, max(grid.closes_ns for grid in grids.values()))
    ledger = Ledger(file)
    try:
        require_later(ledger, clock())
        name_desk(ledger, day)
        desk = live_desk(ledger, settings, day)
        live = Live(desk, _ports(settings, access, ledger, grids, clock, data), grids, settings)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda number, _: live.stop(signal.Signals(number).name))
        return live.run()
    finally:
        ledger.close()


def _grids(settings: Settings, day: date) -> Mapping[str, Grid]:
    from trading.calendar import is_session, next_session
    from trading.session_grid import Grid
    from trading.tickets import require_tradable

    if not is_session(day):
        told = f"{day} is no session of the exchange; the next one is {next_session(day)}: start it then, before 09:15"
        raise DataError(told, code="no_session")
    for symbol in settings.live.symbols:
        require_tradable(symbol, day)
    return {symbol: Grid.of(symbol, day, settings.live) for symbol in settings.live.symbols}


def _ports(
    settings: Settings, access: Access, ledger: Ledger, grids: Mapping[str, Grid], clock: Clock, data: Path | None
) -> Ports:
    from dataclasses import replace

    from serving.local_token import read_or_create_token
    from trading.features import schema
    from trading.fyers.broker import FyersBroker
    from trading.fyers.client import Clients
    from trading.fyers.feed import FyersFeed
    from trading.fyers.order_stream import OrderStream
    from trading.live_history import from_file, from_fyers, sessions_needed
    from trading.live_ports import Ports
    from trading.service import DecisionClient

    access = replace(access, now_ns=clock)
    fyers, clients = FyersBroker(access), Clients(access)
    grid = next(iter(grids.values()))
    observation = schema(settings.observation, interval_s=60 * settings.live.interval_min)
    needed = sessions_needed(observation, (grid.closes_ns - grid.opens_ns) // grid.interval_ns)
    paper = None if settings.live.broker == "fyers" else _sandbox(settings, ledger, clock)
    return Ports(
        service=DecisionClient(settings.serving.url, read_or_create_token(settings.paths.state_dir)),
        broker=paper or fyers,
        stream=paper or OrderStream(access),
        feed=FyersFeed(access),
        history=from_fyers(clients, grids, needed) if data is None else from_file(data, grids, needed),
        market_status=fyers.market_status,
        server_time=lambda: fyers.http_date,
        clock=clock,
        watch=(lambda _: None) if paper is None else paper.see,
    )


def _sandbox(settings: Settings, ledger: Ledger, clock: Clock) -> Any:
    from trading.costs import nse_index_future_costs
    from trading.instruments import instrument
    from trading.market import day_of
    from trading.sandbox import SandboxBroker

    day = day_of(clock())
    traded = [instrument(symbol) for symbol in settings.live.symbols]
    return SandboxBroker(
        ledger,
        {each.traded_symbol(day): nse_index_future_costs(0.0, each) for each in traded},
        capital=settings.trading.initial_capital,
        margin_ratio=settings.risk.margin_ratio,
        clock=clock,
    )


def _access(settings: Settings) -> Access:
    """To Fyers, for prices at least. Raises ConfigError: no login of today."""
    from trading.fyers.client import Access

    return Access.of(settings)


def _clock(settings: Settings) -> Clock:
    from trading.clock import EmulatorClock, MachineClock

    base_url = settings.fyers.base_url
    return MachineClock() if base_url is None else EmulatorClock(base_url)
