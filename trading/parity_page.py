"""The page of a live day beside its backtest (trading/parity.py): one HTML file in the tear sheet's style."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from datetime import datetime
from html import escape

import numpy as np

from trading import tearsheet_figures as figures
from trading.calendar import KOLKATA
from trading.market import SECOND_NS
from trading.parity import Compared, Parity, Step
from trading.tearsheet import Fact, Page, Section

LISTED = 200  # of the bars that differ, and of the dearest fills
HEAD = ("bar", "symbol", "live", "units", "price", "backtest", "units", "price", "slippage", "why")


def parity_page(found: Sequence[Parity]) -> str:
    """Of all symbols of a day, at least one. Times are the exchange's."""
    different = sum(len(each.different) for each in found)
    bars, day = sum(len(each.rows) for each in found), found[0].day
    verdict = "The same" if all(each.same for each in found) else f"{different} of {bars} bars differ"
    models = ", ".join(sorted({each.model for each in found}))
    page = Page("Parity", verdict, f"{day}: what the desk did beside a backtest of {models} over the same bars.")
    return page.html(_facts(found), _sections(found))


def _facts(found: Sequence[Parity]) -> list[Fact]:
    rows = [row for each in found for row in each.rows]
    live, tested = sum(each.live_rupees for each in found), sum(each.backtest_rupees for each in found)
    slippage = [row.slippage_bps for row in rows if row.slippage_bps is not None]
    mean = "none" if not slippage else f"{np.mean(slippage):+.2f} bps"
    return [
        Fact("Live", f"{live:+,.0f} rupees", "after charges", _tone(live)),
        Fact("Backtest", f"{tested:+,.0f} rupees", "the same charges", _tone(tested)),
        Fact("Difference", f"{live - tested:+,.0f} rupees", "live less backtest", _tone(live - tested)),
        Fact("Trades", f"{len(slippage):,}", f"{sum(row.live.units != row.backtest.units for row in rows)} differ"),
        Fact("Slippage", mean, "from the price at the bar's close; above 0 is worse"),
        Fact("By hand", f"{sum(each.by_hand for each in found)}", "trades that were adopted"),
    ]


def _sections(found: Sequence[Parity]) -> list[Section]:
    rows = sorted(((each.symbol, row) for each in found for row in each.rows), key=lambda pair: pair[1].bar_ns)
    different = [(symbol, row) for symbol, row in rows if row.why]
    reasons = Counter(row.why for _, row in different)
    traded = sorted((pair for pair in rows if pair[1].slippage_bps is not None), key=_dearest_first)
    return [
        Section("Profit of the day", "All symbols, summed over the bars so far.", _money(found), wide=True),
        Section("Why bars differ", "The first reason on record.", html=_table(("reason", "bars"), reasons.items())),
        Section("Bars that differ", _shown(different), html=_bars(different), wide=True),
        Section("The dearest fills", _shown(traded), html=_bars(traded), wide=True),
    ]


def _money(found: Sequence[Parity]) -> str:
    live: defaultdict[int, float] = defaultdict(float)
    tested: defaultdict[int, float] = defaultdict(float)
    for row in (row for each in found for row in each.rows):
        live[row.bar_ns] += row.live.net_rupees
        tested[row.bar_ns] += row.backtest.net_rupees
    starts = np.array(sorted(live), dtype=np.int64)
    earned = {name: np.array([of[start] for start in starts]) for name, of in (("live", live), ("backtest", tested))}
    return figures.money_of_a_day(starts, earned)


def _dearest_first(pair: tuple[str, Compared]) -> float:
    return -(pair[1].slippage_bps or 0.0)


def _shown(pairs: Sequence[object]) -> str:
    if not pairs:
        return "None."
    return f"All {len(pairs)}." if len(pairs) <= LISTED else f"The first {LISTED} of {len(pairs):,}."


def _bars(pairs: Sequence[tuple[str, Compared]]) -> str:
    return _table(HEAD, (_cells(symbol, row) for symbol, row in pairs[:LISTED]))


def _cells(symbol: str, row: Compared) -> tuple[str, ...]:
    at = datetime.fromtimestamp(row.bar_ns / SECOND_NS, KOLKATA)
    slippage = "" if row.slippage_bps is None else f"{row.slippage_bps:+.2f} bps"
    return f"{at:%H:%M}", symbol, *_step(row.live), *_step(row.backtest), slippage, row.why


def _step(step: Step) -> tuple[str, str, str]:
    return step.decision, f"{step.units:g}", "" if step.price is None else f"{step.price:,.2f}"


def _table(head: Sequence[str], rows: Iterable[tuple[object, ...]]) -> str:
    lines = "".join(f"<tr>{''.join(f'<td>{escape(str(cell))}</td>' for cell in row)}</tr>" for row in rows)
    names = "".join(f"<th>{escape(name)}</th>" for name in head)
    return f'<div class="scroll"><table><thead><tr>{names}</tr></thead><tbody>{lines}</tbody></table></div>'


def _tone(rupees: float) -> str:
    return "" if not round(rupees) else ("gain" if rupees > 0 else "loss")
