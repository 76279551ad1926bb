"""A plan as `hrm rollout start` sends it: from a file, with the sessions of the exchange that its steps wait for."""

from __future__ import annotations

from datetime import date, datetime, timedelta
from pathlib import Path

from core.errors import ConfigError, DataError
from delivery.plan import Plan, Session, plan_from

SESSIONS = 40  # eight weeks
DAYS = 2 * SESSIONS  # in which there are as many, with every holiday


def read_plan(file: Path) -> Plan:
    """Raises ConfigError with every problem and its place."""
    try:
        return plan_from(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: no readable plan ({error}); give a YAML file", code="no_such_file") from None
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}", code=error.code) from None


def with_sessions(plan: Plan, now: datetime) -> Plan:
    """With the coming sessions, if it steps in market time and names none itself. Raises DataError: none are known."""
    if plan.market is None or plan.market.sessions:
        return plan
    told = plan.model_dump(mode="json", by_alias=True)
    coming = coming_sessions(now)
    if not coming:
        raise DataError(
            "the exchange's calendar knows no session from now on; install a newer exchange_calendars, or list "
            "market.sessions in the plan",
            code="outside_calendar",
        )
    told["market"]["sessions"] = [one.model_dump(mode="json", by_alias=True) for one in coming]
    return Plan.model_validate(told)


def sessions_needed(plan: Plan) -> int:
    """Whole sessions that its pauses wait for, one after the other."""
    return sum(step.pause.sessions or 0 for step in plan.steps if step.pause is not None)


def coming_sessions(now: datetime) -> list[Session]:
    """The session that is open, and those after it: at most SESSIONS, fewer where the calendar ends before."""
    from trading import calendar

    today = now.astimezone(calendar.KOLKATA).date()
    days = calendar.sessions(today, max(today, min(today + timedelta(days=DAYS), calendar.bounds()[1])))
    return [one for one in map(_session, days[: SESSIONS + 1]) if one.close > now.timestamp()][:SESSIONS]


def _session(day: date) -> Session:
    """While every segment trades: so its quiet times are those of whichever closes first."""
    from trading.calendar import hours
    from trading.instruments import expires_on

    segments = (hours(day, "cash"), hours(day, "index_futures"))
    return Session(
        day=day,
        open=max(one.open for one in segments).timestamp(),
        close=min(one.close for one in segments).timestamp(),
        expiry=expires_on(day),
    )
