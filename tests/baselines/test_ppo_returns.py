"""The reference PPO on CartPole-v1 beside stable-baselines3's, with the same hyper-parameters and seeds.

What is compared are greedy returns over several seeds; a policy at random earns 22.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium_tasks import GymnasiumTask, greedy_return
from scipy import stats
from stable_baselines3.common.env_util import make_vec_env

from baselines.ppo import Ppo
from benchmarks.ppo import CategoricalPolicy
from benchmarks.sb3 import model_of
from core.settings import PpoTraining, load_settings

TASK, EPISODES, SOLVED = "CartPole-v1", 20, 475.0  # the threshold that Gymnasium registers
# Those of rl-baselines3-zoo, with a constant clip range.
TUNED = {"n_envs": 8, "n_steps": 32, "batch_size": 256, "gamma": 0.98, "gae_lambda": 0.8}
TUNED |= {"ent_coef": 0.0, "vf_coef": 0.5, "max_grad_norm": 0.5, "clip_range": 0.2, "learning_rate": 1e-3}


def hyper(samples: int, n_epochs: int) -> PpoTraining:
    ppo = load_settings(preset="compact", environ={}).training_params.ppo
    return ppo.model_copy(update=TUNED | {"hidden_dim": 64, "total_timesteps": samples, "n_epochs": n_epochs})


def our_return(ppo_hyper: PpoTraining, seed: int) -> float:
    policy = CategoricalPolicy(4, ppo_hyper.hidden_dim, 2, seed=seed)
    ppo, env = Ppo(policy, ppo_hyper, seed=seed), GymnasiumTask(TASK, ppo_hyper.n_envs, seed)
    updates = ppo_hyper.total_timesteps // (ppo_hyper.n_envs * ppo_hyper.n_steps)
    for update in range(updates):
        ppo.iterate(env, done=update / updates)

    @torch.inference_mode()
    def decide(seen: np.ndarray) -> np.ndarray:
        return policy.body(torch.from_numpy(seen))[0].argmax(dim=1).numpy()

    return greedy_return(TASK, decide, episodes=EPISODES, seed=1000 + seed)


def their_return(ppo_hyper: PpoTraining, seed: int) -> float:
    env = make_vec_env(TASK, ppo_hyper.n_envs, seed=seed)
    model = model_of(env, ppo_hyper, seed=seed)
    model.learn(ppo_hyper.total_timesteps)
    return greedy_return(
        TASK, lambda seen: model.predict(seen, deterministic=True)[0], episodes=EPISODES, seed=1000 + seed
    )


def returns(ppo_hyper: PpoTraining, seeds: int) -> tuple[np.ndarray, np.ndarray]:
    torch.set_num_threads(1)
    pairs = [(our_return(ppo_hyper, seed), their_return(ppo_hyper, seed)) for seed in range(seeds)]
    ours, theirs = np.array(pairs).T
    return ours, theirs


def test_half_way_it_earns_several_times_what_chance_does() -> None:
    torch.set_num_threads(1)
    ppo_hyper = hyper(20_480, n_epochs=10)
    assert np.mean([our_return(ppo_hyper, seed) for seed in range(2)]) > 100.0


@pytest.mark.slow  # theirs takes several times as long
def test_half_way_its_returns_are_not_told_from_those_of_stable_baselines3() -> None:
    ours, theirs = returns(hyper(20_480, n_epochs=10), seeds=4)
    assert ours.mean() > 100.0
    assert ours.mean() > 0.6 * theirs.mean()
    assert stats.ttest_ind(ours, theirs, equal_var=False).pvalue > 0.05


@pytest.mark.slow
def test_in_the_end_both_solve_the_task_with_every_seed() -> None:
    ours, theirs = returns(hyper(51_200, n_epochs=20), seeds=5)
    assert (ours >= SOLVED).all()
    assert (theirs >= SOLVED).all()
