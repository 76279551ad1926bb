"""What is to be decided on, whatever wire format it came in: the seam between formats and models.

Shapes: W window, F bar features, A account features; everything float32, finite and within +-FEATURE_MAX.
"""

from __future__ import annotations

import math
import time
import uuid
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from core.errors import DataError
from core.observation import ObservationSchema
from delivery.routing import Role

FEATURE_MAX = 1e6  # far above any normalised feature; models overflow on what is finite but absurd

Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Account:
    """One arm's own portfolio: features [A] in the order of the model's schema, and the sign of its position."""

    features: Floats
    position: int


def fresh_id() -> str:
    return uuid.uuid4().hex


def deadline_in(deadline_ms: float | None) -> float:
    """A time.perf_counter(), s; infinite without a deadline."""
    return math.inf if deadline_ms is None else time.perf_counter() + deadline_ms / 1e3


@dataclass(frozen=True, eq=False)
class Question:
    """One observation, and each arm's own account; without a challenger's both arms decide on the champion's.

    `acting` is whose position the symbol really holds, None where nobody said.
    Past its `deadline`, a time.perf_counter() in seconds, the answer is that of the best segment so far, and says so.
    """

    symbol: str
    bars: Floats  # [W, F], oldest first, newest closed
    complexity: float
    champion: Account
    challenger: Account | None = None
    request_id: str = field(default_factory=fresh_id)
    deadline: float = math.inf
    acting: Role | None = None

    def account(self, role: Role) -> Account:
        return self.challenger if role == "challenger" and self.challenger is not None else self.champion

    @property
    def holder(self) -> Role | None:
        """Whose position the symbol holds: the acting arm, if its account is not flat."""
        return self.acting if self.acting is not None and self.account(self.acting).position else None

    def require(self, schema: ObservationSchema, model_id: str) -> None:
        """Raises DataError where the shapes are not those the model was trained on."""
        W, F, A = schema.window, len(schema.bar_features), len(schema.account_features)
        if self.bars.shape != (W, F):
            raise DataError(
                f"bars: {model_id} needs {W} bars of {F} numbers, got {list(self.bars.shape)}", code="shape_mismatch"
            )
        for role, account in (("champion", self.champion), ("challenger", self.challenger)):
            if account is not None and account.features.shape != (A,):
                raise DataError(
                    f"accounts.{role}.features: {model_id} needs {A} numbers ({', '.join(schema.account_features)}), "
                    f"got {account.features.size}",
                    code="shape_mismatch",
                )


def require_bounded(name: str, numbers: Floats) -> None:
    """Raises DataError that names the first number which is not finite or beyond FEATURE_MAX."""
    if np.abs(numbers).max(initial=0.0) <= FEATURE_MAX:  # False for NaN as well
        return
    first = np.argwhere(~(np.abs(numbers) <= FEATURE_MAX))[0].tolist()
    place = "".join(f"[{index}]" for index in first)
    raise DataError(
        f"{name}{place}: {numbers[tuple(first)]} is no number within +-{FEATURE_MAX:g}", code="out_of_range"
    )
