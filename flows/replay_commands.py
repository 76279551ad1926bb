"""`hrm replay`: decide again what is on record, and see whether it comes to the same action, quantity and depth."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from core.errors import ConfigError, DataError
from core.settings import Settings, load_settings
from flows.day_replay import is_day, replay_day
from flows.options import AsJson
from flows.progress import bars as progress_bars
from flows.progress import report as progress
from flows.terminal import answer

if TYPE_CHECKING:
    from serving.record_format import AnyFacts, Record
    from serving.replay import Replayed
    from serving.replay_cases import Outputs

LISTED = 20  # of those that differ; the count is of all
SHOWN = 3  # instruments of a book, rows of an inference; --json has all
PROGRESS_EVERY = 100  # records

DecisionId = Annotated[
    str | None,
    typer.Argument(
        metavar="[DECISION_ID|DATE]", help="`decision_id` of an answer, or a day of live trading: 2026-01-31."
    ),
]
RequestId = Annotated[str | None, typer.Option(help="Every decision on this request instead.")]
All = Annotated[bool, typer.Option("--all", help="Every decision on record, or of a time.")]
Since = Annotated[str | None, typer.Option(help="With --all: from then on, UTC: 2026-01-31 or 2026-01-31T09:15.")]
Until = Annotated[str | None, typer.Option(help="With --all: up to then, and not further.")]
Place = Annotated[
    Path | None, typer.Option("--records", help="Another folder of records, such as an archive; else the service's.")
]


def replay(
    decision_id: DecisionId = None,
    request_id: RequestId = None,
    every: All = False,
    since: Since = None,
    until: Until = None,
    records: Place = None,
    as_json: AsJson = False,
) -> None:
    """Decide again what is on record, or trade a day again from its log. Exits with 1 if anything is not the same."""
    if sum((decision_id is not None, request_id is not None, every)) != 1:
        raise ConfigError("give one of DECISION_ID, a DATE, --request-id and --all", code="usage")
    if (since or until) and not every:
        raise ConfigError("--since and --until belong to --all", code="usage")
    settings = load_settings()
    folder = records or settings.paths.state_dir / "decisions"
    if decision_id is not None and is_day(decision_id):
        raise typer.Exit(replay_day(settings, decision_id, _replayed, records=folder, as_json=as_json))
    if not every:
        raise typer.Exit(_few(settings, _named(folder, decision_id, request_id), as_json))
    first, last = _moment(since, 0.0), _moment(until, datetime.now(UTC).timestamp())
    if first >= last:
        raise ConfigError(f"--since {since} is not before --until {until}", code="usage")
    raise typer.Exit(_many(settings, folder, first, last, as_json))


def _named(folder: Path, decision_id: str | None, request_id: str | None) -> list[Record]:
    from serving.audit import find, find_request

    if decision_id is not None:
        return [find(folder, decision_id)]
    found = find_request(folder, str(request_id))
    if not found:
        raise DataError(f"{folder}: no decision on request '{request_id}'", code="decision_not_found")
    return found


def _moment(text: str | None, default: float) -> float:
    if text is None:
        return default
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(f"'{text}' is no time; write it as 2026-01-31 or 2026-01-31T09:15", code="usage") from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _replayed(settings: Settings, records: Iterable[Record]) -> Iterator[Replayed]:
    """Engines are loaded once."""
    from serving.engine import load_engine
    from serving.replay import replay as decide_again

    return decide_again(records, cache(partial(load_engine, settings)))


def _few(settings: Settings, records: list[Record], as_json: bool) -> int:
    from serving.replay import AGREES

    results = list(_replayed(settings, records))
    same = all(result.verdict in AGREES for result in results)
    if as_json:
        facts = [record.facts.model_dump(mode="json") for record in records]
        answer({"same": same, "replayed": [asdict(result) for result in results], "records": facts}, as_json)
    else:
        for record in records:
            _print(record, [each for each in results if each.decision_id == record.facts.decision_id])
    return 0 if same else 1


def _many(settings: Settings, folder: Path, first: float, last: float, as_json: bool) -> int:
    from rich.console import Console

    from serving.audit import between
    from serving.replay import AGREES

    verdicts: Counter[str] = Counter()
    others: list[Replayed] = []
    with progress_bars(Console(stderr=True)):
        for result in _replayed(settings, _watched(between(folder, first, last), last)):
            verdicts[result.verdict] += 1
            if result.verdict not in AGREES and len(others) < LISTED:
                others.append(result)
    if not verdicts:
        raise DataError(f"{folder}: no decision on record in that time", code="decision_not_found")
    summary: dict[str, Any] = {"arms": verdicts.total(), **verdicts}
    answer(summary | ({"not_same": [asdict(each) for each in others]} if others else {}), as_json)
    return 0 if verdicts.keys() <= AGREES else 1


def _watched(records: Iterator[Record], last: float) -> Iterator[Record]:
    """Tell how far in time they have come."""
    begun: float | None = None
    number = 0
    for number, record in enumerate(records, 1):
        begun = record.facts.at if begun is None else begun
        if number % PROGRESS_EVERY == 1:
            progress("replay", min(0.999, (record.facts.at - begun) / max(last - begun, 1e-9)), f"{number:,} decisions")
        yield record
    if number:
        progress("replay", 1.0, f"{number:,} decisions")


def _print(record: Record, results: list[Replayed]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from serving.replay import AGREES

    facts = record.facts
    table = Table(title=Text(f"{facts.decision_id}  {_what(facts)}"), box=None, title_justify="left")
    for name in ("", "model", "action", "quantity", "segments", ""):
        table.add_column(name)
    for result in results:
        table.add_row(result.arm, result.model or "a rule", *_columns(result.recorded), "as recorded")
        again = ("-",) * 3 if result.again is None else _columns(result.again)
        verdict = f"[{'green' if result.verdict in AGREES else 'bold red'}]{result.verdict}[/]"
        table.add_row("", "", *again, verdict)
    console = Console()
    console.print(table)
    errors = {} if facts.kind == "inference" else facts.errors
    for line in (*(f"{model}: {why}" for model, why in errors.items()), *(each.why for each in results)):
        if line:
            console.print(line, markup=False, highlight=False, soft_wrap=True)


def _what(facts: AnyFacts) -> str:
    if facts.kind == "decision":
        return f"{facts.symbol}  rung {facts.rung}"
    if facts.kind == "book":
        return f"book {facts.book_id}: {_listed(facts.symbols)}"
    return f"rows of an inference: {len(facts.answer.halt_reason)}"


def _columns(outputs: Outputs) -> tuple[str, ...]:
    """Action, quantity and depth; of a book or of rows the first of each."""
    from core.actions import Action

    actions = [Action(action).name for action in _several(outputs["action"])]
    quantities = [repr(quantity) for quantity in _several(outputs.get("quantity", []))]  # a book has none
    depths = [str(depth) for depth in _several(outputs["segments"])]
    return _listed(actions), _listed(quantities), _listed(depths)


def _several(output: Any) -> list[Any]:
    return output if isinstance(output, list) else [output]


def _listed(texts: Sequence[str]) -> str:
    return ", ".join(texts[:SHOWN]) + (f" and {len(texts) - SHOWN} more" if len(texts) > SHOWN else "")
