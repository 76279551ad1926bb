"""Runs a published model with onnxruntime: the ACT halting loop for HRM, one pass for PPO.

The graph holds one segment (Algorithm of the HRM paper, section 2); the loop over segments is here, over
the rows that are still reasoning: halted rows leave, so a batch costs the sum of its depths, not the maximum.

Shapes: B rows, W window, F bar features, A account features; z_H [B, n, h], z_L [B, n, l].
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from core.actions import N_ACTIONS, legal_actions
from core.errors import ModelError
from core.halting import HaltingRule, HaltReason, halt_reason, minimum_segments, should_halt
from core.settings import Serving, Settings
from serving.graph import GPU_PROVIDERS, Arrays, Graph, expected_inputs
from serving.store import StoredModel, load_version

GOLDEN_TOLERANCE = 1e-3
# Rows in one run of a large offline batch. A CPU is no faster with more, and pieces keep several cores busy.
CPU_ROWS_PER_RUN, GPU_ROWS_PER_RUN = 64, 1024


@dataclass(frozen=True)
class Decisions:
    """One decision per row. Illegal actions have probability 0; quantity is in units."""

    action: NDArray[np.int64]  # [B]
    quantity: NDArray[np.float64]  # [B]
    probabilities: NDArray[np.float64]  # [B, 5]
    value: NDArray[np.float64]  # [B]
    segments: NDArray[np.int64]  # [B]
    stable: NDArray[np.bool_]  # [B] the last segment left the action as the one before had it; True for one segment
    halt_reason: list[HaltReason]  # B of them


class _Thought(NamedTuple):
    """How rows [B] were reasoned about: `Decisions.segments` and `Decisions.stable`."""

    segments: NDArray[np.int64]
    stable: NDArray[np.bool_]


class Engine:
    """A loaded, warm and verified model. Thread-safe: runs share one onnxruntime session."""

    def __init__(self, model: StoredModel, serving: Serving) -> None:
        """Raises ModelError when the graph does not load, does not fit its manifest or misses its goldens."""
        self.id = model.id
        self.manifest = model.manifest
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
    ) -> Decisions:
        """Decide for B observations: bars [B,W,F], account [B,A], complexity [B] in [0,1], position [B] sign.

        `pool` runs the pieces of a large batch on several cores: each core alone is faster than all in one matrix
        product, and pieces that halt early do not wait for the others.

        Raises ModelError on a wrong shape, a non-finite input or a non-finite output of the model.
        """
        rows = self._validated(bars, account, complexity, position)
        step = GPU_ROWS_PER_RUN if self.provider in GPU_PROVIDERS else CPU_ROWS_PER_RUN
        pieces = [tuple(array[start : start + step] for array in rows) for start in range(0, len(rows[0]), step)]
        decide = self._decide_rows
        parts = [decide(*piece) for piece in pieces] if pool is None else list(pool.map(lambda p: decide(*p), pieces))
        return parts[0] if len(parts) == 1 else _concatenate(parts)

    def stop(self) -> None:
        """Make runs in flight and later ones fail: frees the threads of a model that lost its traffic."""
        self._graph.stop()

    def _decide_rows(
        self,
        bars: NDArray[np.float32],
        account: NDArray[np.float32],
        complexity: NDArray[np.float32],
        position: NDArray[np.int64],
    ) -> Decisions:
        rule = self.manifest.halting
        if self.manifest.algorithm == "ppo" or rule is None:
            policy = self._graph.run({"bars": bars, "account": account})
            thought = _Thought(np.ones(len(bars), dtype=np.int64), np.ones(len(bars), dtype=np.bool_))
            reasons: list[HaltReason] = ["single_pass"] * len(bars)
        else:
            policy, thought = self._reason(bars, account, complexity, legal_actions(position))
            reasons = [halt_reason(int(segment), True, rule) for segment in thought.segments]
        return _choose(policy, position, self.manifest.quantity_max, thought, reasons)

    def _reason(
        self,
        bars: NDArray[np.float32],
        account: NDArray[np.float32],
        complexity: NDArray[np.float32],
        legal: NDArray[np.bool_],
    ) -> tuple[Arrays, _Thought]:
        """Run segments until every row halted; each row keeps the answer of its last segment."""
        rule = self._halting_rule()
        B = len(bars)
        minimum = minimum_segments(complexity, rule)
        answer: Arrays = {
            "action_logits": np.empty((B, N_ACTIONS), np.float32),
            "log_quantity": np.empty(B, np.float32),
            "value": np.empty(B, np.float32),
        }
        thought = _Thought(np.zeros(B, dtype=np.int64), np.ones(B, dtype=np.bool_))
        action = np.zeros(B, dtype=np.int64)  # of each row's latest segment
        active = np.arange(B)
        feeds = {"bars": bars, "account": account} | self._initial_carry(B)
        for segment in range(1, rule.max_segments + 1):
            out = self._graph.run(feeds)
            now = np.where(legal[active], out["action_logits"], -np.inf).argmax(axis=1)
            thought.stable[active] = (now == action[active]) | (segment == 1)
            action[active] = now
            halted = should_halt(segment, out["q_halt"], out["q_continue"], minimum[active], rule)
            done = active[halted]
            for name, rows in answer.items():
                rows[done] = out[name][halted]
            thought.segments[done] = segment
            if halted.all():
                break
            going = ~halted
            active = active[going]
            feeds = {
                "bars": feeds["bars"][going],
                "account": feeds["account"][going],
                "z_H": out["z_H_next"][going],
                "z_L": out["z_L_next"][going],
                "reset": np.zeros(len(active), dtype=np.bool_),
            }
        return answer, thought

    def _initial_carry(self, B: int) -> Arrays:
        carry: Arrays = {name: np.zeros((B, *shape), dtype=np.float32) for name, shape in self.manifest.carry.items()}
        return carry | {"reset": np.ones(B, dtype=np.bool_)}

    def _halting_rule(self) -> HaltingRule:
        if self.manifest.halting is None:
            raise ModelError(f"{self.id}: an hrm manifest needs `halting`; export again", code="manifest_invalid")
        return self.manifest.halting

    def _validated(
        self, bars: Any, account: Any, complexity: Any, position: Any
    ) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]:
        schema = self.manifest.observation
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
        return arrays

    def _compare_with_golden(self, golden: Mapping[str, NDArray[np.generic]]) -> float:
        """Warm-up and proof in one: the exporting framework's outputs are reproduced here."""
        feeds, wanted = _split_golden(golden)
        if feeds.keys() != expected_inputs(self.manifest).keys() or not wanted.keys() >= set(self._graph.outputs):
            raise ModelError(
                f"{self.id}: golden.npz must hold in_<name> and out_<name> of every graph input and output",
                code="golden_invalid",
            )
        out = self._graph.run(feeds)
        worst = 0.0
        for name in self._graph.outputs:
            if out[name].shape != wanted[name].shape:
                raise ModelError(f"{self.id}: golden out_{name} has another shape", code="golden_mismatch")
            worst = max(worst, float(np.abs(out[name] - wanted[name]).max(initial=0.0)))
        if not worst <= GOLDEN_TOLERANCE:  # also true for NaN
            raise ModelError(
                f"{self.id}: differs from its golden outputs by {worst:.2g} (at most {GOLDEN_TOLERANCE:g}) "
                f"on {self.provider}; export the model again",
                code="golden_mismatch",
            )
        return worst

    def _convergence(self, golden: Mapping[str, NDArray[np.generic]]) -> tuple[float, ...]:
        """Relative change of z_H from segment to segment on the golden rows; empty for a single pass."""
        if self.manifest.algorithm == "ppo":
            return ()
        feeds, _ = _split_golden(golden)
        feeds |= self._initial_carry(len(feeds["bars"]))
        residuals: list[float] = []
        for segment in range(self._halting_rule().max_segments):
            out = self._graph.run(feeds)
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


