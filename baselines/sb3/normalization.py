"""The statistics of VecNormalize: x = clip((observation - mean) / sqrt(var + epsilon), -clip, clip).

From the pickle that VecNormalize.save writes, read as inert data, or from an .npz that EXTRACT makes of it.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from baselines.sb3.archive import read_bounded, refused
from baselines.sb3.pickled import Record, array_of, read_pickle
from core.errors import DataError, ModelError

LIMIT_MB = 64
LARGEST = float(np.finfo(np.float32).max)  # no limit
EXTRACT = (
    "import pathlib, pickle, numpy as np; v = pickle.loads(pathlib.Path('vecnormalize.pkl').read_bytes()); "
    "r = v.obs_rms if isinstance(v.obs_rms, dict) else {'': v.obs_rms}; "
    "np.savez('vecnormalize.npz', clip=v.clip_obs, epsilon=v.epsilon, "
    "**{f'mean.{k}': s.mean for k, s in r.items()}, **{f'var.{k}': s.var for k, s in r.items()})"
)

Vector = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Normalization:
    """Of an observation's parts by name, "" if it has none; a part without statistics is left as it is."""

    mean: Mapping[str, Vector]
    var: Mapping[str, Vector]
    clip: float
    epsilon: float

    def __post_init__(self) -> None:
        numbers = [*self.mean.values(), *self.var.values(), np.array(self.epsilon)]
        if not all(np.isfinite(array).all() for array in numbers):
            raise refused("the normalization holds numbers that are not finite")
        if not (self.clip > 0 and self.epsilon > 0 and all((array >= 0).all() for array in self.var.values())):
            raise refused("the normalization has a clip, an epsilon or a variance that is not positive")

    def vectors(self, parts: tuple[tuple[str, tuple[int, ...]], ...]) -> tuple[Vector, Vector, Vector]:
        """(mean, standard deviation, limit) for every number of an observation of `parts`, end to end.

        Raises ModelError if a part has other statistics than its shape.
        """
        unknown = self.mean.keys() - {name for name, _ in parts}
        if unknown:
            raise refused(f"the normalization is of {list(self.mean)}, the observation has {[n for n, _ in parts]}")
        columns = [self._part(name, shape) for name, shape in parts]
        mean, std, limit = (np.concatenate(column) for column in zip(*columns, strict=True))
        return mean, std, limit

    def _part(self, name: str, shape: tuple[int, ...]) -> tuple[Vector, Vector, Vector]:
        if name not in self.mean:
            size = int(np.prod(shape))
            return np.zeros(size), np.ones(size), np.full(size, LARGEST)
        mean, var = self.mean[name], self.var.get(name)
        if var is None or mean.shape != shape or var.shape != shape:
            raise refused(f"the normalization is of {mean.shape} numbers, the observation has {shape}")
        return mean.ravel(), np.sqrt(var.ravel() + self.epsilon), np.full(mean.size, min(self.clip, LARGEST))


def read_normalization(file: Path) -> Normalization | None:
    """None if observations were not normalized. Raises ModelError for what cannot be read as data."""
    content = read_bounded(file, LIMIT_MB)
    return _from_npz(content, file) if file.suffix == ".npz" else _from_pickle(content, file)


def _from_npz(content: bytes, file: Path) -> Normalization:
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            if sum(member.file_size for member in archive.infolist()) > LIMIT_MB * 1_000_000:
                raise refused(f"{file}: unpacks to more than {LIMIT_MB} MB")
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            arrays = {name: archive[name].astype(np.float64) for name in archive.files}
        return Normalization(
            mean=_by_part(arrays, "mean."),
            var=_by_part(arrays, "var."),
            clip=float(arrays["clip"]),
            epsilon=float(arrays["epsilon"]),
        )
    except ModelError:
        raise
    except Exception as error:  # whatever a damaged or hostile file makes numpy's reader raise
        raise refused(f"{file}: has no clip, epsilon, mean.* and var.* ({error}); make it with:\n  {EXTRACT}") from None


def _by_part(arrays: Mapping[str, Vector], prefix: str) -> dict[str, Vector]:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def _from_pickle(content: bytes, file: Path) -> Normalization | None:
    try:
        state = _state_of(read_pickle(content), "VecNormalize")
        if not state.get("norm_obs", True):
            return None
        statistics = state["obs_rms"]
        parts = statistics if isinstance(statistics, dict) else {"": statistics}
        running = {name: _state_of(part, "RunningMeanStd") for name, part in parts.items()}
        return Normalization(
            mean={name: array_of(part["mean"]) for name, part in running.items()},
            var={name: array_of(part["var"]) for name, part in running.items()},
            clip=float(array_of(state["clip_obs"])),
            epsilon=float(array_of(state["epsilon"])),
        )
    except (DataError, KeyError, TypeError) as error:
        raise refused(
            f"{file}: is not read as data ({error}). If you made it yourself, write its statistics to an .npz in the "
            f'environment that made it, and give that:\n  python -c "{EXTRACT}"\n'
            f"or let --trust load it, which executes what it contains"
        ) from None


def _state_of(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, Record) or value.name.rpartition(".")[2] != name or not isinstance(value.state, dict):
        raise DataError(f"it holds no {name}")
    return value.state


def of_object(normalizer: Any) -> Normalization | None:
    """Of a VecNormalize that was loaded (baselines/sb3/trusted.py)."""
    if not normalizer.norm_obs:
        return None
    parts = normalizer.obs_rms if isinstance(normalizer.obs_rms, dict) else {"": normalizer.obs_rms}
    return Normalization(
        mean={name: np.asarray(part.mean, np.float64) for name, part in parts.items()},
        var={name: np.asarray(part.var, np.float64) for name, part in parts.items()},
        clip=float(normalizer.clip_obs),
        epsilon=float(normalizer.epsilon),
    )
