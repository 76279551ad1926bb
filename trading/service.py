"""The inference service as trading sees it: three calls over HTTP, and no exception on the trading path."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import date
from typing import Any, Literal

import httpx
import structlog
from pydantic import BaseModel, Field, ValidationError
from sqlalchemy.exc import DatabaseError

from core.actions import Action
from delivery.plan import Handover, HandoverMode

TIMEOUT = httpx.Timeout(2.0, connect=1.0)  # a decision must come well before the next bar closes
FOLLOW_S = 0.25  # an order that was decided before a rollback is refused from then on, at the latest

log = structlog.get_logger(__name__)


class ArmDecision(BaseModel):
    """The part of a decision that trading acts on."""

    role: Literal["champion", "challenger", "safe"]
    action: Action
    quantity: float = Field(ge=1.0, allow_inf_nan=False)
    model: str
    model_version: str
    epoch: int

    @property
    def model_id(self) -> str:
        return f"{self.model}/{self.model_version}"

    @property
    def owner(self) -> str:
        """As trading.ownership.Owner writes it."""
        return f"{self.role}:{self.model_id}"


class HandoverTerms(BaseModel):
    """What becomes of a position whose owner was rolled back."""

    mode: HandoverMode
    flatten_after_s: float = Field(default=Handover().flatten_after, ge=0, allow_inf_nan=False)
    flatten_before_close_s: float = Field(default=Handover().flatten_before_close, ge=0, allow_inf_nan=False)


class DecisionAnswer(ArmDecision):
    """`account`: the arm on whose account it was decided; another model may have answered for one that failed."""

    account: Literal["champion", "challenger"]
    decision_id: str = ""
    fallback: bool = False
    shadow: ArmDecision | None = None
    shadow_missing: str | None = None
    promoted: bool = False  # the shadow is the champion before a promotion, whose account is the challenger's
    handover: HandoverTerms | None = None

    def has_challenger(self, model_id: str) -> bool:
        """False if `model_id` is certainly not the challenger any more."""
        if self.promoted:
            return self.fallback
        for each in (self, self.shadow):
            if each is not None and each.role == "challenger":
                return each.model_id == model_id
        return self.fallback or self.shadow_missing is not None


class DecisionClient:
    """The calls that trading makes to the inference service. A failure is None or False, never an exception."""

    def __init__(self, base_url: str, token: str) -> None:
        headers = {"Authorization": f"Bearer {token}"}
        self._http = httpx.Client(base_url=base_url, headers=headers, timeout=TIMEOUT, trust_env=False)

    def __enter__(self) -> DecisionClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def decide(self, request: Mapping[str, Any]) -> DecisionAnswer | None:
        """The service's decision, or None when there is no valid one: the caller holds."""
        try:
            answer = self._http.post("/v1/decisions", json=request)
            answer.raise_for_status()
            return DecisionAnswer.model_validate_json(answer.content)
        except (httpx.HTTPError, ValidationError) as error:
            log.warning("no_decision", symbol=request["symbol"], error=str(error))
            return None

    def report(self, symbol: str, day: date, champion_bps: float, challenger_bps: float) -> bool:
        """Tell the service what both arms earned on a day of the exchange; True if it took note."""
        outcome = {
            "symbol": symbol,
            "day": day.isoformat(),
            "champion_bps": champion_bps,
            "challenger_bps": challenger_bps,
        }
        try:
            self._http.post("/v1/outcomes", json=outcome).raise_for_status()
        except httpx.HTTPError as error:
            log.warning("outcome_not_reported", symbol=symbol, error=str(error))
            return False
        return True

    def epoch(self) -> int | None:
        """The rollout's epoch; None when it cannot be learned."""
        try:
            answer = self._http.get("/v1/rollout")
            answer.raise_for_status()
            return _Rollout.model_validate_json(answer.content).epoch
        except (httpx.HTTPError, ValidationError) as error:
            log.debug("epoch_unknown", error=str(error))
            return None


class _Rollout(BaseModel):
    epoch: int = Field(strict=True, ge=0)


@contextmanager
def following(service: DecisionClient, raise_fence: Callable[[int], object]) -> Iterator[None]:
    """Tell `raise_fence` each new epoch of the rollout, from a thread, while the block runs.

    Without an answer nothing happens: decisions carry their epoch too, and without decisions there are no orders.
    """
    done = threading.Event()
    thread = threading.Thread(target=_follow, args=(service, raise_fence, done), name="epochs", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _follow(service: DecisionClient, raise_fence: Callable[[int], object], done: threading.Event) -> None:
    seen = -1
    while not done.is_set():
        epoch = service.epoch()
        if epoch is not None and epoch > seen:
            try:
                raise_fence(epoch)
                seen = epoch
            except DatabaseError as error:  # the trader's own writes fail then as well, and end the loop
                log.warning("fence_not_raised", epoch=epoch, error=str(error))
        done.wait(FOLLOW_S)
