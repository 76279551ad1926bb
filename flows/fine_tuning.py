"""`hrm finetune`: stage B. A trained HRM goes on learning from rewards, and is published only as good as it was.

PPO (hrm/finetune.py) plays the training environment, the same one as the incumbent's. VALIDATIONS times the moving
average of its weights plays the validation sessions, by the measure that stage A was selected with. What is kept is
the average that is better than stage A with the most certainty, and stage A itself if none is better with 95 %
confidence: the smallest of several noisy numbers alone would often be worse on other sessions (docs/experiments.md).
"""

from __future__ import annotations

import copy
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from core.errors import ConfigError, ModelError
from core.settings import Settings
from flows.fit import parameters, tags
from flows.hrm_training import MODEL, with_label_temperature
from flows.measure import headline, selection_loss, validated
from flows.progress import bars, report
from flows.revision import git_commit
from flows.tracking import LOOK, Description, judged, tracked
from flows.train import require_name
from flows.variants import publish_variant
from trading.bootstrap import mean_interval
from trading.dataset import Dataset, build_dataset, training_env
from trading.evaluation import Evaluation, advantage, evaluate

if TYPE_CHECKING:  # torch takes seconds to import
    from hrm.agent import HRMAgent

PHASE = "fine_tuning"
VALIDATIONS = 5  # looks at the validation sessions, as many as at the incumbent's training

Curve = list[dict[str, float]]


def fine_tune_and_publish(
    checkpoint: Path, settings: Settings, data: Path | None, *, seed: int = 0, version: str | None = None
) -> dict[str, Any]:
    """Fine-tune the HRM of a checkpoint folder, publish `hrm/<version>`, compare both stages on held-out sessions.

    `settings`, `data` and `seed` are those it was trained with. Returns `model`, `checkpoint`, `improved` (on the
    validation sessions, with confidence; if not, the published weights are stage A's), `stage_a` and `stage_b`
    (held-out results with intervals), stage B's paired advantage with its interval, and the `curve`. Raises, before
    it trains, ConfigError if `version` is no name or another training's, and ModelError if it is published or the
    checkpoint is damaged or another model's.
    """
    version = _free_version(settings, version)
    dataset = build_dataset(settings, data, seed)
    agent = _agent(checkpoint, settings, dataset, seed)
    with bars(Console(stderr=True)):
        report(PHASE, 0.0, "measuring stage A on held-out sessions")
        stage_a = _on_test(agent, dataset)
        started = time.monotonic()
        curve = fine_tune(agent, dataset, settings, seed=seed)
        _record_looks(curve, settings, _description(settings, dataset, seed, version))
        train_s = time.monotonic() - started
        report(PHASE, 0.95, "measuring stage B on held-out sessions")
        stage_b = _on_test(agent, dataset)
        kept = max(curve, key=lambda point: point["advantage_ci95_low"])
        published = _publish(agent, dataset, settings, version=version, validation=kept["loss_bps"])
        report(PHASE, 1.0, f"{published['model']} published")
    comparison = compared(stage_a, stage_b)
    return published | {"improved": kept is not curve[0], "train_s": train_s} | comparison | {"curve": curve}