def _split_golden(golden: Mapping[str, NDArray[np.generic]]) -> tuple[Arrays, Arrays]:
    feeds = {name[3:]: array for name, array in golden.items() if name.startswith("in_")}
    wanted = {name[4:]: array for name, array in golden.items() if name.startswith("out_")}
    return feeds, wanted


def _choose(
    policy: Arrays,
    position: NDArray[np.int64],
    quantity_max: float,
    thought: _Thought,
    reasons: list[HaltReason],
) -> Decisions:
    """Argmax over what is legal in each position; quantity = exp(log_quantity) in [1, quantity_max]."""
    logits = np.where(legal_actions(position), policy["action_logits"].astype(np.float64), -np.inf)
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    log_quantity = policy["log_quantity"].astype(np.float64)
    return Decisions(
        action=logits.argmax(axis=1),
        quantity=np.exp(np.clip(log_quantity, 0.0, np.log(max(quantity_max, 1.0)))),
        probabilities=weights / weights.sum(axis=1, keepdims=True),
        value=policy["value"].astype(np.float64),
        segments=thought.segments,
        stable=thought.stable,
        halt_reason=reasons,
    )


def _concatenate(parts: list[Decisions]) -> Decisions:
    return Decisions(
        action=np.concatenate([part.action for part in parts]),
        quantity=np.concatenate([part.quantity for part in parts]),
        probabilities=np.concatenate([part.probabilities for part in parts]),
        value=np.concatenate([part.value for part in parts]),
        segments=np.concatenate([part.segments for part in parts]),
        stable=np.concatenate([part.stable for part in parts]),
        halt_reason=[reason for part in parts for reason in part.halt_reason],
    )
