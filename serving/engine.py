"""Runs a published model with onnxruntime: the ACT halting loop for HRM, one pass for PPO.

The graph holds one segment (Algorithm of the HRM paper, section 2); the loop over segments is here, over
the rows that are still reasoning: halted rows leave, so a batch costs the sum of its depths, not the maximum.

Shapes: B rows, W window, F bar features, A account features; z_H [B, n, h], z_L [B, n, l].
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Executor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.errors import ModelError
from core.halting import HaltingRule
from core.settings import Serving, Settings
from serving.device import DeviceSlots
from serving.graph import GPU_PROVIDERS, Graph, expected_inputs
from serving.reasoning import UNLIMITED, Arrays, Decisions, Reasoning, concatenate
from serving.slots import HostSlots
from serving.store import ONNX, StoredModel, load_version

GOLDEN_TOLERANCE = 1e-3
# In 16 bits a state of the size of 1 is off by some 0.02 after a segment on another provider; a wrong one by 1.
HALF_GOLDEN_TOLERANCE = 0.1
# Rows in one run of a large offline batch. A CPU is no faster with more, and pieces keep several cores busy.
CPU_ROWS_PER_RUN, GPU_ROWS_PER_RUN = 64, 1024


class Engine:
    """A loaded, warm and verified model. Thread-safe: runs share one onnxruntime session."""

    def __init__(self, model: StoredModel, serving: Serving) -> None:
        """Raises ModelError when the graph does not load, does not fit its manifest or misses its goldens."""
        self.id = model.id
        self.manifest = model.manifest
        self.manifest_sha256, self.onnx_sha256 = model.manifest_sha256, model.manifest.files[ONNX].sha256
        self.row_shapes = model.manifest.observation.row_shapes  # of what a caller gives for one row
        self._graph = Graph(model, serving)
        self.provider = self._graph.provider
        self.golden_max_abs_error = self._compare_with_golden(model.golden)
        self.residuals = self._convergence(model.golden)

    def decide(
        self,
        bars: NDArray[np.floating],
        account: NDArray[np.floating],
        complexity: NDArray[np.floating],
        position: NDArray[np.integer],
        *,
        pool: Executor | None = None,
        max_segments: NDArray[np.integer] | None = None,
    ) -> Decisions:
        """Decide for B observations: bars [B,W,F], account [B,A], complexity [B] in [0,1], position [B] sign.

        `pool` runs the pieces of a large batch on several cores: each core alone is faster than all in one matrix
        product, and pieces that halt early do not wait for the others. `max_segments` [B] cuts rows short, as a
        deadline does: how a decision is replayed.

        Raises ModelError on a wrong shape, a non-finite input or a non-finite output of the model.
        """
        rows = self._validated(bars, account, complexity, position, max_segments)
        step = GPU_ROWS_PER_RUN if self.provider in GPU_PROVIDERS else CPU_ROWS_PER_RUN
        pieces = [tuple(array[start : start + step] for array in rows) for start in range(0, len(rows[0]), step)]

        def decide(bars: NDArray[Any], account: NDArray[Any], *rest: NDArray[Any]) -> Decisions:
            return self.decide_rows({"bars": bars, "account": account}, *rest)

        parts = [decide(*piece) for piece in pieces] if pool is None else list(pool.map(lambda p: decide(*p), pieces))
        return concatenate(parts)

    def stop(self) -> None:
        """Make runs in flight and later ones fail: frees the threads of a model that lost its traffic."""
        self._graph.stop()

    def reasoning(self, rows: int, *, resident: bool = False) -> Reasoning:
        """Room for `rows` rows that think at the same time; `resident`: for long, on the device if there is one."""
        on_device = resident and self._graph.captures and self.manifest.algorithm == "hrm"
        slots = DeviceSlots(self._graph, self.manifest, rows) if on_device else self.slots(rows)
        return Reasoning(self.manifest, slots)

    def slots(self, rows: int) -> HostSlots:
        """The memory of such a room, for whoever watches what goes in and comes out (serving/explain.py)."""
        return HostSlots(self._graph, self.manifest, rows)

    def decide_rows(
        self,
        feeds: Mapping[str, NDArray[np.float32]],
        complexity: NDArray[np.float32],
        position: NDArray[np.int64],
        cap: NDArray[np.int64],
    ) -> Decisions:
        """All rows to their end, unchecked; each keeps the answer of its last segment. Raises ModelError."""
        reasoning = self.reasoning(len(position))
        reasoning.join(feeds, complexity, position, cap)
        parts: list[Decisions] = []
        slots: list[NDArray[np.int64]] = []
        while reasoning.free < len(position):
            step = reasoning.step()
            if step.broken.any():
                raise ModelError(f"{self.id}: an output is not finite; roll the model back", code="output_not_finite")
            parts.append(step.decisions[step.halted])
            slots.append(step.slots[step.halted])
            reasoning.leave(slots[-1])
        return concatenate(parts)[np.argsort(np.concatenate(slots))]

    def _run(self, feeds: Arrays) -> Arrays:
        out = self._graph.run(feeds)
        for name, value in out.items():
            if not np.isfinite(value).all():
                raise ModelError(
                    f"{self.id}: output {name} is not finite; roll the model back", code="output_not_finite"
                )
        return out

    def _initial_carry(self, B: int) -> Arrays:
        carry: Arrays = {name: np.zeros((B, *shape), dtype=np.float32) for name, shape in self.manifest.carry.items()}
        return carry | {"reset": np.ones(B, dtype=np.bool_)}

    def _halting_rule(self) -> HaltingRule:
        if self.manifest.halting is None:
            raise ModelError(f"{self.id}: an hrm manifest needs `halting`; export again", code="manifest_invalid")
        return self.manifest.halting

    def _validated(
        self, bars: Any, account: Any, complexity: Any, position: Any, max_segments: Any
    ) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]:
        schema = self.manifest.market
        arrays: tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]] = (
            np.ascontiguousarray(bars, dtype=np.float32),
            np.ascontiguousarray(account, dtype=np.float32),
            np.asarray(complexity, dtype=np.float32),
            np.asarray(position, dtype=np.int64),
        )
        B = len(arrays[0]) if arrays[0].ndim else 0
        wanted = ((B, schema.window, len(schema.bar_features)), (B, len(schema.account_features)), (B,), (B,))
        for name, array, shape in zip(("bars", "account", "complexity", "position"), arrays, wanted, strict=True):
            if array.shape != shape:
                raise ModelError(f"{self.id}: {name} has shape {array.shape}, expected {shape}", code="shape_mismatch")
            if not np.isfinite(array).all():
                raise ModelError(f"{self.id}: {name} holds non-finite numbers", code="input_not_finite")
        if B == 0 or np.abs(arrays[3]).max() > 1:
            raise ModelError(f"{self.id}: needs at least one row, positions in -1, 0, 1", code="shape_mismatch")
        cap = np.full(B, UNLIMITED) if max_segments is None else np.asarray(max_segments, dtype=np.int64)
        if cap.shape != (B,) or cap.min() < 1:
            raise ModelError(f"{self.id}: max_segments must be {B} numbers of at least 1", code="shape_mismatch")
        return (*arrays, cap)

    def _compare_with_golden(self, golden: Mapping[str, NDArray[np.generic]]) -> float:
        """Warm-up and proof in one: the exporting framework's outputs are reproduced here."""
        feeds, wanted = _split_golden(golden)
        if feeds.keys() != expected_inputs(self.manifest).keys() or not wanted.keys() >= set(self._graph.outputs):
            raise ModelError(
                f"{self.id}: golden.npz must hold in_<name> and out_<name> of every graph input and output",
                code="golden_invalid",
            )
        if not all(array.size for array in wanted.values()):
            raise ModelError(f"{self.id}: golden.npz holds no row; export the model again", code="golden_invalid")
        out = self._run(feeds)
        if any(out[name].shape != wanted[name].shape for name in self._graph.outputs):
            raise ModelError(f"{self.id}: a golden output has another shape", code="golden_mismatch")
        differs = np.max([_by_row(out[name] - wanted[name]) for name in self._graph.outputs], axis=0)
        # Where an activation lies between two levels, another processor may take the other one, and the row differs;
        # rows without such a place do not. Arithmetic that is not the same changes every row.
        worst = float(np.median(differs) if self.manifest.storage == "static_int8" else differs.max())
        tolerance = HALF_GOLDEN_TOLERANCE if self.manifest.storage == "half" else GOLDEN_TOLERANCE
        if not worst <= tolerance:  # also true for NaN
            raise ModelError(
                f"{self.id}: differs from its golden outputs by {worst:.2g} (at most {tolerance:g}) "
                f"on {self.provider}; export the model again",
                code="golden_mismatch",
            )
        return worst

    def _convergence(self, golden: Mapping[str, NDArray[np.generic]]) -> tuple[float, ...]:
        """Relative change of z_H from segment to segment on the golden rows; empty for a single pass."""
        if self.manifest.algorithm == "ppo":
            return ()
        feeds, _ = _split_golden(golden)
        feeds |= self._initial_carry(len(feeds["reset"]))
        residuals: list[float] = []
        for segment in range(self._halting_rule().max_segments):
            out = self._run(feeds)
            if segment:
                change = np.linalg.norm(out["z_H_next"] - feeds["z_H"])
                residuals.append(float(change / max(float(np.linalg.norm(feeds["z_H"])), 1e-12)))
            feeds |= {"z_H": out["z_H_next"], "z_L": out["z_L_next"], "reset": np.zeros_like(feeds["reset"])}
        return tuple(residuals)


def load_engine(settings: Settings, model_id: str) -> Engine:
    """Read, verify, open and warm `name/version` of the state directory's store. Raises ModelError."""
    store = settings.paths.state_dir / "models"
    limit_mb = settings.performance.model_size_limit_mb
    return Engine(load_version(store, model_id, size_limit_mb=limit_mb), settings.serving)


def _by_row(difference: NDArray[Any]) -> NDArray[Any]:
    """The largest of every row of [B, ...]: [B]."""
    return np.asarray(np.abs(difference).reshape(len(difference), -1).max(axis=1))


def _split_golden(golden: Mapping[str, NDArray[np.generic]]) -> tuple[Arrays, Arrays]:
    feeds = {name[3:]: array for name, array in golden.items() if name.startswith("in_")}
    wanted = {name[4:]: array for name, array in golden.items() if name.startswith("out_")}
    return feeds, wanted
