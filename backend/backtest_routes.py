"""`/api/backtest`: a published model over bars of a symbol (backend/backtests.py), as jobs (backend/jobs.py).

`POST /api/backtest/run` answers with the result, as the seed's interface says (7.1.2), with its `hrm_metrics`. Who does
not want to wait says so: `Prefer: respond-async`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from datetime import date
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, Header, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, model_validator

from backend.backtests import bars_of, newest_model, prepared
from backend.jobs import MOST_KEPT, Job, Jobs, Progress
from core.settings import Settings
from serving import problems
from serving.openapi import failures
from serving.scopes import Scope, needs

Symbol = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_&-]{0,63}$")]
MOST_WAIT_S = 600.0
ModelId = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}/[a-z0-9][a-z0-9._-]{0,63}$")]


class BacktestRequest(BaseModel):
    """Dates are inclusive; left out, all sessions. Without a model the newest published HRM is tested."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    symbol: Symbol
    start_date: date | None = None
    end_date: date | None = None
    initial_capital: Annotated[float, Field(gt=0, le=1e15, allow_inf_nan=False, strict=True)] | None = None
    model: ModelId | None = None

    @model_validator(mode="after")
    def _dates_in_order(self) -> BacktestRequest:
        if self.start_date and self.end_date and self.start_date > self.end_date:
            raise ValueError("start_date is after end_date")
        return self


def router(settings: Settings) -> APIRouter:
    """Over the models and bars of one state directory."""
    jobs = Jobs(settings.paths.state_dir, partial(_work, settings))

    @asynccontextmanager
    async def running(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(jobs.close)

    routes = APIRouter(prefix="/api/backtest", tags=["backtest"], lifespan=running)

    goes_on: dict[int | str, dict[str, Any]] = {202: {"model": Job, "description": "It goes on: Location says where."}}

    @routes.post("/run", response_model=dict[str, Any], responses=goes_on | failures(400, 409, 503))
    @needs(Scope.MODELS_READ)
    async def run(
        asked: BacktestRequest, request: Request, prefer: Annotated[str | None, Header(max_length=256)] = None
    ) -> Response:
        """The result; or, preferred so (RFC 7240: `respond-async`, `wait=10`), a job that goes on, after so long."""
        job = await asyncio.to_thread(jobs.submit, asked.model_dump(mode="json"), request.user.id)
        wait_s = preferred_wait_s(prefer)
        over = await _ended(jobs, job, wait_s)
        return _accepted(over or jobs.get(job.id) or job) if over is None or wait_s is not None else _result(over)

    @routes.get("/{job_id}", response_model=Job, responses=failures(404))
    @needs(Scope.MODELS_READ)
    def one(job_id: str) -> Job | Response:
        """A backtest: its progress, and its result once it is over."""
        return jobs.get(job_id) or problems.problem(404, "unknown_job", f"no such job; the newest {MOST_KEPT} are kept")

    @routes.delete("/{job_id}", response_model=Job, status_code=202, responses=failures(404, 409))
    @needs(Scope.MODELS_READ)
    def cancel(job_id: str, request: Request) -> Job | Response:
        """Ask a backtest of one's own to end; scope `admin`: anybody's."""
        job = jobs.get(job_id)
        if job is None:
            return problems.problem(404, "unknown_job", f"no such job; the newest {MOST_KEPT} are kept")
        if job.by != request.user.id and not request.user.may(Scope.ADMIN):
            return problems.problem(403, "not_yours", f"{job.by} asked for it; they, or the scope admin, may cancel it")
        if not jobs.cancel(job_id):
            return problems.problem(409, "job_over", f"it is {job.status} already, or another process runs it")
        return job

    return routes


def preferred_wait_s(prefer: str | None) -> float | None:
    """How long a caller would wait for the result; None: as long as it takes. What is not understood is ignored."""
    wanted = [each.strip().lower() for each in (prefer or "").replace(";", ",").split(",")]
    waits = [each.removeprefix("wait=") for each in wanted if each.startswith("wait=")]
    if waits and waits[0].isdecimal():
        return min(float(waits[0]), MOST_WAIT_S)
    return 0.0 if "respond-async" in wanted else None


def _work(settings: Settings, wanted: dict[str, Any], told: Progress) -> dict[str, Any]:
    request = BacktestRequest.model_validate(wanted)
    model_id = request.model or newest_model(settings.paths.state_dir / "models")
    bars, dates = bars_of(request.symbol, settings), (request.start_date, request.end_date)
    test = prepared(settings, model_id, bars, initial_capital=request.initial_capital, dates=dates)
    of = len(test.market.decision_bars)
    told(0, of)
    return test.run(lambda ratio: told(round(ratio * of), of)).answer()


async def _ended(jobs: Jobs, job: Job, wait_s: float | None) -> Job | None:
    """The job once it is over; None if it is not in time."""
    future = jobs.future(job.id)
    if future is None:
        return jobs.get(job.id)
    ended, _ = await asyncio.wait([asyncio.wrap_future(future)], timeout=wait_s)
    return future.result() if ended else None


def _result(job: Job) -> Response:
    """What the seed's interface answers with: the result itself, or why there is none."""
    if job.status == "succeeded":
        return JSONResponse(job.result)
    gone = problems.document(409, "job_cancelled", "somebody cancelled this backtest")
    return problems.answer(job.problem or gone)


def _accepted(job: Job) -> Response:
    headers = {"Location": f"/api/backtest/{job.id}", "Preference-Applied": "respond-async"}
    return JSONResponse(asdict(job), 200 if job.is_over else 202, headers)
