"""`hrm explain`: which inputs moved a decision, and how its belief went, in a process of its own."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from core.files import write_atomically
from core.settings import load_settings
from flows.options import AsJson

if TYPE_CHECKING:
    from serving.explain import Explanation

SHOWN = 10  # effects; --json has all

DecisionId = Annotated[str, typer.Argument(help="`decision_id` of an answer.")]
Shadow = Annotated[bool, typer.Option("--shadow", help="The other arm's decision beside it instead.")]
Html = Annotated[Path | None, typer.Option(help="Write a page with the figures to this file.")]
Place = Annotated[
    Path | None, typer.Option("--records", help="Another folder of records, such as an archive; else the service's.")
]


def explain(
    decision_id: DecisionId, shadow: Shadow = False, html: Html = None, records: Place = None, as_json: AsJson = False
) -> None:
    """Say which bars and account features moved a decision, and how its belief went from segment to segment."""
    from backend.explanations import encoded
    from serving.audit import find
    from serving.engine import load_engine
    from serving.explain import explain as explained

    settings = load_settings()
    record = find(records or settings.paths.state_dir / "decisions", decision_id)
    told = explained(record, partial(load_engine, settings), arm="shadow" if shadow else "answer")
    if html is not None:
        write_atomically(html, page(told).encode())
    if as_json:
        print(encoded(told).decode())  # noqa: T201 - the command's answer
    else:
        _print(told)


def page(told: Explanation) -> str:
    """One HTML file with everything in it."""
    from backend.explanation_figures import figures, text
    from trading.tearsheet import Fact, Page, Section

    titles = {"bars": "Bars", "account": "Account", "segments": "From segment to segment"}
    sections = [Section(titles[name], "", plot, wide=True) for name, plot in figures(told).items()]
    cards = [
        Fact("Action", told.action, f"log-odds {told.log_odds:+.2f}"),
        Fact("Quantity", f"{told.quantity:g}", "units"),
        Fact("Segments", f"{told.segments}", told.halt_reason.replace("_", " ")),
    ]
    return Page("Explanation", told.decision_id, text(told)).html(cards, sections)


def _print(told: Explanation) -> None:
    from rich.console import Console
    from rich.table import Table

    from backend.explanation_figures import text

    effects = Table(title="Effects, log-odds of the action", box=None, title_justify="left")
    for name in ("input", "effect", "without it"):
        effects.add_column(name)
    ordered = sorted((*told.bars, *told.account), key=lambda effect: -abs(effect.log_odds))
    for effect in ordered[:SHOWN]:
        effects.add_row(effect.name, f"{effect.log_odds:+.3f}", effect.action)
    thought = Table(title="Belief by segment", box=None, title_justify="left")
    for name in ("segment", "action", "log-odds", "quantity", "value", "q halt", "q continue", "state change", "halts"):
        thought.add_column(name)
    for each in told.trajectory:
        shown = (each.log_odds, each.quantity, each.value, each.q_halt, each.q_continue, each.state_change_ratio)
        numbers = ("-" if value is None else f"{value:.3f}" for value in shown)
        thought.add_row(str(each.segment), each.action, *numbers, "yes" if each.halted else "")
    console = Console()
    for depth in told.depth:
        thought.caption = (thought.caption or "") + f"complexity {depth.complexity:.2f}: {depth.segments}  "
    console.print(effects, thought)
    console.print(text(told), markup=False, highlight=False)
