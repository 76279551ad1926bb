"""Deep supervision: rows that live their own lives, one optimiser step per segment, and a run that survives."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hrm_planted import HRM, SMALL, model, objective, planted_batch, planted_rows, settings
from torch import Tensor

from core.errors import ConfigError, DataError, ModelError
from hrm.batch import Batch, market_batch
from hrm.model import Carry
from hrm.optimizer import learning_rate_factor
from hrm.trainer import DeepSupervisionTrainer

ROWS = 16
SINGLE = SMALL | {f"{HRM}ACT__HALTING": "single_head"}
Q_LEARNING = SMALL | {f"{HRM}ACT__HALTING": "q_learning"}
DEPTH = "HRM_DEEP_SUPERVISION__MAX_SUPERVISION_SEGMENTS"
TRAINING = "HRM_TRAINING_PARAMS__HRM__"


def trainer(environ: dict[str, str] | None = None, *, steps: int = 100, seed: int = 0) -> DeepSupervisionTrainer:
    environ = SINGLE if environ is None else environ
    return DeepSupervisionTrainer(model(environ), settings(environ), objective(), total_steps=steps, seed=seed)


def poisoned(batch: Batch) -> Batch:
    bars = batch["bars"].clone()
    bars[0, 0, 0] = math.nan
    return batch | {"bars": bars}


def weights(run: DeepSupervisionTrainer) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in run.model.state_dict().items()}


# --- rows -----------------------------------------------------------------------------------------------------


def test_halted_rows_take_the_offered_ones_and_the_others_keep_theirs() -> None:
    run, first, second = trainer(SINGLE | {DEPTH: "5"}), planted_batch(ROWS, 0), planted_batch(ROWS, 1)
    run.train_step(first)
    assert run.rows is not None
    halted = torch.arange(ROWS) % 3 == 0
    run.rows.halted.copy_(halted)
    run.train_step(second)
    for name, now in run.rows.batch.items():
        assert torch.equal(now[halted], second[name][halted]), name
        assert torch.equal(now[~halted], first[name][~halted]), name
    assert run.rows.steps.tolist() == [1 if stopped else 2 for stopped in halted.tolist()]


def test_a_replaced_row_starts_from_the_initial_state_and_a_kept_one_from_its_carry() -> None:
    run, batch = trainer(SINGLE | {DEPTH: "5"}), planted_batch(ROWS, 0)
    run.train_step(batch)
    assert run.rows is not None
    halted = torch.arange(ROWS) < 4
    run.rows.halted.copy_(halted)
    before = Carry(*(z.clone() for z in run.rows.carry))
    seen: list[Tensor] = []
    handle = run.model.recurrence.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    run.train_step(batch)
    handle.remove()
    assert torch.equal(seen[0][:4], run.model.initial_carry(4).z_H)
    assert torch.equal(seen[0][4:], before.z_H[4:])


def test_the_carry_hands_no_gradient_on_and_a_step_keeps_as_much_at_any_age() -> None:
    run, kept = trainer(SINGLE | {DEPTH: "6"}), []

    def pack(tensor: Tensor) -> Tensor:
        kept[-1] += tensor.numel()
        return tensor

    for segment in range(5):
        kept.append(0)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            run.train_step(planted_batch(ROWS, segment))
        assert run.rows is not None
        assert not any(z.requires_grad for z in run.rows.carry)
    assert run.rows.steps.tolist() == [5] * ROWS  # one halt head at -5: nobody has stopped
    assert len(set(kept)) == 1


def test_every_row_stops_at_the_training_depth() -> None:
    run = trainer(SINGLE | {DEPTH: "2"})
    ages = []
    for segment in range(4):
        run.train_step(planted_batch(ROWS, segment))
        assert run.rows is not None
        ages.append(int(run.rows.steps.max()))
    assert ages == [1, 2, 1, 2]


def test_a_batch_of_another_size_starts_all_rows_afresh() -> None:
    run = trainer(SINGLE | {DEPTH: "5"})
    run.train_step(planted_batch(ROWS, 0))
    run.train_step(planted_batch(ROWS // 2, 1))
    assert run.rows is not None
    assert run.rows.steps.tolist() == [1] * (ROWS // 2)


@pytest.mark.parametrize(("environ", "passes"), [(SINGLE, 1), (Q_LEARNING, 2)])
def test_only_q_learning_pays_for_a_second_forward_pass(environ: dict[str, str], passes: int) -> None:
    run, calls = trainer(environ), []
    run.model.recurrence.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    run.train_step(planted_batch(ROWS, 0))
    assert calls == [True, False][:passes]


def test_q_continue_learns_the_promise_of_the_next_segment() -> None:
    run = trainer(Q_LEARNING | {DEPTH: "4"})
    for step in range(10):
        run.train_step(planted_batch(ROWS, step))
    assert run.model.q_head.bias[1].item() > -5.0  # every answer is worth more than sigmoid(-5)


# --- learning -------------------------------------------------------------------------------------------------


def regret_bps(run: DeepSupervisionTrainer, segments: int) -> float:
    batch, net = planted_batch(1000, 999), run.ema
    with torch.inference_mode():
        carry = net.initial_carry(1000)
        for _ in range(segments):
            outputs, carry = net(batch["bars"], batch["account"], carry)
        return float(run.objective(outputs, batch, None).parts["regret_bps"])


def test_it_learns_the_planted_rule_at_every_depth_it_was_trained_for() -> None:
    environ = dict.fromkeys(SMALL, "32") | {
        f"{HRM}ACT__HALTING": "single_head",
        f"{HRM}ACT__Q_LEARNING_LR": "0.05",
        f"{TRAINING}LEARNING_RATE": "0.004",
        f"{TRAINING}EMA_DECAY": "0.95",
    }
    run = trainer(environ, steps=150)
    before = regret_bps(run, 1)
    losses = [run.train_step(planted_batch(128, step)) for step in range(150)]
    assert np.mean(losses[-20:]) < 0.25 * np.mean(losses[:20])
    assert regret_bps(run, 1) < 0.1 * before
    assert regret_bps(run, 2) < 0.1 * before
    metrics = run.metrics()
    assert metrics["right_ratio"] > 0.9
    assert metrics["halted_ratio"] > 0.5  # confident rows stop before the training depth


def test_the_same_seed_gives_the_same_losses() -> None:
    first, second, other = trainer(Q_LEARNING), trainer(Q_LEARNING), trainer(Q_LEARNING, seed=1)
    losses = [[run.train_step(planted_batch(ROWS, step)) for step in range(6)] for run in (first, second, other)]
    assert losses[0] == losses[1]


def test_metrics_speak_after_the_first_step_only() -> None:
    run = trainer()
    assert run.metrics() == {}
    loss = run.train_step(planted_batch(ROWS, 0))
    metrics = run.metrics()
    assert metrics["total"] == pytest.approx(loss)
    assert metrics["segments"] == 1.0
    assert metrics["z_H_residual"] > 0
    assert metrics["converged_ratio"] == 0.0


# --- optimiser ------------------------------------------------------------------------------------------------


def test_the_average_follows_the_weights_by_its_decay() -> None:
    run = trainer()
    before = run.ema.recurrence.f_L.blocks[0].mlp.down.weight.clone()
    run.train_step(planted_batch(ROWS, 0))
    now = run.model.recurrence.f_L.blocks[0].mlp.down.weight
    expected = before + (1 - 0.1) * (now - before)  # the first average counts (1 + 0) / (10 + 0) of the past
    torch.testing.assert_close(run.ema.recurrence.f_L.blocks[0].mlp.down.weight, expected)
    assert not any(p.requires_grad for p in run.ema.parameters())


def test_the_q_head_has_its_own_learning_rate() -> None:
    run = trainer(SINGLE | {f"{HRM}ACT__Q_LEARNING_LR": "0.5"})
    trunk, q_head = run.optimizer.param_groups
    assert {id(p) for p in q_head["params"]} == {id(p) for p in run.model.q_head.parameters()}
    run.train_step(planted_batch(ROWS, 0))
    assert q_head["lr"] / trunk["lr"] == pytest.approx(0.5 / trunk["initial_lr"])


def test_the_rate_warms_up_then_falls_along_a_cosine_to_one_percent() -> None:
    hrm = settings({f"{TRAINING}WARMUP_STEPS": "10"}).training_params.hrm
    factors = [learning_rate_factor(step, 1000, hrm) for step in range(1200)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[9] == factors[10] == pytest.approx(1.0)
    assert factors[505] == pytest.approx(0.505, abs=0.01)
    assert factors[-1] == pytest.approx(0.01)
    assert all(later <= earlier for earlier, later in itertools.pairwise(factors[10:]))


def test_a_short_run_warms_up_over_a_tenth_of_it_and_constant_stays() -> None:
    hrm = settings({f"{TRAINING}SCHEDULER": "constant"}).training_params.hrm
    assert [learning_rate_factor(step, 20, hrm) for step in (0, 1, 19)] == [0.5, 1.0, 1.0]


# --- divergence -----------------------------------------------------------------------------------------------


def test_a_step_that_is_not_finite_changes_nothing_and_halves_the_rate() -> None:
    frequent = {"HRM_MODEL_MANAGEMENT__CHECKPOINT_FREQUENCY": "2"}
    flat = {f"{TRAINING}SCHEDULER": "constant", f"{TRAINING}WARMUP_STEPS": "0"}
    run = trainer(SINGLE | frequent | flat)
    for step in range(4):
        run.train_step(planted_batch(ROWS, step))
    stable = weights(run)
    assert math.isnan(run.train_step(poisoned(planted_batch(ROWS, 4))))
    for name, value in weights(run).items():
        assert torch.equal(value, stable[name]), name
    before = run.optimizer.param_groups[0]["lr"]
    assert math.isfinite(run.train_step(planted_batch(ROWS, 5)))
    assert run.optimizer.param_groups[0]["lr"] == pytest.approx(before / 2)
    assert run.metrics()["recoveries"] == 1


def test_an_exploding_loss_is_a_divergence_too() -> None:
    run = trainer(SINGLE | {DEPTH: "1"}, steps=200)
    for step in range(60):
        run.train_step(planted_batch(ROWS, step))
    batch = planted_batch(ROWS, 61)
    loss = run.train_step(batch | {"log_quantity": batch["log_quantity"] + 100})
    assert math.isfinite(loss)
    assert run.monitor.recoveries == 1


def test_a_run_that_keeps_diverging_stops_with_a_remedy() -> None:
    run = trainer()
    for _ in range(3):
        run.train_step(poisoned(planted_batch(ROWS, 0)))
    with pytest.raises(ModelError, match=r"diverged at step 0 .*learning_rate or check the data"):
        run.train_step(poisoned(planted_batch(ROWS, 0)))


# --- refusals -------------------------------------------------------------------------------------------------


def test_settings_without_a_defined_training_are_refused_all_at_once() -> None:
    environ = SINGLE | {"HRM_DEEP_SUPERVISION__MEMORY_OPTIMIZATION": "false"}
    with pytest.raises(ConfigError, match=r"total_steps.*memory_optimization"):
        DeepSupervisionTrainer(model(environ), settings(environ), objective(), total_steps=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"position": None}, "lack position"),
        ({"complexity": np.zeros(3)}, "unequal lengths"),
        ({"position": np.full(ROWS, 2)}, "position must be"),
    ],
)
def test_rows_that_do_not_fit_are_refused(change: dict[str, object], message: str) -> None:
    rows = {name: value for name, value in (planted_rows(ROWS, 0) | change).items() if value is not None}
    with pytest.raises(DataError, match=message):
        market_batch(rows)
