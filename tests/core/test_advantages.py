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


def test_by_hand_truncation_is_worth_its_last_value_and_termination_nothing() -> None:
    # gamma 0.5, lambda 0.5; rewards 1, 1, 1; V = 2, 2, 2 and 4 where it stops; the second step ends an episode.
    rewards, values = np.ones((3, 1), np.float32), np.array([[2.0], [2.0], [2.0], [4.0]], np.float32)
    ended = np.array([[False], [True], [False]])
    # delta_3 = 1 + 2 - 2 = 1;  delta_2 = 1 + 0 - 2 = -1, or with a last value of 6: 1 + 3 - 2 = 2
    # delta_1 = 1 + 1 - 2 = 0;  A_1 = 0 + 0.25 A_2
    terminated = gae(rewards, values, ended, gamma=0.5, gae_lambda=0.5)
    assert terminated.ravel().tolist() == [-0.25, -1.0, 1.0]
    final_values = np.array([[0.0], [6.0], [0.0]], np.float32)
    truncated = gae(rewards, values, ended, gamma=0.5, gae_lambda=0.5, final_values=final_values)
    assert truncated.ravel().tolist() == [0.5, 2.0, 1.0]


def test_values_of_a_new_episode_never_reach_the_one_before() -> None:
    rewards, ended = np.ones((4, 2), np.float32), np.zeros((4, 2), dtype=bool)
    ended[1] = True
    values = np.random.default_rng(0).standard_normal((5, 2)).astype(np.float32)
    other = values.copy()
    other[2:] += 100.0
    found = [gae(rewards, v, ended, gamma=0.9, gae_lambda=0.9)[:2] for v in (values, other)]
    np.testing.assert_array_equal(*found)


def test_a_critic_that_is_right_leaves_no_advantage() -> None:
    rewards = np.ones((4, 2), np.float32)
    values = np.repeat(np.arange(4, -1, -1, dtype=np.float32)[:, None], 2, axis=1)
    terminated = np.zeros((4, 2), dtype=bool)
    terminated[-1] = True
    np.testing.assert_array_equal(gae(rewards, values, terminated, gamma=1.0, gae_lambda=0.5), 0.0)
