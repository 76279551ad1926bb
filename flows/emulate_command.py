"""`hrm fyers emulate`: a broker on loopback with a market that plays, to try everything without an account."""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from core.errors import ConfigError
from core.settings import Settings, load_settings
from flows.options import Data, Seed, existing

if TYPE_CHECKING:
    import numpy as np

    from tests.fyers_emulator.venue import Venue
    from trading.market import Bars

PLAYED = ("NIFTY", "BANKNIFTY")  # of the synthetic market
HISTORY_SESSIONS = 20  # before the first one that is played
OPENS = time(9, 15)
Candle = list[float]  # start (epoch s), open, high, low, close, volume

STARTED = """\
Fyers, emulated, at {url}. In another terminal:

  export HRM_FYERS__BASE_URL={url}
  export FYERS_CLIENT_ID={client_id} FYERS_SECRET={secret}
  export FYERS_REDIRECT_URI={url}/emulator/redirected

then `hrm fyers login`, and `hrm trade --live`. {symbols} of {first} ({speed:g} times as fast as real).
Nothing here is real. Ctrl-C ends it."""


@dataclass(frozen=True)
class Programme:
    """What is played, from `first` on; what is before is history."""

    bars: dict[str, list[Candle]]  # by the broker's symbol
    bar_s: float
    first: date


def emulate(
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: a free one.")] = 0,
    data: Data = None,
    speed: Annotated[float, typer.Option(min=0.1, max=3600.0, help="60: a minute of the market a second.")] = 1.0,
    sessions: Annotated[int, typer.Option(min=1, help="How many are played, one after another.")] = 1,
    seed: Seed = 0,
) -> None:
    """Emulate Fyers on this machine: login, history, quotes, both sockets, orders that fill at the played prices."""
    file = existing(data)
    programme = _synthetic(load_settings(), sessions, seed) if file is None else _of_file(file, sessions)
    with _listener(port) as listener, suppress(KeyboardInterrupt):  # how a person ends it
        _announce(listener, programme, speed)
        asyncio.run(_serve(listener, programme, speed))


def _listener(port: int) -> socket.socket:
    try:
        from tests.fyers_emulator.server import bound
    except ImportError as error:
        raise ConfigError(f"the emulator: {error}; install the extra [fyers]", code="missing_extra") from None
    try:
        return bound(port)
    except OSError as error:
        raise ConfigError(f"port {port}: {error.strerror}; choose another, or 0 for a free one", code="port") from None


def _announce(listener: socket.socket, programme: Programme, speed: float) -> None:
    from tests.fyers_emulator.logins import CLIENT_ID, SECRET
    from tests.fyers_emulator.server import address

    symbols = " and ".join(programme.bars)
    facts = {"url": address(listener), "client_id": CLIENT_ID, "secret": SECRET}
    typer.echo(STARTED.format(**facts, symbols=symbols, first=programme.first, speed=speed))


async def _serve(listener: socket.socket, programme: Programme, speed: float) -> None:
    from tests.fyers_emulator import play
    from tests.fyers_emulator.server import serve

    async def market(venue: Venue) -> None:
        await play.play(venue, programme.bars, play.Pace(programme.first, programme.bar_s, speed))

    await serve(listener, market)


def _synthetic(settings: Settings, sessions: int, seed: int) -> Programme:
    """Made-up sessions under the dates of real ones, the last of them today's or the latest before."""
    from trading import calendar
    from trading.instruments import instrument
    from trading.synthetic import BAR_S, simulate

    n = sessions + HISTORY_SESSIONS
    latest = min(datetime.now(calendar.KOLKATA).date(), calendar.bounds()[1])
    days = calendar.sessions(latest - timedelta(days=3 * n), latest)[-n:]
    bars = {
        instrument(name).index or name: _candles(
            simulate(settings.synthetic_market, sessions=n, seed=[seed, i]).bars,
            _starts(days, settings.synthetic_market.bars_per_session, BAR_S),
        )
        for i, name in enumerate(PLAYED)
    }
    return Programme(bars, BAR_S, days[-sessions])


def _starts(days: tuple[date, ...], bars_per_session: int, bar_s: int) -> list[int]:
    from trading.calendar import KOLKATA

    opens = [int(datetime.combine(day, OPENS, KOLKATA).timestamp()) for day in days]
    return [at + bar * bar_s for at in opens for bar in range(bars_per_session)]


def _of_file(file: Path, sessions: int) -> Programme:
    """The last sessions of a file, of the instrument that it is named after, or NIFTY."""
    import numpy as np

    from trading.files import load_market_bars
    from trading.instruments import instrument, named_after

    bars = load_market_bars(file, min_sessions=sessions)
    entry = named_after(file.stem) or instrument("NIFTY")
    seconds = bars.timestamps // 1_000_000_000
    first_bar = int(np.searchsorted(bars.session, bars.session[-1] - sessions + 1))
    first = datetime.fromtimestamp(int(seconds[first_bar]), UTC).date()
    symbol = entry.index or entry.symbol or entry.name
    return Programme({symbol: _candles(bars, seconds.tolist())}, float(np.diff(seconds).min()), first)


def _candles(bars: Bars, starts: list[int]) -> list[Candle]:
    """Prices to the paisa, as the exchange has them."""
    prices: list[np.ndarray] = [each.round(2) for each in (bars.open, bars.high, bars.low, bars.close)]
    rows = zip(starts, *(each.tolist() for each in prices), strict=True)
    return [[float(start), *ohlc, 0.0] for start, *ohlc in rows]
