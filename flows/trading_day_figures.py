"""The figures of a rehearsed day: its story in, inline SVG out (flows/plots.py has the style)."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator, MultipleLocator

from flows.plots import FAIL, INK, MUTED, PASS, WIDE, figure, svg
from flows.trading_day_story import Story

CHAMPION, CHALLENGER, HANDED_OVER = "#0f5ea8", "#c2571a", "#8157a8"
PANELS = ("share", "money", "drawdown", "positions")
GAP = 4  # minutes between a line's end and its name


def minutes_of(clock: str) -> int:
    """Of the day: "09:20" is 560."""
    hours, minutes = clock.split(":")
    return 60 * int(hours) + int(minutes)


def day(story: Story) -> str:
    """Who decides, what it earns, what it loses at worst and who holds what: one time axis, one line per event."""
    drawn, panels = figure(10.4, WIDE, nrows=len(PANELS), sharex=True, height_ratios=[1.0, 1.5, 1.2, 1.1])
    share, money, drawdown, positions = panels
    at = np.array([minutes_of(row["at"]) for row in story["minutes"]])
    _share(share, at, story)
    _money(money, at, story)
    _drawdown(drawdown, at, story)
    _positions(positions, at, story)
    _events(panels, at, story)
    positions.set_xlim(at[0] - 5, at[-1] + 34)
    positions.xaxis.set_major_locator(MultipleLocator(30 if len(at) > 24 else 10))
    positions.xaxis.set_major_formatter(FuncFormatter(_clock))
    return svg(drawn)


def handovers(story: Story) -> str:
    """A bar for each position that was handed over, from the rollback until it was flat, and who ended it."""
    close = story["minutes"][-1]["at"]
    rows = sorted(story["handovers"], key=lambda row: (row["at"], row["flat_at"] or close, row["symbol"]))
    begins = [minutes_of(row["at"]) for row in rows]
    ends = [minutes_of(row["flat_at"] or close) for row in rows]
    drawn, axis = figure(0.9 + 0.3 * len(rows), WIDE)
    for place, (row, begin, end) in enumerate(zip(rows, begins, ends, strict=True)):
        colour = FAIL if row["flat_at"] is None else HANDED_OVER if row["how"] == "flatten" else CHAMPION
        axis.barh(place, end - begin, left=begin, height=0.62, color=colour, alpha=0.85)
        axis.text(end + 0.2, place, _ended(row), va="center", color=colour, fontsize=9)
    axis.set_yticks(range(len(rows)), [f"{row['symbol']}  {row['units']:+,.0f}" for row in rows])
    axis.invert_yaxis()
    axis.grid(visible=False, axis="y")
    axis.tick_params(axis="y", length=0, labelcolor=INK)
    axis.set_xlim(min(begins) - 0.5, max(ends) + 0.3 * (max(ends) - min(begins)) + 1)
    axis.xaxis.set_major_locator(MultipleLocator(5) if max(ends) - min(begins) <= 60 else MaxNLocator(8))
    axis.xaxis.set_major_formatter(FuncFormatter(_clock))
    return svg(drawn)


def _share(axis: Axes, at: Any, story: Story) -> None:
    rows = story["minutes"]
    symbols = story["market"]["symbols"]
    weight = [row["weight"] for row in rows]
    share = [100 * row["deciding"]["challenger"] / symbols for row in rows]
    axis.fill_between(at, weight, step="post", color=CHALLENGER, alpha=0.16, linewidth=0)
    axis.step(at, share, where="post", color=CHALLENGER)
    axis.set_ylabel("challenger's symbols, %")
    axis.set_ylim(0, max(*share, *weight) * 1.3 + 1)


def _money(axis: Axes, at: Any, story: Story) -> None:
    rows = story["minutes"]
    axis.axhline(0, color=MUTED, linewidth=0.8)
    ends = []
    for arm, name, colour in (("champion", "champion alone", CHAMPION), ("challenger", "challenger alone", CHALLENGER)):
        curve = np.array([row[f"{arm}_bps"] for row in rows if row[f"{arm}_bps"] is not None])
        axis.plot(at[: len(curve)], curve, color=colour)
        ends.append((at[len(curve) - 1], curve[-1], f"{name} {curve[-1]:+.1f}", colour))
    real = np.array([row["real_bps"] for row in rows])
    axis.plot(at, real, color=INK, linewidth=2.4)
    ends.append((at[-1], real[-1], f"real {real[-1]:+.1f}", INK))
    _name_ends(axis, ends)
    axis.set_ylabel("profit and loss, bps")


def _drawdown(axis: Axes, at: Any, story: Story) -> None:
    limit = story["market"]["drawdown_limit_bps"]
    ends = []
    for arm, colour in (("champion", CHAMPION), ("challenger", CHALLENGER)):
        name = f"{arm}_drawdown_bps"
        curve = -np.array([row[name] for row in story["minutes"] if row[name] is not None])
        axis.plot(at[: len(curve)], curve, color=colour)
        axis.fill_between(at[: len(curve)], curve, color=colour, alpha=0.12, linewidth=0)
        ends.append((at[len(curve) - 1], curve[-1], f"{arm} {curve[-1]:.1f}", colour))
    axis.axhline(-limit, color=FAIL, linewidth=1.2, linestyle=(0, (5, 3)))
    axis.annotate(f"limit {-limit:g}", (at[0], -limit), (0, 4), textcoords="offset points", color=FAIL)
    axis.set_ylabel("drawdown, bps")
    axis.set_ylim(-1.18 * max(limit, *(-end[1] for end in ends)), 1.5)
    _name_ends(axis, ends, avoid=-limit)


def _positions(axis: Axes, at: Any, story: Story) -> None:
    held = {who: np.array([row["held"][who] for row in story["minutes"]]) for who in story["minutes"][0]["held"]}
    below = np.zeros(len(at))
    width = float(at[1] - at[0]) * 0.86
    for who, name, colour in (
        ("champion", "champion", CHAMPION),
        ("challenger", "challenger", CHALLENGER),
        ("handed_over", "handed over, may only shrink", HANDED_OVER),
    ):
        axis.bar(at, held[who], width, bottom=below, color=colour, alpha=0.85, linewidth=0, label=name)
        below += held[who]
    axis.legend(loc="upper left", ncols=3, fontsize=9, borderaxespad=0.2, handlelength=1.0)
    axis.set_ylabel("symbols with a position")
    axis.set_ylim(0, max(below.max() * 1.35, 1))
    axis.yaxis.set_major_locator(MaxNLocator(5, integer=True))


def _events(panels: Any, at: Any, story: Story) -> None:
    """A line through all panels for every step, named above the first."""
    steps = [event for event in story["events"] if event["command"] == "promote"]
    marks = [(event["at"], f"{event['weight']} %", MUTED, ":") for event in steps]
    marks.append((story["market"]["breaks_at"], "breaks", MUTED, "--"))
    ended = next((event["at"] for event in story["events"] if event["command"] == "rollback"), None)
    if ended is not None:
        marks.append((ended, "rolled back", FAIL, "-"))
    flat = [row["flat_at"] for row in story["handovers"]]
    if flat and None not in flat:
        marks.append((max(flat), "flat", PASS, "-"))
    for clock, name, colour, line in marks:
        for panel in panels:
            panel.axvline(minutes_of(clock), color=colour, linestyle=line, linewidth=1.1, alpha=0.8, zorder=0.5)
        place = (minutes_of(clock), panels[0].get_ylim()[1])
        offset, side = (-3, "right") if name in ("breaks", "rolled back") else (3, "left")
        panels[0].annotate(
            name, place, (offset, -11), textcoords="offset points", color=colour, ha=side, fontsize=9, weight="bold"
        )


def _name_ends(axis: Axes, ends: list[tuple[Any, float, str, str]], avoid: float | None = None) -> None:
    """A name beside the end of each line, moved apart where lines end close together, or at the level `avoid`."""
    low, high = axis.get_ylim()
    apart = 0.11 * (high - low)
    taken: list[tuple[Any, float]] = []
    for x, y, name, colour in sorted(ends, key=lambda end: -end[1]):
        place = avoid + apart if avoid is not None and abs(y - avoid) < apart else y
        for other_x, other_y in taken:
            if abs(other_x - x) < 60 and other_y - place < apart:
                place = other_y - apart
        taken.append((x, place))
        axis.text(x + GAP, place, name, color=colour, va="center", weight="bold", fontsize=9)


def _ended(row: dict[str, Any]) -> str:
    if row["flat_at"] is None:
        return "not flat by the close"
    how = {"flatten": "let go at the deadline", "square_off": "squared off at the close"}
    return f"{row['minutes']:.0f} min, {how.get(row['how'], 'closed by the champion')}"


def _clock(minutes: float, _place: int | None = None) -> str:
    return f"{int(minutes) // 60:02d}:{int(minutes) % 60:02d}"
