"""What a model looks at, named: the schema lives in every checkpoint and manifest.

An observation is
    bars        float32 [window, len(bar_features)]   past bars, oldest first, the newest already closed; with
                                                      coarser timeframes one block each, the coarsest first
    account     float32 [len(account_features)]       the account and what is known about today
    complexity  float32                               market complexity in [0, 1], from raw past bars
    position    int in {-1, 0, +1}                    sign of the position held, for the action mask
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from core.errors import ModelError

MAX_INSTRUMENTS, MAX_FACTORS = 64, 64  # of a book


@dataclass(frozen=True, eq=False)
class Observation:
    """One row of what a model looks at; the shapes are the schema's."""

    bars: NDArray[np.float32]
    account: NDArray[np.float32]
    complexity: float
    position: int


class Timeframe(BaseModel):
    """Bars coarser than the base bars: so many minutes of a session, or the whole session ("day")."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^([1-9][0-9]{0,3}min|day)$")
    bars: int = Field(ge=1, le=4096, description="of them in an observation")

    @property
    def span_s(self) -> float:
        """Seconds in one bar; infinite for the whole session."""
        return math.inf if self.name == "day" else 60.0 * int(self.name.removesuffix("min"))

    def is_made_of(self, interval_s: int) -> bool:
        """True if several base bars of `interval_s` seconds make one."""
        return self.span_s == math.inf or (self.span_s > interval_s and self.span_s % interval_s == 0)


def coarsest_first(timeframes: Iterable[Timeframe]) -> tuple[Timeframe, ...]:
    return tuple(sorted(timeframes, key=lambda timeframe: -timeframe.span_s))


class ObservationSchema(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    window: int = Field(ge=2, le=65536, description="rows of `bars`: those of the timeframes, then base bars")
    patch: int = Field(ge=1, description="bars in one token; divides every block of the window")
    bar_features: tuple[str, ...] = Field(min_length=1)
    account_features: tuple[str, ...] = Field(min_length=1)
    interval_s: int = Field(default=300, ge=1, description="of a base bar")
    timeframes: tuple[Timeframe, ...] = Field(default=(), description="coarser than the base bars, coarsest first")
    symbols: tuple[str, ...] = Field(default=(), description="those the account tells apart; empty: any one symbol")

    @property
    def base_window(self) -> int:
        """Base bars in an observation: the last rows of the window."""
        return self.window - sum(timeframe.bars for timeframe in self.timeframes)

    @property
    def row_shapes(self) -> dict[str, tuple[int, ...]]:
        """Of one row's arrays, by the names of the graph's inputs."""
        return {"bars": (self.window, len(self.bar_features)), "account": (len(self.account_features),)}

    @property
    def answers(self) -> tuple[int, ...]:
        """Shape of one row's answer: one action."""
        return ()

    @model_validator(mode="after")
    def _patches_fill_the_blocks(self) -> ObservationSchema:
        for block in (*(timeframe.bars for timeframe in self.timeframes), self.base_window):
            if block < 1 or block % self.patch:
                raise ValueError(
                    f"patch {self.patch} does not divide the {block} bars of a block of window {self.window}"
                )
        return self

    @model_validator(mode="after")
    def _timeframes_are_made_of_base_bars(self) -> ObservationSchema:
        spans = [timeframe.span_s for timeframe in self.timeframes]
        if self.timeframes != coarsest_first(self.timeframes) or len(set(spans)) < len(spans):
            raise ValueError(f"timeframes {[t.name for t in self.timeframes]} must differ, the coarsest first")
        for timeframe in self.timeframes:
            if not timeframe.is_made_of(self.interval_s):
                raise ValueError(f"timeframe {timeframe.name} is not made of whole bars of {self.interval_s} s")
        return self

    @model_validator(mode="after")
    def _symbols_are_told_apart(self) -> ObservationSchema:
        if len(self.symbols) == 1 or len(set(self.symbols)) < len(self.symbols):
            raise ValueError(f"symbols {list(self.symbols)} must be two or more that differ, or none")
        return self

    @property
    def digest(self) -> str:
        return _digest(self)

    def require(self, other: ObservationSchema, what: str) -> None:
        """Raise ModelError unless `other` is this very schema; `what` names the thing that carries it."""
        if self.digest != other.digest:
            raise ModelError(
                f"{what} expects another observation schema (window {other.window}, patch {other.patch}, "
                f"bars of {other.interval_s} s {list(other.bar_features)}, timeframes "
                f"{[timeframe.name for timeframe in other.timeframes]}, account {list(other.account_features)}); "
                f"retrain or re-export it with the current features",
                code="schema_mismatch",
            )


class BookSchema(BaseModel):
    """A book of K instruments that are decided jointly (trading/book.py states the problem).

    instruments  float32 [K, 4 + factors]   mu, loadings, variance, cost, position; their order means nothing
    limits       float32 [2]                gross and net: sum |p| <= gross, |sum p| <= net
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    instruments: int = Field(ge=1, le=MAX_INSTRUMENTS)
    factors: int = Field(ge=1, le=MAX_FACTORS)

    @property
    def row_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"instruments": (self.instruments, 4 + self.factors), "limits": (2,)}

    @property
    def answers(self) -> tuple[int, ...]:
        """Shape of one row's answer: an action for each instrument."""
        return (self.instruments,)

    @property
    def digest(self) -> str:
        return _digest(self)


def _digest(schema: BaseModel) -> str:
    """SHA-256 of the canonical JSON: two schemas are the same exactly when their digests are."""
    return hashlib.sha256(schema.model_dump_json().encode()).hexdigest()
