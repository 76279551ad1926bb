"""A training of so many seconds: its schedule ends with them, and what validation liked best is kept."""

from __future__ import annotations

import time

import pytest
import torch

from core.settings import Settings, load_settings
from flows.training_clock import LOOKS_AT, UNTIMED_STEPS, Clock, fit
from hrm.batch import MarketSampler, MarketTable
from hrm.losses import Imitation
from hrm.model import HierarchicalReasoningModel
from hrm.trainer import DeepSupervisionTrainer
from trading.dataset import Dataset, build_dataset, training_table

MARKET = "HRM_SYNTHETIC_MARKET__"
SMALL = {
    "HRM_PERFORMANCE__BATCH_SIZE": "64",
    f"{MARKET}BARS_PER_SESSION": "20",
    f"{MARKET}TRAIN_SESSIONS": "60",
    f"{MARKET}VALIDATION_SESSIONS": "12",
    f"{MARKET}TEST_SESSIONS": "25",
}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    state_dir = str(tmp_path_factory.mktemp("clock"))
    return load_settings(preset="compact", environ=SMALL | {"HRM_PATHS__STATE_DIR": state_dir})


@pytest.fixture(scope="module")
def small_data(small: Settings) -> Dataset:
    return build_dataset(small, None, 0)


@pytest.fixture
def trainer(small: Settings, small_data: Dataset) -> DeepSupervisionTrainer:
    torch.set_num_threads(1)
    model = HierarchicalReasoningModel(small.hierarchical_reasoning_model, small_data.schema, 1000.0)
    objective = Imitation(cost_bps=1.5, label_temperature=0.3, reward_shaping=True)
    return DeepSupervisionTrainer(model, small, objective, total_steps=1000)


@pytest.fixture
def sampler(small: Settings, small_data: Dataset) -> MarketSampler:
    return MarketSampler(MarketTable(**training_table(small_data, small)), small_data.schema.window, seed=0)


def _clock(*, elapsed_s: float, looking_s: float = 0.0, looked: int = 0) -> Clock:
    clock = Clock(100.0, len(LOOKS_AT))
    clock.started = time.monotonic() - elapsed_s
    clock.looking_s, clock.looked = looking_s, looked
    return clock


def test_the_steps_of_a_training_follow_from_the_rate_so_far_and_the_time_left() -> None:
    clock = _clock(elapsed_s=50.0)
    clock.untimed_s = 10.0
    assert clock.steps_in_all(UNTIMED_STEPS + 400) == pytest.approx(UNTIMED_STEPS + 900, rel=0.05)


def test_looks_at_validation_are_kept_free_in_the_budget() -> None:
    clock = _clock(elapsed_s=60.0, looking_s=5.0, looked=1)
    assert clock.to_train_s == pytest.approx(100.0 - 5.0 * len(LOOKS_AT))
    assert clock.has_time_to_look
    assert not _clock(elapsed_s=97.0, looking_s=5.0, looked=1).has_time_to_look


def test_the_rate_is_unknown_while_the_first_steps_compile() -> None:
    clock = _clock(elapsed_s=10.0)
    assert clock.steps_in_all(UNTIMED_STEPS) is None
    assert clock.untimed_s >= 10.0


def test_the_learning_rate_ends_its_way_with_the_budget(
    trainer: DeepSupervisionTrainer, sampler: MarketSampler
) -> None:
    done = fit(trainer, sampler.batches(64), lambda: 1.0, budget_s=2.0, report=lambda *_: None)
    assert done.steps > UNTIMED_STEPS
    assert trainer.total_steps <= done.steps + 2
    assert trainer.optimizer.param_groups[0]["lr"] < 0.2 * trainer.optimizer.param_groups[0]["initial_lr"]


def test_the_weights_of_the_best_look_are_kept(trainer: DeepSupervisionTrainer, sampler: MarketSampler) -> None:
    losses, seen = iter([3.0, 1.0, 2.0, 5.0]), []

    def look() -> float:
        seen.append(trainer.ema.output_network.policy.weight.clone())
        return next(losses)

    done = fit(trainer, sampler.batches(64), look, budget_s=1.0, report=lambda *_: None)
    kept = trainer.ema.output_network.policy.weight
    best = done.looks.index(min(done.looks))  # the second, if the machine left time for it
    assert [index for index, weight in enumerate(seen) if torch.equal(kept, weight)] == [best]
