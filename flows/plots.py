"""The report's figures: numbers in, inline SVG out. No title inside a figure; the page captions it."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import ArrayLike, NDArray

from core.actions import Action

HRM, PPO = "#0f5ea8", "#b3541e"
INK, MUTED, GRID = "#1a2230", "#5b6472", "#e3e6ea"
PASS, FAIL, INCONCLUSIVE = "#1b7f4b", "#b3261e", "#8a6100"
VERDICT = {"pass": PASS, "fail": FAIL, "inconclusive": INCONCLUSIVE}
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: it takes the page's font and can be searched
    "svg.hashsalt": "report",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": "#b9c0c9",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
}
WIDE = 11.2  # inches; a figure across the page, others share a row
Numbers = Sequence[float]
Arms = Mapping[str, Numbers]  # "HRM" and "PPO"


def figure(height: float = 3.2, width: float = 6.4, **grid: Any) -> tuple[Figure, Any]:
    with mpl.rc_context(STYLE):
        drawn = Figure(figsize=(width, height), layout="constrained")
        return drawn, drawn.subplots(**grid)


def svg(drawn: Figure) -> str:
    """The figure as an <svg> element that scales with its container."""
    buffer = io.StringIO()
    with mpl.rc_context(STYLE):
        drawn.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    return re.sub(r'<svg ([^>]*?)width="[^"]*" height="[^"]*"|<svg height="[^"]*" ', r"<svg \1", text, count=1)


def colour(arm: str) -> str:
    return HRM if arm == "HRM" else PPO


def equity(arms: Arms) -> str:
    """Cumulative return and drawdown, percent, over sessions; each arm's `return_bps` per session."""
    drawn, (above, below) = figure(4.0, WIDE, nrows=2, sharex=True, height_ratios=[3, 1])
    for arm, return_bps in arms.items():
        curve = np.concatenate([[0.0], np.cumsum(np.asarray(return_bps) / 100.0)])
        drawdown = curve - np.maximum.accumulate(curve)
        above.plot(curve, color=colour(arm))
        above.annotate(
            f" {arm} {curve[-1]:+.1f} %", (len(curve) - 1, curve[-1]), color=colour(arm), va="center", weight="bold"
        )
        below.fill_between(np.arange(len(curve)), drawdown, color=colour(arm), alpha=0.25, linewidth=0)
        below.plot(drawdown, color=colour(arm), linewidth=0.9)
    above.axhline(0, color=MUTED, linewidth=0.8)
    above.set_ylabel("sum of returns, %")
    below.set_ylabel("drawdown, %")
    below.set_xlabel("held-out sessions, in order")
    above.margins(x=0)
    above.set_xlim(0, len(next(iter(arms.values()))) * 1.12)
    return svg(drawn)


def distribution(arms: Arms, label: str) -> str:
    """Overlaid histograms with means; the axis ends at the outer percentiles, what lies beyond is in the last bin."""
    drawn, axis = figure()
    everything = np.concatenate([np.asarray(values, dtype=float) for values in arms.values()])
    low, high = np.percentile(everything, [0.5, 99.5])
    bins = np.linspace(low, max(high, low + 1e-9), 41)
    for arm, values in arms.items():
        array = np.clip(np.asarray(values, dtype=float), bins[0], bins[-1])
        axis.hist(array, bins=bins.tolist(), color=colour(arm), alpha=0.35)
        axis.axvline(
            float(np.mean(values)), color=colour(arm), linestyle="--", label=f"{arm} mean {np.mean(values):.1f}"
        )
    axis.set_xlabel(label)
    axis.set_ylabel("sessions")
    _legend(axis)
    return svg(drawn)


def agreement(counts: Sequence[Sequence[int]]) -> str:
    """How often PPO chose the row and HRM the column, percent of all decisions."""
    drawn, axis = figure(3.9, 5.4)
    share = 100.0 * np.asarray(counts, dtype=float) / max(np.sum(counts), 1)
    axis.imshow(share, cmap="Blues", vmin=0, vmax=max(share.max() * 1.15, 1e-9), aspect="auto")
    names = [action.name.replace("_", " ").lower() for action in Action]
    axis.set_xticks(range(len(names)), names, rotation=25, ha="right")
    axis.set_yticks(range(len(names)), names)
    axis.set_xlabel("HRM")
    axis.set_ylabel("PPO")
    axis.grid(visible=False)
    for row, column in np.ndindex(*share.shape):
        value = share[row, column]
        shade = "white" if value > share.max() * 0.6 else INK
        text = "·" if value == 0 else ("<0.1" if value < 0.1 else f"{value:.1f}")
        weight = "bold" if row == column else "normal"
        axis.text(column, row, text, ha="center", va="center", color=shade, weight=weight)
    for spine in axis.spines.values():
        spine.set_visible(False)
    return svg(drawn)


