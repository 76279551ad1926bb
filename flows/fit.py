"""The training loop of `hrm train` and `hrm migrate`: epochs, validation, checkpoints, and a record of it all.

Killed at any moment and started again, it continues from the run's last checkpoint with the identical losses.
Checkpoints fall on multiples of `model_management.checkpoint_frequency` optimiser steps: there the convergence
monitor has just noted the same state as its stable one, so that even a later divergence goes back to the same point.
They are as far apart as it takes for writing them to cost at most CHECKPOINT_RATIO of the time.

In several processes every one runs this loop; the first alone validates, reports, records and keeps the best weights.
"""

from __future__ import annotations

import copy
import math
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from core.settings import Settings
from flows.measure import selection_loss, validated
from flows.pace import Spacing, Stopwatch, clock
from flows.progress import report
from flows.revision import git_commit
from flows.run_state import Run
from flows.tracking import DATASET_TAG, Description, Record, judged, tracked
from trading.dataset import Dataset, training_table

if TYPE_CHECKING:  # torch takes seconds to import; only training needs it
    from hrm.agent import HRMAgent
    from hrm.checkpoint import Extra

PHASE = "hrm_training"
FOLDER = "checkpoint"  # in the run's
SAMPLER = "sampler"  # beside the best weights in a checkpoint: the state of the sampler's generator
CHECKPOINT_RATIO = 0.01  # of the time, at most
REPORT_EVERY = 25  # steps: telling numbers waits for the device
TRAINING_RATIO = 0.9  # of the phase; the rest is export and comparison

Curve = list[dict[str, float]]


class Position(BaseModel):
    """How far a training has come."""

    model_config = ConfigDict(extra="forbid")

    calls: int = Field(default=0, ge=0, description="of train_step; a step that diverged is one")
    loss_sum: float = Field(default=0.0, description="of this epoch's finite losses")
    losses: int = Field(default=0, ge=0)
    curve: Curve = []

    def add(self, loss: float) -> None:
        self.calls += 1
        if math.isfinite(loss):
            self.loss_sum, self.losses = self.loss_sum + loss, self.losses + 1

    def end_epoch(self) -> float:
        """Mean loss of the epoch; the next one begins."""
        mean = self.loss_sum / max(1, self.losses)  # none finite: three steps at most, all divergent
        self.loss_sum, self.losses = 0.0, 0
        return mean


def fit(agent: HRMAgent, data: Dataset, run: Run) -> Curve:
    """Train through all epochs and leave the best averaged weights in the agent and in the run's checkpoint.

    Returns the learning curve: a point for each validation, in the first process; empty in the others.
    """
    training = Training(agent, data, run)
    with ExitStack() as stack:
        if training.world.leads:
            state_dir = run.settings.paths.state_dir
            training.record = stack.enter_context(tracked(state_dir, describe(run, data)))
        while training.position.calls < training.calls:
            training.advance()
    training.finish()
    return training.position.curve


