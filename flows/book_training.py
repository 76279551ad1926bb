"""Training the model of a book for a given time on instances of one law (trading/book.py), by imitation of the optimum.

The loop is flows/training_clock.py's; the instances and their optimum are flows/book_sampler.py's. Validation is the
gain over staying put after the last segment, on instances that no training sees.

Shapes: B instances, K instruments.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from core.settings import Settings
from flows.book_sampler import LARGEST, BookSampler
from flows.progress import report
from flows.training_clock import fit, guessed_steps
from hrm.batch import Batch
from hrm.book import BookImitation, BookModel, book_utility
from hrm.distributed import training_device
from hrm.model import Carry
from hrm.trainer import DeepSupervisionTrainer
from trading.book import BookLaw

SEGMENTS = 16
CPU_ROWS = 64  # of a step there: in minutes, more steps are worth more than larger ones
VALIDATION_ROWS = {"cuda": 8192, "cpu": 512}
TEST_SEED = 1_000_000  # far from those of trainings
TEMPERATURE, TOLERANCE = 0.03, 0.01  # of the labels, and what an answer may miss and be right; units of utility


def book_settings(settings: Settings) -> Settings:
    """A preset's sizes for a book: a set of tokens, six segments in training with the last cycle's gradient, 16 in use.

    What each of these choices is worth: docs/experiments.md.
    """
    hrm = settings.hierarchical_reasoning_model
    changed = hrm.model_copy(
        update={
            "architecture": hrm.architecture.model_copy(update={"positions": "none"}),
            "act": hrm.act.model_copy(
                update={"max_segments": SEGMENTS, "halting": "single_head", "q_learning_lr": 3e-4}
            ),
        }
    )
    supervision = settings.deep_supervision.model_copy(
        update={"max_supervision_segments": 6, "gradient_approximation": "last_cycle"}
    )
    training = settings.training_params.hrm.model_copy(
        update={"learning_rate": 1e-3, "weight_decay": 0.1, "warmup_steps": 500}
    )
    return settings.model_copy(
        update={
            "hierarchical_reasoning_model": changed,
            "deep_supervision": supervision,
            "performance": settings.performance.model_copy(update={"batch_size": _rows(settings)}),
            "training_params": settings.training_params.model_copy(update={"hrm": training}),
        }
    )


def _rows(settings: Settings) -> int:
    rows = settings.performance.batch_size
    return rows if training_device().type == "cuda" else min(rows, CPU_ROWS)


def train(
    law: BookLaw, settings: Settings, *, budget_s: float, seed: int, name: str
) -> tuple[BookModel, dict[str, Any]]:
    """The best averaged weights of a training of `budget_s` seconds under `book_settings`, and what it took.

    A GPU draws and solves its own instances, up to LARGEST instruments; larger books train on the CPU. `name` is what
    the progress is reported as.
    """
    device = training_device() if law.instruments <= LARGEST else torch.device("cpu")
    torch.compiler.reset()  # else torch gives up compiling after eight models
    sampler = BookSampler(law, seed=seed, device=device)
    validation = BookSampler(law, seed=TEST_SEED + 1 + seed, device=device).batch(VALIDATION_ROWS[device.type])
    model = BookModel(settings.hierarchical_reasoning_model, law.instruments, law.factors, seed=seed)
    objective = BookImitation(temperature=TEMPERATURE, tolerance=TOLERANCE)
    trainer = DeepSupervisionTrainer(
        model, settings, objective, total_steps=guessed_steps(budget_s), seed=seed, device=device
    )
    depth = settings.hierarchical_reasoning_model.act.max_segments
    done = fit(
        trainer,
        sampler.batches(settings.performance.batch_size),
        lambda: -float(think(trainer.ema, validation, depth)[-1].gain.mean()),
        budget_s=budget_s,
        report=lambda ratio, note: report(name, ratio, note),
    )
    return trainer.ema, done.facts(trainer, settings)


@dataclass(frozen=True)
class Thought:
    """One segment's answers to B instances."""

    targets: Tensor  # int64 [B, K]
    gain: Tensor  # [B] over staying put, 0 where infeasible
    feasible: Tensor  # bool [B]
    q_halt: Tensor  # [B]


@torch.no_grad()
def think(model: BookModel, batch: Batch, segments: int) -> list[Thought]:
    """What the model says after each of its segments."""
    stay, thoughts = staying_put(batch), []
    inputs = [batch[name] for name in model.inputs]
    carry: Carry = model.initial_carry(len(stay))
    for _ in range(segments):
        outputs, carry = model(*inputs, carry)
        utility, feasible = book_utility(batch, outputs.targets)
        gain = torch.where(feasible, utility - stay, 0.0)
        thoughts.append(Thought(outputs.targets, gain, feasible, outputs.q_halt))
    return thoughts


def staying_put(batch: Batch) -> Tensor:
    """Utility [B] of the positions held."""
    utility, _ = book_utility(batch, batch["instruments"][:, :, -1].round().long())
    return utility