def fine_tune(agent: HRMAgent, data: Dataset, settings: Settings, *, seed: int = 0) -> Curve:
    """Stage B for `fine_tuning.total_timesteps` decisions; leaves the best averaged weights in the agent.

    Returns a point for each validation, the first of them stage A's: decisions so far, `loss_bps`,
    `return_bps_per_day`, `mean_segments`, the lower bound of the paired advantage over stage A and, but for stage A,
    the parts of the PPO loss.
    """
    training, env = settings.training_params, training_env(data, settings, seed)
    rollout_steps = training.ppo.n_envs * training.ppo.n_steps
    updates = max(1, training.fine_tuning.total_timesteps // rollout_steps)
    stage_a = validated(agent.decide_batch, data)
    curve = [_point(stage_a, stage_a, steps=0)]
    best = copy.deepcopy(agent.model.state_dict())
    for update in range(1, updates + 1):
        parts = agent.fine_tuner.update(agent.fine_tuner.collect(env))
        report(PHASE, 0.05 + 0.9 * update / updates, f"{update * rollout_steps:,} of {updates * rollout_steps:,} steps")
        if (updates - update) % max(1, updates // VALIDATIONS):
            continue
        point = _point(validated(agent.decide_batch, data), stage_a, steps=update * rollout_steps)
        if point["advantage_ci95_low"] > max(earlier["advantage_ci95_low"] for earlier in curve):
            best = copy.deepcopy(agent.model.state_dict())
        curve.append(point | parts)
    agent.model.load_state_dict(best)
    return curve


def _description(settings: Settings, data: Dataset, seed: int, version: str) -> Description:
    folder = settings.paths.state_dir.resolve() / "trainings" / MODEL / version
    return Description(version, folder, parameters(settings), tags(settings, data, seed))


def _record_looks(curve: Curve, settings: Settings, description: Description) -> None:
    """What was judged on validation sessions, but for stage A, whose own training has recorded it."""
    with tracked(settings.paths.state_dir, description) as record:
        for point in curve[1:]:
            record(int(point["steps"]), {LOOK: point[LOOK]})


def compared(stage_a: Evaluation, stage_b: Evaluation) -> dict[str, Any]:
    """Both stages side by side, and what B gains per session in bps, paired, with its 95 % interval."""
    gained = mean_interval(advantage(stage_b, stage_a))
    return {
        "stage_a": _numbers(stage_a),
        "stage_b": _numbers(stage_b),
        "advantage_bps_per_day": gained.value,
        "advantage_ci95_low": gained.ci95_low,
        "advantage_ci95_high": gained.ci95_high,
    }


def _agent(checkpoint: Path, settings: Settings, data: Dataset, seed: int) -> HRMAgent:
    import torch

    from hrm.agent import HRMAgent
    from hrm.distributed import training_device

    torch.set_num_threads(1)  # small matrices: a second thread waits more than it computes
    settings = with_label_temperature(settings, data)
    agent = HRMAgent(data.schema, settings, data.label_cost_bps, device=training_device(), seed=seed)
    agent.load_model(checkpoint)
    return agent


def _free_version(settings: Settings, version: str | None) -> str:
    """The version, by default the time of day.

    Raises ModelError if it is published, ConfigError if it is no name or another training's, finished or not.
    """
    version = f"{datetime.now(UTC):%Y%m%d-%H%M%S}" if version is None else require_name(version)
    state_dir = settings.paths.state_dir
    if (state_dir / "models" / MODEL / version).exists():
        raise ModelError(f"{MODEL}/{version} is published already; choose another --version", code="version_exists")
    if (folder := state_dir / "trainings" / MODEL / version).exists():
        raise ConfigError(f"{folder}: is another training's; choose another --version", code="other_training")
    return version


def _publish(agent: HRMAgent, data: Dataset, settings: Settings, *, version: str, validation: float) -> dict[str, str]:
    """Publish the agent's averaged weights and save its checkpoint: `model` and `checkpoint`."""
    state_dir = settings.paths.state_dir.resolve()
    checkpoint = state_dir / "trainings" / MODEL / version / "checkpoint"
    manifest = publish_variant(
        agent.model,
        settings,
        store=state_dir / "models",
        name=MODEL,
        version=version,
        storage="auto",
        data=data,
        metrics={"validation": validation},
        dataset_digest=data.digest,
        git_commit=git_commit(),
    )
    agent.save_model(checkpoint)
    return {"model": f"{manifest.name}/{manifest.version}", "checkpoint": str(checkpoint)}


def _on_test(agent: HRMAgent, data: Dataset) -> Evaluation:
    return evaluate(agent.decide_batch, data.test, data.schema, data.cost_bps)


def _point(found: Evaluation, stage_a: Evaluation, *, steps: int) -> dict[str, float]:
    return {
        "steps": steps,
        "loss_bps": selection_loss(found),
        "advantage_ci95_low": mean_interval(advantage(found, stage_a)).ci95_low,
        "return_bps_per_day": float(found.return_bps.mean()),
        "mean_segments": found.mean_segments,
        **judged(found),
    }


def _numbers(evaluation: Evaluation) -> dict[str, float]:
    return headline(evaluation) | {
        "return_bps_per_day": float(evaluation.return_bps.mean()),
        "mean_segments": evaluation.mean_segments,
    }
