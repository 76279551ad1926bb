"""Generalised advantage estimation is its formula."""

import numpy as np
import pytest

from core.advantages import gae


def test_advantages_are_the_discounted_sum_of_temporal_differences() -> None:
    random = np.random.default_rng(0)
    rewards, values = random.standard_normal((5, 3), np.float32), random.standard_normal((6, 3), np.float32)
    terminated = np.zeros((5, 3), dtype=bool)
    terminated[2, 1] = True
    result = gae(rewards, values, terminated, gamma=0.97, gae_lambda=0.9)
    for e in range(3):
        for t in range(5):
            expected, weight = 0.0, 1.0
            for k in range(t, 5):
                alive = 0.0 if terminated[k, e] else 1.0
                expected += weight * (rewards[k, e] + 0.97 * alive * values[k + 1, e] - values[k, e])
                weight *= 0.97 * 0.9 * alive
            assert float(result[t, e]) == pytest.approx(float(expected), abs=1e-5)


def test_a_critic_that_is_right_leaves_no_advantage() -> None:
    rewards = np.ones((4, 2), np.float32)
    values = np.repeat(np.arange(4, -1, -1, dtype=np.float32)[:, None], 2, axis=1)
    terminated = np.zeros((4, 2), dtype=bool)
    terminated[-1] = True
    np.testing.assert_array_equal(gae(rewards, values, terminated, gamma=1.0, gae_lambda=0.5), 0.0)
