"""`hrm rollout judge`: what another plan would have made of a rollout, from its database; no service is asked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text
from sqlalchemy.exc import SQLAlchemyError

from core.errors import ConfigError
from core.settings import Settings
from delivery.plan import Plan
from delivery.retrospect import Judgement, judged_again
from delivery.state_database import named, place_of
from delivery.store import RolloutStore
from flows.rollout_plan import read_plan, with_sessions
from flows.rollout_screen import STYLES, moment, plain


def judged(settings: Settings, attempt: int | None, file: Path | None) -> Judgement:
    """`attempt`: the latest if None; `file`: a plan in YAML, the attempt's own if None.

    Raises ConfigError, and RolloutError `no_such_attempt`.
    """
    with _opened(settings) as store:
        number = store.read().attempt if attempt is None else attempt
        began = next(store.states(number), None)
        if began is None:
            raise ConfigError(_none(attempt, named(place_of(settings))), code="no_such_attempt")
        at, state = began
        return judged_again(store, number, store.plan(state) if file is None else plan_then(file, at))


def facts(judgement: Judgement) -> dict[str, Any]:
    """As JSON."""
    told = asdict(judgement)
    return told | {"same_plan": judgement.plan_was == judgement.plan_now}


def screen(judgement: Judgement) -> RenderableType:
    table = Table(box=None, padding=(0, 3, 0, 0))
    for heading in ("run", "metric", "taken", "was", "now"):
        table.add_column(heading, header_style="dim")
    for one in judgement.metrics:
        left_out = f" ({one.unjudged} not on record)" if one.unjudged else ""
        table.add_row(one.run, one.metric, f"{one.taken}{left_out}", _phase(one.was), _phase(one.now))
    return Group(Text(f"attempt {judgement.attempt}, plan {judgement.plan_now[:12]}"), table, _verdict(judgement))


def _verdict(judgement: Judgement) -> Text:
    found = judgement.difference
    if found is None:
        return Text("the controller would have done the same", "green")
    return plain(f"{moment(found.at)}: {found.now}. It was: {found.was}.", "yellow")


def _phase(phase: str | None) -> Text:
    return Text("not measured" if phase is None else phase, STYLES.get(phase or "", "dim"))


def plan_then(file: Path, began_at: float) -> Plan:
    """With the sessions that there were then, if it steps in market time and names none."""
    return with_sessions(read_plan(file), datetime.fromtimestamp(began_at, UTC))


def _none(attempt: int | None, place: str) -> str:
    if attempt is None:
        return f"{place}: no rollout was ever started; start one, or point HRM_PATHS__STATE_DIR to another state"
    return f"{place}: no rollout began at version {attempt}; `hrm rollout events` shows the starts"


@contextmanager
def _opened(settings: Settings) -> Iterator[RolloutStore]:
    place = place_of(settings)
    store = RolloutStore(place, settings.rollout, as_it_is=True)
    try:
        yield store
    except SQLAlchemyError as error:
        raise ConfigError(f"{named(place)}: cannot be read ({getattr(error, 'orig', error)}); mend it") from None
    finally:
        store.close()
