"""The report of a migration: one HTML file that needs nothing else, made from the records on disk."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from core.files import write_atomically
from flows import plots
from flows.phases import gate_rows
from flows.run_state import Outcome, PhaseRecord, Run

TITLES = {
    "ppo_baseline_capture": "PPO baseline capture",
    "hrm_training": "HRM training",
    "parallel_validation": "Parallel validation",
    "gradual_migration": "Gradual migration",
    "full_deployment": "Full deployment",
}
HEADLINES = {
    "migrated": "HRM took over",
    "stopped": "Stopped: PPO stays",
    "rolled_back": "Rolled back: PPO decides",
}

Records = dict[str, PhaseRecord]


@dataclass(frozen=True)
class Plot:
    """A figure with what to look at in it."""

    title: str
    caption: str
    svg: str
    wide: bool = False


@dataclass(frozen=True)
class Fact:
    """A headline number."""

    label: str
    value: str
    detail: str
    arm: str = ""


def write_report(run: Run, outcome: Outcome) -> Path:
    """Write `report.html` into the run's folder and return its path."""
    path = run.folder / "report.html"
    write_atomically(path, render(run, outcome).encode())
    return path


def render(run: Run, outcome: Outcome) -> str:
    """The page for whatever the run has so far."""
    records = {name: record for name in TITLES if (record := run.phase(name)) is not None}
    environment = Environment(loader=PackageLoader("flows", "."), autoescape=True, undefined=StrictUndefined)
    return environment.get_template("report.html.j2").render(
        run=run,
        outcome=outcome,
        headline=_headline(outcome),
        synthetic=run.inputs.data is None,
        facts=facts(run, records),
        phases=phase_rows(records),
        plots=figures(run, records),
        sources=sources(run, records),
    )


def _headline(outcome: Outcome) -> str:
    if outcome.stopped_at and outcome.outcome == "stopped" and outcome.exit_code == 4:
        return "Inconclusive: PPO stays"
    return HEADLINES[outcome.outcome]


def phase_rows(records: Records) -> list[dict[str, Any]]:
    """One row per phase in order; phases that did not run say so."""
    rows = []
    for name, title in TITLES.items():
        record = records.get(name)
        rows.append(
            {
                "title": title,
                "name": name,
                "verdict": record.verdict.value if record else "not run",
                "seconds": f"{record.seconds:.0f} s" if record else "",
                "reason": record.reason if record else "",
                "gate": gate_rows(record) if record else [],
            }
        )
    return rows


def facts(run: Run, records: Records) -> list[Fact]:
    found: list[Fact] = []
    for arm, name in (("HRM", "hrm_training"), ("PPO", "ppo_baseline_capture")):
        if name in records:
            found += _arm_facts(arm, records[name].result)
    advantage = records["hrm_training"].result["metrics"] if "hrm_training" in records else None
    if advantage:
        found.insert(0, _advantage("Advantage, offline", advantage))
    if "parallel_validation" in records:
        metrics = records["parallel_validation"].result["metrics"]
        found.insert(1, _advantage("Advantage, through the service", metrics))
    return found


def _arm_facts(arm: str, result: dict[str, Any]) -> list[Fact]:
    test, metrics = result["test"], result["metrics"]
    if "score" in test:
        value, interval = f"{test['score']:.3f}", f"95 % CI {test['ci95_low']:.3f} to {test['ci95_high']:.3f}"
        label = f"{arm} score"
    else:
        value, interval = (
            f"{test['return_pct']:+.1f} %",
            f"95 % CI {test['ci95_low']:+.1f} to {test['ci95_high']:+.1f} %",
        )
        label = f"{arm} return"
    cost = f"{metrics['model_mb']:.2f} MB on disk, {metrics['rss_mb']:.0f} MB resident"
    return [
        Fact(label, value, f"{interval}, {test['sessions']} sessions", arm),
        Fact(f"{arm} p99 latency", f"{metrics['p99_ms']:.1f} ms", cost, arm),
    ]


def _advantage(label: str, metrics: dict[str, Any]) -> Fact:
    low, high = metrics["advantage_ci95_low"], metrics["advantage_ci95_high"]
    value = f"{metrics['advantage_bps_per_day']:+.1f} bps"
    return Fact(label, value, f"HRM over PPO per session, 95 % CI {low:+.1f} to {high:+.1f}", "HRM")


def figures(run: Run, records: Records) -> list[Plot]:
    """Every figure there is data for."""
    makers: tuple[Callable[[Run, Records], Plot | None], ...] = (
        _equity,
        _distribution,
        _training,
        _agreement,
        _latency,
        _timeline,
    )
    return [plot for maker in makers if (plot := maker(run, records)) is not None]


def _tests(records: Records) -> dict[str, dict[str, Any]]:
    names = {"PPO": "ppo_baseline_capture", "HRM": "hrm_training"}
    return {arm: records[name].result["test"] for arm, name in names.items() if name in records}


