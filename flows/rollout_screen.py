"""What a person sees of a rollout: its state, its analyses, its latest events, and a plan as a table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from delivery import words
from delivery.plan import Plan
from delivery.transitions import ACTIVE
from serving.schemas_rollout import AnalysisResponse, AnalysisRun, Event, MetricAnalysis, RolloutResponse

BAR_WIDTH = 40
EVENTS_SHOWN = 6
STYLES = {
    "shadow": "cyan", "canary": "yellow", "promoted": "green", "rolled_back": "red",
    "successful": "green", "failed": "red", "inconclusive": "yellow", "error": "magenta", "running": "cyan",
}  # fmt: skip
SIGNS = {"successful": "✓", "failed": "✗", "inconclusive": "?", "error": "!"}


@dataclass(frozen=True)
class Seen:
    """One look at the service. `silence` says since when it does not answer, and why; empty while it does."""

    rollout: RolloutResponse
    analysis: AnalysisResponse
    events: tuple[Event, ...]
    alerts: tuple[str, ...]
    silence: str = ""

    @property
    def goes_on(self) -> bool:
        """Whether anything more is to be seen: the rollout itself, or the watch after its promotion."""
        return self.rollout.phase in ACTIVE or any(not run.ended for run in self.analysis.runs)


def watch_screen(seen: Seen) -> RenderableType:
    parts: list[RenderableType] = [status_screen(seen.rollout)]
    parts += [_run(run) for run in seen.analysis.runs]
    parts += [events_table(seen.events[-EVENTS_SHOWN:])] if seen.events else []
    parts += [plain(f"alert: {', '.join(seen.alerts)}", "bold yellow")] if seen.alerts else []
    parts += [plain(seen.silence, "bold red")] if seen.silence else []
    return Group(*parts)


def status_screen(state: RolloutResponse) -> RenderableType:
    rows = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    rows.add_column(style="dim", no_wrap=True)
    rows.add_column()
    for name, shown in _facts(state):
        rows.add_row(name, shown)
    title = f"[{STYLES.get(state.phase, 'default')} bold]{state.phase.replace('_', ' ')}[/]"
    title += " [yellow bold]paused[/]" if state.paused else ""
    subtitle = f"version {state.version}, epoch {state.epoch}" + ("" if state.durable else ", not on disk yet")
    return Panel(Group(rows, _arms(state.statistics)), title=title, subtitle=subtitle, title_align="left", width=100)


def _facts(state: RolloutResponse) -> Iterable[tuple[str, RenderableType]]:
    yield "decides", Text(state.champion or "nobody: start with a champion")
    if state.challenger is not None:
        yield "challenger", Text(state.challenger)
        yield "weight", _weight(state)
    if state.fallback is not None:
        yield "before it", Text(f"{state.fallback}, loaded and warm: `hrm rollout rollback` goes back to it")
    if state.waits_for:
        yield "waits for", Text(f"{state.waits_for}, since {moment(state.gate_at)}", style="bold")
    if state.gates:
        yield "gates", _gates(state)
    if state.approvals.required and state.phase in ACTIVE:
        yield "approvals", _approvals(state)
    if state.phase in ACTIVE:
        yield "started", plain(f"by {state.started_by}, attempt {state.attempt}, plan {(state.plan_sha256 or '')[:12]}")
    if state.reason:
        trigger = f" (trigger: {state.trigger})" if state.latched and state.trigger else ""
        yield "last reason", plain(state.reason + trigger, "red" if state.latched else "default")


def _weight(state: RolloutResponse) -> RenderableType:
    bar = Table.grid(padding=(0, 2, 0, 0))
    weights = ("shadow", *(f"{weight} %" for weight in state.steps))
    stages = " · ".join(f"[bold]{one}[/]" if i == state.step else f"[dim]{one}[/]" for i, one in enumerate(weights))
    bar.add_row(ProgressBar(total=100, completed=state.weight, width=BAR_WIDTH), f"{state.weight} %", stages)
    return bar


def _gates(state: RolloutResponse) -> Text:
    signs = ["✓" if i < state.gate else "●" if i == state.gate else "○" for i in range(len(state.gates))]
    return Text("   ".join(f"{sign} {gate}" for sign, gate in zip(signs, state.gates, strict=True)))


def _approvals(state: RolloutResponse) -> Text:
    given = state.approvals.given
    missing = f", {state.approvals.missing} missing: `hrm rollout approve`" if state.approvals.missing else ""
    return plain(f"{len(given)} of {state.approvals.required}{missing}" + (f" ({', '.join(given)})" if given else ""))


def _arms(statistics: dict[str, Any]) -> RenderableType:
    """The guard's windows side by side, its paired test, and the memory; a service that tells less shows less."""
    table = Table(box=None, padding=(0, 3, 0, 0))
    for heading in ("guard", "samples", "errors", "p50 ms", "p95 ms", "p99 ms", "segments"):
        table.add_column(heading, justify="left" if heading == "guard" else "right", header_style="dim")
    for role in ("champion", "challenger"):
        one = statistics.get(role, {})
        latencies = (_number(one.get(name), ".1f") for name in ("p50_ms", "p95_ms", "p99_ms"))
        errors, segments = _number(one.get("error_ratio"), ".1%"), _number(one.get("mean_segments"), ".2f")
        table.add_row(role, _number(one.get("samples"), "d"), errors, *latencies, segments)
    paired, rss = statistics.get("performance", {}), _number(statistics.get("rss_gb"), ".2f")
    difference, upper = (_number(paired.get(name), "+.2f") for name in ("difference_bps", "difference_upper_bps"))
    line = f"{paired.get('outcomes', 0)} outcomes: challenger {difference} bps, at most {upper} bps · memory {rss} GB"
    return Group("", table, Text(line, style="dim"))


