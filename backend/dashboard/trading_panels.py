"""Trading as it is on record: the price with what was bought and sold, what is held and whose it is."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import sqlalchemy as sa

from backend.dashboard import ledger_reads
from backend.dashboard.ledger_reads import BARS, REPLAYED, Candle, Folded
from backend.dashboard.panel import GREEN, GREY, ORANGE, RED, STALE_AFTER_S, Panel, Table, exchange_labels, figure_json
from backend.dashboard.reading import read_only
from core.errors import DataError
from trading.files import load_market_bars
from trading.ledger import Fill
from trading.market import Bars
from trading.status import LEDGERS

SAFE_NAME = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-&")
AWAY_RATIO = 0.02  # a fill so far outside its bar is of another series of prices
NO_LEDGER = "Nothing was traded here yet. Trade on paper: `hrm trade`, or `hrm trade --live`."
HELD = ("account", "symbol", "owner", "units", "mode", "average", "last", "open profit", "realised", "costs")
HELD_KINDS = ("text", "text", "text", "units", "mark", "decimal", "decimal", "rupees", "rupees", "money")

HeldRow = tuple[str, str, str, float, str, float | None, float | None, float | None, float, float]


def price(state_dir: Path, chosen: str) -> Panel:
    """One symbol of one account, chosen as file/symbol; without a choice the one traded last."""
    accounts: dict[str, tuple[Path, str]] = {}
    for file in ledger_reads.ledger_files(state_dir):
        with read_only(file) as connection:
            accounts |= {f"{file.stem}/{symbol}": (file, symbol) for symbol in ledger_reads.symbols(connection)}
    if not accounts:
        return Panel(empty=NO_LEDGER)
    choice = chosen if chosen in accounts else next(iter(accounts))
    file, symbol = accounts[choice]
    with read_only(file) as connection:
        traded, told = ledger_reads.newest_fills(connection, symbol), ledger_reads.candles(connection, symbol)
        as_of = ledger_reads.as_of(file, connection)
    bars, note = (told, "") if told else _from_file(state_dir, symbol, traded)
    figure = _drawn(bars, traded)
    said = f"{LEDGERS[file.name]}; {len(traded)} fills{note}"
    if file.name != REPLAYED:  # a live desk is told the time all the while, and bars only when they close
        as_of = max([traded[-1].bar_ns, *(bar.at_ns for bar in bars[-1:])]) / 1e9
    return Panel(as_of=as_of, figure=figure, note=said, choices=list(accounts), chosen=choice)


class Holdings:
    """What is held in every account. By one thread at a time."""

    def __init__(self, state_dir: Path) -> None:
        self._state_dir = state_dir
        self._folded: dict[Path, Folded] = {}

    def panel(self) -> Panel:
        files = ledger_reads.ledger_files(self._state_dir)
        if not files:
            return Panel(empty=NO_LEDGER)
        rows: list[HeldRow] = []
        told_at: dict[bool, list[float]] = {True: [], False: []}  # by whether anything is held there
        for file in files:
            found, at = self._rows(file)
            rows += found
            told_at[any(row[3] for row in found)].append(at)
        # Of accounts that hold something the one that was told nothing for longest: no other may hide it.
        as_of = min(told_at[True]) if told_at[True] else max(told_at[False]) or None
        if not rows:
            return Panel(as_of=as_of, empty="Nothing was ever held. The first fill shows here with its owner.")
        return Panel(as_of=as_of, table=Table(HELD, HELD_KINDS, rows))

    def _rows(self, file: Path) -> tuple[list[HeldRow], float]:
        """By symbol, in the order of `HELD`; and as of when, Unix s."""
        folded = self._folded.get(file)
        if folded is None or folded.file != ledger_reads.identity(file):
            folded = self._folded[file] = Folded(ledger_reads.identity(file))
        with read_only(file) as connection:
            folded.update(connection)
            owned = ledger_reads.held(connection)
            as_of = ledger_reads.as_of(file, connection)
            prices = ledger_reads.closes(connection) if file.name == REPLAYED else _fresh(connection, as_of)
        rows: list[HeldRow] = []
        for book in owned:
            position = folded.positions.get(book.symbol)
            if position is None:
                continue  # ordered, and never filled
            last = prices.get(book.symbol)
            gained = None if last is None else position.units * (last - position.average_price)
            money = (position.average_price or None, last, gained, position.realised, position.costs)
            rows.append((file.stem, book.symbol, book.owner, position.units, book.mode, *money))
        return rows, as_of


def _fresh(connection: sa.Connection, as_of: float) -> dict[str, float]:
    """Without prices so much older than the desk's last word that no profit follows from them."""
    told = ledger_reads.prices(connection)
    return {symbol: price for symbol, (price, at_ns) in told.items() if as_of - at_ns / 1e9 <= STALE_AFTER_S}


