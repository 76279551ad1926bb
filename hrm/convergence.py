"""Convergence monitor (seed 9.1.1): a diverging run returns to its last stable state with half the rate.

Diverged: a loss or gradient norm that is not finite, or a loss above `DIVERGENCE_THRESHOLD` times its running
average once there is one. After `MAX_RECOVERIES` returns the run stops: a rate that low is not the problem.

Slow: `PATIENCE` steps in which the running average did not fall by `STABILITY_THRESHOLD` of itself. That is said and no
more: a training that is done looks the same, and the schedule decides the rate (docs/adr/0043).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import structlog

from core.errors import ModelError

DIVERGENCE_THRESHOLD = 10.0  # times the running average
AVERAGE_DECAY = 0.98
WARMUP_OBSERVATIONS = 50
STABILITY_THRESHOLD = 0.01  # of the running average
PATIENCE = 100  # steps
MAX_RECOVERIES = 3

log = structlog.get_logger(__name__)


class ConvergenceMonitor:
    """Judges each step's loss and keeps the last stable state."""

    def __init__(self, snapshot_every: int, initial: dict[str, Any]) -> None:
        """`initial` is the state to return to before the first `snapshot_every` steps are done."""
        self.snapshot_every = snapshot_every
        self.recoveries = 0
        self.average: float | None = None
        self.observations = 0
        self._stable = initial
        self._lowest, self._lowest_at = math.inf, 0  # the running average when it last fell, and after how many steps

    @property
    def learning_rate_factor(self) -> float:
        return 0.5**self.recoveries

    def diverged(self, loss: float, gradient_norm: float) -> bool:
        """Whether a step with this loss and gradient norm must not be taken."""
        if not (math.isfinite(loss) and math.isfinite(gradient_norm)):
            return True
        settled = self.average is not None and self.observations >= WARMUP_OBSERVATIONS
        return settled and loss > DIVERGENCE_THRESHOLD * (self.average or 0.0)

    def observe(self, loss: float, step: int, state: Callable[[], dict[str, Any]]) -> None:
        """Note a good step; at every `snapshot_every`-th remember `state()`."""
        decay = AVERAGE_DECAY if self.average is not None else 0.0
        self.average = decay * (self.average or 0.0) + (1 - decay) * loss
        self.observations += 1
        self._note_progress(step, self.average)
        if step % self.snapshot_every == 0:
            self._stable = state()

    def _note_progress(self, step: int, average: float) -> None:
        """Say once of each plateau that it is one. Losses are not negative."""
        if average < (1 - STABILITY_THRESHOLD) * self._lowest:
            self._lowest, self._lowest_at = average, self.observations
        elif self.observations - self._lowest_at == PATIENCE:
            log.info(
                "training_converges_slowly",
                step=step,
                loss_average=average,
                remedy="unless validation improves, it is done or training_params.hrm.learning_rate is wrong",
            )

    def recover(self, step: int, loss: float, gradient_norm: float) -> dict[str, Any]:
        """The last stable state. Raises ModelError once there were three recoveries already."""
        self.recoveries += 1
        log.warning("training_diverged", step=step, loss=loss, gradient_norm=gradient_norm, recoveries=self.recoveries)
        if self.recoveries > MAX_RECOVERIES:
            raise ModelError(
                f"HRM training diverged at step {step} (loss {loss:.4g}, gradient norm {gradient_norm:.4g}), "
                f"after {MAX_RECOVERIES} recoveries; lower training_params.hrm.learning_rate or check the data",
                code="training_diverged",
            )
        return self._stable
