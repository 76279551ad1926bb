"""What a person sees of trading: the switch in words, and each ledger's positions, open orders and day."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

STYLES = {"active": "bold green", "reducing": "bold yellow", "halted": "bold red"}
MEANINGS = {
    "active": "orders go out",
    "reducing": "only orders that make a position smaller; `hrm trade resume --reason ...` lifts it",
    "halted": "nothing goes out but cancels; `hrm trade resume --reason ...` lifts it",
}
POSITION = ("symbol", "units", "average price", "open profit", "at", "of")
ORDER = ("order", "instrument", "open units", "limit", "status", "broker's id", "since")


def status_screen(document: dict[str, Any]) -> RenderableType:
    """What trading.status.status says. Nothing in it is markup: reasons are what anybody typed."""
    return Group(*_switch(document["switch"]), *_accounts(document))


def _switch(switch: dict[str, Any]) -> Iterator[RenderableType]:
    state = switch["state"]
    yield Text.assemble((state.upper(), STYLES[state]), f"  {MEANINGS[state]}")
    if switch["flatten"]:
        yield Text("  what is held is closed at the next price")
    said = {"by": switch["by"], "since": switch["since"], "until": switch["until"], "reason": switch["reason"]}
    for name, what in said.items():
        if what is not None:
            yield Text(f"  {name:7}{what}")


def _accounts(document: dict[str, Any]) -> Iterator[RenderableType]:
    if not document["ledgers"]:
        yield Text("\nnothing was ever traded here")
    for name, account in document["ledgers"].items():
        yield Text(f"\n{name} ({account['what']})", "bold")
        if "problem" in account:
            yield Text(f"  {account['problem']}", "red")
            continue
        day = account["today"]
        yield Text(
            f"  {document['day']}: {day['realised_rupees']:+,.2f} rupees realised after {day['costs_rupees']:,.2f} of "
            f"costs, {day['fills']} fills"
        )
        yield from _held(account["positions"])
        yield from _open(account["open_orders"])


def _held(positions: list[dict[str, Any]]) -> Iterator[RenderableType]:
    rows = [
        (
            row["symbol"],
            f"{row['units']:+g}",
            f"{row['average_price']:,.2f}",
            "" if row["open_rupees"] is None else f"{row['open_rupees']:+,.2f}",
            "no price" if row["price"] is None else f"{row['price']:,.2f}",
            row["priced_at"] or "",
        )
        for row in positions
    ]
    yield _table(POSITION, rows) if rows else Text("  flat")


def _open(orders: list[dict[str, Any]]) -> Iterator[RenderableType]:
    rows = [
        (
            row["order_id"],
            row["instrument"],
            f"{row['open_units']:+g} of {row['units']:+g}",
            "" if row["limit_price"] is None else f"{row['limit_price']:,.2f}",
            row["status"],
            row["broker_id"] or "not acknowledged",
            row["since"],
        )
        for row in orders
    ]
    if rows:
        yield _table(ORDER, rows)


def _table(names: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Table:
    table = Table(*names, box=None, padding=(0, 2), header_style="dim")
    for row in rows:
        table.add_row(*map(Text, row))
    return table
