"""The inference service as trading sees it: two calls over HTTP, and no exception on the trading path."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import httpx
import structlog
from pydantic import BaseModel, Field, ValidationError

from core.actions import Action

TIMEOUT = httpx.Timeout(2.0, connect=1.0)  # a decision must come well before the next bar closes

log = structlog.get_logger(__name__)


class ArmDecision(BaseModel):
    """The part of a decision that trading acts on."""

    role: Literal["champion", "challenger", "safe"]
    action: Action
    quantity: float = Field(ge=1.0, allow_inf_nan=False)
    model_version: str
    epoch: int


class DecisionAnswer(ArmDecision):
    shadow: ArmDecision | None = None


class DecisionClient:
    """The two calls that trading makes to the inference service. A failure is None or False, never an exception."""

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

    def report(self, symbol: str, champion_bps: float, challenger_bps: float) -> bool:
        """Tell the service what both arms earned; True if it took note."""
        outcome = {"symbol": symbol, "champion_bps": champion_bps, "challenger_bps": challenger_bps}
        try:
            self._http.post("/v1/outcomes", json=outcome).raise_for_status()
        except httpx.HTTPError as error:
            log.warning("outcome_not_reported", symbol=symbol, error=str(error))
            return False
        return True