def _from_file(state_dir: Path, symbol: str, traded: Sequence[Fill]) -> tuple[list[Candle], str]:
    """The bars around the fills from `data/`, where they are the ones that were traded; else why there are none."""
    none = "; no bars on record: the line joins the prices paid"
    if not symbol or not SAFE_NAME.issuperset(symbol):
        return [], none
    for file in (state_dir / "data" / f"{symbol}.parquet", state_dir / "data" / f"{symbol}.csv"):
        if file.is_file():
            try:
                bars = _loaded(file, file.stat().st_mtime_ns)
            except DataError:
                return [], f"; {file.name} cannot be read (`hrm data check` says why)"
            found = _around(bars, traded)
            return (found, f"; bars of {file.name}") if found else ([], f"; {file.name} has other prices")
    return [], none


@lru_cache(maxsize=4)
def _loaded(file: Path, _changed_ns: int) -> Bars:
    return load_market_bars(file)


def _around(bars: Bars, traded: Sequence[Fill]) -> list[Candle]:
    """The last bars up to the newest fill and a little on; none if a fill lies outside its bar."""
    times = bars.timestamps
    at = np.searchsorted(times, [fill.bar_ns for fill in traded])
    if at[-1] >= len(times):
        return []
    for place, fill in zip(at.tolist(), traded, strict=True):
        low, high = bars.low[place] * (1 - AWAY_RATIO), bars.high[place] * (1 + AWAY_RATIO)
        if times[place] != fill.bar_ns or not low <= fill.price <= high:
            return []
    last = min(len(times), int(at[-1]) + 6)
    return [
        Candle(int(times[n]), float(bars.open[n]), float(bars.high[n]), float(bars.low[n]), float(bars.close[n]))
        for n in range(max(0, last - BARS), last)
    ]


def _drawn(bars: Sequence[Candle], traded: Sequence[Fill]) -> str:
    """Nights leave no holes: the axis counts bars, or where there are none the fills."""
    shown_ns = [bar.at_ns for bar in bars] or sorted({fill.bar_ns for fill in traded})
    labels = exchange_labels(np.array(shown_ns) / 1e9)
    place_of = np.searchsorted(shown_ns, [fill.bar_ns for fill in traded], side="right") - 1
    figure = go.Figure()
    if bars:
        ohlc = {name: [getattr(bar, name) for bar in bars] for name in ("open", "high", "low", "close")}
        colours = {"increasing_line_color": GREEN, "decreasing_line_color": RED}
        figure.add_candlestick(x=list(range(len(bars))), **ohlc, **colours, name=" price", line_width=1, text=labels)
    else:
        paid = [fill.price for fill in traded]
        figure.add_scatter(x=place_of.tolist(), y=paid, mode="lines", line={"color": GREY, "width": 1}, name="paid")
    for sign, name, symbol, colour in ((1, "buy", "triangle-up", GREEN), (-1, "sell", "triangle-down", RED)):
        rows = [n for n, fill in enumerate(traded) if fill.units * sign > 0 and place_of[n] >= 0]
        edge = [ORANGE if traded[n].owner.startswith("challenger") else "#ffffff" for n in rows]
        told = [f"{labels[place_of[n]]}<br>{traded[n].units:+g} units, {traded[n].owner}" for n in rows]
        marker = {"symbol": symbol, "size": 11, "color": colour, "line": {"width": 1.5, "color": edge}}
        figure.add_scatter(
            x=[int(place_of[n]) for n in rows],
            y=[traded[n].price for n in rows],
            text=told,
            mode="markers",
            marker=marker,
            name=name,
            hovertemplate="%{text}<br>at %{y:,.2f}<extra>%{fullData.name}</extra>",
        )
    ticks = np.unique(np.linspace(0, len(shown_ns) - 1, min(5, len(shown_ns))).astype(int)).tolist()
    figure.update_xaxes(
        tickangle=0,
        tickvals=ticks,
        ticktext=[labels[n] for n in ticks],
        rangeslider_visible=False,
        showgrid=False,
        zeroline=False,
    )
    figure.update_yaxes(title_text="rupees", tickformat=",.0f")
    return figure_json(figure, showlegend=True, hovermode="closest")
