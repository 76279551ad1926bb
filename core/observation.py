"""What a model looks at, named: the schema lives in every checkpoint and manifest.

An observation is
    bars        float32 [window, len(bar_features)]   past bars, oldest first, the newest already closed
    account     float32 [len(account_features)]       the account and what is known about today
    complexity  float32                               market complexity in [0, 1], from raw past bars
    position    int in {-1, 0, +1}                    sign of the position held, for the action mask
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from core.errors import ModelError


@dataclass(frozen=True, eq=False)
class Observation:
    """One row of what a model looks at; the shapes are the schema's."""

    bars: NDArray[np.float32]
    account: NDArray[np.float32]
    complexity: float
    position: int


class ObservationSchema(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    window: int = Field(ge=2, le=4096, description="bars in an observation")
    patch: int = Field(ge=1, description="bars in one token; divides the window")
    bar_features: tuple[str, ...] = Field(min_length=1)
    account_features: tuple[str, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _patches_fill_the_window(self) -> ObservationSchema:
        if self.window % self.patch:
            raise ValueError(f"patch {self.patch} does not divide window {self.window}")
        return self

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON: two schemas are the same exactly when their digests are."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()

    def require(self, other: ObservationSchema, what: str) -> None:
        """Raise ModelError unless `other` is this very schema; `what` names the thing that carries it."""
        if self.digest != other.digest:
            raise ModelError(
                f"{what} expects another observation schema (window {other.window}, patch {other.patch}, "
                f"bars {list(other.bar_features)}, account {list(other.account_features)}); retrain or "
                f"re-export it with the current features",
                code="schema_mismatch",
            )
