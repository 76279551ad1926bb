"""Figures and words of an explanation (serving/explain.py), for the desk's page and for `hrm explain --html`."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from backend.dashboard.panel import BLUE, GREEN, GREY, ORANGE, RED, figure_json
from serving.explain import Effect, Explanation

SHOWN = 3  # inputs that are named in words
SCALE = [[0.0, RED], [0.5, "rgba(138,148,163,0.08)"], [1.0, BLUE]]
COLOURS = (GREEN, RED, ORANGE, "#8248b0", GREY)  # by action


def figures(told: Explanation) -> dict[str, str]:
    """plotly's JSON by name: what moved the decision, and how the belief went."""
    made = {"bars": bars(told), "account": account(told)}
    return made | ({"segments": segments(told)} if len(told.trajectory) > 1 else {})


def bars(told: Explanation) -> str:
    """Heat map of groups of bars against features: blue spoke for the action, red against it."""
    names = [effect.name for effect in told.bars]
    heat = go.Heatmap(
        x=names,
        y=told.features,
        z=[list(row) for row in zip(*told.cells, strict=True)],
        zmid=0.0,
        colorscale=SCALE,
        colorbar={"title": {"text": "log-odds"}},
        hovertemplate="%{y}, bars %{x}: %{z:+.3f}<extra></extra>",
    )
    figure = make_subplots(rows=2, shared_xaxes=True, row_heights=[0.3, 0.7], vertical_spacing=0.06)
    figure.add_bar(x=names, y=[effect.log_odds for effect in told.bars], marker_color=_tones(told.bars), row=1, col=1)
    figure.add_trace(heat, row=2, col=1)
    figure.update_yaxes(title_text="all features", row=1, col=1)
    figure.update_yaxes(automargin=True, row=2, col=1)
    figure.update_xaxes(type="category", automargin=True)
    return figure_json(figure, showlegend=False, title=_title("bar", told.action, told.bars))


def account(told: Explanation) -> str:
    """Bars of the account features' effects, the largest on top."""
    ordered = sorted(told.account, key=lambda effect: abs(effect.log_odds))
    figure = go.Figure()
    figure.add_bar(
        x=[effect.log_odds for effect in ordered],
        y=[effect.name for effect in ordered],
        orientation="h",
        marker_color=_tones(ordered),
        customdata=[_without(effect) for effect in ordered],
        hovertemplate="%{y}: %{x:+.3f}, %{customdata}<extra></extra>",
    )
    figure.update_yaxes(automargin=True, type="category")
    return figure_json(figure, showlegend=False, title=_title("account feature", told.action, ordered))


def segments(told: Explanation) -> str:
    """Probability of each legal action by segment, and below the halting values and how much the state moved."""
    figure = make_subplots(rows=2, shared_xaxes=True, row_heights=[0.6, 0.4], vertical_spacing=0.08)
    at = [each.segment for each in told.trajectory]
    for (name, last), colour in zip(told.trajectory[-1].probabilities.items(), COLOURS, strict=True):
        believed = [each.probabilities[name] for each in told.trajectory]
        if last or any(believed):  # an illegal one has none, ever
            figure.add_scatter(x=at, y=believed, name=name, mode="lines+markers", line_color=colour, row=1, col=1)
    below = {"q_halt": BLUE, "q_continue": ORANGE, "state_change_ratio": GREY}
    for name, colour in below.items():
        values = [getattr(each, name) for each in told.trajectory]
        label = name.replace("_ratio", "").replace("_", " ")
        figure.add_scatter(x=at, y=values, name=label, mode="lines+markers", line_color=colour, row=2, col=1)
    figure.update_xaxes(dtick=1, title_text="segment", row=2, col=1)
    figure.update_yaxes(title_text="probability", range=[0, 1.03], row=1, col=1)
    return figure_json(figure, showlegend=True)


def text(told: Explanation) -> str:
    """What it comes to, in a few plain lines."""
    moved = [effect for effect in (*told.bars, *told.account) if effect.log_odds]
    strongest = sorted(moved, key=lambda effect: -abs(effect.log_odds))[:SHOWN]
    named = (f"{effect.name} ({effect.log_odds:+.2f}, {_without(effect)})" for effect in strongest)
    most = "; ".join(named) or "no single input"
    checks = told.checks
    agreed = checks.correlation_with_shuffled_bars
    return (
        f"{told.model} chose {told.action} for {told.symbol} with log-odds {told.log_odds:+.2f} after {told.segments} "
        f"segment{'' if told.segments == 1 else 's'} ({told.halt_reason.replace('_', ' ')}).\nMost moved it: {most}.\n"
        f"{told.baseline}\nCheck: bars one by one {checks.bars_sum:+.2f}, together {checks.bars_together:+.2f}; "
        f"account {checks.account_sum:+.2f}, together {checks.account_together:+.2f}; correlation with the effects of "
        f"shuffled bars {'unknown' if agreed is None else f'{agreed:.2f}'}. Where these differ much, single effects "
        "mean little."
    )


def _title(what: str, action: str, effects: Sequence[Effect]) -> str:
    """Without any effect a figure is as empty as one that failed: then it says so."""
    moved = any(effect.log_odds for effect in effects)
    return f"{what.capitalize()}s that spoke for {action}, log-odds" if moved else f"No {what} moved it"


def _without(effect: Effect) -> str:
    return f"without it {effect.action}" if effect.flips else "the same action without it"


def _tones(effects: list[Effect]) -> list[str]:
    return [BLUE if effect.log_odds >= 0 else RED for effect in effects]
