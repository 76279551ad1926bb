"""The reference PPO on CartPole-v1 beside stable-baselines3's, with the same hyper-parameters and seeds."""

from __future__ import annotations

import numpy as np
import torch
from gymnasium_tasks import GymnasiumTask, greedy_return
from stable_baselines3.common.env_util import make_vec_env

from baselines.ppo import Ppo
from benchmarks.ppo import CategoricalPolicy
from benchmarks.sb3 import model_of
from core.settings import PpoTraining, load_settings

TASK, EPISODES, LONGEST = "CartPole-v1", 20, 500.0
# Those of rl-baselines3-zoo, with a constant clip range.
TUNED = {"n_envs": 8, "n_steps": 32, "batch_size": 256, "n_epochs": 20, "gamma": 0.98, "gae_lambda": 0.8}
TUNED |= {"ent_coef": 0.0, "vf_coef": 0.5, "max_grad_norm": 0.5, "clip_range": 0.2, "learning_rate": 1e-3}


def hyper(samples: int) -> PpoTraining:
    ppo = load_settings(preset="compact", environ={}).training_params.ppo
    return ppo.model_copy(update=TUNED | {"hidden_dim": 64, "total_timesteps": samples})


def our_return(samples: int, seed: int) -> float:
    ppo_hyper = hyper(samples)
    policy = CategoricalPolicy(4, ppo_hyper.hidden_dim, 2, seed=seed)
    ppo, env = Ppo(policy, ppo_hyper, seed=seed), GymnasiumTask(TASK, ppo_hyper.n_envs, seed)
    updates = samples // (ppo_hyper.n_envs * ppo_hyper.n_steps)
    for update in range(updates):
        ppo.iterate(env, done=update / updates)

    @torch.inference_mode()
    def decide(seen: np.ndarray) -> np.ndarray:
        return policy.body(torch.from_numpy(seen))[0].argmax(dim=1).numpy()

    return greedy_return(TASK, decide, episodes=EPISODES, seed=1000 + seed)


def their_return(samples: int, seed: int) -> float:
    ppo_hyper = hyper(samples)
    env = make_vec_env(TASK, ppo_hyper.n_envs, seed=seed)
    model = model_of(env, ppo_hyper, seed=seed)
    model.learn(samples)
    return greedy_return(
        TASK, lambda seen: model.predict(seen, deterministic=True)[0], episodes=EPISODES, seed=1000 + seed
    )