def latency(arms: Arms, limits_ms: Mapping[str, float]) -> str:
    """Share of decisions answered within x milliseconds, with the limits they must keep."""
    drawn, axis = figure(4.1)
    for arm, values in arms.items():
        ordered = np.sort(_finite(values))
        if len(ordered) == 0:
            continue  # it never answered: its gate says so
        axis.step(ordered, 100.0 * np.arange(1, len(ordered) + 1) / len(ordered), where="post", color=colour(arm))
        p99 = float(np.percentile(ordered, 99))
        axis.plot([p99], [99], "o", color=colour(arm), label=f"{arm}: p50 {np.median(ordered):.1f}, p99 {p99:.1f} ms")
    for name, limit in limits_ms.items():
        axis.axvline(limit, color=FAIL, linewidth=1.0, linestyle=":")
        axis.annotate(f"{name} ", (limit, 4), color=FAIL, fontsize=9, rotation=90, ha="right", va="bottom")
    axis.set_xscale("log")
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_ylim(0, 103)
    axis.set_xlabel("milliseconds, logarithmic")
    axis.set_ylabel("% of decisions answered")
    _legend(axis)
    return svg(drawn)


def timeline(events: Sequence[Mapping[str, Any]], steps: Sequence[Mapping[str, Any]]) -> str:
    """The challenger's weight over time, with the verdict of each step's gate."""
    drawn, axis = figure(2.9, WIDE)
    start = events[0]["at"]
    at = [event["at"] - start for event in events]
    weight = [challenger_weight(json.loads(event["state"])) for event in events]
    end = max([*at, *(step["ended_at"] - start for step in steps)]) * 1.06 + 1.0
    axis.step([*at, end], [*weight, weight[-1]], where="post", color=HRM)
    axis.fill_between([*at, end], [*weight, weight[-1]], step="post", color=HRM, alpha=0.12, linewidth=0)
    for step in steps:
        place = (step["ended_at"] - start, step["weight"])
        axis.plot(*place, marker="o", markersize=9, color=VERDICT[step["verdict"]], zorder=3)
        axis.annotate(
            step["verdict"],
            place,
            (-5, 8),
            textcoords="offset points",
            ha="right",
            fontsize=9,
            color=VERDICT[step["verdict"]],
        )
    for event, height in zip(events, weight, strict=True):
        if event["command"] in ("rollback", "abort") or json.loads(event["state"])["phase"] == "promoted":
            name = "rolled back" if event["command"] != "promote" else "champion"
            axis.annotate(name, (event["at"] - start, height), (5, 6), textcoords="offset points", color=INK)
    axis.set_ylim(0, 118)
    axis.set_xlim(0, end)
    axis.set_yticks([0, 25, 50, 75, 100])
    axis.set_xlabel("seconds since the rollout started")
    axis.set_ylabel("% of symbols with HRM")
    return svg(drawn)


def challenger_weight(state: Mapping[str, Any]) -> float:
    """Percent of symbols the new model decides for; all of them once it is the champion."""
    return 100.0 if state["phase"] == "promoted" else float(state["weight"])


def training(ppo: Sequence[Sequence[float]], hrm: Sequence[Mapping[str, float]], optimum_known: bool) -> str:
    """Learning curves: PPO's reward per step over samples, HRM's validation result over epochs."""
    drawn, (left, right) = figure(2.9, ncols=2)
    if ppo:
        steps, reward = np.asarray(ppo, dtype=float).T
        left.plot(steps / 1e3, reward, color=PPO, alpha=0.3, linewidth=1)
        left.plot(steps / 1e3, _smooth(reward), color=PPO)
        left.set_xlabel("PPO: thousand steps")
        left.set_ylabel("reward, bps per step")
    else:
        left.set_axis_off()
        left.text(0.5, 0.5, "PPO: not trained here,\nit decided already", ha="center", va="center", color=PPO)
    if hrm:
        epochs = [point["epoch"] for point in hrm]
        sign = 1.0 if optimum_known else -1.0
        loss = [sign * point["loss_bps"] for point in hrm]
        right.plot(epochs, loss, color=HRM, marker="o", markersize=4)
        best = int(np.argmin([point["loss_bps"] for point in hrm]))
        right.plot(epochs[best], loss[best], marker="o", markersize=10, markerfacecolor="none", color=HRM)
        right.annotate(
            "exported", (epochs[best], loss[best]), (0, -18), textcoords="offset points", ha="center", color=HRM
        )
        right.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))
        right.set_xlim(0, epochs[-1] + 1)
        right.set_xlabel("HRM: epochs")
        right.set_ylabel(f"validation {'regret' if optimum_known else 'return'}, bps per session")
        right.margins(y=0.25)
    return svg(drawn)


def _legend(axis: Axes) -> None:
    axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, frameon=False)


def _finite(values: ArrayLike) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    return array[np.isfinite(array)]


def _smooth(values: NDArray[np.float64], span: int = 9) -> NDArray[np.float64]:
    """Centred moving average; shorter at the ends."""
    kernel = np.ones(min(span, len(values)))
    return np.convolve(values, kernel, "same") / np.convolve(np.ones(len(values)), kernel, "same")
