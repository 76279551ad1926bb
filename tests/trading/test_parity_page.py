"""The page of a day's parity: what it says, and that nothing in it comes from elsewhere."""

from __future__ import annotations

import json
import re
from base64 import b64decode
from dataclasses import replace
from datetime import date
from html import unescape

import numpy as np

from trading.market import SECOND_NS
from trading.parity import Compared, Parity, Step
from trading.parity_page import parity_page

OPENED_NS = 1_794_973_500 * SECOND_NS  # 2026-11-18 09:15 in India


def a_row(
    number: int, *, why: str = "", live: float = 10.0, tested: float = 10.0, price: float | None = 101.0
) -> Compared:
    mine = Step("BUY_LONG", 65.0 if price else 0.0, price, live)
    slippage = None if price is None else 1.5 + number
    return Compared(
        OPENED_NS + 300 * SECOND_NS * number, mine, Step("BUY_LONG", 65.0, 100.0, tested), slippage, None, why
    )


def a_day(symbol: str = "NIFTY", *rows: Compared) -> Parity:
    live, tested = (sum(getattr(row, side).net_rupees for row in rows) for side in ("live", "backtest"))
    return Parity(symbol, date(2026, 11, 18), "hrm/v1", rows, live, tested, 0)


def plotted(page: str) -> list[tuple[str, list[str], list[float]]]:
    """The lines of the profit: name, times, rupees."""
    figure = json.JSONDecoder().raw_decode(page[page.index('{"plot0":') :].replace("\\u003c", "<"))[0]["plot0"]
    return [(line["name"], line["x"], np.frombuffer(b64decode(line["y"]["bdata"])).tolist()) for line in figure["data"]]


def test_a_day_that_was_the_same_says_so() -> None:
    page = unescape(parity_page([a_day("NIFTY", a_row(0), a_row(1))]))
    assert "<h1>The same</h1>" in page
    assert "what the desk did beside a backtest of hrm/v1" in page
    assert "+20 rupees" in page
    assert "+2.00 bps" in page  # mean slippage


def test_bars_that_differ_are_listed_with_both_sides_and_the_reason() -> None:
    days = [
        a_day("NIFTY", a_row(0), a_row(1, why="not_filled", price=None)),
        a_day("BANKNIFTY", a_row(1, why="<b>x</b>")),
    ]
    page = parity_page(days)
    assert "2 of 3 bars differ" in page
    assert "<td>09:20</td><td>NIFTY</td><td>BUY_LONG</td><td>0</td><td></td><td>BUY_LONG</td><td>65</td>" in page
    assert "<td>not_filled</td><td>1</td>" in page
    assert "<b>x</b>" not in page  # a reason is text
    assert "&lt;b&gt;x" in page


def test_the_profit_of_all_symbols_is_summed_over_the_bars() -> None:
    days = [a_day("NIFTY", a_row(0, live=5.0), a_row(1, live=-7.0)), a_day("BANKNIFTY", a_row(1, live=1.0, tested=2.0))]
    live, tested = plotted(parity_page(days))
    assert live == ("live", ["09:15", "09:20"], [5.0, -1.0])
    assert tested == ("backtest", ["09:15", "09:20"], [10.0, 22.0])


def test_more_than_fit_are_counted() -> None:
    rows = [a_row(0, why="unexplained")] * 250
    assert "The first 200 of 250." in parity_page([a_day("NIFTY", *rows)])


def test_trades_by_hand_are_on_the_page_and_the_day_is_not_the_same() -> None:
    page = parity_page([replace(a_day("NIFTY", a_row(0)), by_hand=3)])
    assert "<h1>The same</h1>" not in page
    assert ">3<" in page


def test_the_page_needs_no_network() -> None:
    page = parity_page([a_day("NIFTY", a_row(0))])
    assert not re.search(r"<(script|link|img)[^>]*(src|href)=", page)