def _equity(run: Run, records: Records) -> Plot | None:
    arms = {arm: test["return_bps"] for arm, test in _tests(records).items()}
    if not arms:
        return None
    caption = (
        "Both models on sessions neither was trained on, after costs, one unit of direction. Look at the distance "
        "between the lines and at how deep and how long the shaded drawdowns are."
    )
    return Plot("Equity and drawdown", caption, plots.equity(arms), wide=True)


def _distribution(run: Run, records: Records) -> Plot | None:
    tests = _tests(records)
    if not tests:
        return None
    if run.inputs.data is None:
        arms = {arm: test["regret_bps"] for arm, test in tests.items()}
        caption = (
            "Regret is what each session fell short of the known optimum: smaller is better, 0 is the oracle. "
            "Look for mass on the left; the dashed lines are the means."
        )
        return Plot("Regret per session", caption, plots.distribution(arms, "regret, bps per session"))
    arms = {arm: test["return_bps"] for arm, test in tests.items()}
    caption = "Daily results after costs. Look at the left tail first; the dashed lines are the means."
    return Plot("Daily profit and loss", caption, plots.distribution(arms, "return, bps per session"))


def _training(run: Run, records: Records) -> Plot | None:
    if "ppo_baseline_capture" not in records:
        return None
    hrm = records["hrm_training"].result["curve"] if "hrm_training" in records else []
    known = run.inputs.data is None
    caption = (
        "Left: the incumbent's reward as it learned (costs are waived at first and then phased in). Right: the HRM on "
        "validation sessions; the circled weights were exported."
    )
    return Plot("Training", caption, plots.training(records["ppo_baseline_capture"].result["curve"], hrm, known))


def _agreement(run: Run, records: Records) -> Plot | None:
    if "parallel_validation" not in records:
        return None
    result = records["parallel_validation"].result
    metrics = result["metrics"]
    caption = (
        f"Percent of {metrics['decisions']:,} shadow decisions by what each model chose on the same bars. The diagonal "
        f"is agreement: actions {metrics['action_agreement_ratio']:.0%}, positions "
        f"{metrics['position_agreement_ratio']:.0%}. Each model holds its own position, so it may do elsewhere what "
        f"the other did earlier."
    )
    return Plot("Agreement in shadow", caption, plots.agreement(result["agreement"]))


def _latency(run: Run, records: Records) -> Plot | None:
    if "parallel_validation" not in records:
        return None
    limits = {
        "NFR1.1": run.settings.performance.inference_timeout_ms,
        "rollback": run.settings.triggers.latency_ms,
    }
    caption = (
        "Inside the running service, several symbols at once. While a model acts this is the time to a decision; while "
        "it is the shadow, the time of the model alone, and one that was late counts as the limit it missed. The "
        "curves should be flat at the top before the dotted limits; the dots mark the 99th percentile."
    )
    arms = {"PPO": records["parallel_validation"].result["latency_ms"]["champion"], "HRM": _hrm_latency(records)}
    return Plot("Latency", caption, plots.latency(arms, limits))


def _hrm_latency(records: Records) -> list[float]:
    """At the last canary step, where it acts; in shadow if it came no further."""
    if "gradual_migration" in records:
        acting: list[float] = records["gradual_migration"].result["steps"][-1]["latency_ms"]["challenger"]
        return acting
    shadow: list[float] = records["parallel_validation"].result["latency_ms"]["challenger"]
    return shadow


def _timeline(run: Run, records: Records) -> Plot | None:
    if "gradual_migration" not in records:
        return None
    events = rollout_events(records)
    caption = (
        "The share of symbols the HRM decided for. Each dot is a gate; the next step begins only after a pass, and a "
        "fall to zero is a rollback."
    )
    steps = records["gradual_migration"].result["steps"]
    return Plot("Rollout", caption, plots.timeline(events, steps), wide=True)


def rollout_events(records: Records) -> list[dict[str, Any]]:
    """The log from this run's start on, as its last phase saw it."""
    last = records.get("full_deployment", records["gradual_migration"])
    model = records["hrm_training"].result["model"]
    events: list[dict[str, Any]] = last.result["events"]
    begins = [
        place
        for place, event in enumerate(events)
        if event["command"] == "start" and json.loads(event["state"])["challenger"] == model
    ]
    return events[begins[-1] :]


def sources(run: Run, records: Records) -> list[tuple[str, str]]:
    """What went in, for whoever wants to repeat it."""
    models = [records[name].result["model"] for name in ("ppo_baseline_capture", "hrm_training") if name in records]
    baseline = records.get("ppo_baseline_capture")
    return [
        (
            "market",
            "synthetic, optimum known by dynamic programming" if run.inputs.data is None else str(run.inputs.data),
        ),
        ("data digest", run.inputs.data_digest),
        ("seed", str(run.inputs.seed)),
        ("preset", run.settings.preset),
        *([("cost", f"{baseline.result['cost_bps']:.3g} bps per unit of turnover")] if baseline else []),
        ("models", ", ".join(models)),
        ("run", run.id),
    ]
