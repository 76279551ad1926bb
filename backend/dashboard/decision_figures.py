"""Figures of the decisions on record: do both arms agree, how long do they think, why do they stop, how fast.

Every point of a curve is of as many decisions as the next one, whenever they were made: a quiet hour has few points.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray
from plotly.subplots import make_subplots

from backend.dashboard.panel import (
    ARM_COLOURS,
    BLUE,
    GREY,
    ORANGE,
    RED,
    Panel,
    exchange_labels,
    exchange_times,
    figure_json,
)
from core.actions import Action
from serving.record_format import Answer, DecisionFacts

Decisions = Sequence[DecisionFacts]
Pair = tuple[DecisionFacts, Answer, Answer]  # a decision, the champion's answer and the challenger's

GROUPS = 60  # points of a curve
BUCKETS = 10  # of complexity
DEPTHS = ("#a9cdec", "#6fabdd", "#3d85c6", "#3564ad", "#5a54b5", "#8248b0", "#a8419c", "#c23f77")
REASONS = {
    "q_learning_decision": BLUE,
    "max_segments_reached": ORANGE,
    "segments_capped": "#8248b0",
    "deadline_reached": RED,
    "continue_reasoning": "#6fabdd",
}
PERCENTILES = {50: "#6fabdd", 95: BLUE, 99: ORANGE}
NO_DECISIONS = "No decision is on record yet. Let trading ask the service: `hrm trade`, or `hrm trade --live`."
NO_PAIRS = (
    "No decision of both arms is on record. Start a rollout: `hrm rollout start --champion ... --challenger ...`."
)
NO_DEPTH = "No model that reasons in segments has decided yet. An HRM does: `hrm rollout start` with one as challenger."


def agreement(decisions: Decisions) -> Panel:
    """Share of the decisions in which both arms chose the same action, over time."""
    pairs = list(_pairs(decisions))
    if not pairs:
        return Panel(empty=NO_PAIRS)
    same = np.array([first.action == second.action for _, first, second in pairs])
    at = np.array([facts.at for facts, _, _ in pairs])
    groups = _groups(len(pairs))
    figure = go.Figure()
    share = [100.0 * same[group].mean() for group in groups]
    times = exchange_times([at[group[-1]] for group in groups])
    figure.add_scatter(x=times, y=share, mode="lines+markers", line={"color": BLUE, "width": 2}, marker={"size": 4})
    figure.update_traces(hovertemplate="%{y:.1f} % agree<extra></extra>")
    figure.update_yaxes(title_text="same action, %", range=[0, 103])
    note = f"{100.0 * same.mean():.1f} % of {len(pairs):,} decisions, about {len(groups[0]):,} to a point"
    return Panel(as_of=float(at[-1]), figure=figure_json(figure, showlegend=False), note=note)


def actions(decisions: Decisions) -> Panel:
    """How often the champion chose the row and the challenger the column."""
    pairs = list(_pairs(decisions))
    if not pairs:
        return Panel(empty=NO_PAIRS)
    counts = np.zeros((len(Action), len(Action)), dtype=np.int64)
    for _, champion, challenger in pairs:
        counts[champion.action, challenger.action] += 1
    names = [action.name.replace("_", " ").lower() for action in Action]
    share = 100.0 * counts / counts.sum()
    text = np.where(counts == 0, "·", np.char.mod("%.1f", share))
    heat = go.Heatmap(
        z=share.tolist(),
        x=names,
        y=names,
        text=text.tolist(),
        texttemplate="%{text}",
        colorscale=[[0, "rgba(61,133,198,0.06)"], [1, BLUE]],
        showscale=False,
        xgap=2,
        ygap=2,
        hovertemplate="champion %{y}, challenger %{x}: %{z:.2f} %<extra></extra>",
    )
    figure = go.Figure(heat)
    figure.update_xaxes(title_text="challenger", showgrid=False)
    figure.update_yaxes(title_text="champion", autorange="reversed", showgrid=False, automargin=True)
    note = f"percent of {len(pairs):,} decisions of both arms"
    return Panel(as_of=pairs[-1][0].at, figure=figure_json(figure), note=note)


def depth(decisions: Decisions) -> Panel:
    """Mean segments over time of each model that reasons in segments."""
    by_model: dict[str, list[tuple[float, int]]] = {}
    for facts, answer in _deep(decisions):
        by_model.setdefault(str(answer.model), []).append((facts.at, answer.segments))
    if not by_model:
        return Panel(empty=NO_DEPTH)
    figure = go.Figure()
    for (model, taken), colour in zip(sorted(by_model.items()), (BLUE, ORANGE, "#2f9e6e", "#8248b0"), strict=False):
        at, segments = np.array(taken).T
        groups = _groups(len(taken))
        mean = [float(segments[group].mean()) for group in groups]
        line = {"color": colour, "width": 2}
        figure.add_scatter(x=exchange_times([at[group[-1]] for group in groups]), y=mean, name=model, line=line)
    figure.update_traces(hovertemplate="%{y:.2f} segments<extra>%{fullData.name}</extra>")
    figure.update_yaxes(title_text="mean segments", rangemode="tozero")
    newest = max(taken[-1][0] for taken in by_model.values())
    return Panel(as_of=newest, figure=figure_json(figure, showlegend=True, hovermode="x unified"))


def halting(decisions: Decisions) -> Panel:
    """Why reasoning stopped: shares over time."""
    deep = list(_deep(decisions))
    if not deep:
        return Panel(empty=NO_DEPTH)
    reasons = np.array([answer.halt_reason for _, answer in deep])
    groups = _groups(len(deep), GROUPS // 2)
    times = exchange_labels([deep[group[-1]][0].at for group in groups])
    figure = go.Figure()
    known = [reason for reason in REASONS if reason in reasons]
    for reason in [*known, *sorted(set(reasons.tolist()) - set(known))]:
        share = [100.0 * float((reasons[group] == reason).mean()) for group in groups]
        name = reason.replace("_", " ")
        figure.add_bar(x=list(range(len(groups))), y=share, name=name, marker_color=REASONS.get(reason, GREY))
    figure.update_traces(
        customdata=times, hovertemplate="%{y:.1f} % until %{customdata}<extra>%{fullData.name}</extra>"
    )
    figure.update_yaxes(title_text="% of decisions", range=[0, 100])
    shown = sorted({0, len(groups) // 2, len(groups) - 1})
    figure.update_xaxes(tickvals=shown, ticktext=[times[place] for place in shown], showgrid=False)
    return Panel(as_of=deep[-1][0].at, figure=figure_json(figure, barmode="stack", bargap=0.08, showlegend=True))


def complexity(decisions: Decisions) -> Panel:
    """Depth against market complexity, in tenths of the decisions."""
    deep = list(_deep(decisions))
    if not deep:
        return Panel(empty=NO_DEPTH)
    segments = np.array([answer.segments for _, answer in deep])
    felt = np.array([facts.complexity for facts, _ in deep])
    edges = np.quantile(felt, np.linspace(0, 1, BUCKETS + 1))
    bucket = np.searchsorted(edges[1:-1], felt, side="left")
    counts = np.bincount(bucket, minlength=BUCKETS)
    used = np.flatnonzero(counts)
    names = [f"{(edges[place] + edges[place + 1]) / 2:.2f}" for place in used]
    figure = make_subplots(specs=[[{"secondary_y": True}]])
    for taken in np.unique(segments).tolist():
        share = 100.0 * np.bincount(bucket[segments == taken], minlength=BUCKETS)[used] / counts[used]
        colour = DEPTHS[min(max(taken - 1, 0), len(DEPTHS) - 1)]
        label = f"{taken} segment{'s' if taken != 1 else ''}"
        figure.add_bar(x=names, y=share.tolist(), name=label, marker_color=colour)
    mean = np.bincount(bucket, weights=segments, minlength=BUCKETS)[used] / counts[used]
    line = {"color": ORANGE, "width": 2}
    figure.add_scatter(x=names, y=mean.tolist(), name="mean", line=line, mode="lines+markers", secondary_y=True)
    figure.update_yaxes(title_text="% of decisions", secondary_y=False)
    ticks = {"range": [0, max(2.0, float(mean.max()) + 0.5)], "tick0": 0, "dtick": 1, "showgrid": False}
    figure.update_yaxes(title_text="mean segments", **ticks, secondary_y=True)
    figure.update_xaxes(title_text="market complexity", type="category", showgrid=False)
    layout = {"barmode": "stack", "bargap": 0.08, "legend_traceorder": "normal", "showlegend": True}
    return Panel(as_of=deep[-1][0].at, figure=figure_json(figure, **layout), note=f"{len(deep):,} answers")


def latency(limits_ms: dict[str, float]) -> Callable[[Decisions], Panel]:
    """Percentiles of the time from question to answer, over time; `limits_ms` are drawn where they are near."""

    def panel(decisions: Decisions) -> Panel:
        if not decisions:
            return Panel(empty=NO_DECISIONS)
        took_ms = np.array([facts.latency_ms for facts in decisions])
        groups = _groups(len(decisions))
        times = exchange_times([decisions[group[-1]].at for group in groups])
        figure = go.Figure()
        for percentile, colour in PERCENTILES.items():
            values = [float(np.percentile(took_ms[group], percentile)) for group in groups]
            figure.add_scatter(x=times, y=values, name=f"p{percentile}", line={"color": colour, "width": 2})
        figure.update_traces(hovertemplate="%{y:.1f} ms<extra>%{fullData.name}</extra>")
        for name, limit in limits_ms.items():
            if took_ms.max() > limit / 4:
                figure.add_hline(y=limit, line_color=RED, line_dash="dot", line_width=1, annotation_text=name)
        figure.update_yaxes(title_text="ms", rangemode="tozero")
        whole = [float(np.percentile(took_ms, percentile)) for percentile in PERCENTILES]
        note = ", ".join(f"p{name} {value:.1f} ms" for name, value in zip(PERCENTILES, whole, strict=True))
        layout = {"showlegend": True, "hovermode": "x unified"}
        return Panel(as_of=decisions[-1].at, figure=figure_json(figure, **layout), note=note)

    return panel


def _pairs(decisions: Decisions) -> Iterator[Pair]:
    for facts in decisions:
        if facts.shadow is not None and {facts.answer.role, facts.shadow.role} == set(ARM_COLOURS):
            both = {answer.role: answer for answer in (facts.answer, facts.shadow)}
            yield facts, both["champion"], both["challenger"]


def _deep(decisions: Decisions) -> Iterator[tuple[DecisionFacts, Answer]]:
    """Answers of models that reason in segments, of either arm."""
    for facts in decisions:
        for answer in (facts.answer, facts.shadow):
            if answer is not None and answer.model is not None and answer.halt_reason != "single_pass":
                yield facts, answer


def _groups(count: int, most: int = GROUPS) -> list[NDArray[np.int64]]:
    """Indices of so many things in order, in parts of equal size."""
    return list(np.array_split(np.arange(count), min(count, most)))
