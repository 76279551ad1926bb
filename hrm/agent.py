"""HRMAgent: the seed's agent interface (2.4) over the model, adaptive computation and the trainer.

It decides with the averaged weights, greedily over the actions that are legal in the row's position, and thinks
until the halting rule stops each row; rows leave the batch as they halt. An observation with a number that is
not finite gets the safe decision, HOLD with quantity 1, and is counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import structlog
import torch
from numpy.typing import NDArray
from torch import Tensor

from core.actions import SAFE_DECISION, legal_actions
from core.errors import DataError
from core.observation import Observation, ObservationSchema
from core.settings import Settings
from hrm.act import AdaptiveComputationTime
from hrm.batch import market_batch
from hrm.checkpoint import load_checkpoint, save_checkpoint
from hrm.losses import Imitation
from hrm.model import Carry, HierarchicalReasoningModel
from hrm.trainer import DeepSupervisionTrainer

ROWS_AT_ONCE = 2048  # bounds memory; larger batches are no faster

log = structlog.get_logger(__name__)


class Decisions(NamedTuple):
    """What the agent does in B rows."""

    action: NDArray[np.int64]  # [B], core.actions.Action
    quantity: NDArray[np.float64]  # [B], units
    segments: NDArray[np.int64]  # [B], segments thought; 0 for a safe decision


@dataclass(frozen=True, eq=False)
class Experience:
    """An observation and what the oracle says of it."""

    observation: Observation
    q_values: NDArray[np.float32]  # [3], bps by target -1, 0, +1, turnover cost subtracted
    log_quantity: float  # natural log of units


class HRMAgent:
    """Decides, learns, saves and loads."""

    def __init__(
        self,
        schema: ObservationSchema,
        settings: Settings,
        cost_bps: float,
        *,
        device: torch.device | str = "cpu",
        seed: int = 0,
    ) -> None:
        self.schema, self.settings = schema, settings
        hrm = settings.hierarchical_reasoning_model
        model = HierarchicalReasoningModel(hrm, schema, settings.trading.max_quantity, seed=seed)
        training = settings.training_params.hrm
        steps = max(1, training.rows_per_epoch * training.max_epochs // settings.performance.batch_size)
        objective = Imitation(
            cost_bps=cost_bps, label_temperature=training.label_temperature, reward_shaping=hrm.act.reward_shaping
        )
        self.trainer = DeepSupervisionTrainer(model, settings, objective, total_steps=steps, seed=seed, device=device)
        self.act = AdaptiveComputationTime(hrm)
        self.invalid_observations = 0

    @property
    def model(self) -> HierarchicalReasoningModel:
        """The weights that decide: the moving average."""
        return self.trainer.ema

    def select_action(self, observation: Observation) -> tuple[int, float]:
        """(action, quantity in units) for one observation; (HOLD, 1.0) if it is not finite.

        Raises DataError if its shapes are not the schema's.
        """
        decisions = self.decide_batch(
            observation.bars[None],
            observation.account[None],
            np.array([observation.complexity]),
            np.array([observation.position]),
        )
        return int(decisions.action[0]), float(decisions.quantity[0])

    def decide_batch(
        self,
        bars: NDArray[np.floating],
        account: NDArray[np.floating],
        complexity: NDArray[np.floating],
        position: NDArray[np.integer],
    ) -> Decisions:
        """Decide B rows: bars [B, W, F], account [B, A], complexity [B], position [B] in {-1, 0, +1}."""
        self._require_shapes(bars, account, complexity, position)
        finite = np.isfinite(bars).all((1, 2)) & np.isfinite(account).all(1) & np.isfinite(complexity)
        decisions = _safe_decisions(len(bars))
        self._note_invalid(int((~finite).sum()))
        valid = np.flatnonzero(finite)
        for start in range(0, len(valid), ROWS_AT_ONCE):
            rows = valid[start : start + ROWS_AT_ONCE]
            logits, log_quantity, segments = self._think(bars[rows], account[rows], complexity[rows])
            decisions.action[rows] = np.where(legal_actions(position[rows]), logits, -np.inf).argmax(1)
            decisions.quantity[rows] = np.exp(log_quantity).clip(1.0, self.model.quantity_max)
            decisions.segments[rows] = segments
        return decisions

    def learn(self, experiences: Sequence[Experience]) -> None:
        """One segment of deep supervision on oracle-labelled experiences; nothing for an empty sequence."""
        if not experiences:
            return
        batch = market_batch(_stacked(experiences), self.trainer.device)
        loss = self.trainer.train_step(batch)
        log.debug("hrm_learned", loss=loss, rows=len(experiences))

    def save_model(self, path: str | Path) -> None:
        """Write the whole training state as a checkpoint folder (safetensors and JSON)."""
        save_checkpoint(Path(path), self.trainer)

    def load_model(self, path: str | Path) -> None:
        """Read a checkpoint folder. Raises ModelError, changing nothing, if it is absent, damaged or another's."""
        load_checkpoint(Path(path), self.trainer)

    @torch.inference_mode()
    def _think(
        self, bars: NDArray[Any], account: NDArray[Any], complexity: NDArray[Any]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
        """Segments until every row has halted; the outputs are those of each row's last segment."""
        device = self.trainer.device
        inputs = [_tensor(array, device) for array in (bars, account, complexity)]
        alive = torch.arange(len(bars), device=device)
        logits = torch.empty(len(bars), 5, device=device)
        log_quantity, segments = torch.empty(len(bars), device=device), torch.zeros_like(alive)
        carry = self.model.initial_carry(len(bars))
        for segment in range(1, self.act.rule.max_segments + 1):
            outputs, carry = self.model(inputs[0], inputs[1], carry)
            halted = self.act.halted(segment, outputs.q_halt, outputs.q_continue, inputs[2])
            done = alive[halted]
            logits[done], log_quantity[done] = outputs.action_logits[halted], outputs.log_quantity[halted]
            segments[done] = segment
            alive, inputs, carry = _survivors(~halted, alive, inputs, carry)
            if len(alive) == 0:
                break
        return (
            logits.double().cpu().numpy(),
            log_quantity.double().cpu().numpy(),
            segments.cpu().numpy(),
        )

    def _require_shapes(
        self,
        bars: NDArray[Any],
        account: NDArray[Any],
        complexity: NDArray[Any],
        position: NDArray[Any],
    ) -> None:
        rows, schema = len(bars), self.schema
        expected = {
            "bars": (bars, (rows, schema.window, len(schema.bar_features))),
            "account": (account, (rows, len(schema.account_features))),
            "complexity": (complexity, (rows,)),
            "position": (position, (rows,)),
        }
        wrong = [
            f"{name} {list(array.shape)}, expected {list(shape)}"
            for name, (array, shape) in expected.items()
            if array.shape != shape
        ]
        if not np.isin(position, (-1, 0, 1)).all():
            wrong.append("position must be -1, 0 or +1")
        if wrong:
            raise DataError(f"observation does not fit the model's schema: {'; '.join(wrong)}")

    def _note_invalid(self, rows: int) -> None:
        if rows:
            self.invalid_observations += rows
            log.warning("observation_not_finite", rows=rows, total=self.invalid_observations)


def _safe_decisions(rows: int) -> Decisions:
    action, quantity = SAFE_DECISION
    return Decisions(np.full(rows, int(action), dtype=np.int64), np.full(rows, quantity), np.zeros(rows, np.int64))


def _survivors(mask: Tensor, alive: Tensor, inputs: list[Tensor], carry: Carry) -> tuple[Tensor, list[Tensor], Carry]:
    if bool(mask.all()):
        return alive, inputs, carry
    return alive[mask], [tensor[mask] for tensor in inputs], Carry(carry.z_H[mask], carry.z_L[mask])


def _tensor(array: NDArray[Any], device: torch.device) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32)).to(device)


def _stacked(experiences: Sequence[Experience]) -> dict[str, NDArray[Any]]:
    seen = [experience.observation for experience in experiences]
    return {
        "bars": np.stack([one.bars for one in seen]),
        "account": np.stack([one.account for one in seen]),
        "complexity": np.array([one.complexity for one in seen]),
        "position": np.array([one.position for one in seen]),
        "q_values": np.stack([experience.q_values for experience in experiences]),
        "log_quantity": np.array([experience.log_quantity for experience in experiences]),
    }
