"""On a schedule, and where new bars arrive: fetch, check, train, judge, and offer or begin a rollout.

    bars ── same as last time? ──> Skipped, with the run that has the results
      │
      quality (damaged bars are refused) ── drift report ── PPO baseline ── HRM ── the gate ── against who decides now
                                                                                                    │
                               offered, with the command to start it, or (start_rollout) a rollout by the settings' plan

Traffic moves only by that rollout, in shadow first. A run that was killed goes on where it was; what a person likes is
continued with `hrm migrate` on the same data. Started twice, the second finds the lock and says who holds it.
"""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any, Literal

import structlog
from prefect import flow
from prefect.artifacts import create_image_artifact, create_markdown_artifact
from prefect.client.schemas.objects import State
from prefect.context import FlowRunContext
from prefect.states import Completed

from core.errors import DataError, HrmSystemError, ModelError
from core.gates import Verdict
from core.settings import Settings, load_settings
from flows.drift_check import checked
from flows.fyers_bars import bars_file
from flows.hrm_training import checkpoint_of, hrm_training
from flows.incumbent import live_state
from flows.measure import engine_of, evaluate_on_test
from flows.phases import dataset_of
from flows.ppo_baseline_capture import ppo_baseline_capture
from flows.registry import project
from flows.report import TITLES, figures
from flows.run_state import Inputs, Run, inputs_of, migration_lock, open_run, runs_of
from flows.service import ACTOR, reachable_service
from flows.walk_forward_gate import in_words, shown_worse, walked
from serving import calls
from trading.bootstrap import mean_interval
from trading.evaluation import advantage
from trading.files import check

PHASES = {"ppo_baseline_capture": ppo_baseline_capture, "hrm_training": hrm_training}
Weights = Literal["scratch", "champion"]

log = structlog.get_logger()


@flow(name="retraining")
def retraining(
    data: str | None = None,
    seed: int = 0,
    symbol: str | None = None,
    weights: Weights = "scratch",
    start_rollout: bool = False,
    folds: int = 0,
) -> dict[str, Any] | State[dict[str, Any]]:
    """Train a challenger on the latest bars, judge it, and offer it.

    Args:
        data: a CSV or parquet file; None: the synthetic market, or what `symbol` names.
        symbol: as Fyers names it; its bars up to today are fetched first (`hrm fyers login`).
        seed: of training and of the synthetic market.
        weights: new ones, or those of the HRM that decides now, where one does.
        start_rollout: begin a rollout if the gate passes and nothing else is rolled out; else only say how.
        folds: of a walk-forward over the file; both models are trained once more in each (flows/walk_forward_gate.py).

    Ends as "Skipped" where nothing changed. Raises DataError for bars that cannot be used, ConfigError for two sources
    of them, and while another migration runs.
    """
    settings = load_settings()
    with migration_lock(settings.paths.state_dir):
        file = bars_file(settings, data, symbol)
        result = retrain(settings, file, seed=seed, weights=weights, start_rollout=start_rollout, folds=folds)
    if "skipped" in result:
        return Completed(name="Skipped", message=result["skipped"], data=result)
    return result


def retrain(
    settings: Settings,
    file: Path | None,
    *,
    seed: int,
    weights: Weights = "scratch",
    start_rollout: bool = False,
    folds: int = 0,
) -> dict[str, Any]:
    """`run`, `verdict`, `drift`, `walk`, `against`, `rollout`; or `skipped`, why, and the `run` that has them."""
    inputs = _inputs(settings, file, seed, weights)
    done = _already(inputs, folds)
    if done is not None:
        return _skipped(done)
    quality = _require_usable(file)
    run = open_run(inputs)
    drift = checked(dataset_of(run))
    verdict = _trained(run)
    walk = walked(run, verdict, folds)
    against = _against(run, live_state(settings).champion)  # training takes hours: who decides by now
    rollout = shown_worse(walk) or _rollout(settings, run, verdict, against, begin=start_rollout)
    result = {"run": run.id, "verdict": verdict, "drift": drift, "walk": walk, "against": against, "rollout": rollout}
    run.record_step("retraining", result | {"quality": quality})
    project(settings)
    _publish(run, result | {"quality": quality})
    return result


def _inputs(settings: Settings, file: Path | None, seed: int, weights: Weights) -> Inputs:
    inputs = inputs_of(settings, file, seed)
    if weights == "scratch":
        return inputs
    return inputs.model_copy(update={"start_from": _begun_with(live_state(settings).champion, settings)})


def _trained(run: Run) -> dict[str, Any]:
    """Both models, each once; the first verdict that is no pass, else the last."""
    for phase in PHASES.values():
        verdict = phase(str(run.folder))
        if verdict["verdict"] != Verdict.PASS:
            break
    return verdict


def _begun_with(champion: str | None, settings: Settings) -> str | None:
    """The model that decides now, if it was trained here; else training begins anew, and the log says why."""
    try:
        checkpoint_of(champion or "nobody", settings)
    except ModelError as error:
        log.info("retraining_from_scratch", reason=str(error))
        return None
    return champion


def _already(inputs: Inputs, folds: int) -> Run | None:
    """A run of the same inputs that came to an end; one that was killed goes on, wherever that was."""
    same = (run for run in runs_of(inputs.settings) if run.inputs.key == inputs.key)
    return next((run for run in same if run.outcome is not None or _ended(run, folds)), None)


