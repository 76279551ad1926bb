"""`hrm trade parity DATE`: a day of live trading beside the backtest of its model over the same bars."""

from __future__ import annotations

from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from core.errors import DataError
from core.settings import Settings, load_settings
from flows.day_replay import LEDGERS
from flows.options import AsJson
from flows.options import day as day_of
from flows.terminal import answer

if TYPE_CHECKING:
    from trading.parity import Compared, LiveDay, Parity

LISTED = 30  # bars that differ, for a person; --json has all


def parity(
    day: Annotated[str, typer.Argument(metavar="DATE", help="A day of live trading: 2026-01-31.")],
    ledger: Annotated[
        Path | None, typer.Option(help="live.db or live-paper.db; else the one of the settings' broker.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="name/version; else the one that decided most of that day's bars.")
    ] = None,
    report: Annotated[
        Path | None, typer.Option(help="Where the page goes; else parity/DATE-LEDGER.html in the state folder.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Did the desk do what a backtest does? Compares decision, units, price and profit of every bar.

    Exits with 1 if a decision or a traded quantity differs, and names the reason that is on record. Prices are measured
    only: the backtest trades the index at the next open, the desk its future.
    """
    settings = load_settings()
    file = ledger or settings.paths.state_dir / LEDGERS[settings.live.broker == "fyers"]
    found = parities(settings, file, day_of(day), model)
    same = all(each.same for each in found)
    page = _write(report or settings.paths.state_dir / "parity" / f"{day}-{file.stem}.html", found)
    if as_json:
        told = {"same": same, "day": day, "ledger": str(file), "page": str(page)}
        answer(told | {"symbols": [facts(each) for each in found]}, as_json)
    else:
        _print(found)
        typer.echo(f"  {page}")
    raise typer.Exit(0 if same else 1)


def parities(settings: Settings, file: Path, day: date, model: str | None = None) -> list[Parity]:
    """Of every symbol of a ledger that was traded that day. Raises DataError (`no_events`) if none was."""
    from trading.ledger import Ledger
    from trading.parity import live_day, symbols_of

    if not file.is_file():
        raise DataError(f"{file} does not exist; `hrm trade --live` writes it", code="no_events")
    ledger = Ledger(file)
    try:
        days = [live_day(ledger, day, symbol) for symbol in symbols_of(ledger, day)]
    finally:
        ledger.close()
    if not days:
        raise DataError(f"{file}: no bar of {day} is on record; `hrm trade --live` writes them", code="no_events")
    return [_parity(settings, each, model) for each in days]


def _write(file: Path, found: list[Parity]) -> Path:
    from core.files import write_atomically
    from trading.parity_page import parity_page

    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, parity_page(found).encode())
    return file


def facts(found: Parity) -> dict[str, Any]:
    """For JSON."""
    return {
        "symbol": found.symbol,
        "model": found.model,
        "same": found.same,
        "bars": len(found.rows),
        "different": len(found.different),
        "reasons": found.reasons(),
        "trades_by_hand": found.by_hand,
        "live_rupees": found.live_rupees,
        "backtest_rupees": found.backtest_rupees,
        "rows": [asdict(row) for row in found.rows],
    }


def _parity(settings: Settings, live: LiveDay, model: str | None) -> Parity:
    from backend.backtests import prepared
    from trading.parity import compare

    if model is None and not live.models:
        raise DataError(
            f"{live.symbol}: no model answered on {live.day}; name one with --model name/version", code="no_model"
        )
    chosen = model or live.models.most_common(1)[0][0]
    tested = prepared(settings, chosen, live.bars, dates=(live.day, live.day), symbol=live.symbol).run()
    return compare(live, tested.result, tested.model)


def _print(found: list[Parity]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    for each in found:
        verdict = "the same" if each.same else f"{len(each.different)} of {len(each.rows)} bars differ"
        table = Table(title=f"{each.symbol} {each.day}, {each.model}: {verdict}", box=None, title_justify="left")
        for name in ("bar (UTC)", "live", "units", "price", "backtest", "units", "price", "slippage", "why"):
            table.add_column(name)
        for row in each.different[:LISTED]:
            table.add_row(*_cells(row))
        console.print(table)
        for why, count in each.reasons().items():
            console.print(f"  {count} {why}", markup=False, highlight=False)
        if each.by_hand:
            console.print(f"  {each.by_hand} trades by hand", highlight=False)
        console.print(
            f"  net: live {each.live_rupees:,.2f}, backtest {each.backtest_rupees:,.2f} rupees", highlight=False
        )


def _cells(row: Compared) -> tuple[str, ...]:
    from trading.switch import utc

    def price(rupees: float | None) -> str:
        return "" if rupees is None else f"{rupees:,.2f}"

    live, tested = row.live, row.backtest
    slippage = "" if row.slippage_bps is None else f"{row.slippage_bps:.2f} bps"
    mine = (live.decision, f"{live.units:g}", price(live.price))
    return (str(utc(row.bar_ns)), *mine, tested.decision, f"{tested.units:g}", price(tested.price), slippage, row.why)
