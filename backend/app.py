"""The seed's backend API (7.1): backtests and paper positions, behind the inference service's door.

The same credentials open it: `<state_dir>/api_token`, and keys and tokens with a scope: models:read for a backtest,
rollout:read for positions. Only health is open, and on loopback only.
"""

from __future__ import annotations

import threading
from dataclasses import asdict
from datetime import date
from typing import Annotated, Any

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field, model_validator

from backend.backtests import bars_of, newest_model, prepared
from core.settings import Settings
from serving import problems
from serving.auth import Authenticator
from serving.door import Door
from serving.scopes import Scope, needs
from trading.paper import Ledger

Symbol = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_&-]{0,63}$")]
ModelId = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}/[a-z0-9][a-z0-9._-]{0,63}$")]


class BacktestRequest(BaseModel):
    """Dates are inclusive; left out, all sessions. Without a model the newest published HRM is tested."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    symbol: Symbol
    start_date: date | None = None
    end_date: date | None = None
    initial_capital: Annotated[float, Field(gt=0, le=1e15, allow_inf_nan=False)] | None = None
    model: ModelId | None = None

    @model_validator(mode="after")
    def _dates_in_order(self) -> BacktestRequest:
        if self.start_date and self.end_date and self.start_date > self.end_date:
            raise ValueError("start_date is after end_date")
        return self


def create_app(settings: Settings) -> FastAPI:
    """The backend over one state directory. Raises ConfigError for an unusable token file."""
    state_dir = settings.paths.state_dir
    app = FastAPI(title="HRM trading: backend", version="1")
    app.add_middleware(Door, authenticator=Authenticator(settings), serving=settings.serving, routes=app.routes)
    problems.install(app)
    one_backtest = threading.Lock()  # a backtest fills the machine: a second one waits its turn

    @app.get("/health/live")
    @needs(Scope.METRICS_READ, local=True)
    def live() -> dict[str, str]:
        return {"status": "alive"}

    @app.post("/api/backtest/run")
    @needs(Scope.MODELS_READ)
    def run(request: BacktestRequest) -> dict[str, Any]:
        with one_backtest:
            model_id = request.model or newest_model(state_dir / "models")
            bars, dates = bars_of(request.symbol, settings), (request.start_date, request.end_date)
            test = prepared(settings, model_id, bars, initial_capital=request.initial_capital, dates=dates)
            return test.run().answer()

    @app.get("/api/trading/positions")
    @needs(Scope.ROLLOUT_READ)
    def positions() -> dict[str, list[dict[str, Any]]]:
        file = state_dir / "paper.db"
        if not file.exists():
            return {"positions": []}  # nothing was ever traded here
        ledger = Ledger(file)
        try:
            return {"positions": [asdict(position) for position in ledger.positions()]}
        finally:
            ledger.close()

    return app
