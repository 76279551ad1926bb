"""The page of a rehearsed day: one HTML file that needs nothing else, for whoever answers for the desk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from core.files import write_atomically
from flows import trading_day_figures
from flows.report import Fact, Plot
from flows.trading_day_story import Story

PAGE, RECORD = "report.html", "day.json"


def write(story: Story, folder: Path) -> Path:
    """Write the record and the page of it; returns the page's path."""
    write_atomically(folder / RECORD, json.dumps(story, indent=1).encode())
    page = folder / PAGE
    write_atomically(page, render(story).encode())
    return page


def render(story: Story) -> str:
    environment = Environment(loader=PackageLoader("flows", "."), autoescape=True, undefined=StrictUndefined)
    return environment.get_template("trading_day.html.j2").render(
        story=story,
        headline=headline(story),
        subtitle=subtitle(story),
        facts=facts(story),
        plots=plots(story),
        rows=rows(story),
    )


def headline(story: Story) -> str:
    ended = _rolled_back_at(story)
    if ended is None:
        return "Nobody rolled back"
    flat = _flat_at(story)
    return f"Rolled back at {ended}" + (f", flat by {flat}" if flat else ", not flat by the close")


def subtitle(story: Story) -> str:
    market, breach = story["market"], story["figures"]["breach"]
    told = (
        f"{market['symbols']} symbols of the {market['name']}, session of {market['day']}. The challenger was stepped "
        f"up to {story['figures']['weight_at_breach']} % of the symbols and lost money from {market['breaks_at']} on."
    )
    if breach is None:
        return told
    where = f"of {breach['symbol']}" if breach["symbol"] else "of the book"
    return f"{told} Its drawdown {where} reached {breach['lost_pct']:.3f} %; the plan allows {breach['limit_pct']:g} %."


def facts(story: Story) -> list[Fact]:
    """What a person wants to know first."""
    f, ended = story["figures"], story["figures"]["at_rollback_bps"]
    last_ms = max(f["breach_to_last_challenger_decision_ms"], f["breach_to_last_challenger_order_ms"])
    checked = f"{len(story['minutes'])} looks at {story['market']['symbols']} symbols, owners against broker"
    until = f["minutes_until_flat"]
    return [
        Fact("Challenger stopped after", f"{last_ms:.0f} ms", "from the breach to its last decision and last order"),
        Fact(
            "Handed over",
            f"{f['handed_over']} positions",
            "none was ever flat" if until is None else f"the last was flat after {until:.0f} minutes",
        ),
        Fact("Differences of the ledger", f"{f['reconciliation_differences']}", checked),
        Fact(
            "Orders of an old epoch",
            f"{f['stale_orders_refused']} refused, {f['stale_orders_accepted']} accepted",
            f"of {f['orders']} orders; {f['symbols_moved_while_not_flat']} symbols moved while not flat",
        ),
        Fact(
            "Real result of the day",
            f"{f['real_bps']:+.1f} bps",
            f"{f['real_rupees']:+,.0f} rupees, after charges",
            "real",
        ),
        Fact(
            "Real result at the rollback",
            f"{ended['real']:+.1f} bps",
            f"the challenger alone {_bps(ended['challenger'])}, the champion alone {_bps(ended['champion'])}",
            "challenger",
        ),
    ]


def plots(story: Story) -> list[Plot]:
    found = [
        Plot(
            "The day",
            "From above: weight (shaded) and the symbols that the challenger decides for, which follow as they become "
            "flat; profit and loss, real and of each arm alone on the same ticks; drawdown of both arms as the service "
            "counts it; who holds positions. Bps are of the capital, the mean over symbols, after charges.",
            trading_day_figures.day(story),
            wide=True,
        )
    ]
    if story["handovers"]:
        caption = (
            f"Every position the challenger held at the rollback, {story['market']['handover'].replace('_', ' ')}: it "
            f"may only become smaller, and goes {story['market']['flatten_after_min']:.0f} minutes later at the latest."
        )
        found.append(Plot("Hand-over", caption, trading_day_figures.handovers(story), wide=True))
    return found


def rows(story: Story) -> list[dict[str, Any]]:
    """The table: a row for each bar, with what happened in it."""
    return [row | {"events": _happened(row["at"], story)} for row in story["minutes"]]


def _happened(at: str, story: Story) -> list[str]:
    told = [
        f"{event['command']}: {event['reason']} (by {event['actor']})" for event in story["events"] if event["at"] == at
    ]
    if story["market"]["breaks_at"] == at:
        told.append("the challenger's policy breaks")
    refused = [one for one in story["refused"] if one["at"] == at]
    told += [f"refused: {one['units']:+,.0f} {one['symbol']}, {one['reason'].replace('_', ' ')}" for one in refused]
    taken = [one["symbol"] for one in story["handovers"] if one["at"] == at]
    flat = [one["symbol"] for one in story["handovers"] if one["flat_at"] == at]
    told += [f"handed over: {', '.join(taken)}"] if taken else []
    return told + ([f"flat: {', '.join(flat)}"] if flat else [])


def _rolled_back_at(story: Story) -> str | None:
    return next((event["at"] for event in story["events"] if event["command"] == "rollback"), None)


def _flat_at(story: Story) -> str | None:
    ends = [row["flat_at"] for row in story["handovers"]]
    return max(ends) if ends and None not in ends else None


def _bps(value: float | None) -> str:
    return "unknown" if value is None else f"{value:+.1f}"