def _run(run: AnalysisRun) -> RenderableType:
    table = Table(box=None, padding=(0, 3, 0, 0), title_justify="left", title_style="default")
    phase = f"[{STYLES.get(run.phase, 'default')}]{run.phase}[/]"
    table.title = f"\n[bold]{escape(run.run)}[/]: {phase}, since {moment(run.since)}" + (", ended" if run.ended else "")
    for heading in ("metric", "phase", "taken", "latest", ""):
        table.add_column(heading, header_style="dim", justify="right" if heading == "taken" else "left")
    for metric in run.metrics:
        table.add_row(*_metric(metric))
    return table


def _metric(metric: MetricAnalysis) -> tuple[RenderableType, ...]:
    name = metric.name + (" (alert only)" if metric.dry_run else "")
    row = Text(" ").join(Text(SIGNS[one.phase], style=STYLES[one.phase]) for one in metric.measurements[-10:])
    detail = metric.measurements[-1].detail if metric.measurements else "not measured yet"
    return Text(name), Text(metric.phase, style=STYLES.get(metric.phase, "")), str(metric.taken), row, plain(detail)


def events_table(events: Sequence[Event]) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 3, 0, 0), title="\n[bold]events[/]", title_justify="left")
    table.title_style = "default"
    for event in events:
        table.add_row(
            Text(str(event.version), "dim"), moment(event.at), event.command, plain(event.actor), plain(event.reason)
        )
    return table


def stages_table(plan: Plan) -> Table:
    """The stages of a plan, each with the gates to pass before it is left."""
    table = Table(box=None, padding=(0, 3, 0, 0))
    for heading, justify in (("stage", "right"), ("weight", "right"), ("left when", "left")):
        table.add_column(heading, justify=justify, header_style="dim")  # type: ignore[arg-type] # one of rich's literals
    for number, stage in enumerate(plan.stages):
        gates = [words.gate(gate) for gate in stage.gates] or ["nothing: at once"]
        if number + 1 == len(plan.stages) and plan.approvals.required:
            gates.append(f"{plan.approvals.required} approvals")
        table.add_row(str(number), f"{stage.weight} %" if number else "shadow", "\n".join(gates))
    return table


def plan_facts(plan: Plan) -> dict[str, str]:
    """What holds beside the stages."""
    background, after, market = plan.background_analysis, plan.post_promotion_analysis, plan.market
    return {
        "background": f"{words.gate(background)}, from stage {background.starting_step}" if background else "none",
        "after_promotion": f"{words.gate(after)}, for {words.duration(plan.rollback_window)}" if after else "nothing",
        "weight_is_of": plan.weight_basis,
        "market_time": f"no step within {words.duration(market.quiet)} of an open or close" if market else "any",
        "deadline": f"{words.duration(plan.progress_deadline_seconds)} for each stage, then "
        + ("abort" if plan.progress_deadline_abort else "pause"),
        "handover": plan.handover.default,
        "approvals": str(plan.approvals.required),
        "sha256": plan.sha256 if market is None or market.sessions else "known once it starts, with the sessions",
    }


def plain(text: str, style: str = "") -> Text:
    """What somebody wrote, as it is: neither markup nor anything that a terminal would obey."""
    return Text("".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text), style)


def moment(at: float) -> str:
    """Unix seconds as a person of this machine's time zone reads them."""
    return datetime.fromtimestamp(at).astimezone().strftime("%d %b %H:%M:%S")


def _number(value: float | int | None, form: str) -> str:
    return "-" if value is None else format(value, form)
