"""`hrm backtest`: a published model on sessions it has not seen, or two on the same ones, with a page to look at."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from core.errors import ConfigError, DataError
from core.files import write_atomically
from core.settings import Settings, load_settings
from flows.options import AsJson, Data, Seed, day, existing
from flows.progress import bars as progress_bars
from flows.progress import report as progress
from flows.terminal import answer

if TYPE_CHECKING:
    from backend.backtests import Tested
    from trading.market import Bars
    from trading.tearsheet import Fact

Model = Annotated[str | None, typer.Option(help="name/version in the model store, such as hrm/20260101-1.")]
Compare = Annotated[
    tuple[str, str] | None, typer.Option(help="Champion and challenger, name/version each: may it replace the other?")
]
Symbol = Annotated[
    str | None, typer.Option(help="Instrument whose lots and charges apply; by default what the file's name says.")
]
From = Annotated[str | None, typer.Option("--from", help="First day traded, YYYY-MM-DD; all by default.")]
To = Annotated[str | None, typer.Option("--to", help="Last day traded.")]
Sweep = Annotated[bool, typer.Option("--cost-sweep", help="What would remain at other charges.")]
Report = Annotated[Path | None, typer.Option(help="Where to write the page; below the state directory by default.")]


def backtest(  # noqa: PLR0913, PLR0917 - options of a command, all by name
    model: Model = None,
    compare: Compare = None,
    data: Data = None,
    symbol: Symbol = None,
    first: From = None,
    last: To = None,
    seed: Seed = 0,
    cost_sweep: Sweep = False,
    report: Report = None,
    as_json: AsJson = False,
) -> None:
    """Backtest a published model, or two beside each other, with all costs: held-out sessions, or your file."""
    if (model is None) == (compare is None):
        raise ConfigError("give either --model NAME/VERSION or --compare CHAMPION CHALLENGER", code="usage")
    if compare is not None and compare[0] == compare[1]:
        raise ConfigError(f"--compare {compare[0]} with itself; give two models", code="usage")
    if report is not None and report.is_dir():
        raise ConfigError(
            f"--report {report} is a directory; give a file, such as {report / 'page.html'}", code="usage"
        )
    settings = load_settings()
    dates = (None if first is None else day(first), None if last is None else day(last))
    if dates[0] and dates[1] and dates[0] > dates[1]:
        raise ConfigError(f"--from {dates[0]} is after --to {dates[1]}", code="usage")
    path, models = existing(data), compare or (str(model),)
    days = _simulated(settings, symbol, dates, seed) if path is None else _file(settings, path, symbol, dates, models)
    days = replace(days, name="-".join([days.name, *(each.isoformat() for each in dates if each)]))
    if compare is not None:
        _compare(settings, days, compare, report, as_json)
    else:
        _one(settings, days, str(model), report, cost_sweep=cost_sweep, as_json=as_json)


@dataclass(frozen=True)
class Course:
    """What is traded: bars, the instrument they are of, the days, and a name for files."""

    bars: Bars
    symbol: str | None
    dates: tuple[date | None, date | None]
    name: str
    seen_until: date | None = None  # the day before the first that a model was neither trained nor chosen on

    @property
    def in_sample(self) -> bool:
        """Whether a model knows some of the days already, so that its results say nothing about it."""
        return self.seen_until is not None and (self.dates[0] or date.min) <= self.seen_until

    @property
    def facts(self) -> dict[str, Any]:
        """The same as JSON values."""
        return {"seen_until": self.seen_until and self.seen_until.isoformat(), "in_sample": self.in_sample}

    @property
    def caution(self) -> str | None:
        """What a person must know of the days."""
        if self.seen_until is None:
            return None
        if self.in_sample:
            return f"IN SAMPLE: the days up to {self.seen_until} were trained on; without --from they are left out"
        return f"the days up to {self.seen_until} were trained on and are left out"


def _simulated(settings: Settings, symbol: str | None, dates: tuple[date | None, date | None], seed: int) -> Course:
    """The sessions of the seed that no model of that seed was trained on."""
    from trading.dataset import build_dataset
    from trading.market import session_days

    if symbol is not None:
        raise ConfigError("--symbol says what the bars of --data are; the synthetic market has none", code="usage")
    test = build_dataset(settings, None, seed).test
    begins = session_days(test)[0]  # what is before is warm-up
    return Course(test.bars, None, (max(begins, dates[0] or begins), dates[1]), f"synthetic-{seed}")


def _file(
    settings: Settings,
    data: Path,
    symbol: str | None,
    dates: tuple[date | None, date | None],
    models: tuple[str, ...],
) -> Course:
    """All days of the file, or those that a model trained on this very file has not seen."""
    from serving.store import load_version
    from trading.dataset import build_dataset
    from trading.files import load_market_bars
    from trading.market import session_days

    bars, store = load_market_bars(data), settings.paths.state_dir / "models"
    limit_mb = settings.performance.model_size_limit_mb
    digests = {load_version(store, model, size_limit_mb=limit_mb).manifest.dataset_digest for model in models}
    if bars.digest not in digests:
        return Course(bars, symbol, dates, data.stem)
    unseen = session_days(build_dataset(settings, data, seed=0).test)[0]
    return Course(bars, symbol, (dates[0] or unseen, dates[1]), data.stem, unseen - timedelta(days=1))


def _one(
    settings: Settings, course: Course, model: str, report: Path | None, *, cost_sweep: bool, as_json: bool
) -> None:
    from trading.performance import record
    from trading.tearsheet import facts, tearsheet

    (tested,) = _run(settings, course, [model])
    notes = [note for note in (course.caution, tested.lots) if note]
    page = tearsheet(model, tested.result, tested.rule, note=". ".join(notes))
    written = _write(settings, report, f"{model}-{course.name}", page)
    told = tested.answer()
    sweep = record(tested.result, model).cost_sweep() if cost_sweep else {}
    if cost_sweep:
        told["cost_sweep"] = {f"{multiple:g}": mean for multiple, mean in sweep.items()}  # bps per session
    if as_json:
        answer(told | course.facts | {"report": str(written)}, as_json)
        return
    rows = {f"at {multiple} times the charges": f"{mean:+.2f} bps" for multiple, mean in sweep.items()}
    _print(f"{model} on {tested.result.market.name}", facts(told), rows, (*notes, f"Report: {written}"))


def _compare(settings: Settings, course: Course, models: tuple[str, str], report: Path | None, as_json: bool) -> None:
    from flows.tracking import trials
    from trading.comparison import compare
    from trading.performance import record
    from trading.tearsheet import VERDICTS, comparison_facts, comparison_page

    if course.in_sample:
        raise DataError(f"no verdict can rest on days that were trained on. {course.caution}", code="in_sample")
    champion, challenger = _run(settings, course, models)
    compared = compare(
        record(champion.result, champion.model),
        record(challenger.result, challenger.model),
        settings.evaluation,
        trials=trials(settings.paths.state_dir, challenger.manifest.dataset_digest),
    )
    page = comparison_page(compared, (champion.model, champion.result), (challenger.model, challenger.result))
    name = f"{champion.model}-vs-{challenger.model}-{course.name}"
    written = _write(settings, report, name, page)
    if as_json:
        answer(compared.to_dict() | course.facts | {"report": str(written)}, as_json)
        return
    notes = (*compared.reasons, course.caution, f"Report: {written}")
    _print(VERDICTS[compared.verdict], comparison_facts(compared), {}, notes)


def _run(settings: Settings, course: Course, models: Sequence[str]) -> list[Tested]:
    """Every model is loaded, and found to fit the bars, before the first one runs."""
    from rich.console import Console

    from backend.backtests import prepared

    tests = [prepared(settings, model, course.bars, dates=course.dates, symbol=course.symbol) for model in models]
    with progress_bars(Console(stderr=True)):
        return [test.run(partial(progress, f"backtest {test.engine.id}")) for test in tests]


def _write(settings: Settings, report: Path | None, name: str, page: str) -> Path:
    file = report or settings.paths.state_dir / "backtests" / f"{re.sub(r'[^A-Za-z0-9._-]+', '-', name)}.html"
    write_atomically(file, page.encode())
    return file


def _print(title: str, rows: list[Fact], more: dict[str, str], notes: Sequence[str | None]) -> None:
    from rich.console import Console
    from rich.table import Table

    colours = {"gain": "green", "loss": "red", "": ""}
    table = Table(title=title, show_header=False, box=None, title_justify="left", title_style="bold")
    for row in rows:
        table.add_row(
            row.label, f"[{colours[row.tone]}]{row.value}[/]" if row.tone else row.value, f"[dim]{row.detail}[/]"
        )
    for label, value in more.items():
        table.add_row(label, value)
    console = Console()
    console.print(table)
    for note in notes:
        if note:
            console.print(note, markup=False, highlight=False, soft_wrap=True)
