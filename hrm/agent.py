"""HRMAgent: the seed's agent interface (2.4) over the model, adaptive computation and the trainer.

It decides with the averaged weights, greedily over the actions that are legal in the row's position, and thinks
until the halting rule stops each row; rows leave the batch as they halt. An observation with a number that is
not finite gets the safe decision, HOLD with quantity 1, and is counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import structlog
import torch
from numpy.typing import NDArray
from torch import Tensor

from core.actions import N_ACTIONS, SAFE_DECISION, legal_actions
from core.errors import DataError, ModelError
from core.observation import Observation, ObservationSchema
from core.settings import Settings
from hrm.act import AdaptiveComputationTime
from hrm.batch import market_batch
from hrm.checkpoint import load_checkpoint, save_checkpoint
from hrm.checkpoint import load_model as load_weights
from hrm.finetune import FineTuner
from hrm.losses import Imitation
from hrm.model import HierarchicalReasoningModel
from hrm.rollout import Transition, rollout_of
from hrm.thinking import think
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
    """An observation and what the oracle says of it. What a decision earned instead is a `Transition`."""

    observation: Observation
    q_values: NDArray[np.float32]  # [3], bps by target -1, 0, +1, turnover cost subtracted
    log_quantity: float  # natural log of units


class HRMAgent:
    """Decides, learns, saves and loads."""

    def __init__(
        self,
        schema: ObservationSchema,
        settings: Settings,
        cost_bps: float | None = None,
        *,
        device: torch.device | str = "cpu",
        seed: int = 0,
    ) -> None:
        """`cost_bps` of one unit of turnover in the labels it learns from, by default `trading.cost_bps`."""
        self.schema, self.settings = schema, settings
        hrm = settings.hierarchical_reasoning_model
        model = HierarchicalReasoningModel(hrm, schema, settings.trading.max_quantity, seed=seed)
        objective = Imitation.of(settings, cost_bps)
        self.trainer = DeepSupervisionTrainer(model, settings, objective, seed=seed, device=device)
        self.act = AdaptiveComputationTime(hrm)
        self.seed = seed
        self.invalid_observations = 0

    @property
    def model(self) -> HierarchicalReasoningModel:
        """The weights that decide: the moving average."""
        return self.trainer.ema

    @property
    def hrm_model(self) -> HierarchicalReasoningModel:
        """`model`; this and what follows are the seed's names (docs/adr/0043)."""
        return self.model

    @property
    def act_mechanism(self) -> AdaptiveComputationTime:
        return self.act

    @property
    def device(self) -> torch.device:
        return self.trainer.device

    @property
    def observation_dim(self) -> int:
        """Numbers in one observation."""
        return self.model.observation_dim

    @property
    def action_dim_discrete(self) -> int:
        return N_ACTIONS

    @property
    def action_dim_continuous(self) -> int:
        return 1

    @cached_property
    def fine_tuner(self) -> FineTuner:
        """Stage B. What the agent has learned when it is first asked for is stage A."""
        return FineTuner(self.trainer, seed=self.seed)

    def select_action(self, observation: Observation | NDArray[Any]) -> tuple[int, float]:
        """(action, quantity in units) for one observation; (HOLD, 1.0) if it is not finite.

        Raises DataError if its shapes are not the schema's. A mere array is `observation_dim` numbers, bars
        before account; one of any other shape gets (HOLD, 1.0) too.
        """
        if not isinstance(observation, Observation):
            found = self._of_flat(observation)
            if found is None:
                return int(SAFE_DECISION[0]), SAFE_DECISION[1]
            observation = found
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
            seen = [_tensor(array[rows], self.trainer.device) for array in (bars, account, complexity)]
            thought = think(self.model, self.act, (seen[0], seen[1]), seen[2])
            logits, log_quantity = thought.action_logits.cpu().numpy(), thought.log_quantity.double().cpu().numpy()
            decisions.action[rows] = np.where(legal_actions(position[rows]), logits, -np.inf).argmax(1)
            decisions.quantity[rows] = np.exp(log_quantity).clip(1.0, self.model.quantity_max)
            decisions.segments[rows] = thought.segments.cpu().numpy()
        return decisions

    def learn(self, experiences: Sequence[Experience | Transition]) -> None:
        """Learn from each kind by its own loss; nothing for an empty sequence.

        Oracle-labelled experiences: one segment of deep supervision. Decisions that were taken and what came of
        them: one PPO update, which raises DataError, changing nothing, if one of them cannot be learned from. So does
        whatever is of neither kind.
        """
        taken = [one for one in experiences if isinstance(one, Transition)]
        labelled = [one for one in experiences if isinstance(one, Experience)]
        unknown = {type(one).__name__ for one in experiences if not isinstance(one, Transition | Experience)}
        if unknown:
            raise DataError(
                f"nothing was learned: there is no loss for {', '.join(sorted(unknown))}; give hrm.agent.Experience "
                f"(an observation and what the oracle says of it) or hrm.rollout.Transition (a decision and its worth)",
                code="unknown_experience",
            )
        if taken:
            parts = self.fine_tuner.update(rollout_of(taken, self.trainer.device))
            log.debug("hrm_fine_tuned", rows=len(taken), **parts)
        if labelled:
            loss = self.trainer.train_step(market_batch(_stacked(labelled), self.trainer.device))
            log.debug("hrm_learned", loss=loss, rows=len(labelled))

    def save_model(self, path: str | Path) -> None:
        """Write the whole training state as a checkpoint folder (safetensors and JSON)."""
        save_checkpoint(Path(path), self.trainer)

    def load_model(self, path: str | Path) -> None:
        """Read a checkpoint folder. Raises ModelError, changing nothing, if it is absent, damaged or another's."""
        load_checkpoint(Path(path), self.trainer)

    def begin_with(self, path: str | Path) -> None:
        """Start from the weights of a checkpoint folder, with everything else new: optimiser, schedule, rows.

        Raises ModelError, changing nothing, if it is absent, damaged, or of another schema or architecture.
        """
        weights = load_weights(Path(path)).state_dict()
        own = {name: tensor.shape for name, tensor in self.trainer.model.state_dict().items()}
        if own != {name: tensor.shape for name, tensor in weights.items()}:
            raise ModelError(
                f"{path}: of another schema or architecture; train from scratch", code="other_architecture"
            )
        self.trainer.model.load_state_dict(weights)
        self.trainer.ema.load_state_dict(weights)

    def _of_flat(self, flat: NDArray[Any]) -> Observation | None:
        """The observation that `observation_dim` numbers are; None, noted, if they are none.

        Position and complexity are what the account says of them; a market of unknown complexity is a complex one.
        """
        try:
            with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite
                values = np.asarray(flat, dtype=np.float32)
        except (TypeError, ValueError):
            values = np.empty(0, dtype=np.float32)
        names = self.schema.account_features
        if values.shape != (self.observation_dim,) or "position" not in names:
            self.invalid_observations += 1
            log.warning("observation_of_another_shape", shape=list(values.shape), expected=[self.observation_dim])
            return None
        if not np.isfinite(values).all():
            self._note_invalid(1)
            return None
        bars, account = self.model.split(values[None])
        told = dict(zip(names, account[0].tolist(), strict=True))
        return Observation(bars[0], account[0], told.get("complexity", 1.0), int(np.sign(told["position"])))

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
