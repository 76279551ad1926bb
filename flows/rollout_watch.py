"""`hrm rollout watch`: the rollout as it goes on, redrawn when something changed, until it ends.

A service that does not answer is waited for: what was seen last stays on the screen, with a line that says since when.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from rich.console import Console
from rich.live import Live

from flows.rollout_screen import Seen, moment, watch_screen
from serving import calls
from serving.calls import ServiceError
from serving.client import ServiceClient
from serving.schemas_rollout import Event

LOOK_S = 1.0
EVENTS_KEPT = 20


def follow(client: ServiceClient, *, once: bool = False, console: Console | None = None) -> Seen:
    """Draw until nothing more is to be seen; the last look. Raises ServiceError where the service refuses."""
    console = console or Console()
    seen = look(client, None)
    if once or not seen.goes_on:
        console.print(watch_screen(seen))
        return seen
    if not console.is_terminal:  # nobody sees it move: every change once
        return _follow(client, seen, lambda one: console.print(watch_screen(one)))
    with Live(watch_screen(seen), console=console, auto_refresh=False, vertical_overflow="crop") as live:
        return _follow(client, seen, lambda one: live.update(watch_screen(one), refresh=True))


def _follow(client: ServiceClient, seen: Seen, draw: Callable[[Seen], None]) -> Seen:
    draw(seen)
    while seen.goes_on:
        time.sleep(LOOK_S)
        before, seen = seen, look_again(client, seen)
        if seen != before:
            draw(seen)
    return seen


def look_again(client: ServiceClient, before: Seen) -> Seen:
    """What is there now, or what was there before and since when nothing is heard. Raises ServiceError: a refusal."""
    try:
        return look(client, before)
    except ServiceError as error:
        if error.refused:
            raise
        return before if before.silence else replace(before, silence=_silence(error))


def look(client: ServiceClient, before: Seen | None) -> Seen:
    """Raises ServiceError."""
    state = client.call(calls.rollout())
    known = before.events if before is not None else ()
    return Seen(
        rollout=state,
        analysis=client.call(calls.analysis()),
        events=(*known, *_events_after(client, known[-1].version if known else 0))[-EVENTS_KEPT:],
        alerts=tuple(client.call(calls.health()).warnings),
    )


def _events_after(client: ServiceClient, version: int) -> list[Event]:
    found: list[Event] = []
    while page := client.call(calls.events(version)).events:
        found, version = page, page[-1].version  # of a long log only its end is shown
    return found


def _silence(error: ServiceError) -> str:
    return f"no answer since {moment(time.time())} ({error.code}); still asking: is it being restarted?"
