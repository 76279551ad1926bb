"""`hrm walk-forward`: what would have been earned by training anew as time went on? One fold per task.

    fold     an HRM (flows/fit.py) and a PPO, trained on the past, chosen on what follows, tested on what follows that
    pooled   the tests of all folds, together the second half of the file, judged once with all costs on

A fold is trained once: killed and started again the same command goes on, a fold's HRM at its last checkpoint. What a
fold finds depends on the bars, the settings and the seed, not on the task runner or on how many run at a time.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from prefect import flow, task
from prefect.artifacts import create_image_artifact, create_markdown_artifact, create_table_artifact
from prefect.futures import as_completed
from pydantic import ValidationError
from rich.console import Console

from core.errors import DataError
from core.files import write_json
from core.settings import Settings, load_settings
from flows import plots
from flows.control_plane import control_plane
from flows.fit import fit
from flows.hrm_training import new_agent
from flows.ppo_baseline_capture import fit_incumbent
from flows.progress import bars, report, watched_by
from flows.run_state import Run, inputs_of, load_run, only_one
from flows.runners import task_runner
from flows.tracking import make_store, trials
from flows.walk_forward_pooled import RULES, Played, on_test, pooled, return_bps
from trading import dataset
from trading.bootstrap import FEWEST_FOR_BLOCKS
from trading.dataset import Dataset

PHASE = "walk_forward"
FOLDS = 4


def run_walk_forward(settings: Settings, data: Path, *, folds: int = FOLDS, seed: int = 0) -> dict[str, Any]:
    """The whole job for a command line. Raises DataError for bars that cannot be used, ConfigError."""
    run = open_walk(settings, data, folds=folds, seed=seed)
    with bars(Console(stderr=True)), control_plane(settings.paths.state_dir, run.folder / "prefect.log"):
        found: dict[str, Any] = walk_forward(str(data), folds=folds, run_dir=str(run.folder))
    return found


@flow(name=PHASE)
def walk_forward(data: str, folds: int = FOLDS, seed: int = 0, run_dir: str | None = None) -> dict[str, Any]:
    """Every fold once, then all of them pooled (flows/walk_forward_pooled.py).

    `data`: a CSV or parquet file. `run_dir`: the walk's folder, where it is known. Raises DataError for bars that
    cannot be used, ConfigError while another process walks the same folds.
    """
    opened = load_run(Path(run_dir)) if run_dir else open_walk(load_settings(), Path(data), folds=folds, seed=seed)
    with only_one(opened.folder / "walk.lock", "walks these folds; wait for it", code="walk_running"):
        make_store(opened.settings.paths.state_dir)
        walk_folds.with_options(task_runner=task_runner(opened.settings))(str(opened.folder), folds)
        found = judged(opened, folds)
        write_json(opened.folder / "result.json", found)
    _publish(opened, folds, found)
    return found


def open_walk(settings: Settings, data: Path, *, folds: int, seed: int) -> Run:
    """The folder of the walk over these bars, settings, seed and folds: the same ones find it again.

    Raises DataError before anything is trained: bars that cannot be used, too few sessions for so many folds.
    """
    state_dir = settings.paths.state_dir.resolve()
    paths = settings.paths.model_copy(update={"state_dir": state_dir})
    inputs = inputs_of(settings.model_copy(update={"paths": paths}), data, seed)
    run = Run(state_dir / "walks" / f"{inputs.key[:12]}-{folds}", inputs)
    write_json(run.folder / "run.json", inputs.model_dump(mode="json"))
    tested = sum(len(fold.test.sessions) for fold in folds_of(run.folder, folds))
    if tested < FEWEST_FOR_BLOCKS:
        raise DataError(
            f"{data}: {folds} folds test {tested} sessions, an interval takes {FEWEST_FOR_BLOCKS}; ask for fewer "
            f"folds, or bring more history",
            code="too_few_sessions",
        )
    return run


@lru_cache(maxsize=1)  # a walk's tasks share it
def folds_of(folder: Path, folds: int) -> list[Dataset]:
    """The markets of every fold. Raises DataError if the file is not what it was when the walk began."""
    run = load_run(folder)
    file = run.inputs.data
    assert file is not None  # noqa: S101 - open_walk takes a file
    if inputs_of(run.settings, file, run.inputs.seed).data_digest != run.inputs.data_digest:
        raise DataError(f"{file}: changed since the walk began; start it anew, or bring the file back", code="changed")
    return dataset.walk_forward(run.settings, file, folds)


@flow(name="walk_forward_folds")
def walk_folds(run_dir: str, folds: int) -> None:
    """Those that have not ended yet, as many at a time as the runner has workers."""
    report(PHASE, 0.0, f"{folds} folds")
    for done, future in enumerate(as_completed([walk_fold.submit(run_dir, folds, one) for one in range(folds)]), 1):
        future.result()
        report(PHASE, done / folds, f"{done} of {folds} folds")


@task(name="fold")
def walk_fold(run_dir: str, folds: int, fold: int) -> None:
    """Train, choose and test one fold, unless its record is there: of each contender once."""
    one = fold_run(load_run(Path(run_dir)), fold)
    if all(one.step(name) is not None for name in (*RULES, *TRAINED)):
        return
    data = folds_of(Path(run_dir), folds)[fold]
    complaint = f"trains fold {fold + 1}; wait until it has ended, then start this again"
    with only_one(one.folder / "training.lock", complaint, code="training_running"), watched_by(lambda *_: None):
        for name, policy in RULES.items():
            one.record_step(name, on_test(policy, data).model_dump(mode="json"))
        for name, play in TRAINED.items():
            if one.step(name) is None:
                one.record_step(name, play(one, data).model_dump(mode="json"))


def fold_run(run: Run, fold: int) -> Run:
    """A training of its own. Its seed is its own, too, or the luck of one would be in all folds."""
    inputs = run.inputs.model_copy(update={"seed": run.inputs.seed + fold})
    return Run(run.folder / f"fold-{fold + 1}", inputs)


def _ppo(run: Run, data: Dataset) -> Played:
    trained = fit_incumbent(run, data)
    return on_test(trained.agent.decide_batch, data, trials=len(trained.validation))


def _hrm(run: Run, data: Dataset) -> Played:
    agent = new_agent(run, data)
    return on_test(agent.decide_batch, data, trials=len(fit(agent, data, run)))


TRAINED: dict[str, Callable[[Run, Dataset], Played]] = {"ppo": _ppo, "hrm": _hrm}


def played(run: Run, folds: int) -> dict[str, list[Played]]:
    """What is on record of a walk whose folds have all ended, by contender."""
    each = [fold_run(run, fold) for fold in range(folds)]
    return {name: [_on_record(one, name) for one in each] for name in (*TRAINED, *RULES)}


def _on_record(one: Run, name: str) -> Played:
    try:
        return Played.model_validate(one.step(name))
    except ValidationError:
        file = one.folder / "steps" / f"{name}.json"
        raise DataError(f"{file}: is not what this version writes; delete it, and start the walk again") from None


def judged(run: Run, folds: int) -> dict[str, Any]:
    """The folds pooled, deflated by every look at these bars that is on record."""
    walk = played(run, folds)
    looked = trials(run.settings.paths.state_dir, folds_of(run.folder, folds)[0].digest)
    ours = sum(fold.trials for name in TRAINED for fold in walk[name])
    unrecorded = max(looked.unrecorded, ours - len(looked.sharpes))  # where the store could not be reached
    return {"walk": run.id} | pooled(walk, replace(looked, unrecorded=unrecorded), run.settings.evaluation)


def rows(walk: dict[str, list[Played]]) -> list[dict[str, Any]]:
    """A row per fold: its test sessions, and what each contender earned in them, percent of the position."""
    return [
        {"fold": number + 1, "from": str(tested.days[0]), "to": str(tested.days[-1]), "sessions": len(tested.days)}
        | {f"{name} %": round(sum(folds[number].return_bps) / 100, 2) for name, folds in walk.items()}
        for number, tested in enumerate(walk["hold"])
    ]


def described(run: Run, found: dict[str, Any]) -> str:
    """For a person, in Markdown."""
    lines = [f"## Walk-forward {run.id}: {found['hrm_for_ppo']['verdict']}", ""]
    lines += [f"- {run.inputs.market_name}: {found['folds']} folds, {found['test_sessions']} test sessions"]
    for name in ("hrm", "ppo", "buy_and_hold", "hrm_minus_ppo"):
        one = found[name]
        lines.append(
            f"- {name.replace('_', ' ')}: {one['return_pct']:+.2f} % [{one['ci95_low']:+.2f}, {one['ci95_high']:+.2f}]"
        )
    luck = f"{found['trials_on_record']} trials{'' if found['trials_complete'] else ' at least'}"
    lines.append(f"- HRM's Sharpe ratio is no luck of {luck} with probability {found['hrm']['deflated_sharpe']:.3f}")
    return "\n".join([*lines, *(f"- {reason}" for reason in found["hrm_for_ppo"]["reasons"]), ""])


def _publish(run: Run, folds: int, found: dict[str, Any]) -> None:
    walk = played(run, folds)
    create_table_artifact(key="walk-forward-folds", table=rows(walk), description=f"{run.inputs.market_name}, {run.id}")
    create_markdown_artifact(key="walk-forward", markdown=described(run, found), description=run.id)
    drawn = plots.equity({name.upper(): return_bps(walk[name]).tolist() for name in TRAINED})
    picture = base64.b64encode(drawn.encode()).decode()
    caption = "Sum of returns over the pooled test sessions, each played by models that had not seen it."
    create_image_artifact(f"data:image/svg+xml;base64,{picture}", key="walk-forward-equity", description=caption)
