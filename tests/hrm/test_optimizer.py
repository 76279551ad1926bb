"""Adam-atan2 against its formula, written out with numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hrm_planted import HRM, SMALL, model, objective, planted_batch, settings
from numpy.typing import NDArray

from hrm.optimizer import AdamAtan2, make_optimizer
from hrm.trainer import DeepSupervisionTrainer

LR, DECAY, B1, B2 = 0.01, 0.1, 0.9, 0.95
ATAN2 = dict.fromkeys(SMALL, "32") | {
    f"{HRM}ACT__HALTING": "single_head",
    f"{HRM}ACT__Q_LEARNING_LR": "0.05",
    "HRM_TRAINING_PARAMS__HRM__OPTIMIZER": "adam_atan2",
    "HRM_TRAINING_PARAMS__HRM__LEARNING_RATE": "0.004",
}


def by_the_formula(start: NDArray[np.float64], gradients: NDArray[np.float64]) -> NDArray[np.float64]:
    p, m, v = start.copy(), np.zeros_like(start), np.zeros_like(start)
    for t, g in enumerate(gradients, start=1):
        m, v = B1 * m + (1 - B1) * g, B2 * v + (1 - B2) * g**2
        p = p * (1 - LR * DECAY) - LR / (1 - B1**t) * np.arctan2(m, np.sqrt(v) / np.sqrt(1 - B2**t))
    return p


def by_torch(start: NDArray[np.float64], gradients: NDArray[np.float64]) -> NDArray[np.float64]:
    parameter = torch.nn.Parameter(torch.from_numpy(start.copy()))
    optimizer = AdamAtan2([parameter], lr=LR, betas=(B1, B2), weight_decay=DECAY)
    for gradient in gradients:
        parameter.grad = torch.from_numpy(gradient.copy())
        optimizer.step()
    return parameter.detach().numpy()


def test_it_is_the_formula() -> None:
    random = np.random.default_rng(0)
    start, gradients = random.standard_normal((3, 4)), random.standard_normal((7, 3, 4))
    np.testing.assert_allclose(by_torch(start, gradients), by_the_formula(start, gradients), rtol=1e-12)


@pytest.mark.parametrize("scale", [1e-12, 1e6])
def test_the_size_of_the_gradient_does_not_matter(scale: float) -> None:
    random = np.random.default_rng(1)
    start, gradients = random.standard_normal(5), random.standard_normal((4, 5))
    np.testing.assert_allclose(by_torch(start, scale * gradients), by_torch(start, gradients), rtol=1e-9)


def test_a_parameter_that_no_gradient_reached_moves_by_nothing() -> None:
    parameter = torch.nn.Parameter(torch.ones(2))
    AdamAtan2([parameter], weight_decay=DECAY).step()
    assert parameter.tolist() == [1.0, 1.0]
    assert by_torch(np.zeros(2), np.zeros((3, 2))).tolist() == [0.0, 0.0]  # atan2(0, 0) is 0, not NaN


def test_it_is_a_setting_and_it_trains() -> None:
    net = model(ATAN2)
    assert isinstance(make_optimizer(net, settings(ATAN2)), AdamAtan2)
    run = DeepSupervisionTrainer(net, settings(ATAN2), objective(), total_steps=150)
    losses = [run.train_step(planted_batch(128, step)) for step in range(150)]
    assert np.mean(losses[-20:]) < 0.3 * np.mean(losses[:20])
