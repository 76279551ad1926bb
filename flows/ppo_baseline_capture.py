"""Phase 1 (seed 6.1.1): train the incumbent, or take the one that acts already; record what a successor must beat."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import structlog
from prefect import flow, task

from flows.fit import describe
from flows.incumbent import acting_ppo, live_state
from flows.measure import arm_numbers, evaluate_on_test, footprint, selection_loss, validated
from flows.phases import complete, dataset_of, free_version, summary
from flows.progress import report
from flows.revision import git_commit
from flows.run_state import Run, load_run
from flows.tracking import Description, judged, tracked
from trading.dataset import Dataset, training_env

if TYPE_CHECKING:  # torch takes seconds to import
    from baselines.agent import PpoAgent

log = structlog.get_logger()

PHASE = "ppo_baseline_capture"
MODEL = "ppo"


@flow(name=PHASE, timeout_seconds=7200)
def ppo_baseline_capture(run_dir: str) -> dict[str, Any]:
    """Train, export and measure the PPO. `run_dir`: a folder under <state_dir>/runs."""
    return summary(complete(run_dir, PHASE, capture))


def capture(run: Run) -> dict[str, Any]:
    """`model`, `curve` and `validation` of its training, `latency_ms`, `test`, the gate's `metrics`.

    Both curves are empty if it decides already.
    """
    acting = acting_ppo(run, live_state(run.settings))
    if acting:
        log.warning(
            "incumbent_kept", model=acting, why="it decides already, and was imported or trained on this very data"
        )
    trained: dict[str, Any] = (
        {"model": acting, "curve": [], "validation": []} if acting else train_incumbent(str(run.folder))
    )
    report(PHASE, 0.9, f"measuring {acting}, which decides already" if acting else "measuring")
    return trained | measure_incumbent(str(run.folder), trained["model"])


@task(name="train_ppo")
def train_incumbent(run_dir: str) -> dict[str, Any]:
    """Train and publish a PPO; its id, and by samples the mean reward per step (bps) and what validation found."""
    from baselines.export import export

    run = load_run(Path(run_dir))
    data = dataset_of(run)
    trained = fit_incumbent(run, data)
    manifest = export(
        trained.agent,
        store=run.models,
        name=MODEL,
        version=free_version(run, MODEL),
        metrics={},
        dataset_digest=data.digest,
        git_commit=git_commit(),
    )
    model = f"{manifest.name}/{manifest.version}"
    return {"model": model, "curve": trained.curve, "validation": trained.validation}


class Fitted(NamedTuple):
    """What a PPO's training left."""

    agent: PpoAgent
    curve: list[tuple[int, float]]  # samples, mean reward in bps per step
    validation: list[dict[str, float]]  # samples, loss_bps, and score where the optimum is known


def fit_incumbent(run: Run, data: Dataset) -> Fitted:
    """Train a PPO on a run's data. Every look at validation sessions is on record."""
    import torch

    from baselines.agent import Look, train

    curve: list[tuple[int, float]] = []
    validation: list[dict[str, float]] = []

    def progress(done: int, total: int, reward_bps: float) -> None:
        curve.append((done, reward_bps))
        record(done, {"train/reward_bps": reward_bps})
        report(PHASE, 0.9 * done / total, f"{done:,} of {total:,} steps")

    def validate(agent: PpoAgent, look: Look) -> float:
        found = validated(agent.decide_batch, data)
        point = {"loss_bps": selection_loss(found)} | ({} if found.score is None else {"score": found.score})
        validation.append({"samples": look.samples, **point})
        record(look.samples, {f"validation/{name}": value for name, value in point.items()} | judged(found))
        return point["loss_bps"]

    torch.set_num_threads(1)  # small matrices: a second thread waits more than it computes
    env, seed = training_env(data, run.settings, run.inputs.seed), run.inputs.seed
    with tracked(run.settings.paths.state_dir, _described(run, data)) as record:
        agent = train(env, data.schema, run.settings, seed=seed, progress=progress, validate=validate)
    return Fitted(agent, curve, validation)


def _described(run: Run, data: Dataset) -> Description:
    """For the tracking store, where a migration's PPO and its HRM are two runs."""
    params = {f"ppo.{name}": str(value) for name, value in run.settings.training_params.ppo.model_dump().items()}
    return describe(run, data)._replace(name=f"{run.id}-{MODEL}", folder=run.folder / PHASE, params=params)


@task(name="measure_ppo")
def measure_incumbent(run_dir: str, model: str) -> dict[str, Any]:
    run = load_run(Path(run_dir))
    cost = footprint(run, model)
    latency_ms = cost.pop("latency_ms")
    test = arm_numbers(evaluate_on_test(run, model))
    return {"metrics": cost, "latency_ms": latency_ms, "test": test, "cost_bps": dataset_of(run).cost_bps}
