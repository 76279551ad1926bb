"""Real archives, made by stable-baselines3 with a few training steps each, and altered ones."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from core.observation import ObservationSchema

SCHEMA = ObservationSchema(
    window=4, patch=2, bar_features=("x", "y", "z"), account_features=("edge", "position", "time")
)
BARS, ACCOUNT = (4, 3), (3,)
SHORT = {"n_steps": 32, "batch_size": 16, "n_epochs": 2, "seed": 0, "device": "cpu", "learning_rate": 3e-2}


def box(*shape: int) -> spaces.Box:
    return spaces.Box(-np.inf, np.inf, shape, np.float32)


class Noise(gym.Env):
    """Observations and rewards at random, of any size: training leaves weights that are not the first ones."""

    def __init__(self, observation: spaces.Space, action: spaces.Space, scale: float = 1.0) -> None:
        self.observation_space, self.action_space, self.scale = observation, action, scale
        self.observation_space.seed(0)

    def _seen(self) -> Any:
        seen = self.observation_space.sample()
        if isinstance(seen, dict):
            return {name: self.scale * part for name, part in seen.items()}
        return seen if self.scale == 1.0 else self.scale * seen

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return self._seen(), {}

    def step(self, action: Any) -> Any:
        return self._seen(), float(self.np_random.normal()), bool(self.np_random.random() < 0.1), False, {}

    def action_masks(self) -> np.ndarray:
        return np.ones(5, dtype=bool)


def trained(observation: spaces.Space, action: spaces.Space, algorithm: Any = PPO, **options: Any) -> Any:
    """A model after a rollout or two."""
    policy = "MultiInputPolicy" if isinstance(observation, spaces.Dict) else "MlpPolicy"
    model = algorithm(policy, DummyVecEnv([lambda: Noise(observation, action)]), **SHORT | options)
    return model.learn(64)


def trained_normalized(observation: spaces.Space, action: spaces.Space, **options: Any) -> tuple[Any, VecNormalize]:
    """The same behind VecNormalize, with observations far from standard ones."""
    env = VecNormalize(DummyVecEnv([lambda: Noise(observation, action, scale=50.0)]), clip_obs=2.0)
    policy = "MultiInputPolicy" if isinstance(observation, spaces.Dict) else "MlpPolicy"
    return PPO(policy, env, **SHORT | options).learn(64), env


class Payload:
    """Unpickled, it makes a file."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.proof}",)


def rewritten(archive: Path, out: Path, change: Callable[[dict[str, bytes]], Mapping[str, bytes]]) -> Path:
    """The archive with its members changed."""
    with zipfile.ZipFile(archive) as source:
        members = {name: source.read(name) for name in source.namelist()}
    with zipfile.ZipFile(out, "w") as target:
        for name, content in change(members).items():
            target.writestr(name, content)
    return out


def with_data(archive: Path, out: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """The archive with its JSON changed."""

    def changed(members: dict[str, bytes]) -> dict[str, bytes]:
        data = json.loads(members["data"])
        change(data)
        return members | {"data": json.dumps(data).encode()}

    return rewritten(archive, out, changed)
