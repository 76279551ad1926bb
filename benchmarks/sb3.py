"""stable-baselines3 on the market of benchmarks/ppo.py: the only module that cannot be imported without it."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import VecEnv

from core.settings import PpoTraining

if TYPE_CHECKING:
    from benchmarks.ppo import Targets


class LockStep(VecEnv):
    """Our lock-step market as it wants its environments; E rows."""

    def __init__(self, env: Targets, rows: int, width: int) -> None:
        self._env, self._action = env, np.zeros(rows, dtype=np.int64)
        self._ended = {"terminal_observation": np.zeros(width, dtype=np.float32)}  # terminated: it is never looked at
        super().__init__(rows, spaces.Box(-np.inf, np.inf, (width,), np.float32), spaces.Discrete(3))

    def reset(self) -> NDArray[np.float32]:
        return np.asarray(self._env.observe()[0])

    def step_async(self, actions: NDArray[np.int64]) -> None:
        self._action = actions

    def step_wait(self) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_], list[dict[str, Any]]]:
        step = self._env.step(self._action)
        infos: list[dict[str, Any]] = [self._ended if ended else {} for ended in step.terminated]
        return self.reset(), step.reward.astype(np.float32), step.terminated, infos

    def close(self) -> None:
        """Nothing is held."""

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        return [None] * self.num_envs

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """There is nothing to set."""

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        return [None] * self.num_envs

    def env_is_wrapped(self, wrapper_class: type, indices: Any = None) -> list[bool]:
        return [False] * self.num_envs


def trainer(env: Targets, hyper: PpoTraining, *, samples: int) -> Callable[[], float]:
    """A function that trains for at least `samples` and says how many a second it took."""
    width = env.observe()[0].shape[1]
    model = model_of(LockStep(env, hyper.n_envs, width), hyper)

    def work() -> float:
        before, started = model.num_timesteps, time.process_time()
        model.learn(samples, reset_num_timesteps=False)
        return (model.num_timesteps - before) / (time.process_time() - started)

    return work


def model_of(env: Any, hyper: PpoTraining, *, seed: int | None = None, net_arch: Sequence[int] = (64, 64)) -> PPO:
    """Its PPO from our hyper-parameters. Its value loss has no half, so vf_coef is halved."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "You have specified a mini-batch size")  # the last one may be smaller
        return PPO(
            "MlpPolicy",
            env,
            learning_rate=lambda left: hyper.learning_rate * left,
            n_steps=hyper.n_steps,
            batch_size=hyper.batch_size,
            n_epochs=hyper.n_epochs,
            gamma=hyper.gamma,
            gae_lambda=hyper.gae_lambda,
            clip_range=hyper.clip_range,
            ent_coef=hyper.ent_coef,
            vf_coef=0.5 * hyper.vf_coef,
            max_grad_norm=hyper.max_grad_norm,
            policy_kwargs={"net_arch": list(net_arch)},
            seed=seed,
            device="cpu",
        )
