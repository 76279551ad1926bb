"""Lots, ticks, expiries and symbols by date; tables that cannot be right are refused when they are read."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from datetime import date
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from core.errors import ConfigError, DataError
from trading import calendar, tables
from trading.calendar import Corrections
from trading.instruments import Instrument, _Instruments, charged_lot, in_lots, instrument, lot_of, named_after
from trading.tables import Ratio, Table, section

NIFTY, BANKNIFTY, FUND = instrument("NIFTY"), instrument("BANKNIFTY"), instrument("NIFTYBEES")


@pytest.mark.parametrize(
    ("day", "nifty", "banknifty"),
    [
        (date(2020, 6, 24), 75, 25),
        (date(2021, 6, 22), 75, 25),
        (date(2021, 6, 23), 50, 25),  # the session before the expiry: July's contract is traded
        (date(2024, 4, 25), 50, 15),
        (date(2024, 4, 26), 25, 15),
        (date(2025, 1, 28), 25, 15),
        (date(2025, 1, 29), 75, 30),
        (date(2025, 6, 25), 75, 35),
        (date(2025, 12, 26), 75, 35),
        (date(2025, 12, 29), 65, 30),
    ],
)
def test_the_lot_is_that_of_the_contract_traded_that_day(day: date, nifty: int, banknifty: int) -> None:
    assert (NIFTY.lot_units(day), BANKNIFTY.lot_units(day)) == (nifty, banknifty)


def test_lots_that_change_with_a_contract_change_on_the_day_it_is_rolled() -> None:
    changed_for_all_contracts = {date(2014, 10, 31), date(2024, 4, 26), date(2020, 6, 24)}
    for future in (NIFTY, BANKNIFTY):
        for row in future.lots.root[1:]:
            before = calendar.previous_session(row.first_day)
            rolled = future.contract_month(row.first_day) > future.contract_month(before)
            assert rolled or row.first_day in changed_for_all_contracts, row


@given(units=st.floats(0, 1e6), day=st.dates(date(2014, 11, 1), date(2026, 12, 31)))
def test_whole_lots_round_down_and_never_below_0(units: float, day: date) -> None:
    whole, lot = NIFTY.whole_lots(units, day), NIFTY.lot_units(day)
    assert whole % lot == 0
    assert 0 <= whole <= units < whole + lot


@pytest.mark.parametrize(
    ("quantity", "lot", "expected"),
    [(1.0, 50.0, 50.0), (49.9, 50.0, 50.0), (99.9, 50.0, 50.0), (100.0, 50.0, 100.0), (7.9, 1.0, 7.0)],
)
def test_quantities_are_rounded_down_to_lots_one_at_least(quantity: float, lot: float, expected: float) -> None:
    assert in_lots(np.array([quantity]), np.array([lot])).tolist() == [expected]


@pytest.mark.parametrize(
    ("name", "day", "lot"),
    [
        ("NIFTY", date(2026, 1, 5), 65),
        ("BANKNIFTY_5MIN", date(2026, 1, 5), 30),
        ("NIFTYBEES", date(2026, 1, 5), 1),
        ("BANKNIFTY", date(2019, 1, 7), 1),  # not known then
        ("SYNTHETIC", date(2026, 1, 5), 1),
    ],
)
def test_where_no_lot_is_known_single_units_are_traded(name: str, day: date, lot: int) -> None:
    assert lot_of(name, day) == lot


@pytest.mark.parametrize("units", [math.nan, math.inf, -1.0])
def test_units_that_are_no_amount_are_refused(units: float) -> None:
    with pytest.raises(DataError, match="NIFTY"):
        NIFTY.whole_lots(units, date(2026, 1, 5))


@pytest.mark.parametrize(
    ("future", "month", "expires"),
    [
        (NIFTY, date(2021, 6, 1), date(2021, 6, 24)),
        (NIFTY, date(2025, 8, 31), date(2025, 8, 28)),  # the last Thursday
        (NIFTY, date(2025, 9, 1), date(2025, 9, 30)),  # the first Tuesday
        (NIFTY, date(2026, 11, 2), date(2026, 11, 23)),  # the 24th is a holiday
        (BANKNIFTY, date(2023, 6, 5), date(2023, 6, 28)),  # the 29th was one
        (BANKNIFTY, date(2024, 2, 1), date(2024, 2, 29)),
        (BANKNIFTY, date(2024, 3, 1), date(2024, 3, 27)),  # Wednesdays
        (BANKNIFTY, date(2024, 12, 2), date(2024, 12, 24)),  # Christmas is a Wednesday
        (BANKNIFTY, date(2025, 1, 2), date(2025, 1, 30)),  # Thursdays again
    ],
)
def test_contracts_expire_on_the_weekday_of_their_month_or_the_session_before(future, month, expires) -> None:
    assert future.expiry(month) == expires


@pytest.mark.parametrize(
    ("name", "day", "symbol"),
    [
        ("NSE:NIFTY50-INDEX", date(2026, 11, 2), "NSE:NIFTY26NOVFUT"),
        ("NSE:NIFTY50-INDEX", date(2026, 11, 19), "NSE:NIFTY26NOVFUT"),
        ("NSE:NIFTY50-INDEX", date(2026, 11, 20), "NSE:NIFTY26DECFUT"),  # a Friday, expiry is on Monday
        ("NSE:NIFTYBANK-INDEX", date(2026, 12, 31), "NSE:BANKNIFTY27JANFUT"),  # beyond the calendar's last year
        ("NSE:NIFTYBEES-EQ", date(2026, 11, 20), "NSE:NIFTYBEES-EQ"),
    ],
)
def test_what_is_traded_for_an_index_is_the_months_future_rolled_before_its_expiry(name, day, symbol) -> None:
    assert instrument(name).traded_symbol(day) == symbol


def test_a_fund_is_traded_in_single_units_and_its_tick_is_not_guessed() -> None:
    assert FUND.whole_lots(12.7, date(2026, 1, 5)) == 12
    with pytest.raises(DataError, match="nothing is known"):
        FUND.tick_rupees(280.0, date(2026, 1, 5))
    with pytest.raises(DataError, match="nothing is known"):
        FUND.expiry(date(2026, 1, 5))


@pytest.mark.parametrize(
    ("price", "day", "rupees"),
    [
        (25000.0, date(2025, 4, 14), 0.05),
        (15000.0, date(2025, 4, 15), 0.05),
        (25000.0, date(2025, 4, 15), 0.10),
        (55000.0, date(2025, 4, 15), 0.20),
    ],
)
def test_ticks_grow_with_the_index_since_april_2025(price: float, day: date, rupees: float) -> None:
    assert NIFTY.tick_rupees(price, day) == rupees


def test_an_unknown_symbol_names_the_known_ones() -> None:
    with pytest.raises(DataError, match=r"'SENSEX' .*NIFTY \(NSE:NIFTY50-INDEX\).*NIFTYBEES") as refused:
        instrument("SENSEX")
    assert refused.value.code == "unknown_symbol"


def test_every_row_of_the_tables_says_where_it_is_written_and_when_that_was_read() -> None:
    def facts(node: object):
        if isinstance(node, dict):
            if "from" in node or "day" in node:
                yield node
            else:
                for below in node.values():
                    yield from facts(below)
        elif isinstance(node, list):
            for below in node:
                yield from facts(below)

    rows = list(facts(yaml.safe_load(tables.FILE.read_text())))
    assert len(rows) > 60
    assert all(row["source"] and isinstance(row["read"], date) for row in rows)


ROW = {"source": "a page", "read": date(2026, 11, 22)}


@pytest.mark.parametrize("days", [["2024-01-02", "2024-01-01"], ["2024-01-01", "2024-01-01"]])
def test_rows_that_do_not_ascend_are_refused_with_their_days(days: list[str]) -> None:
    rows = [{"from": date.fromisoformat(day), "value": 1.0} | ROW for day in days]
    with pytest.raises(ValueError, match="must come after the row of"):
        Table[Ratio].model_validate(rows)


def written(tmp_path: Path, change) -> Path:
    tree = yaml.safe_load(tables.FILE.read_text())
    change(tree)
    file = tmp_path / "instruments.yaml"
    file.write_text(yaml.safe_dump(tree))
    return file


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda tree: tree["instruments"]["NIFTY"]["lots"].reverse(), r"instruments\.NIFTY\.lots"),
        (lambda tree: tree["instruments"]["NIFTY"]["lots"][0].pop("source"), r"lots\.0\.source"),
        (lambda tree: tree["instruments"]["NIFTY"]["lots"][0].update(units=0), "greater than or equal to 1"),
        (lambda tree: tree["instruments"]["NIFTY"].update(expiry=[]), "either symbol or expiry"),
        (lambda tree: tree["instruments"]["NIFTY"].update(lot=1), r"instruments\.NIFTY\.lot: Extra"),
        (lambda tree: tree["instruments"]["NIFTY"]["ticks"][1]["bands"].reverse(), "bands must ascend"),
        (lambda tree: tree.pop("charges"), "must hold exactly"),
    ],
)
def test_a_file_that_cannot_be_right_is_refused_with_the_place(tmp_path: Path, change, named: str) -> None:
    with pytest.raises(ConfigError, match=named) as refused:
        section("instruments", _Instruments, written(tmp_path, change))
    assert refused.value.code == "bad_tables"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda tree: tree["calendar"]["special"].append(tree["calendar"]["special"][0]), "a day occurs twice"),
        (lambda tree: tree["calendar"]["special"][0].update(close="11:00"), "2013-05-11 opens at 11:15"),
        (lambda tree: tree["calendar"]["segments"]["cash"][0].update(square_off="15:45"), "not in order"),
    ],
)
def test_sessions_that_cannot_be_right_are_refused_with_the_place(tmp_path: Path, change, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        section("calendar", Corrections, written(tmp_path, change))


def test_a_file_that_is_no_yaml_is_refused(tmp_path: Path) -> None:
    (tmp_path / "instruments.yaml").write_text("{")
    with pytest.raises(ConfigError, match="not readable as YAML"):
        section("instruments", _Instruments, tmp_path / "instruments.yaml")


def test_instruments_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        NIFTY.segment = "cash"  # type: ignore[misc] # that it is refused is the point
    assert isinstance(NIFTY, Instrument)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("NIFTY_5", "NIFTY"),
        ("NIFTY50_5MIN", "NIFTY"),
        ("nse_nifty", "NIFTY"),
        ("BANKNIFTY_15MIN", "BANKNIFTY"),
        ("FINNIFTY_5", None),
        ("SYNTHETIC", None),
        ("BARS", None),
        ("5", None),
    ],
)
def test_the_instrument_is_read_from_the_bars_name(name: str, found: str | None) -> None:
    instrument = named_after(name)
    assert (instrument and instrument.name) == found


@pytest.mark.parametrize(
    ("name", "day", "units"),
    [
        ("BANKNIFTY_5MIN", date(2026, 3, 2), 30),
        ("BANKNIFTY_5MIN", date(2015, 3, 2), 25),  # not known so early: as one lot of NIFTY
        ("SYNTHETIC", date(2026, 3, 2), 65),
    ],
)
def test_charges_are_those_of_a_lot_of_the_bars_own_instrument(name: str, day: date, units: int) -> None:
    assert charged_lot(name, day) == units


def told(file: Path, code: str) -> str:
    """What a process says that is shown another file of tables."""
    environ = {"PATH": os.environ["PATH"], "HRM_INSTRUMENTS": str(file), "PYTHONPATH": str(tables.SHIPPED.parents[1])}
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def test_a_process_can_be_shown_other_tables(tmp_path: Path) -> None:
    tree = yaml.safe_load(tables.SHIPPED.read_text(encoding="utf-8"))
    tree["instruments"]["MINE"] = tree["instruments"]["NIFTY"] | {"index": "NSE:MINE-INDEX"}
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(tree), encoding="utf-8")
    asked = "from trading.instruments import instrument; print(instrument('MINE').index, instrument('NIFTY').name)"
    assert told(file, asked) == "NSE:MINE-INDEX NIFTY\n"
    assert "unset HRM_INSTRUMENTS for the shipped one" in told(tmp_path / "none.yaml", asked)
    with pytest.raises(DataError, match="'MINE' is no known instrument"):
        instrument("MINE")
