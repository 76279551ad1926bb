"""What is wrong with a plan as a whole, each problem in a line that names the place and the remedy.

What one part of it must hold by itself stands with that part (delivery/plan.py, delivery/metrics.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING

from delivery.metrics import Analysis, BackgroundAnalysis, Metric, Template, TemplateRef, unknown

if TYPE_CHECKING:
    from delivery.plan import Pause, Plan

DAY_S = 86400.0
# What else than a metric may end an attempt, by name.
TRIGGERS = frozenset(
    {
        "performance_degradation",
        "error_rate_exceeded",
        "latency_violation",
        "memory_overflow",
        "drawdown_exceeded",
        "daily_loss_exceeded",
        "progress_deadline",
        "not_loadable",
        "manual",
    }
)


def problems(plan: Plan) -> Iterator[str]:
    yield from _of_weights(plan)
    yield from _of_analyses(plan)
    yield from _of_market(plan)
    yield from _of_symbols(plan)
    yield from _of_handover(plan)
    yield from _of_deadlines(plan)
    names = [webhook.name for webhook in plan.webhooks]
    yield from (f"webhooks: '{name}' is there twice; rename one" for name in _twice(names))


def _of_weights(plan: Plan) -> Iterator[str]:
    weights = [(i, step.set_weight) for i, step in enumerate(plan.steps) if step.set_weight is not None]
    if not weights:
        yield "steps: no setWeight, so the challenger would go from nothing to everything; add one"
    for (_, before), (i, after) in pairwise([(-1, 0), *weights]):
        if after <= before:
            yield f"steps.{i}.setWeight: {after} does not grow, it is {before} before; the shadow needs no setWeight"


def _of_analyses(plan: Plan) -> Iterator[str]:
    used = set()
    for place, analysis in _analyses(plan):
        for ref in analysis.templates:
            used.add(ref.name)
            template = plan.analysis_templates.get(ref.name)
            if template is None:
                yield f"{place}: {unknown('template', ref.name, plan.analysis_templates)}"
            else:
                yield from (f"{place}, {ref.name}: {problem}" for problem in _of_arguments(ref, template))
        metrics = [
            metric
            for ref in analysis.templates
            if ref.name in plan.analysis_templates
            for metric in plan.analysis_templates[ref.name].metrics
        ]
        yield from (f"{place}: {problem}" for problem in _of_metrics(metrics, analysis, place))
    for name in sorted(set(plan.analysis_templates) - used):
        yield f"analysisTemplates.{name}: no analysis uses it; name it in one, or delete it"
    background = plan.background_analysis
    if background is not None and background.starting_step >= len(plan.stages):
        yield f"backgroundAnalysis.startingStep: {background.starting_step}, the last stage is {len(plan.stages) - 1}"


def _analyses(plan: Plan) -> Iterator[tuple[str, Analysis]]:
    named: list[tuple[str, Analysis | None]] = [
        (f"steps.{i}.analysis", step.analysis) for i, step in enumerate(plan.steps)
    ]
    named += [
        ("backgroundAnalysis", plan.background_analysis),
        ("prePromotionAnalysis", plan.pre_promotion_analysis),
        ("postPromotionAnalysis", plan.post_promotion_analysis),
    ]
    yield from ((place, analysis) for place, analysis in named if analysis is not None)


def _of_arguments(ref: TemplateRef, template: Template) -> Iterator[str]:
    for name in sorted(set(ref.args) - set(template.args)):
        yield unknown("argument", name, template.args)
    given = ref.arguments(template)
    for name in sorted(set(template.args) - set(given)):
        yield f"args.{name} has no default and is not given"
    for name in sorted(set().union(*(metric.numbers for metric in template.metrics))):
        if isinstance(given.get(name), str):
            yield f"args.{name} is compared with, so it must be a number, not '{given[name]}'"


def _of_metrics(metrics: list[Metric], analysis: Analysis, place: str) -> Iterator[str]:
    for name in _twice([metric.name for metric in metrics]):
        yield f"metric '{name}' is there twice; rename one"
    judged = [metric for metric in metrics if not metric.dry_run]
    if metrics and not judged:
        yield "every metric is a dryRun, so nothing is judged; judge one of them"
    for metric in judged:
        if metric.judge.kind == "mann_whitney" and metric.count != 1:
            yield f"'{metric.name}': mann_whitney is looked at once; set count: 1, or judge by conf_seq"
        if isinstance(analysis, BackgroundAnalysis) or place.startswith("post"):
            yield from _watches(metric)
        elif not (metric.count or metric.consecutive_success_limit):
            yield f"'{metric.name}' would never end; set count, or consecutiveSuccessLimit"


def _watches(metric: Metric) -> Iterator[str]:
    """What is to be watched to the end must not be done before."""
    if metric.count:
        yield f"'{metric.name}' would watch no longer after {metric.count} measurement(s); set count: 0"
    if metric.consecutive_success_limit:
        yield f"'{metric.name}' would watch no longer after some successes; delete consecutiveSuccessLimit"


def _of_market(plan: Plan) -> Iterator[str]:
    if plan.market is None:
        for i, step in enumerate(plan.steps):
            if step.pause is not None and step.pause.sessions is not None:
                yield f"steps.{i}.pause: sessions are counted in market time; add `market: {{}}`"
        return
    for earlier, later in pairwise(plan.market.sessions):
        if later.open < earlier.close:
            yield f"market.sessions: {later.day} opens before {earlier.day} has closed; list them in order, once each"


def _of_symbols(plan: Plan) -> Iterator[str]:
    symbols = plan.symbols
    allowed = None if symbols.allow is None else set(symbols.allow) - set(symbols.deny)
    if allowed is not None and not allowed:
        yield "symbols: none is left to the challenger; allow some that are not denied"
    shares = set(symbols.notional) - set(symbols.deny)
    by_share = plan.weight_basis in ("notional", "var")
    if by_share and not (shares if allowed is None else shares & allowed):
        basis = plan.weight_basis
        yield f"symbols.notional: weightBasis {basis} needs the shares of the symbols that the challenger may have"
    unmeasured = sorted(set(symbols.notional) - set(symbols.volatility))
    if plan.weight_basis == "var" and unmeasured:
        yield f"symbols.volatility: weightBasis var needs that of {', '.join(unmeasured)} too"


def _of_handover(plan: Plan) -> Iterator[str]:
    metrics = {metric.name for template in plan.analysis_templates.values() for metric in template.metrics}
    for trigger in sorted(set(plan.handover.triggers) - TRIGGERS - metrics):
        yield f"handover.triggers: {unknown('trigger', trigger, TRIGGERS | metrics)}"


def _of_deadlines(plan: Plan) -> Iterator[str]:
    deadline_s = plan.progress_deadline_seconds
    for number, stage in enumerate(plan.stages):
        fewest_s = sum(_fewest_s(gate, plan) for gate in stage.gates)
        if fewest_s >= deadline_s:
            yield (
                f"progressDeadlineSeconds: {deadline_s:g} s, but stage {number} (weight {stage.weight}) takes at least "
                f"{fewest_s:g} s; raise it"
            )


def _fewest_s(gate: Pause | Analysis, plan: Plan) -> float:
    """The shortest time in which a gate can be passed."""
    if not isinstance(gate, Analysis):
        return gate.duration or DAY_S * ((gate.sessions or 1) - 1)
    metrics = [
        metric
        for ref in gate.templates
        if ref.name in plan.analysis_templates
        for metric in plan.analysis_templates[ref.name].metrics
        if not metric.dry_run
    ]
    return max((metric.initial_delay + metric.interval * (_fewest(metric) - 1) for metric in metrics), default=0.0)


def _twice(names: list[str]) -> list[str]:
    return sorted(name for name, times in Counter(names).items() if times > 1)


def _fewest(metric: Metric) -> int:
    """Measurements after which it may end."""
    return metric.consecutive_success_limit or metric.count or 1
