"""A clean copy holds what is certain and nothing else, and repairing it again changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from exchange_bars import exchange_bars, rows_of
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import DataError
from trading.files import check, fix, load_bars, write_bars
from trading.quality import examine
from trading.repair import repaired

CLEAN = exchange_bars(60)
MINUTE = pd.Timedelta(minutes=1)
SESSION = 75
Spoil = Callable[[pd.DataFrame, int], pd.DataFrame]


def with_value(column: str, value: object) -> Spoil:
    def spoil(bars: pd.DataFrame, row: int) -> pd.DataFrame:
        bars = bars.astype({column: object})
        bars.iloc[row, bars.columns.get_loc(column)] = value
        return bars

    return spoil


def without_session_of(row: int) -> pd.DataFrame:
    return CLEAN[~rows_of(CLEAN, row // SESSION)]


def moved(bars: pd.DataFrame, mask: pd.Series, minutes: float) -> pd.DataFrame:
    return bars.assign(timestamp=bars["timestamp"].where(~mask, bars["timestamp"] + minutes * MINUTE))


def added(bars: pd.DataFrame, row: int, minutes: float = 0.0, **values: float) -> pd.DataFrame:
    more = bars.iloc[[row]].assign(timestamp=lambda one: one["timestamp"] + minutes * MINUTE, **values)
    return pd.concat([bars[: row + 1], more, bars[row + 1 :]], ignore_index=True)


# Each returns to the clean bars exactly.
CERTAIN: dict[str, Spoil] = {
    "order restored": lambda bars, row: pd.concat([bars[row:], bars[:row]], ignore_index=True),
    "repeated rows dropped": added,
    "rows outside the exchange's hours dropped": lambda bars, row: (
        added(bars, row // SESSION * SESSION, -7.0).sort_values("timestamp").reset_index(drop=True)
    ),
    "stamps moved back by 300 s, from the bar's end to its start": lambda bars, _: moved(
        bars, pd.Series(True, index=bars.index), 5.0
    ),
    "high and low widened to cover open and close": lambda bars, row: bars.assign(
        high=bars["high"].where(bars.index != row, bars[["open", "close"]].max(axis=1) - 0.05),
    ),
}
# Each costs the session of the row and nothing else.
UNCERTAIN: dict[str, Spoil] = {
    "sessions with missing or impossible numbers dropped whole": with_value("close", np.nan),
    "text": with_value("open", "n/a?"),
    "infinite": with_value("volume", np.inf),
    "negative": with_value("low", -1.0),
    "sessions with different rows for one time dropped whole": lambda bars, row: added(bars, row, close=18000.0),
    "sessions with a gap dropped whole": lambda bars, row: bars.drop(
        index=row // SESSION * SESSION + 1 + row % (SESSION - 2)
    ).reset_index(drop=True),
    "sessions with an outlier dropped whole": lambda bars, row: bars.assign(
        low=bars["low"].where(bars.index != row, bars["low"] / 10)
    ),
    "sessions with bars of another length than most dropped whole": lambda bars, row: bars[
        ~rows_of(bars, row // SESSION) | (bars.index % 3 == 0)
    ].reset_index(drop=True),
    "sessions that are short dropped whole": lambda bars, row: bars[
        ~rows_of(bars, row // SESSION) | (bars.index % SESSION < 40)
    ].reset_index(drop=True),
    "sessions at another instrument's level dropped whole": lambda bars, row: bars.assign(
        **{
            price: bars[price].where(~rows_of(bars, row // SESSION), bars[price] / 10)
            for price in ("open", "high", "low", "close")
        }
    ),
    "sessions stamped at the other end of the bars than most dropped whole": lambda bars, row: moved(
        bars, rows_of(bars, row // SESSION), 5.0
    ),
}
ROW = 20 * SESSION + 30


@pytest.mark.parametrize("name", CERTAIN)
def test_a_certain_repair_gives_the_clean_bars_back_and_is_named(name: str) -> None:
    spoilt = CERTAIN[name](CLEAN, ROW)
    assert not examine(spoilt)[1].clean
    bars, repairs = repaired(spoilt, "feed")
    assert [repair.what for repair in repairs] == [name]
    expected = CLEAN.assign(high=bars["high"]) if "widened" in name else CLEAN
    pd.testing.assert_frame_equal(bars, expected)
    assert (bars["high"] >= bars[["open", "close"]].max(axis=1)).all()


@pytest.mark.parametrize("name", UNCERTAIN)
def test_what_is_not_certain_costs_its_session_and_no_other(name: str) -> None:
    spoilt = UNCERTAIN[name](CLEAN, ROW)
    assert not examine(spoilt)[1].clean
    bars, repairs = repaired(spoilt, "feed")
    assert (repairs[0].what, repairs[0].count) == (name if "session" in name else next(iter(UNCERTAIN)), 1)
    pd.testing.assert_frame_equal(bars, without_session_of(ROW).reset_index(drop=True))


def test_repairs_count_rows_and_name_the_first_by_its_place_in_the_file() -> None:
    spoilt = added(added(CLEAN, 100), 50)
    repairs = repaired(spoilt, "feed")[1]
    assert [(repair.count, repair.first) for repair in repairs] == [(2, f"row 52 ({CLEAN['timestamp'][50]})")]


def test_a_row_without_a_time_costs_the_sessions_it_may_belong_to() -> None:
    text = CLEAN.assign(timestamp=CLEAN["timestamp"].astype(str))
    inside, between = text.copy(), text.copy()
    inside.loc[ROW, "timestamp"] = "soon"
    between.loc[21 * SESSION, "timestamp"] = None
    assert len(repaired(inside, "feed")[0]) == 59 * SESSION
    assert len(repaired(between, "feed")[0]) == 58 * SESSION


def test_a_row_without_a_time_among_unsorted_ones_belongs_nobody_knows_where() -> None:
    text = CLEAN.assign(timestamp=CLEAN["timestamp"].astype(str))
    text.loc[ROW, "timestamp"] = "soon"
    with pytest.raises(DataError, match="unreadable_timestamp"):
        repaired(pd.concat([text[SESSION:], text[:SESSION]], ignore_index=True), "feed")


def test_a_session_stamped_at_the_start_is_not_shifted_with_those_stamped_at_the_end() -> None:
    others = ~rows_of(CLEAN, 20)
    bars, repairs = repaired(moved(CLEAN, others, 5.0), "feed")
    assert len(repairs) == 2
    pd.testing.assert_frame_equal(bars, CLEAN[others].reset_index(drop=True))


def test_what_a_dropped_session_brings_to_light_is_repaired_too() -> None:
    """60 bars are usual until two such sessions go; then 75 are, and the other four are short."""
    lengths = np.repeat([60, 75, 74, 73], [6, 5, 4, 4])
    number, bar = np.divmod(np.arange(19 * SESSION), SESSION)
    bars = CLEAN[: 19 * SESSION][bar < lengths[number]].reset_index(drop=True)
    spoilt = bars.assign(low=bars["low"].where(~rows_of(bars, 1) & ~rows_of(bars, 3), 1.0))
    clean, repairs = repaired(spoilt, "feed")
    assert [repair.count for repair in repairs] == [2, 4]
    assert clean["timestamp"].dt.normalize().nunique() == 13


FAULTS = st.lists(
    st.tuples(st.sampled_from(sorted({**CERTAIN, **UNCERTAIN})), st.integers(1, 60 * SESSION - 2)), max_size=3
)


@settings(max_examples=25)
@given(faults=FAULTS)
def test_repairing_twice_changes_nothing_whatever_was_wrong(faults: list[tuple[str, int]]) -> None:
    spoilt = CLEAN
    for name, row in faults:
        spoilt = {**CERTAIN, **UNCERTAIN}[name](spoilt, min(row, len(spoilt) - 2)).reset_index(drop=True)
    try:
        bars, _ = repaired(spoilt, "feed")
    except DataError as refused:  # two spoilt beyond repair, by name
        assert refused.code in {"bad_bars", "beyond_repair"}
        return
    assert examine(bars)[1].clean
    again, repairs = repaired(bars, "feed")
    assert repairs == []
    pd.testing.assert_frame_equal(again, bars)


@pytest.mark.parametrize("name", ["bars.csv", "bars.parquet"])
def test_a_clean_copy_stands_beside_the_file_and_loads(tmp_path: Path, name: str) -> None:
    write_bars(CERTAIN["repeated rows dropped"](CLEAN, ROW), tmp_path / name)
    before = (tmp_path / name).read_bytes()
    copy = fix(tmp_path / name)
    assert copy.file == tmp_path / name.replace("bars", "bars.clean")
    assert copy.report.clean and copy.report == check(copy.file)
    assert (tmp_path / name).read_bytes() == before
    np.testing.assert_allclose(load_bars(copy.file)["close"], CLEAN["close"], rtol=1e-15)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, copy.file.name])


@pytest.mark.parametrize("out", ["bars.csv", "link.csv", "folder", "bars.xlsx", "folder/../bars.csv"])
def test_a_copy_is_never_the_file_itself_nor_of_an_unknown_kind(tmp_path: Path, out: str) -> None:
    write_bars(added(CLEAN, ROW), tmp_path / "bars.csv")
    (tmp_path / "link.csv").symlink_to(tmp_path / "bars.csv")
    (tmp_path / "folder").mkdir()
    before = (tmp_path / "bars.csv").read_bytes()
    with pytest.raises(DataError, match=r"choose another --out|unknown extension"):
        fix(tmp_path / "bars.csv", tmp_path / out)
    assert (tmp_path / "bars.csv").read_bytes() == before
    assert (tmp_path / "link.csv").is_symlink()


UNREPAIRABLE: dict[str, pd.DataFrame] = {
    "naive_timestamp": CLEAN.assign(timestamp=CLEAN["timestamp"].dt.tz_localize(None)),
    "mixed_time_zones": CLEAN.assign(
        timestamp=CLEAN["timestamp"].astype(str).where(CLEAN.index != 7, "2023-01-02T04:20:00Z")
    ),
    "level_shift": CLEAN.assign(
        **{
            price: CLEAN[price].where(CLEAN.index < 30 * SESSION, CLEAN[price] / 2) for price in ("open", "high", "low")
        },
        close=CLEAN["close"].where(CLEAN.index < 30 * SESSION, CLEAN["close"] / 2),
    ),
    "not_intraday": CLEAN[::SESSION],
    "constant_prices": CLEAN.assign(open=18000.0, high=18000.0, low=18000.0, close=18000.0),
    "ragged_interval": CLEAN[CLEAN.index % SESSION < 74].iloc[::2],
}


@pytest.mark.parametrize("code", UNREPAIRABLE)
def test_what_no_repair_mends_is_named_and_nothing_is_written(tmp_path: Path, code: str) -> None:
    UNREPAIRABLE[code].to_csv(tmp_path / "bars.csv", index=False)
    with pytest.raises(DataError, match=f"nothing was written.*\n.*{code}") as refused:
        fix(tmp_path / "bars.csv")
    assert refused.value.code == "bad_bars"
    assert [path.name for path in tmp_path.iterdir()] == ["bars.csv"]


@pytest.mark.parametrize(
    ("bars", "why"),
    [
        (CLEAN.assign(close=CLEAN["close"].where(CLEAN.index < 25 * SESSION)), "missing_value"),
        (CLEAN.assign(timestamp="soon"), "unreadable_timestamp"),
        (CLEAN.assign(volume=np.nan), "missing_value"),
    ],
    ids=["more than half", "no time at all", "no volume at all"],
)
def test_a_file_that_would_lose_over_half_of_its_sessions_is_not_repaired(
    tmp_path: Path, bars: pd.DataFrame, why: str
) -> None:
    bars.to_csv(tmp_path / "bars.csv", index=False)
    with pytest.raises(DataError, match=f"cannot be used.*\n.*{why}") as refused:
        fix(tmp_path / "bars.csv")
    assert refused.value.code == "beyond_repair"
    assert [path.name for path in tmp_path.iterdir()] == ["bars.csv"]
