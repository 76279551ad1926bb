"""What is happening now, for whoever watches: a bar per phase on a terminal, a line a minute in a log file.

A context variable carries the watcher, so that phases report without passing a display through every call; with
nobody watching a report costs nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Column

LINE_EVERY_S = 60.0

Watcher = Callable[[str, float, str], None]  # phase, ratio done in [0, 1], note

_watcher: ContextVar[Watcher | None] = ContextVar("watcher", default=None)


def report(phase: str, ratio: float, note: str = "") -> None:
    """Say how far `phase` has come, 0 to 1, and what it is doing."""
    watcher = _watcher.get()
    if watcher is not None:
        watcher(phase, ratio, note)


@contextmanager
def watched_by(watcher: Watcher) -> Iterator[None]:
    token = _watcher.set(watcher)
    try:
        yield
    finally:
        _watcher.reset(token)


@contextmanager
def bars(console: Console) -> Iterator[None]:
    """One bar per phase on `console` while the block runs; it appears when the phase first reports.

    Where nobody can see a bar move (a pipe, a CI log), a line when a phase begins, one each minute, and one when it
    ends.
    """
    if not console.is_terminal:
        with watched_by(_lines(console)):
            yield
        return
    columns = (
        SpinnerColumn(finished_text="[green]✓[/]"),
        TextColumn("{task.description}", table_column=Column(min_width=22, no_wrap=True)),
        BarColumn(16),
        TimeElapsedColumn(),
        TextColumn("[dim]{task.fields[note]}[/]", table_column=Column(ratio=1, no_wrap=True)),
    )
    with Progress(*columns, console=console) as display:
        tasks = {}

        def show(phase: str, ratio: float, note: str) -> None:
            if phase not in tasks:
                tasks[phase] = display.add_task(phase, total=1.0, note=note)
            display.update(tasks[phase], completed=ratio, note=note)

        with watched_by(show):
            yield


def _lines(console: Console) -> Watcher:
    begun: dict[str, float] = {}
    told: dict[str, float] = {}

    def say(text: str) -> None:
        console.print(text, soft_wrap=True, highlight=False, markup=False)

    def show(phase: str, ratio: float, note: str) -> None:
        now = time.monotonic()
        if phase not in begun:
            begun[phase] = told[phase] = now
            say(f"{phase}: begins")
        if ratio >= 1.0:
            say(f"{phase}: {note or 'done'} ({now - begun[phase]:.0f} s)")
        elif now - told[phase] >= LINE_EVERY_S:
            told[phase] = now
            say(f"{phase}: {ratio:.0%}, {note}")

    return show
