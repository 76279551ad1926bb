"""`hrm sweep`: which settings train the best HRM? Trials on a task runner, the losing ones given up early.

    trial = an ordinary training (flows/fit.py) with other settings, judged on the validation sessions
    best  = the least validation loss; it alone plays the test sessions

Every look of every trial is on record in the tracking store, and the best one's Sharpe ratio is deflated by all looks
at these bars. The same command goes on where it was killed, and started twice both work on one study.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import optuna
import structlog
from optuna.storages import fail_stale_trials
from prefect import flow, task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.futures import as_completed
from rich.console import Console

from core.errors import ModelError
from core.files import write_json
from core.settings import Settings, load_settings
from flows.control_plane import control_plane
from flows.fit import FOLDER, Training, describe
from flows.hrm_training import new_agent
from flows.measure import headline
from flows.phases import dataset_of
from flows.progress import bars, report, watched_by
from flows.run_state import Inputs, Run, inputs_of, load_run, only_one
from flows.runners import task_runner
from flows.sweep_study import Choice, chosen, ended, running, study_of, suggested
from flows.tracking import make_store, tracked, trials
from trading.dataset import Dataset
from trading.evaluation import evaluate
from trading.significance import deflated_sharpe

PHASE = "sweep"
POLL_S = 2.0  # while others finish what is left

log = structlog.get_logger(__name__)


def run_sweep(settings: Settings, data: Path | None, *, n_trials: int, seed: int = 0) -> dict[str, Any]:
    """The whole job for a command line. Raises DataError for bars that cannot be used, ConfigError."""
    run = open_sweep(settings, data, seed)
    with bars(Console(stderr=True)), control_plane(settings.paths.state_dir, run.folder / "prefect.log"):
        found: dict[str, Any] = sweep(n_trials=n_trials, run_dir=str(run.folder))
    return found


@flow(name=PHASE)
def sweep(data: str | None = None, n_trials: int = 20, seed: int = 0, run_dir: str | None = None) -> dict[str, Any]:
    """Until the study of these bars, settings and seed has `n_trials` trials with a result.

    `data`: a CSV or parquet file; None: the synthetic market. `run_dir`: the sweep's folder, where it is known.
    """
    if n_trials < 1:
        raise ValueError(f"n_trials {n_trials} must be at least 1")
    run = load_run(Path(run_dir)) if run_dir else open_sweep(load_settings(), Path(data) if data else None, seed)
    make_store(run.settings.paths.state_dir)
    sweep_trials.with_options(task_runner=task_runner(run.settings))(str(run.folder), n_trials)
    found = judged(run)
    write_json(run.folder / "result.json", found)
    _publish(run, found)
    return found


def open_sweep(settings: Settings, data: Path | None, seed: int) -> Run:
    """The folder of the sweep over these bars, settings and seed: the same ones find it again."""
    state_dir = settings.paths.state_dir.resolve()
    paths = settings.paths.model_copy(update={"state_dir": state_dir})
    inputs = inputs_of(settings.model_copy(update={"paths": paths}), data, seed)
    run = Run(state_dir / "sweeps" / inputs.key[:12], inputs)
    write_json(run.folder / "run.json", inputs.model_dump(mode="json"))
    dataset_of(run)  # bad bars stop here
    return run


@flow(name="sweep_trials")
def sweep_trials(run_dir: str, n_trials: int) -> None:
    """What is missing of `n_trials`. Where others work on it, too, whoever is last waits for the rest."""
    study = study_of(load_run(Path(run_dir)))
    while (missing := n_trials - len(ended(study))) > 0:
        fail_stale_trials(study)
        report(PHASE, len(ended(study)) / n_trials, f"{missing} to go")
        for done in as_completed([try_one.submit(run_dir, n_trials) for _ in range(missing)]):
            done.result()
            report(PHASE, min(1.0, len(ended(study)) / n_trials), _note(study))
        if len(ended(study)) < n_trials:
            time.sleep(POLL_S)
    report(PHASE, 1.0, _note(study))


def _note(study: optuna.Study) -> str:
    known = ended(study)
    values = [trial.value for trial in known if trial.state is optuna.trial.TrialState.COMPLETE]
    best = min((value for value in values if value is not None), default=None)
    return f"{len(known)} trials, {len(known) - len(values)} given up" + (f", best {best:.3f} bps" if best else "")


@task(name="trial")
def try_one(run_dir: str, n_trials: int) -> None:
    """One trial, unless those that have ended and those that are running are enough."""
    run = load_run(Path(run_dir))
    study = study_of(run)
    if len(ended(study)) + len(running(study)) < n_trials:
        with watched_by(lambda *_: None):  # several trainings at once: the sweep's bar is the one to look at
            study.optimize(lambda trial: objective(trial, run), n_trials=1)


def objective(trial: optuna.Trial, run: Run) -> float:
    """The least validation loss of one training in bps per session. Raises TrialPruned."""
    choice = suggested(trial)
    one = trial_run(run, trial.user_attrs.get("folder", f"trial-{trial.number:04}"), choice)
    trial.set_user_attr("folder", one.folder.name)  # a retry of it goes on from its checkpoint
    one.folder.mkdir(parents=True, exist_ok=True)
    with only_one(one.folder / "training.lock", "is training this trial", code="training_running"):
        try:
            curve = _trained(trial, one, dataset_of(run))
        except ModelError as error:
            if error.code != "training_diverged":
                raise
            log.warning("trial_diverged", trial=trial.number, reason=str(error))
            raise optuna.TrialPruned from None
    return min(point["loss_bps"] for point in curve)


def _trained(trial: optuna.Trial, run: Run, data: Dataset) -> list[dict[str, float]]:
    training = Training(new_agent(run, data), data, run)
    curve, told, pruned = training.position.curve, 0, False
    with tracked(run.settings.paths.state_dir, describe(run, data)) as training.record:
        while training.position.calls < training.calls and not pruned:
            training.advance()
            for step in range(told, len(curve)):
                trial.report(curve[step]["loss_bps"], step)
            pruned = len(curve) > told and training.position.calls < training.calls and trial.should_prune()
            told = len(curve)
    if pruned:
        raise optuna.TrialPruned
    training.finish()
    return curve


def trial_run(run: Run, name: str, choice: Choice) -> Run:
    inputs: Inputs = run.inputs.model_copy(update={"settings": chosen(run.settings, choice)})
    return Run(run.folder / name, inputs)


def judged(run: Run) -> dict[str, Any]:
    """The best trial on the test sessions, with what it was chosen from."""
    study, data = study_of(run), dataset_of(run)
    known = ended(study)
    if not any(trial.state is optuna.trial.TrialState.COMPLETE for trial in known):
        raise ModelError(f"{run.folder}: all {len(known)} trials diverged; ask for more --trials", code="all_diverged")
    best = study.best_trial
    one = trial_run(run, best.user_attrs["folder"], best.params)
    agent = new_agent(one, data)
    agent.load_model(one.folder / FOLDER)
    found = evaluate(agent.decide_batch, data.test, data.schema, data.cost_bps)
    looked = trials(run.settings.paths.state_dir, data.digest)
    return {
        "sweep": run.id,
        "trials": len(known),
        "pruned": sum(trial.state is optuna.trial.TrialState.PRUNED for trial in known),
        "looks": looked.count,
        "looks_complete": looked.complete,
        "best_trial": best.number,
        "best": dict(best.params),
        "validation_loss_bps": best.value,
        "test": headline(found),
        "deflated_sharpe": deflated_sharpe(found.return_bps, looked),
        "checkpoint": str(one.folder / FOLDER),
        "train_with": " ".join(f"HRM_{name.upper().replace('.', '__')}={value}" for name, value in best.params.items()),
    }


def _publish(run: Run, found: dict[str, Any]) -> None:
    rows = [
        {"trial": trial.number, "state": trial.state.name.lower(), "loss_bps": trial.value, **trial.params}
        for trial in ended(study_of(run))
    ]
    create_table_artifact(key="sweep-trials", table=rows, description=f"{run.inputs.market_name}, {run.id}")
    text = [f"- {name.replace('_', ' ')}: {value}" for name, value in found.items()]
    create_markdown_artifact(key="sweep", markdown="\n".join([f"## Sweep {run.id}", "", *text, ""]))
