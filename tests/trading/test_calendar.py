"""The exchange's sessions and hours, against days that are known from elsewhere."""

from __future__ import annotations

from datetime import date, datetime, time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import DataError
from trading import calendar
from trading.calendar import KOLKATA, hours, is_session, next_session, previous_session, sessions, trading_hours

FIRST, LAST = calendar.bounds()
DAYS = st.dates(FIRST, LAST)


@pytest.mark.parametrize(
    ("day", "open_that_day"),
    [
        (date(2013, 5, 11), True),  # a Saturday's drill
        (date(2014, 3, 22), True),
        (date(2015, 2, 28), True),  # a Saturday's budget
        (date(2020, 2, 1), True),
        (date(2024, 1, 20), True),
        (date(2024, 3, 2), True),
        (date(2024, 5, 18), True),
        (date(2025, 2, 1), True),
        (date(2026, 2, 1), True),  # a Sunday's
        (date(2013, 11, 14), True),  # the holiday that was moved
        (date(2013, 11, 15), False),
        (date(2012, 11, 13), False),  # evenings of muhurat trading
        (date(2018, 11, 7), False),
        (date(2023, 11, 12), False),
        (date(2024, 1, 22), False),  # decided days before
        (date(2026, 1, 15), False),
        (date(2026, 11, 21), False),
        (date(2026, 11, 23), True),
    ],
)
def test_days_that_calendars_have_wrong_are_right(day: date, open_that_day: bool) -> None:
    assert is_session(day) is open_that_day
    assert (day in sessions(day, day)) is open_that_day


def test_a_year_has_the_sessions_the_exchange_held() -> None:
    assert len(sessions(date(2026, 1, 1), date(2026, 12, 31))) == 246  # 245 and the budget's Sunday


def test_derivatives_close_later_since_august_2026() -> None:
    friday, monday = date(2026, 7, 31), date(2026, 8, 3)
    assert [hours(day, "index_futures").close.time() for day in (friday, monday)] == [time(15, 30), time(15, 40)]
    assert [hours(day, "cash").close.time() for day in (friday, monday)] == [time(15, 30), time(15, 30)]
    assert hours(monday, "index_futures").square_off == datetime(2026, 8, 3, 15, 15, tzinfo=KOLKATA)


def test_a_special_session_has_hours_of_its_own_and_no_known_square_off() -> None:
    drill = hours(date(2014, 3, 22), "cash")
    assert drill.open == datetime(2014, 3, 22, 11, 15, tzinfo=KOLKATA)
    assert (drill.close.time(), drill.square_off) == (time(12, 45), None)
    assert trading_hours(date(2021, 2, 24), "index_futures") == (time(9, 15), time(17, 0))


def test_hours_of_a_day_without_a_session_are_refused() -> None:
    with pytest.raises(DataError, match="2026-11-21 is no session") as refused:
        hours(date(2026, 11, 21), "cash")
    assert refused.value.code == "no_session"


@given(DAYS.filter(lambda day: FIRST < day < LAST))
def test_next_and_previous_sessions_are_neighbours(day: date) -> None:
    following, before = next_session(day), previous_session(day)
    assert before < day < following
    assert sessions(before, following) == tuple(
        each for each in (before, *([day] if is_session(day) else []), following)
    )
    assert previous_session(following) == (day if is_session(day) else before)


@pytest.mark.parametrize("day", [date(2010, 10, 17), date(LAST.year + 1, 1, 1), date(1990, 1, 1)])
@pytest.mark.parametrize("question", [is_session, next_session, previous_session, lambda day: sessions(day, day)])
def test_outside_its_bounds_the_calendar_does_not_guess(day: date, question) -> None:
    with pytest.raises(DataError, match="outside the exchange calendar") as refused:
        question(day)
    assert refused.value.code == "outside_calendar"


@pytest.mark.parametrize(("question", "day"), [(next_session, LAST), (previous_session, FIRST)])
def test_beyond_the_last_session_there_is_none(question, day: date) -> None:
    with pytest.raises(DataError) as refused:
        question(day)
    assert refused.value.code == "outside_calendar"


def test_a_range_backwards_has_no_sessions() -> None:
    assert sessions(date(2026, 2, 1), date(2026, 1, 1)) == ()


@pytest.mark.parametrize("kept", [None, b"", b"another release\n2026-01-01", b"\xff\xfe", b"%b\nno day"])
def test_sessions_that_are_kept_are_those_that_are_calculated(
    kept: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "sessions.txt"
    monkeypatch.setattr(calendar, "KEPT", file)
    calculated = calendar._calculated()
    calendar._regular()  # writes the file
    if kept is not None:
        file.write_bytes(kept.replace(b"%b", file.read_bytes().split(b"\n")[0]))
    assert calendar._regular() == calculated
    assert calendar._regular() == calculated  # from the file
