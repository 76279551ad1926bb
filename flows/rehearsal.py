"""`hrm rollout rehearse`: the day, its story, its page, and the figures as the command answers them."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from core.settings import Settings
from flows.trading_day import play
from flows.trading_day_market import replayed_day, synthetic_day
from flows.trading_day_report import write
from flows.trading_day_story import story


def rehearse(settings: Settings, *, symbols: int, seed: int, data: Path | None, folder: Path | None) -> dict[str, Any]:
    """Play a day and write `day.json` and `report.html` into `folder`, by default a new one in the state directory.

    Raises DataError for bars that make no such day, ConfigError for a folder that holds one, and RolloutError if the
    rollout does not come so far that anything could break.
    """
    day = synthetic_day(settings, symbols, seed) if data is None else replayed_day(settings, data, symbols)
    folder = folder or settings.paths.state_dir / "rehearsals" / datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    told = story(play(settings, day, folder), settings.trading.initial_capital)
    page = write(told, folder)
    return {"passed": told["passed"], "failures": told["failures"], **told["figures"], "report": str(page)}
