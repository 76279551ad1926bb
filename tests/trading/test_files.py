"""Bad bars are refused with every problem named; good bars come through unchanged."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import DataError
from trading.files import check, load_bars, load_market_bars, to_frame, validated, write_bars
from trading.market import Bars

BARS = 20


@pytest.fixture
def bars(make_bars: Callable[..., pd.DataFrame]) -> pd.DataFrame:
    return make_bars(5, BARS)


def test_csv_and_parquet_give_the_same_bars(tmp_path: Path, bars: pd.DataFrame) -> None:
    bars.to_csv(tmp_path / "bars.csv", index=False)
    bars.set_index("timestamp").to_parquet(tmp_path / "bars.parquet")
    from_csv, from_parquet = load_bars(tmp_path / "bars.csv"), load_bars(tmp_path / "bars.parquet")
    assert (from_csv == from_parquet).all().all()
    assert from_csv["timestamp"].dt.unit == from_parquet["timestamp"].dt.unit == "ns"
    np.testing.assert_array_equal(from_parquet["close"], bars["close"])


def test_market_bars_carry_the_same_values_with_numbered_sessions(tmp_path: Path, bars: pd.DataFrame) -> None:
    bars.assign(signal=0.25).to_parquet(tmp_path / "nifty.parquet")
    market = load_market_bars(tmp_path / "nifty.parquet")
    assert market.name == "NIFTY"
    assert market.timestamps[0] == pd.Timestamp("2023-01-02 09:15", tz="Asia/Kolkata").value
    np.testing.assert_array_equal(market.session, np.repeat(np.arange(5), BARS))
    for price in ("open", "high", "low", "close"):
        np.testing.assert_array_equal(getattr(market, price), bars[price])
    assert market.signal is not None and (market.signal == 0.25).all()


@pytest.mark.parametrize("name", ["bars.csv", "bars.parquet"])
def test_written_bars_read_back_the_same(name: str, tmp_path: Path, paper_bars: Bars) -> None:
    write_bars(to_frame(paper_bars), tmp_path / name)
    again = load_market_bars(tmp_path / name)
    for column in ("timestamps", "open", "high", "low", "close", "signal"):
        np.testing.assert_array_equal(getattr(again, column), getattr(paper_bars, column))
    np.testing.assert_array_equal(again.session, paper_bars.session)


def test_bars_are_written_whole_or_not_at_all(tmp_path: Path, paper_bars: Bars) -> None:
    with pytest.raises(DataError, match="unknown extension"):
        write_bars(to_frame(paper_bars), tmp_path / "bars.xlsx")
    assert not list(tmp_path.iterdir())


def test_column_names_match_in_any_case_and_only_known_ones_are_kept(bars: pd.DataFrame) -> None:
    given_bars = bars.assign(signal=0.5, note="x").rename(columns=str.upper)
    columns = ["timestamp", "open", "high", "low", "close", "volume", "signal"]
    assert list(validated(given_bars, "memory").columns) == columns


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("absent.csv", None, "no such file"),
        ("bars.txt", b"x", "unknown extension"),
        ("empty.csv", b"", "not readable"),
        ("broken.parquet", b"PAR1 not really", "not readable"),
        ("binary.csv", b"\xff\xfe\x00\x80\x81", "not readable"),
        ("ragged.csv", b"a,b\n1,2\n1,2,3\n", "not readable"),
        ("trailing.csv", b"timestamp,open,high,low,close,volume\nx,1,1,1,1,1,\n", "more fields than its header"),
        ("columns.csv", b"timestamp,open\n2023-01-02T09:15+05:30,1\n", "missing columns high, low, close"),
        ("header.csv", b"timestamp,open,high,low,close,volume\n", "no rows"),
        ("twice.csv", b"timestamp,open,Open,high,low,close,volume\nx,1,1,1,1,1,1\n", "open occur twice"),
    ],
)
def test_a_file_that_is_no_table_of_bars_is_refused(
    tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as refused:
        load_bars(tmp_path / name)
    assert name in str(refused.value)


def _set(column: str, value: object) -> Callable[[pd.DataFrame], pd.DataFrame]:
    def spoil(bars: pd.DataFrame) -> pd.DataFrame:
        bars = bars.astype({column: object})
        bars.loc[7, column] = value
        return bars

    return spoil


SPOILERS: dict[str, Callable[[pd.DataFrame], pd.DataFrame]] = {
    "non_numeric": _set("close", "n/a?"),
    "missing_value": _set("open", None),
    "infinite_value": _set("volume", np.inf),
    "non_positive_price": _set("low", 0.0),
    "negative_volume": _set("volume", -1),
    "inconsistent_bar": _set("high", 17000.0),
    "unreadable_timestamp": lambda bars: _set("timestamp", "yesterday")(bars.astype({"timestamp": str})),
    "naive_timestamp": lambda bars: bars.assign(timestamp=bars["timestamp"].dt.tz_localize(None)),
    "mixed_time_zones": lambda bars: _set("timestamp", "2023-01-02T04:20:00Z")(bars.astype({"timestamp": str})),
    "exact_duplicate": lambda bars: pd.concat([bars[:8], bars[7:]]),
    "conflicting_duplicate": lambda bars: pd.concat([bars[:8], bars[7:].assign(volume=1)]),
    "unsorted_timestamp": lambda bars: pd.concat([bars[8:], bars[:8]]),
    "missing_timestamp": lambda bars: bars.assign(timestamp=bars["timestamp"].where(bars.index != 7)),
    "gap": lambda bars: bars.drop(index=7),
    "outlier": lambda bars: bars.assign(high=bars["high"].where(bars.index != 7, 25000.0)),
    "short_session": lambda bars: bars.drop(index=range(15, 20)),
    "not_intraday": lambda bars: bars[::BARS],
}


@pytest.mark.parametrize("code", SPOILERS)
def test_each_class_of_bad_bar_is_named_with_place_and_remedy(code: str, bars: pd.DataFrame) -> None:
    with pytest.raises(DataError, match=rf"{code}: \d+, first at row \d+.*; .{{10}}") as refused:
        validated(SPOILERS[code](bars), "feed")
    assert str(refused.value).startswith("feed: ")


def test_every_class_of_problem_is_reported_at_once(bars: pd.DataFrame) -> None:
    bars = bars.astype({"open": object, "volume": float})
    bars.loc[3, "open"], bars.loc[4, "volume"], bars.loc[30, "volume"] = "x", -1.0, -2.0
    with pytest.raises(DataError) as refused:
        validated(bars.drop(index=50), "feed")
    message = str(refused.value)
    assert "non_numeric: 1, first at row 4" in message
    assert "negative_volume: 2, first at row 5" in message
    assert "gap: 1" in message


@pytest.mark.parametrize(
    "times",
    [range(9000), range(1_700_000_000, 1_700_009_000), ["0001-01-01T09:15:00+05:30"] * 9000],
    ids=["numbers", "seconds", "before all markets"],
)
def test_timestamps_that_are_no_dates_of_bars_are_a_problem_and_not_an_accident(tmp_path: Path, times) -> None:
    file = tmp_path / "bars.csv"
    prices = {"open": 1.0, "high": 2.0, "low": 0.5, "close": np.linspace(1, 2, 9000), "volume": 0}
    pd.DataFrame({"timestamp": times} | prices).to_csv(file, index=False)
    first = check(file).problems[0]
    assert (first.code, first.count) == ("unreadable_timestamp", 9000)
    with pytest.raises(DataError, match="unreadable_timestamp"):
        load_bars(file)


def test_parquet_timestamps_beyond_nanoseconds_are_a_problem(tmp_path: Path, bars: pd.DataFrame) -> None:
    column = bars["timestamp"].dt.as_unit("us")
    column.iloc[0] = pd.Timestamp("0001-01-01", tz="UTC").as_unit("us").tz_convert(column.dt.tz)
    bars.assign(timestamp=column).to_parquet(tmp_path / "bars.parquet")
    assert "unreadable_timestamp" in {problem.code for problem in check(tmp_path / "bars.parquet").problems}


@pytest.mark.parametrize(("constant_sessions", "refused"), [(2, False), (3, True), (5, True)])
def test_prices_that_do_not_move_in_most_sessions_are_refused(
    bars: pd.DataFrame, constant_sessions: int, refused: bool
) -> None:
    bars.loc[: constant_sessions * BARS - 1, ["open", "high", "low", "close"]] = 20_000.0
    if not refused:
        return assert_usable(bars)
    with pytest.raises(DataError, match=f"constant_prices: {constant_sessions * BARS}, first at row 1 "):
        validated(bars, "bars.csv")


def assert_usable(bars: pd.DataFrame) -> None:
    assert len(validated(bars, "bars.csv")) == len(bars)


def test_a_missing_file_is_missing_whatever_its_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        check(tmp_path / "bars.xlsx")


def test_what_the_reader_says_is_told_in_one_line(tmp_path: Path) -> None:
    file = tmp_path / "bars.csv"
    file.write_text("a,b\n1,2\n1,2,3,4\n")
    with pytest.raises(DataError, match="not readable") as refused:
        check(file)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("code", ["gap", "outlier", "short_session"])
def test_a_rare_defective_session_is_dropped_whole_and_only_that_one(
    code: str, make_bars: Callable[..., pd.DataFrame]
) -> None:
    bars = make_bars(50, BARS)
    kept = validated(SPOILERS[code](bars), "feed")
    expected = bars[BARS:].reset_index(drop=True)
    np.testing.assert_array_equal(kept["close"], expected["close"])
    np.testing.assert_array_equal(kept["timestamp"], expected["timestamp"])


def test_the_last_session_may_still_be_running(bars: pd.DataFrame) -> None:
    assert len(validated(bars[:-15], "feed")) == len(bars) - 15


def test_defective_sessions_above_two_percent_refuse_the_file(make_bars: Callable[..., pd.DataFrame]) -> None:
    with pytest.raises(DataError, match="gap: 2"):
        validated(make_bars(50, BARS).drop(index=[7, 27]), "feed")


def test_too_few_sessions_are_refused(bars: pd.DataFrame) -> None:
    with pytest.raises(DataError, match=r"too_few_sessions: 5.*at least 6"):
        validated(bars, "feed", min_sessions=6)


def test_the_report_describes_the_bars_and_is_json(tmp_path: Path, make_bars: Callable[..., pd.DataFrame]) -> None:
    bars = make_bars(60, BARS).drop(index=[7])
    bars = bars[~bars["timestamp"].dt.month.eq(2)]
    weekend = make_bars(1, BARS).assign(timestamp=lambda day: day["timestamp"] + pd.Timedelta(days=89))
    pd.concat([bars, weekend]).sort_values("timestamp").to_parquet(tmp_path / "bars.parquet")
    report = check(tmp_path / "bars.parquet")
    assert report.interval_s == 300
    assert report.gaps == 1
    assert report.long_breaks == ("2023-03-01", "2023-04-01")
    assert report.off_calendar[-1] == "2023-04-01"
    assert sum(report.session_lengths.values()) == report.sessions
    assert report.session_lengths[BARS - 1] == 1
    assert json.loads(json.dumps(dataclasses.asdict(report)))["rows"] == report.rows


@settings(max_examples=25, deadline=None)
@given(row=st.integers(1, 5 * BARS - 2), column=st.sampled_from(["open", "high", "low", "close"]))
def test_a_nan_anywhere_is_found_where_it_is(row: int, column: str, make_bars: Callable[..., pd.DataFrame]) -> None:
    bars = make_bars(5, BARS)
    bars.loc[row, column] = np.nan
    with pytest.raises(DataError, match=f"missing_value: 1, first at row {row + 1} "):
        validated(bars, "feed")
