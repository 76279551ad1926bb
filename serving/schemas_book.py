"""The messages of /v1/books: strict, closed and finite, as serving/schemas.py's."""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Literal

import numpy as np
from pydantic import FailFast, Field, Strict

from core.errors import DataError
from core.observation import MAX_FACTORS, MAX_INSTRUMENTS
from serving.book import BookObservation, BookQuestion, FeasibleBy
from serving.question import FEATURE_MAX, deadline_in, fresh_id
from serving.schemas import DeadlineMs, Feature, Message, ModelId, Position, RequestId, Symbol

Magnitude = Annotated[float, Field(strict=True, ge=0, le=FEATURE_MAX, allow_inf_nan=False)]
Units = Annotated[int, Field(strict=True, ge=0, le=MAX_INSTRUMENTS)]


class BookInstrument(Message):
    """One instrument, a unit of which is a unit of risk: the risk aversion is 1 by choice of that unit."""

    symbol: Symbol
    mu: Feature = Field(description="expected return of a unit")
    loadings: Annotated[list[Feature], FailFast()] = Field(
        min_length=1, max_length=MAX_FACTORS, description="[F], on factors of unit variance"
    )
    variance: Magnitude = Field(description="what the factors do not explain")
    cost: Magnitude = Field(description="per unit of turnover")
    position: Annotated[Position, Strict()]


class BookLimits(Message):
    """Of what is held after the decision: sum |p| <= gross, |sum p| <= net."""

    gross: Units
    net: Units


class BookRequest(Message):
    """A book to decide jointly. The order of its instruments means nothing."""

    book_id: Symbol
    instruments: Annotated[list[BookInstrument], FailFast()] = Field(min_length=1, max_length=MAX_INSTRUMENTS)
    limits: BookLimits
    model: ModelId | None = Field(
        default=None, description="by default, of the loaded ones for books of this size, the newest"
    )
    request_id: RequestId | None = None
    deadline_ms: Annotated[DeadlineMs, Strict()] | None = None

    def question(self) -> BookQuestion:
        """Sorted by symbol. Raises DataError for a symbol that comes twice and for loadings of several lengths."""
        symbols = [instrument.symbol for instrument in self.instruments]
        twice = [symbol for symbol, count in Counter(symbols).items() if count > 1]
        if twice:
            raise DataError(f"instruments: {twice[0]} comes twice", code="duplicate_symbol")
        if len({len(instrument.loadings) for instrument in self.instruments}) > 1:
            raise DataError("instruments: all must have the same number of loadings", code="shape_mismatch")
        order = sorted(range(len(symbols)), key=symbols.__getitem__)
        rows = [self.instruments[index] for index in order]
        numbers = [[row.mu, *row.loadings, row.variance, row.cost, row.position] for row in rows]
        limits = [self.limits.gross, self.limits.net]
        return BookQuestion(
            book_id=self.book_id,
            symbols=tuple(symbols[index] for index in order),
            row=BookObservation(np.array(numbers, dtype=np.float32), np.array(limits, dtype=np.float32)),
            places=tuple(sorted(range(len(order)), key=order.__getitem__)),
            model_id=self.model,
            request_id=self.request_id or fresh_id(),
            deadline=deadline_in(self.deadline_ms),
        )


class InstrumentDecision(Message):
    symbol: str
    target: int = Field(ge=-1, le=1, description="what is held after it")
    action: int = Field(ge=0, le=4)
    action_name: str
    probabilities: list[float] | None = Field(
        description="of each action, as the model sees it alone, whoever decided; null where no model answered"
    )


class BookDecision(Message):
    """One decision for all instruments, within the limits whatever the model said."""

    request_id: str
    book_id: str
    decisions: list[InstrumentDecision] = Field(description="in the order of the request's instruments")
    utility: float = Field(description="of the targets: expected return less risk and cost")
    feasible: Literal[True] = Field(description="both limits hold, always")
    feasible_by: FeasibleBy = Field(
        description="`model`: its answer kept the limits. Else `held`: every position stays. Where those held break a "
        "limit `reduced`: closed until none does, of the larger side first, the cheapest to close first"
    )
    segments: int
    halt_reason: str
    model: str
    model_version: str
    provider: str | None = Field(description="onnxruntime's provider that ran the model; null where none did")
    latency_ms: float


class BookResponse(BookDecision):
    decision_id: str = Field(description="of the decision's record: `hrm replay` decides it again; sorts by time")
    recorded: bool = Field(description="false when the disk refused the record; the decision stands")
