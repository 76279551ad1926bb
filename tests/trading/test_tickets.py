"""What is sent: the contract of the day, slices that add up, limits on the grid and inside the collar."""

from __future__ import annotations

import math
from datetime import date
from fractions import Fraction

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from core.errors import DataError
from trading.broker import tag_of
from trading.instruments import Instrument, instrument
from trading.tickets import exact, require_tradable, slices, ticket

NIFTY, BANKNIFTY, FUND = instrument("NIFTY"), instrument("BANKNIFTY"), instrument("NIFTYBEES")
DAY = date(2026, 11, 18)

futures = st.sampled_from([NIFTY, BANKNIFTY])
days = st.dates(date(2021, 8, 2), date(2026, 11, 20))
whole_units = st.integers(-20_000, 20_000).filter(bool)
quoted = st.integers(1, 10_000_000).map(lambda hundredths: hundredths / 100)
collars = st.one_of(st.sampled_from([0.01, 1.0, 50.0, 100.0, 9_999.0]), st.floats(0.01, 5_000.0))


def limit(units: float, last_price: float, collar_bps: float = 50.0, day: date = DAY) -> float:
    return ticket("a", units, last_price, traded=NIFTY, day=day, collar_bps=collar_bps).limit_price


@given(traded=futures, day=days, units=whole_units)
def test_slices_add_up_and_each_is_whole_lots_that_the_exchange_takes(
    traded: Instrument, day: date, units: int
) -> None:
    parts, lot = slices(float(units), traded, day), traded.lot_units(day)
    assert sum(parts) == units
    assert all(part * units > 0 and abs(part) <= traded.freeze_units(day) for part in parts)
    assert all(part % lot == 0 for part in parts[:-1])
    assert (parts[-1] % lot == 0) == (units % lot == 0)
    assert len(parts) <= math.ceil(abs(units) / traded.whole_lots(traded.freeze_units(day), day))


@pytest.mark.parametrize(
    ("units", "expected"),
    [
        (65, [65]),
        (-65, [-65]),
        (1755, [1755]),  # 27 lots; 28 are more than the 1800 that the exchange takes
        (1820, [1755, 65]),
        (-3640, [-1755, -1755, -130]),
        (1810, [1755, 55]),
    ],
)
def test_an_order_is_cut_at_the_freeze_quantity(units: float, expected: list[int]) -> None:
    assert slices(units, NIFTY, DAY) == expected


def test_where_no_freeze_quantity_is_known_an_order_is_one() -> None:
    assert slices(-123_456.0, FUND, DAY) == [-123_456]


@pytest.mark.parametrize("units", [0.0, 0.5, -65.5, math.nan, math.inf])
def test_what_is_no_whole_number_of_units_is_not_sent(units: float) -> None:
    with pytest.raises(DataError, match="whole units"):
        slices(units, NIFTY, DAY)


@given(units=whole_units, last_price=quoted, collar_bps=collars, day=days)
@example(units=1, last_price=14_990.0, collar_bps=50.0, day=DAY)  # across the price at which the grid changes
@example(units=-1, last_price=15_010.0, collar_bps=50.0, day=DAY)
@example(units=-1, last_price=0.01, collar_bps=9_999.0, day=DAY)
def test_a_limit_is_on_the_grid_above_0_and_inside_the_collar(
    units: int, last_price: float, collar_bps: float, day: date
) -> None:
    try:
        price = limit(units, last_price, collar_bps, day)
    except DataError as error:
        assert error.code == "no_price"
        assert units > 0, "some price above 0 is always within a sale's collar"
        assert exact(last_price) * (1 + exact(collar_bps) / 10_000) < Fraction("0.05")
        return
    assert price > 0
    assert exact(price) % exact(NIFTY.tick_rupees(price, day)) == 0
    collar = exact(last_price) * exact(collar_bps) / 10_000
    if units > 0:
        assert exact(price) <= exact(last_price) + collar
    else:
        assert exact(price) >= exact(last_price) - collar


@given(units=st.sampled_from([65, -65]), last_price=st.integers(100_000, 3_000_000).map(lambda tenths: tenths / 10))
def test_a_limit_gives_up_less_than_a_tick_of_the_collar(units: int, last_price: float) -> None:
    collar = exact(last_price) * 50 / 10_000
    given_up = collar - (exact(limit(units, last_price)) - exact(last_price)) * (1 if units > 0 else -1)
    assert 0 <= given_up < Fraction("0.2")


def test_where_the_grid_changes_the_coarser_one_counts() -> None:
    assert limit(65, 14_990.0) == 15_064.9  # 15,064.95 is the collar, in steps of 0.10
    assert limit(-65, 15_010.0) == 14_935.0  # 14,934.95, below which the steps are 0.05


def test_a_collar_that_meets_the_grid_exactly_is_kept_whole() -> None:
    assert (limit(65, 20_000.0), limit(-65, 20_000.0)) == (20_100.0, 19_900.0)
    assert (limit(65, 26_000.1), limit(-65, 26_000.1)) == (26_130.1, 25_870.1)


@pytest.mark.parametrize("price", [math.nan, math.inf, 0.0, -20_000.0])
def test_without_a_price_there_is_no_ticket(price: float) -> None:
    with pytest.raises(DataError) as error:
        limit(65, price)
    assert error.value.code == "no_price"


def test_a_ticket_names_the_contract_of_the_day_and_our_tag() -> None:
    made = ticket("NIFTY:1", -65.0, 26_000.0, traded=NIFTY, day=DAY, collar_bps=50.0)
    assert (made.instrument, made.units, made.tag) == ("NSE:NIFTY26NOVFUT", -65, tag_of("NIFTY:1"))
    assert isinstance(made.units, int)
    rolled = ticket("NIFTY:1", -65.0, 26_000.0, traded=NIFTY, day=date(2026, 11, 20), collar_bps=50.0)
    assert rolled.instrument == "NSE:NIFTY26DECFUT"  # it expires on Monday: the 24th is a holiday


def test_what_cannot_be_ticketed_is_said_before_trading_begins() -> None:
    assert require_tradable("NSE:NIFTY50-INDEX", DAY) is NIFTY
    with pytest.raises(DataError, match="NIFTYBEES is not traded live: it has no index"):
        require_tradable("NIFTYBEES", DAY)
    with pytest.raises(DataError, match=r"BANKNIFTY is not traded live: its lots: .* nothing is known for 2015-01-01"):
        require_tradable("BANKNIFTY", date(2015, 1, 1))
    with pytest.raises(DataError, match="NIFTY50-INDEX"):
        require_tradable("RELIANCE", DAY)
