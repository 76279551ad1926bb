"""Every class of bad tick that was seen in real bars is found by its name; real large moves are not."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date

import numpy as np
import pandas as pd
import pytest
from exchange_bars import exchange_bars, rows_of

from trading.quality import QualityReport, examine

PRICES = ["open", "high", "low", "close"]
MINUTE = pd.Timedelta(minutes=1)


@pytest.fixture(scope="module")
def clean() -> pd.DataFrame:
    return exchange_bars(60)


def report_on(bars: pd.DataFrame) -> QualityReport:
    return examine(bars.reset_index(drop=True))[1]


def codes(report: QualityReport) -> set[str]:
    return {found.code for found in (*report.problems, *report.defects)}


def scaled(bars: pd.DataFrame, rows: pd.Series, factor: float) -> pd.DataFrame:
    return bars.assign(**{price: bars[price].where(~rows, bars[price] * factor) for price in PRICES})


def extra_rows(bars: pd.DataFrame, clock: str, minutes: float) -> pd.DataFrame:
    """One more row in every session, `minutes` after its bar at `clock`."""
    source = bars[bars["timestamp"].dt.strftime("%H:%M") == clock]
    more = source.assign(timestamp=source["timestamp"] + minutes * MINUTE)
    return pd.concat([bars, more]).sort_values("timestamp", kind="stable")


def test_clean_bars_have_nothing_to_report(clean: pd.DataFrame) -> None:
    report = report_on(clean)
    assert report.clean
    assert codes(report) == set()
    assert (report.rows, report.sessions, report.interval_s) == (60 * 75, 60, 300)
    assert report.session_lengths == {75: 60}
    assert report.missing_sessions == report.off_calendar == report.long_breaks == report.large_moves == ()
    assert report.partial_sessions == ()


@pytest.mark.parametrize(("minutes", "first"), [(1, "09:16"), (5, "09:20"), (15, "09:30")])
def test_bars_stamped_at_their_end_are_found_at_every_length(minutes: int, first: str) -> None:
    bars = exchange_bars(4, minutes)
    shifted = bars.assign(timestamp=bars["timestamp"] + minutes * MINUTE)
    assert f"{shifted['timestamp'].iloc[0]:%H:%M}" == first
    report = report_on(shifted)
    assert [(found.code, found.count) for found in report.problems] == [("end_stamped", len(bars))]
    assert report.defects == ()  # the last bar, at 15:30, is not outside the hours: it is stamped there


def test_a_session_stamped_the_other_way_than_the_rest_is_left_out(clean: pd.DataFrame) -> None:
    other = rows_of(clean, 7)
    mixed = clean.assign(timestamp=clean["timestamp"].where(~other, clean["timestamp"] + 5 * MINUTE))
    report = report_on(mixed)
    assert "contrary_stamps" in codes(report)
    assert report.dropped_sessions == (f"{clean['timestamp'][other].iloc[0]:%Y-%m-%d}",)


def test_exact_duplicates_are_told_from_conflicting_ones(clean: pd.DataFrame) -> None:
    twice = pd.concat([clean[:8], clean[7:]])
    report = report_on(twice)
    assert (report.exact_duplicates, report.conflicting_duplicates) == (1, 0)
    twice.iloc[8, 4] += 1.0
    report = report_on(twice)
    assert (report.exact_duplicates, report.conflicting_duplicates) == (0, 2)
    assert codes(report_on(clean)) == set()


@pytest.mark.parametrize(("clock", "minutes"), [("09:15", -7.0), ("09:15", -6.0), ("15:25", 6.0), ("15:25", 180.0)])
def test_pre_open_closing_and_evening_rows_lie_outside_the_hours(
    clean: pd.DataFrame, clock: str, minutes: float
) -> None:
    report = report_on(extra_rows(clean, clock, minutes))
    assert [(found.code, found.count) for found in report.problems] == [("outside_hours", 60)]


def test_an_evening_of_muhurat_trading_is_left_out_alone(clean: pd.DataFrame) -> None:
    evening = rows_of(clean, 30)
    clean = scaled(clean, evening, 0.7)  # whatever its prices, they are nobody's neighbours
    report = report_on(clean.assign(timestamp=clean["timestamp"].where(~evening, clean["timestamp"] + 500 * MINUTE)))
    assert codes(report) == {"outside_hours"}
    assert len(report.dropped_sessions) == 1


def test_derivatives_of_today_trade_until_15_40() -> None:
    bars = extra_rows(extra_rows(exchange_bars(5, start=date(2026, 8, 20)), "15:25", 5.0), "15:25", 10.0)
    assert codes(report_on(bars)) == set()
    assert codes(report_on(extra_rows(bars, "15:25", 15.0))) == {"outside_hours"}


def test_a_whole_day_at_a_tenth_of_the_price_is_another_instrument(clean: pd.DataFrame) -> None:
    report = report_on(scaled(clean, rows_of(clean, 20), 0.1))
    assert codes(report) == {"foreign_level"}
    assert len(report.dropped_sessions) == 1


def test_most_rows_of_a_day_at_a_tenth_of_the_price_are_another_instrument(clean: pd.DataFrame) -> None:
    most = rows_of(clean, 20) & (np.arange(len(clean)) % 75 >= 10)
    report = report_on(scaled(clean, most, 1500 / 18000))
    assert codes(report) == {"foreign_level", "outlier"}
    assert len(report.dropped_sessions) == 1


def test_some_rows_of_a_day_at_a_tenth_of_the_price_are_outliers(clean: pd.DataFrame) -> None:
    some = rows_of(clean, 20) & (np.arange(len(clean)) % 75 < 10) & (np.arange(len(clean)) % 75 > 5)
    report = report_on(scaled(clean, some, 0.1))
    assert codes(report) == {"outlier"}
    assert report.outliers >= 1


def test_a_level_that_stays_is_a_problem_of_the_file_and_not_of_a_session(clean: pd.DataFrame) -> None:
    split = clean["timestamp"] >= clean["timestamp"].iloc[30 * 75]
    report = report_on(scaled(clean, split, 0.5))
    assert [(found.code, found.count) for found in report.problems] == [("level_shift", 1)]
    assert "row 2251 " in report.problems[0].first


def test_a_level_after_a_long_break_is_no_shift(clean: pd.DataFrame) -> None:
    later = exchange_bars(30, start=date(2025, 1, 1), level=24000.0)
    report = report_on(pd.concat([clean, later]))
    assert codes(report) == set()
    assert report.long_breaks == ("2025-01-02",)


def test_a_few_sessions_between_long_breaks_have_a_level_of_their_own(clean: pd.DataFrame) -> None:
    few = exchange_bars(3, start=date(2024, 1, 1), level=30000.0)
    later = exchange_bars(30, start=date(2025, 1, 1), level=18000.0)
    assert codes(report_on(pd.concat([clean, few, later]))) == set()


def test_bars_that_do_not_cover_open_and_close_are_inconsistent(clean: pd.DataFrame) -> None:
    narrow = clean.assign(high=clean["close"].where(clean.index % 10 == 0, clean["high"]))
    report = report_on(narrow)
    assert [found.code for found in report.problems] == ["inconsistent_bar"]


def test_large_moves_that_happened_are_kept_and_listed(clean: pd.DataFrame) -> None:
    crash = clean["timestamp"] >= clean["timestamp"].iloc[20 * 75]
    rally = clean["timestamp"] >= clean["timestamp"].iloc[40 * 75 + 12]
    bars = scaled(scaled(clean, crash, 0.906), rally, 1.052)
    report = report_on(bars)
    assert report.clean
    days = [f"{clean['timestamp'].iloc[at]:%Y-%m-%d %H:%M}" for at in (20 * 75, 40 * 75 + 12)]
    assert report.large_moves == (f"{days[0]} -9.4% from the session before", f"{days[1]} +5.2% in a bar")


def test_rows_in_the_wrong_place_or_twice_hide_no_other_fault(clean: pd.DataFrame) -> None:
    stamped = clean.assign(timestamp=clean["timestamp"] + 5 * MINUTE)
    foreign = scaled(extra_rows(stamped, "09:20", -12.0), rows_of(stamped, 20), 0.1)
    gap = foreign.drop(index=foreign.index[1000])
    spoilt = pd.concat([gap[2000:], gap[:2000], gap[2100:2150]])
    assert codes(report_on(spoilt)) == {
        "unsorted_timestamp",
        "exact_duplicate",
        "end_stamped",
        "outside_hours",
        "foreign_level",
        "gap",
    }


def test_missing_sessions_are_told_in_runs_and_days_without_a_session_by_name(clean: pd.DataFrame) -> None:
    month = clean["timestamp"].dt.month
    without = clean[(month != 2) & ~rows_of(clean, 3)]
    report = report_on(without.assign(timestamp=without["timestamp"].where(month != 1, without["timestamp"])))
    assert report.missing_sessions == ("2023-01-05", "2023-02-01/2023-02-28")
    assert report.long_breaks == ("2023-03-01",)
    sunday = clean[rows_of(clean, 4)].assign(timestamp=lambda day: day["timestamp"] + pd.Timedelta(days=2))
    report = report_on(pd.concat([clean, sunday]).sort_values("timestamp"))
    assert report.off_calendar == ("2023-01-08",)
    assert codes(report) == set()


@pytest.mark.parametrize("shift", [0.0, 5.0], ids=["stamped at the start", "stamped at the end"])
def test_sessions_without_their_first_or_last_bars_are_told_and_kept(clean: pd.DataFrame, shift: float) -> None:
    place = pd.Series(np.arange(len(clean)) % 75, index=clean.index)
    late, early = rows_of(clean, 3) & (place < 3), rows_of(clean, 30) & (place == 74)
    bars = clean[~late & ~early]
    report = report_on(bars.assign(timestamp=bars["timestamp"] + shift * MINUTE))
    days = [f"{clean['timestamp'].iloc[75 * session]:%Y-%m-%d}" for session in (3, 30)]
    assert report.partial_sessions == (f"{days[0]} 09:30 to 15:25", f"{days[1]} 09:15 to 15:20")
    assert codes(report) == ({"end_stamped"} if shift else set())


def test_special_sessions_on_weekends_are_in_the_calendar() -> None:
    bars = exchange_bars(2, start=date(2020, 1, 31))
    assert f"{bars['timestamp'].iloc[0]:%A}" == "Saturday"
    assert report_on(bars).off_calendar == ()


def test_days_beyond_the_calendar_are_not_judged_by_it(clean: pd.DataFrame) -> None:
    report = report_on(clean.assign(timestamp=clean["timestamp"] + pd.Timedelta(days=364 * 6)))
    assert (report.missing_sessions, report.off_calendar) == ((), ())
    assert codes(report) == set()


@pytest.mark.parametrize("seconds", [30, 90, 120, 600, 1800])
def test_bars_that_do_not_divide_a_session_are_ragged(seconds: int) -> None:
    bars = exchange_bars(60)
    start = bars["timestamp"].dt.normalize() + pd.Timedelta(hours=9, minutes=15)
    number = np.tile(np.arange(75), 60)
    bars = bars.assign(timestamp=start + number * pd.Timedelta(seconds=seconds))
    report = report_on(bars[(number * seconds) < 375 * 60])
    assert codes(report) == {"ragged_interval"}
    assert report.interval_s == seconds


@pytest.mark.parametrize(("sessions", "refused"), [(1, False), (20, True)])
def test_an_interval_that_changes_within_the_file_has_a_name(clean: pd.DataFrame, sessions: int, refused: bool) -> None:
    coarse = pd.Series(pd.factorize(clean["timestamp"].dt.normalize())[0] < sessions, index=clean.index)
    report = report_on(clean[~coarse | (clean.index % 3 == 0)])
    assert codes(report) == {"other_interval"}
    assert bool(report.problems) is refused
    assert len(report.dropped_sessions) == (0 if refused else sessions)


def test_bars_in_another_zone_are_the_same_bars(clean: pd.DataFrame) -> None:
    utc = clean.assign(timestamp=clean["timestamp"].dt.tz_convert("UTC"))
    bars, report = examine(utc)
    assert report == report_on(clean)
    pd.testing.assert_frame_equal(bars, clean)


@pytest.mark.parametrize("shape", [lambda bars: bars[:1], lambda bars: bars[:2], lambda bars: bars[:75]])
def test_a_few_rows_are_no_accident(clean: pd.DataFrame, shape: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
    report = report_on(shape(clean))
    assert codes(report) <= {"not_intraday"}


def test_rows_that_all_lie_outside_the_hours_are_no_accident(clean: pd.DataFrame) -> None:
    night = clean.assign(timestamp=clean["timestamp"] + pd.Timedelta(hours=8))
    report = report_on(night)
    assert codes(report) == {"outside_hours"}
