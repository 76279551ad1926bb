"""The tear sheet's figures: backtests in, plotly figures as JSON out. The page gives them their light or dark colours.

S sessions, D decisions, n bars. Times are those of the exchange.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from trading.backtest import BacktestResult, drawdown_of
from trading.calendar import ZONE
from trading.comparison import Record
from trading.features import Floats
from trading.hierarchy import HrmMetrics
from trading.market import Ints
from trading.performance import buy_and_hold

BLUE, ORANGE, GREEN, RED, GREY = "#3d85c6", "#d9772b", "#2f9e6e", "#d1495b", "#8a94a3"
COLOURS = (BLUE, ORANGE)
SIDES = {1: ("long", GREEN, "triangle-up"), -1: ("short", RED, "triangle-down")}
DEPTHS = ("#a9cdec", "#6fabdd", "#3d85c6", "#3564ad", "#5a54b5", "#8248b0", "#a8419c", "#c23f77")
BUCKETS = 10  # of complexity
SHOWN_AT_FIRST = 5  # sessions of the price


def equity(results: Mapping[str, BacktestResult]) -> str:
    """Profit as percent of the capital and drawdown: of one backtest also before charges and buy-and-hold."""
    figure = make_subplots(rows=2, shared_xaxes=True, row_heights=[0.72, 0.28], vertical_spacing=0.04)
    for (name, result), colour in zip(results.items(), COLOURS, strict=False):
        days, capital = list(result.days), result.initial_capital
        curves = {name: (result.equity, colour, "solid", 2.0)}
        if len(results) == 1:
            curves["before charges"] = (capital + np.cumsum(result.gross), colour, "dot", 1.4)
            curves["buy and hold"] = (buy_and_hold(result), GREY, "solid", 1.4)
        for label, (curve, shade, dash, width) in curves.items():
            line = {"color": shade, "dash": dash, "width": width}
            figure.add_scatter(
                x=list(result.days), y=_percent(curve / capital - 1), name=label, line=line, row=1, col=1
            )
        fall = _percent(-drawdown_of(result.equity, capital))
        area = {"line": {"color": colour, "width": 1}, "fill": "tozeroy", "showlegend": False, "name": name}
        figure.add_scatter(x=days, y=fall, **area, row=2, col=1)
    figure.update_yaxes(title_text="profit, % of capital", row=1, col=1)
    figure.update_yaxes(title_text="drawdown, %", row=2, col=1)
    return _json(figure, height=460, hovermode="x unified")


def trades(result: BacktestResult) -> str:
    """The price, coloured by what was held, and where positions were entered and left. One symbol.

    The axis counts bars, so that nights leave no holes; the page writes dates or times below it (`meta`).
    """
    bars, journal = result.market.bars, result.journal
    first, last = int(journal.at[0]), int(journal.at[-1]) + 1
    close = bars.close[first : last + 1].astype(np.float32)  # drawn, not computed with: half the page
    number = np.arange(len(close), dtype=np.int32)
    side = np.zeros(len(close), dtype=np.int64)
    side[journal.at + 1 - first] = journal.position  # a decision's position earns the next bar
    begins = np.append(True, np.diff(bars.session[first : last + 1]) != 0)
    figure = go.Figure()
    figure.add_scatter(x=number, y=close, name="flat", line={"color": GREY, "width": 1}, hoverinfo="skip")
    for sign, (label, colour, _) in SIDES.items():
        # The bar at whose open it was entered begins at the close before; a night is no part of it.
        held = side == sign
        shown = held | (np.append(held[1:], False) & ~begins)
        price = np.where(shown, close, np.float32(np.nan))
        figure.add_scatter(x=number, y=price, name=label, line={"color": colour, "width": 2}, hoverinfo="skip")
    _add_orders(figure, result)
    starts = np.flatnonzero(begins)
    told = {"begins": starts.tolist(), "times_ms": _local_ms(bars.timestamps[first + starts]).tolist()}
    figure.update_xaxes(range=[int(starts[max(0, len(starts) - SHOWN_AT_FIRST)]), int(number[-1]) + 1])
    figure.update_yaxes(title_text="price", tickformat=",.0f")
    return _json(figure, height=460, hovermode="closest", meta={"sessions": told, "bar_ms": bars.interval_s * 1000})


def monthly(result: BacktestResult) -> dict[int, list[float | None]]:
    """By year: percent of the capital in January to December, None without a session, and of the year."""
    table: dict[int, list[float | None]] = {}
    for day, profit in zip(result.days, _percent(result.returns).tolist(), strict=True):
        row = table.setdefault(day.year, [None] * 12 + [0.0])
        row[day.month - 1] = (row[day.month - 1] or 0.0) + profit
        row[12] = (row[12] or 0.0) + profit
    return table


def depth(result: BacktestResult) -> str:
    """Share of the decisions by number of segments, in tenths of the decisions by complexity; and the mean."""
    segments = result.journal.segments.astype(np.int64)
    complexity = result.market.complexity[result.journal.at].astype(np.float64)
    edges = np.quantile(complexity, np.linspace(0, 1, BUCKETS + 1))
    bucket = np.searchsorted(edges[1:-1], complexity, side="left")
    counts = np.bincount(bucket, minlength=BUCKETS)
    used = np.flatnonzero(counts)  # fewer where complexities are equal
    names = [f"{(edges[place] + edges[place + 1]) / 2:.2f}" for place in used]
    figure = make_subplots(specs=[[{"secondary_y": True}]])
    for taken in np.unique(segments).tolist():
        share = np.bincount(bucket[segments == taken], minlength=BUCKETS)[used] / counts[used]
        colour = DEPTHS[min(taken - 1, len(DEPTHS) - 1)]
        label = f"{taken} segment{'s' if taken > 1 else ''}"
        figure.add_bar(x=names, y=_percent(share), name=label, marker_color=colour)
    mean = np.bincount(bucket, weights=segments, minlength=BUCKETS)[used] / counts[used]
    line = {"color": ORANGE, "width": 2}
    figure.add_scatter(x=names, y=mean, name="mean depth", line=line, mode="lines+markers", secondary_y=True)
    figure.update_yaxes(title_text="% of decisions", secondary_y=False)
    ticks = {"range": [0, max(2.0, mean.max() + 0.5)], "tickmode": "linear", "dtick": 1, "showgrid": False}
    figure.update_yaxes(title_text="mean segments", **ticks, secondary_y=True)
    figure.update_xaxes(title_text="complexity, in tenths of the decisions", type="category")
    return _json(figure, barmode="stack", legend_traceorder="normal")


def halting(metrics: HrmMetrics) -> str:
    reasons = {name.replace("_", " "): count for name, count in metrics.halting_reasons.items()}
    figure = go.Figure(go.Bar(y=list(reasons), x=list(reasons.values()), orientation="h", marker_color=BLUE))
    figure.update_traces(texttemplate="%{x:,}", textposition="auto", width=0.5)
    figure.update_xaxes(title_text="decisions")
    figure.update_yaxes(automargin=True)
    return _json(figure, showlegend=False)


def cost_sweep(records: Sequence[Record]) -> str:
    """What would remain per session were the charges a multiple of what they are; markers where nothing would."""
    figure = go.Figure()
    for record, colour in zip(records, COLOURS, strict=False):
        sweep, even = record.cost_sweep(), record.break_even_multiple
        line = {"color": colour, "width": 2}
        figure.add_scatter(x=list(sweep), y=list(sweep.values()), name=record.name, line=line, mode="lines+markers")
        if even is not None and 0 <= even <= max(sweep):
            label = f"breaks even at {even:.2f} times"
            marker = {"color": colour, "size": 12, "symbol": "diamond-open", "line": {"width": 2}}
            figure.add_scatter(x=[even], y=[0.0], name=label, mode="markers", marker=marker)
    figure.add_hline(y=0, line_color=GREY, line_width=1)
    figure.update_xaxes(title_text="multiple of the charges")
    figure.update_yaxes(title_text="bps of the capital per session")
    return _json(figure)


def distribution(per_session: Mapping[str, Floats], label: str) -> str:
    """Histograms of the sessions that are not 0, in bps; what lies beyond the outer percentiles is in the last bins."""
    moved = {name: values[values != 0] if values.any() else values for name, values in per_session.items()}
    everything = np.concatenate(list(moved.values()))
    low, high = np.percentile(everything, [0.5, 99.5])
    size = max((high - low) / 40, 1e-6)
    figure = go.Figure()
    for (name, values), colour in zip(per_session.items(), COLOURS, strict=False):
        bins = {"start": low, "end": high + size, "size": size}
        shown = np.clip(moved[name], low, high)
        figure.add_histogram(x=shown, xbins=bins, name=name, marker_color=colour, opacity=0.75)
        text = f"mean {values.mean():+.1f}"
        figure.add_vline(x=float(values.mean()), line_color=colour, line_dash="dash", annotation_text=text)
    still = sum(len(values) for values in per_session.values()) - len(everything)
    figure.update_xaxes(title_text=f"{label} ({still:,} sessions at 0 not shown)" if still else label)
    figure.update_yaxes(title_text="sessions")
    return _json(figure, barmode="overlay", showlegend=len(per_session) > 1)


def difference(days: Sequence[Any], gained: Floats) -> str:
    """Sum of what the challenger earned beside the champion [S], bps of the capital."""
    figure = go.Figure()
    figure.add_scatter(x=list(days), y=np.cumsum(gained), line={"color": BLUE, "width": 2}, fill="tozeroy")
    figure.update_yaxes(title_text="bps of the capital, summed")
    return _json(figure, showlegend=False, hovermode="x unified")


def money_of_a_day(starts: Ints, rupees: Mapping[str, Floats]) -> str:
    """What each earned so far [n], at the starts of the day's bars [n]."""
    figure = go.Figure()
    times = pd.to_datetime(_local_ms(starts), unit="ms").strftime("%H:%M").tolist()
    for (name, earned), colour in zip(rupees.items(), COLOURS, strict=True):
        figure.add_scatter(x=times, y=np.cumsum(earned), name=name, line={"color": colour, "width": 2})
    figure.update_yaxes(title_text="rupees, after charges")
    return _json(figure, hovermode="x unified")


