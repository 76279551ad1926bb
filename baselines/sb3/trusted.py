"""`--trust`: stable-baselines3 itself loads the archive, and so runs whatever code its author put into it.

The only module here that unpickles, and it is imported for that option alone. What was loaded goes the same way as
what was read: spaces, weights and statistics, checked, rebuilt and exported. Because a policy of another class may
compute something else from the same weights, the rebuilt one is held against it.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3 import PPO
from torch import Tensor

from baselines.sb3.archive import ARCHIVE_LIMIT_MB, checked_weights, read_bounded, refused
from baselines.sb3.description import ActionSpace, Box, Description, Discrete, MultiDiscrete, Shape, activation_named
from baselines.sb3.importing import Source
from baselines.sb3.normalization import Normalization, of_object
from baselines.sb3.policy import ImportedPolicy
from core.files import sha256_hex

ROWS = 64  # random observations on which the rebuilt policy must answer as the loaded one
TOLERANCE = 1e-4


def load_source(archive: Path, normalization: Path | None) -> tuple[Source, Any]:
    """What the files hold, and the policy that was loaded. Raises ModelError if they do not load."""
    sha256 = sha256_hex(read_bounded(archive, ARCHIVE_LIMIT_MB))
    policy = _loaded(archive)
    statistics = _statistics(normalization) if normalization else None
    weights = checked_weights(dict(policy.state_dict()), str(archive))
    return Source(_described(policy), weights, statistics, sha256), policy


def require_same(ours: ImportedPolicy, loaded: Any) -> None:
    """Raises ModelError unless both value random observations alike and take the same actions."""
    rng = np.random.default_rng(0)
    parts = dict(_parts(loaded.observation_space))
    seen = {
        name: torch.from_numpy(rng.standard_normal((ROWS, *shape), dtype=np.float32)) for name, shape in parts.items()
    }
    flat = torch.cat([part.flatten(1) for part in seen.values()], dim=1)
    given = seen.get("", seen)
    with torch.no_grad():
        value_error = (ours.critic(flat) - loaded.predict_values(given)).abs().max()
        wanted = loaded._predict(given, deterministic=True).reshape(ROWS, -1)
        error = torch.maximum(value_error, (_best(ours.actor(flat), loaded.action_space) - wanted).abs().max())
    if not error <= TOLERANCE:
        raise refused(f"its policy computes something else than an MlpPolicy would from its weights (by {error:.2g})")


def _best(outputs: Tensor, space: Any) -> Tensor:
    """[B, n] the best choices, or the mean action."""
    if isinstance(space, spaces.Box):
        return outputs
    counts = [int(space.n)] if isinstance(space, spaces.Discrete) else [int(n) for n in space.nvec]
    return torch.stack([part.argmax(dim=1) for part in torch.split(outputs, counts, dim=1)], dim=1)


def _loaded(archive: Path) -> Any:
    try:
        policy = PPO.load(archive, device="cpu").policy
    except Exception as error:  # whatever the code in an archive raises
        first = f"{type(error).__name__}: {error}".splitlines()[0]
        raise refused(f"{archive}: stable-baselines3 does not load it as a PPO ({first[:200]})") from error
    if not hasattr(policy, "mlp_extractor"):
        raise refused(f"{archive}: its policy is a {type(policy).__name__}, no actor and critic")
    return policy


def _statistics(file: Path) -> Normalization | None:
    try:
        with file.open("rb") as stream:
            return of_object(pickle.load(stream))  # noqa: S301 - what --trust asks for
    except Exception as error:  # whatever the code in a pickle raises
        raise refused(f"{file}: holds no VecNormalize ({type(error).__name__}: {error})") from error


def _described(policy: Any) -> Description:
    return Description(
        observation=_parts(policy.observation_space),
        action=_action(policy.action_space),
        activation=activation_named(str(policy.activation_fn)),
        masked=any("maskable" in parent.__module__ for parent in type(policy).__mro__),
    )


def _parts(space: Any) -> tuple[tuple[str, Shape], ...]:
    found: dict[str, Any] = space.spaces if isinstance(space, spaces.Dict) else {"": space}
    if not all(isinstance(part, spaces.Box) for part in found.values()):
        raise refused(f"its observations are {space}; a Box, or a Dict of bars and account, can be imported")
    return tuple((name, tuple(part.shape)) for name, part in found.items())


def _action(space: Any) -> ActionSpace:
    if isinstance(space, spaces.Discrete):
        return Discrete(int(space.n))
    if isinstance(space, spaces.MultiDiscrete) and space.nvec.ndim == 1:
        return MultiDiscrete(tuple(int(n) for n in space.nvec))
    if isinstance(space, spaces.Box) and space.low.ndim == 1:
        return Box(tuple(space.low.tolist()), tuple(space.high.tolist()))
    raise refused(f"its actions are {space}; Discrete, MultiDiscrete and Box can be imported")