def _ended(run: Run, folds: int) -> bool:
    """Whether it has its results, a walk of so many folds among them. Else what is missing is added to them."""
    done = run.step("retraining")
    return done is not None and done.get("walk", {}).get("folds", 0) >= folds


def _skipped(run: Run) -> dict[str, Any]:
    """With what became of its challenger: an offer stands until somebody takes it."""
    rollout = (run.step("retraining") or {}).get("rollout", {})
    offer = f"; {rollout['offered']} is offered: `{rollout['command']}`" if "offered" in rollout else ""
    why = f"the same bars, seed and settings as run {run.id}; change one of them, or wait for new bars{offer}"
    log.info("retraining_skipped", run=run.id, reason=why)
    return {"skipped": why, "run": run.id}


def _require_usable(file: Path | None) -> str:
    """What the quality gate says of the bars, for people. Raises DataError with every class of problem."""
    if file is None:
        return "simulated"
    found = check(file)
    if found.problems:
        problems = "; ".join(str(problem) for problem in found.problems)
        raise DataError(f"{file}: {problems}; `hrm data check {file}` says where, --fix writes a clean copy")
    left_out = f", {len(found.dropped_sessions)} left out" if found.dropped_sessions else ""
    return f"{found.sessions} sessions from {found.first} to {found.last}{left_out}"


def _against(run: Run, champion: str | None) -> dict[str, Any] | None:
    """The challenger against the model that decides now, paired by session of the test; None where they cannot be."""
    record = run.phase("hrm_training")
    if champion is None or record is None:
        return None
    try:
        if engine_of(run, champion).manifest.observation.digest != dataset_of(run).schema.digest:
            return {"champion": champion, "why_not": "it looks at other features"}
        ours, theirs = evaluate_on_test(run, record.result["model"]), evaluate_on_test(run, champion)
    except ModelError as error:
        return {"champion": champion, "why_not": str(error)}
    paired = mean_interval(advantage(ours, theirs))
    return {
        "champion": champion,
        "advantage_bps_per_day": paired.value,
        "ci95_low": paired.ci95_low,
        "ci95_high": paired.ci95_high,
    }


def _rollout(
    settings: Settings, run: Run, verdict: dict[str, Any], against: dict[str, Any] | None, *, begin: bool
) -> dict[str, Any]:
    """What became of the challenger: `started`, `offered` with the command, or `kept_back` with the reason."""
    if verdict["verdict"] != Verdict.PASS:
        return {"kept_back": f"{verdict['phase']}: {verdict['verdict']} {verdict['reason']}".strip()}
    model = run.result("hrm_training")["model"]
    if against is not None and against.get("ci95_high", 0.0) < 0:
        return {"kept_back": f"{model} is shown to earn less than {against['champion']}"}
    offer = {"offered": model, "command": f"hrm rollout start --challenger {model}"}
    judged_against = None if against is None else against["champion"]
    why_not = _start(settings, run, model, judged_against) if begin else None
    if why_not is not None:
        return offer | {"why_not_started": why_not}
    return {"started": model} if begin else offer


def _start(settings: Settings, run: Run, model: str, judged_against: str | None) -> str | None:
    """Begin a rollout beside who it was judged against; why that could not be, else None: it has begun."""
    with reachable_service(settings) as service:
        if service is None:
            return "no service answers; start it with `hrm serve`"
        state = service.rollout()
        if model in (state.challenger, state.champion):
            return None  # by this very retraining, before it was killed
        if state.champion is None or state.challenger is not None:
            return f"the rollout is in phase {state.phase}"
        if state.champion != judged_against:
            return f"{state.champion} decides by now, and it was judged against {judged_against}"
        try:
            call = calls.start(state.champion, model, reason=f"retraining {run.id}", actor=ACTOR, version=state.version)
            service.client.call(call)
        except HrmSystemError as error:  # cool-down, market time, a person who was faster: it is still offered
            return str(error)
    return None


def _publish(run: Run, result: dict[str, Any]) -> None:
    """The page of the run and its figures as artifacts, when a flow is running."""
    if FlowRunContext.get() is None:
        return
    create_markdown_artifact(key="retraining", markdown=described(run, result), description=run.id)
    records = {name: record for name in TITLES if (record := run.phase(name)) is not None}
    for plot in figures(run, records):
        picture = base64.b64encode(plot.svg.encode()).decode()
        key = "retraining-" + "-".join(plot.title.lower().split())
        create_image_artifact(f"data:image/svg+xml;base64,{picture}", key=key, description=plot.caption)


def described(run: Run, result: dict[str, Any]) -> str:
    """For a person, in Markdown."""
    against, rollout = result["against"], result["rollout"]
    lines = [
        f"## Retraining {run.id}: {result['verdict']['verdict']}",
        "",
        f"- bars: {run.inputs.market_name}, {result['quality']}",
    ]
    lines.append(f"- drift: {result['drift']['verdict']} {result['drift']['reason']}".rstrip())
    lines.append(f"- walk-forward: {in_words(result['walk'])}")
    if against is not None:
        low, high = against.get("ci95_low"), against.get("ci95_high")
        measured = (
            f"{against['advantage_bps_per_day']:+.2f} bps a day [{low:+.2f}, {high:+.2f}]"
            if low is not None
            else against["why_not"]
        )
        lines.append(f"- against {against['champion']}, which decides now: {measured}")
    lines.append("- " + "; ".join(f"{name.replace('_', ' ')}: {said}" for name, said in rollout.items()))
    return "\n".join(lines) + "\n"