def _add_orders(figure: go.Figure, result: BacktestResult) -> None:
    """Entries by side, exits and forced exits, at the prices they were filled at."""
    bars, journal = result.market.bars, result.journal
    changed = np.flatnonzero(journal.changed(result.market))
    fills = journal.at[changed] + 1
    for sign, (label, colour, symbol) in SIDES.items():
        entered = journal.position[changed] == sign
        marker = {"color": colour, "symbol": symbol, "size": 10, "line": {"width": 1, "color": "white"}}
        _add_markers(figure, f"enter {label}", fills[entered], bars.open, (result, marker))
    left = fills[journal.position[changed] == 0]
    cross = {"color": GREY, "symbol": "x", "size": 7}
    _add_markers(figure, "leave", left, bars.open, (result, cross))
    ends = np.append(np.flatnonzero(np.diff(bars.session[journal.at])), len(journal.at) - 1)
    forced = journal.at[ends[journal.units[ends] != 0]] + 1
    _add_markers(figure, "leave at the close", forced, bars.close, (result, cross | {"symbol": "x-open"}))


def _add_markers(
    figure: go.Figure, name: str, at: Ints, price: Floats, styled: tuple[BacktestResult, dict[str, Any]]
) -> None:
    result, marker = styled
    times = pd.to_datetime(_local_ms(result.market.bars.timestamps[at]), unit="ms")
    figure.add_scatter(
        x=at - result.journal.at[0],
        y=price[at],
        name=name,
        mode="markers",
        marker=marker,
        text=times.strftime("%d %b %Y %H:%M").tolist(),
        hovertemplate="%{text}<br>%{y:,.1f}",
        meta={"near": True},  # the page shows them once one has zoomed in
    )


def _local_ms(timestamps: Ints) -> Ints:
    """Milliseconds of the exchange's clock, as if it were UTC."""
    local = pd.to_datetime(timestamps, utc=True, unit="ns").tz_convert(ZONE).tz_localize(None)
    return np.asarray(local, dtype="datetime64[ms]").astype(np.int64)


def _percent(ratio: Floats) -> Floats:
    return 100.0 * ratio


def _json(figure: go.Figure, *, height: int = 340, **layout: Any) -> str:
    figure.update_layout(
        template="none",
        height=height,
        margin={"l": 56, "r": 16, "t": 34, "b": 44},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        legend={"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 0, "title": None},
        **layout,
    )
    return str(figure.to_json())
