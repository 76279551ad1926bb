"""Phase 2: train the HRM, publish its best weights, compare it with the incumbent on sessions neither has seen.

Every `validation_frequency` epochs the moving average of the weights plays the validation sessions; the best one,
by regret where the optimum is known and by return elsewhere, is exported. The export proves that onnxruntime
computes what torch does, in the fastest format whose decisions are the trained model's (flows/variants.py). The
comparison is paired by session.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect import flow, task

from core.errors import ModelError
from core.settings import Settings
from flows.fit import FOLDER, PHASE, fit
from flows.measure import arm_numbers, engine_of, evaluate_on_test, footprint
from flows.phases import complete, dataset_of, free_version, summary
from flows.progress import report
from flows.revision import git_commit
from flows.run_state import Run, load_run, runs_of
from flows.variants import publish_variant
from trading.bootstrap import mean_interval
from trading.dataset import Dataset
from trading.evaluation import advantage

if TYPE_CHECKING:  # torch takes seconds to import
    from hrm.agent import HRMAgent

MODEL = "hrm"
FIRST_WEIGHTS = threading.Lock()  # they are drawn from torch's one generator, and tasks train beside each other


@flow(name=PHASE, timeout_seconds=24 * 3600)
def hrm_training(run_dir: str) -> dict[str, Any]:
    """Train, export and evaluate the HRM. `run_dir`: a folder under <state_dir>/runs with a finished baseline."""
    return summary(complete(run_dir, PHASE, train_and_compare))


def train_and_compare(run: Run) -> dict[str, Any]:
    """`model`, `curve`, `latency_ms`, `test` numbers of the HRM and the gate's `metrics`."""
    incumbent = run.result("ppo_baseline_capture")["model"]
    trained = train_challenger(str(run.folder))
    report(PHASE, 0.92, "comparing on held-out sessions")
    return trained | compare_on_test(str(run.folder), trained["model"], incumbent)


@task(name="train_hrm")
def train_challenger(run_dir: str) -> dict[str, Any]:
    """Train and publish an HRM; its id, its size and the learning curve. Resumes after a kill.

    Of several processes (torchrun) the first alone publishes; the others return nothing.
    """
    run = load_run(Path(run_dir))
    data = dataset_of(run)
    agent = new_agent(run, data)
    if run.inputs.start_from is not None:
        agent.begin_with(checkpoint_of(run.inputs.start_from, run.settings))
    curve = fit(agent, data, run)
    if not agent.trainer.world.leads:
        return {}
    report(PHASE, 0.9, "exporting")
    manifest = publish_variant(
        agent.model,
        run.settings,
        store=run.models,
        name=MODEL,
        version=free_version(run, MODEL),
        storage="auto",
        data=data,
        metrics={"validation": min(point["loss_bps"] for point in curve)},
        dataset_digest=data.digest,
        git_commit=git_commit(),
    )
    return {
        "model": f"{manifest.name}/{manifest.version}",
        "parameters": manifest.parameters,
        "preset": manifest.preset,
        "checkpoint": str(run.folder / FOLDER),
        "curve": curve,
    }


def new_agent(run: Run, data: Dataset) -> HRMAgent:
    """An HRM before its training, with one BLAS thread: of small matrices a second one waits more than it computes."""
    import torch

    from hrm.agent import HRMAgent
    from hrm.distributed import training_device

    torch.set_num_threads(1)
    settings = with_label_temperature(run.settings, data)
    with FIRST_WEIGHTS:
        return HRMAgent(data.schema, settings, data.label_cost_bps, device=training_device(), seed=run.inputs.seed)


def checkpoint_of(model_id: str, settings: Settings) -> Path:
    """Where the run that trained the model keeps its weights. Raises ModelError."""
    for run in runs_of(settings):
        record = run.phase(PHASE)
        if record is not None and record.result.get("model") == model_id:
            return Path(record.result["checkpoint"])
    raise ModelError(f"{model_id}: no run here trained it; train from scratch", code="no_checkpoint")


def with_label_temperature(settings: Settings, data: Dataset) -> Settings:
    """The settings with the temperature the data's labels need: a file's are noisier than an oracle's."""
    ratio = data.label_temperature_bps / data.label_cost_bps
    hrm = settings.training_params.hrm.model_copy(update={"label_temperature": ratio})
    training = settings.training_params.model_copy(update={"hrm": hrm})
    return settings.model_copy(update={"training_params": training})


@task(name="compare_hrm_with_ppo")
def compare_on_test(run_dir: str, challenger: str, champion: str) -> dict[str, Any]:
    run = load_run(Path(run_dir))
    cost = footprint(run, challenger)
    latency_ms = cost.pop("latency_ms")
    theirs, ours = evaluate_on_test(run, champion), evaluate_on_test(run, challenger)
    paired = mean_interval(advantage(ours, theirs))
    metrics = cost | {
        "parity_max_abs_error": engine_of(run, challenger).manifest.metrics["parity_max_abs_error"],
        "advantage_bps_per_day": paired.value,
        "advantage_ci95_low": paired.ci95_low,
        "advantage_ci95_high": paired.ci95_high,
        "hrm_return_bps_per_day": float(ours.return_bps.mean()),
        "ppo_return_bps_per_day": float(theirs.return_bps.mean()),
    }
    return {"metrics": metrics, "latency_ms": latency_ms, "test": arm_numbers(ours)}
