"""`hrm replay DATE`: a day of live trading again from its event log, and its decisions again by their models.

The desk's part is trading/event_replay.py: the same events over an empty ledger, compared row for row. The service's
part is serving/replay.py, for every answer of that day that is still on record.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.errors import DataError
from core.settings import Settings
from flows.terminal import answer

if TYPE_CHECKING:
    from serving.record_format import Record
    from serving.replay import Replayed

LEDGERS = ("live-paper.db", "live.db")  # under the state folder
DATE = re.compile(r"\d{4}-\d{2}-\d{2}")
LISTED = 20  # differences; the count is of all
Decide = Callable[[Settings, Iterable["Record"]], Iterator["Replayed"]]


def is_day(text: str | None) -> bool:
    return text is not None and DATE.fullmatch(text) is not None


def replay_day(settings: Settings, text: str, decide: Decide, *, records: Path, as_json: bool) -> int:
    """Print what came of it; 0 if everything is the same, 1 if anything is not. `decide`: models decide records again.

    Raises DataError (`no_events`) if nothing was traded live that day.
    """
    day = _day(text)
    paths = [path for name in LEDGERS if (path := settings.paths.state_dir / name).exists()]
    days = {path.name: found for path in paths if (found := _ledger(path, day, settings)) is not None}
    if not days:
        names = " or ".join(LEDGERS)
        raise DataError(
            f"{settings.paths.state_dir}: no events of {day} in {names}; `hrm trade --live` writes them",
            code="no_events",
        )
    asked = {each for found in days.values() for each in found.pop("asked")}
    verdicts = _decisions(settings, decide, records, asked)
    same = not any(found["differences"] for found in days.values()) and _agree(verdicts)
    answer({"same": same, "day": text, "ledgers": days, "decisions": dict(verdicts)}, as_json)
    return 0 if same else 1


def _day(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError as error:
        raise DataError(f"'{text}' is no day: {error}", code="usage") from None


def _ledger(path: Path, day: date, settings: Settings) -> dict[str, Any] | None:
    """What a replay of one ledger came to, with the ids of the decisions; None if it has no events of that day."""
    from trading.event_replay import replay
    from trading.events import EventLog
    from trading.ledger import Ledger
    from trading.opening import live_desk

    ledger = Ledger(path)
    try:
        said = [event.body["answer"] for event in EventLog(ledger).of_day(day) if event.kind == "answer"]
        if next(EventLog(ledger).of_day(day), None) is None:
            return None
        replayed = asdict(replay(ledger, day, settings, live_desk))
    finally:
        ledger.close()
    differences = replayed.pop("differences")
    listed = {"differences": len(differences), "first_differences": differences[:LISTED]}
    del replayed["day"]
    return replayed | listed | {"asked": [each["decision_id"] for each in said if each and each["decision_id"]]}


def _decisions(settings: Settings, decide: Decide, folder: Path, ids: set[str]) -> Counter[str]:
    """Verdicts on every arm of these decisions; those without a record are counted as such.

    They are found by their ids: the service's day is this machine's, the desk's may be an emulator's.
    """
    from serving.audit import of_ids

    missing = set(ids)

    def found() -> Iterator[Record]:
        for record in of_ids(folder, ids):
            missing.discard(record.facts.decision_id)
            yield record

    verdicts = Counter(result.verdict for result in decide(settings, found()))
    return verdicts + Counter({"not_on_record": len(missing)})


def _agree(verdicts: Counter[str]) -> bool:
    from serving.replay import AGREES

    return verdicts.keys() <= {*AGREES, "not_on_record"}