class Training:
    """An agent in training on a run's data."""

    def __init__(self, agent: HRMAgent, data: Dataset, run: Run) -> None:
        from hrm.batch import MarketSampler, MarketTable

        self.agent, self.data, self.run = agent, data, run
        self.trainer, self.world = agent.trainer, agent.trainer.world
        self.hyper, self.rows = run.settings.training_params.hrm, run.settings.performance.batch_size
        self.steps = max(1, self.hyper.rows_per_epoch // self.rows)  # of an epoch
        self.calls = self.steps * self.hyper.max_epochs
        table = MarketTable(**training_table(data, run.settings))
        self.sampler = MarketSampler(
            table, data.schema.window, seed=run.inputs.seed, device=self.trainer.device, world=self.world
        )
        self.folder = run.folder / FOLDER
        self.position, self.best = Position(), dict[str, Any]()
        self.record: Record = lambda step, metrics: None
        self.resume()
        self.watch = Stopwatch(self.position.calls)
        every = run.settings.model_management.checkpoint_frequency
        self.spacing = Spacing(every, CHECKPOINT_RATIO, self.trainer.step)

    def resume(self) -> None:
        """Continue from the run's checkpoint, if there is one. Raises ModelError if none of those there is whole."""
        from hrm import checkpoint
        from hrm.training_state import restore_generator

        if checkpoint.exists(self.folder):
            extra = checkpoint.load_checkpoint(self.folder, self.trainer)
            self.position = Position.model_validate(extra.notes)
            self.best = {name: tensor for name, tensor in extra.tensors.items() if name != SAMPLER}
            restore_generator(self.sampler.generator, extra.tensors[SAMPLER])

    def advance(self) -> None:
        """One step, and what is due after it."""
        self.position.add(self.trainer.train_step(self.sampler.batch(self.rows)))
        calls = self.position.calls
        if calls % REPORT_EVERY == 0 and self.world.leads:
            self.tell()
        if calls % self.steps == 0:
            self.end_epoch(calls // self.steps)
        if self.spacing.due(self.trainer.step):
            self.spacing.next = int(self.world.tell(str(self.spacing.carry_out(self.trainer.step, self.save))))

    def end_epoch(self, epoch: int) -> None:
        train_loss = self.position.end_epoch()
        validates = epoch % self.hyper.validation_frequency == 0 or epoch == self.hyper.max_epochs
        if validates and self.world.leads:
            self.validate({"epoch": epoch, "train_loss": train_loss})

    def validate(self, point: dict[str, float]) -> None:
        found, curve = validated(self.agent.decide_batch, self.data), self.position.curve
        point |= {"loss_bps": selection_loss(found), "mean_segments": found.mean_segments}
        if not curve or point["loss_bps"] < min(earlier["loss_bps"] for earlier in curve):
            self.best = copy.deepcopy(self.agent.model.state_dict())
        curve.append(point)
        self.record(self.trainer.step, {f"validation/{name}": value for name, value in point.items()} | judged(found))

    def tell(self) -> None:
        """Whoever watches, and the tracking store."""
        metrics, calls = self.trainer.metrics(), self.position.calls
        rate = self.watch.lap(calls) * self.rows
        self.record(self.trainer.step, {f"train/{name}": value for name, value in metrics.items()} | {"rows_s": rate})
        epoch = f"epoch {min(calls // self.steps + 1, self.hyper.max_epochs)}/{self.hyper.max_epochs}"
        thought = f"{metrics['segments']:.1f} segments, {metrics['halted_ratio']:.0%} halted"
        left = clock(self.watch.left_s(calls, self.calls))
        note = f"{left} left · {rate:,.0f} rows/s · loss {metrics['total']:.4g} · {thought} · {epoch}"
        report(PHASE, TRAINING_RATIO * calls / self.calls, note)

    def save(self) -> None:
        from hrm.checkpoint import save_checkpoint

        save_checkpoint(self.folder, self.trainer, self.extra())

    def extra(self) -> Extra:
        from hrm.checkpoint import Extra

        tensors = self.best | {SAMPLER: self.sampler.generator.get_state()}
        return Extra(self.position.model_dump(mode="json"), tensors)

    def finish(self) -> None:
        """The best weights are what remains."""
        if self.world.leads:
            self.agent.model.load_state_dict(self.best)
        self.save()


def describe(run: Run, data: Dataset) -> Description:
    """The run for the tracking store: its settings as parameters, what identifies it as tags."""
    return Description(run.id, run.folder, parameters(run.settings), tags(run.settings, data, run.inputs.seed))


def tags(settings: Settings, data: Dataset, seed: int) -> dict[str, str]:
    """What every training tells the tracking store about itself."""
    known = {"preset": settings.preset, "seed": str(seed), DATASET_TAG: data.digest}
    commit = git_commit()
    return known if commit is None else known | {"git": commit}


def parameters(settings: Settings) -> dict[str, str]:
    """Every setting that bears on an HRM's training, by its dotted name."""
    sections = {
        "hrm": settings.hierarchical_reasoning_model,
        "deep_supervision": settings.deep_supervision,
        "performance": settings.performance,
        "training": settings.training_params.hrm,
    }
    found: dict[str, str] = {}
    for section, values in sections.items():
        found |= _flat(section, values.model_dump(mode="json"))
    return found


def _flat(name: str, value: Any) -> dict[str, str]:
    if not isinstance(value, dict):
        return {name: str(value)}
    return {key: text for part in value for key, text in _flat(f"{name}.{part}", value[part]).items()}
