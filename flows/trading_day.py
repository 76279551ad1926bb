"""A trading day rehearsed over HTTP: a canary up to half of the symbols, a challenger that breaks, rollback, hand-over.

    real service process <──HTTP── paper traders of all symbols ──> order gateway ──> ledger
           ^── plan: weights, loss limits, hand-over ── stepped up over the REST API at minutes of the morning

From `BREAKS_AT` on the challenger's own policy loses (flows/trading_day_models.py); nothing in the service knows of it.
Its drawdown passes the plan's limit, the service rolls back by itself, and the traders hand its positions over. At the
end of every bar the ledger must add up to the last unit. The replay runs as fast as the answers come; the times of the
story are the bars'.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.errors import ConfigError, RolloutError
from core.observation import ObservationSchema
from core.settings import Settings
from delivery.plan import Pause, Plan
from delivery.routing import bucket
from flows.service_process import service_process
from flows.trading_day_desk import Desk, NotedGateway, Notes, Wire
from flows.trading_day_market import Day
from flows.trading_day_models import publish_day_policy, ratio_of_session
from serving import calls
from serving.client import ServiceClient
from serving.schemas_rollout import Event, RolloutResponse
from trading.features import schema
from trading.ledger import Ledger
from trading.service import following

CHAMPION, CHALLENGER = "ppo/v1", "challenger/v1"
CHAMPION_SPAN, CHALLENGER_SPAN = 64, 32  # bars over which they learn what the signal is worth
BREAKS_AT = 0.6  # of the session: 13:00 of an NSE day
HALF = 50  # percent: the weight at which it breaks
SYMBOL_LIMIT_PCT, BOOK_LIMIT_PCT, DAY_LIMIT_PCT = 2.0, 0.3, 1.0
CLIENTS, LATE = 4, 2
STEP_LIMIT_S = 60.0  # for the gates before a weight
BUSY_MACHINE_MS = 2000.0  # no time limit of models is broken here: this is about money


@dataclass(frozen=True)
class Minute:
    """As it was at the end of a bar. Drawdowns are the service's, of the book, in bps."""

    wall_at: float  # when the bar began, Unix time, s
    phase: str
    weight: int
    epoch: int
    champion_drawdown_bps: float
    challenger_drawdown_bps: float
    holders: dict[str, str]  # by symbol that is not flat: champion, challenger
    units: dict[str, float]  # of the same
    restricted: list[str]  # symbols that may only become smaller, or nothing at all
    discrepancies: list[str]


@dataclass(frozen=True)
class Played:
    """All that was seen. Lists of notes are in the order of events; the ledger lies in `folder`/paper.db."""

    day: Day
    plan: Plan
    folder: Path
    minutes: list[Minute]
    notes: Notes
    events: list[Event]
    losses: dict[str, Any]  # the service's ledger at the end
    breaks_at: int  # bar
    seconds: float


def plan_of(settings: Settings) -> Plan:
    """The settings' weights up to a half: each is left when its models answer and somebody says so."""
    weights = [weight for weight in settings.rollout.steps if weight < HALF] + [HALF]
    said: list[dict[str, Any]] = [{"pause": {}}]
    answers: list[dict[str, Any]] = [{"analysis": {"templates": [{"name": "answers"}]}}]
    error_ratio = {
        "name": "error_ratio",
        "provider": {"service": "error_ratio"},
        "successCondition": "result <= args.limit",
        "interval": "1s",
        "count": 2,
    }
    return Plan.model_validate(
        {
            "steps": said + [step for weight in weights for step in ({"setWeight": weight}, *answers, *said)],
            "analysisTemplates": {"answers": {"args": {"limit": 0.01}, "metrics": [error_ratio]}},
            "limits": {
                "symbol": {"maxDrawdownPct": SYMBOL_LIMIT_PCT},
                "book": {"maxDrawdownPct": BOOK_LIMIT_PCT, "maxDailyLossPct": DAY_LIMIT_PCT},
            },
            "handover": {"triggers": {"drawdown_exceeded": "reduce_only"}, "flattenAfter": "15m"},
        }
    )


def play(settings: Settings, day: Day, folder: Path) -> Played:
    """The whole day. Raises ConfigError if there was one in `folder`, RolloutError if the plan cannot be stepped up."""
    if (folder / "paper.db").exists():
        raise ConfigError(f"{folder} holds a rehearsal already; name another folder", code="folder_in_use")
    started = time.perf_counter()
    settings, observation = _for_rehearsal(settings, folder), schema(settings.observation, interval_s=day.interval_s)
    breaks_at = round(BREAKS_AT * day.session_bars)
    _publish(settings.paths.state_dir / "models", observation, ratio_of_session(breaks_at, day.session_bars))
    plan, notes = plan_of(settings), Notes()
    with service_process(settings, champion=CHAMPION) as service, ServiceClient(service.url, service.token) as control:
        control.call(calls.start(CHAMPION, CHALLENGER, plan=plan, reason="rehearsal of a trading day"))
        late = sorted(day.bars, key=lambda symbol: bucket(settings.rollout.salt, symbol))[:LATE]  # who move first
        with closing(Ledger(folder / "paper.db")) as ledger, closing(Wire(service, notes, late)) as wire:
            gateway = NotedGateway(ledger, settings, notes)
            desk = Desk(day, wire, gateway, settings=settings, observation=observation)
            minutes = _trade(desk, control, plan, breaks_at)
        state, events = control.call(calls.rollout()), control.call(calls.events()).events
    seconds = time.perf_counter() - started
    return Played(day, plan, folder, minutes, notes, events, state.statistics["losses"], breaks_at, seconds)


def _trade(desk: Desk, control: ServiceClient, plan: Plan, breaks_at: int) -> list[Minute]:
    """Every bar of the day, and how things stood at its end."""
    steps, minutes = _steps(plan, breaks_at), list[Minute]()
    with following(desk.wire, desk.gateway.raise_fence), ThreadPoolExecutor(CLIENTS + LATE) as pool:
        for number in range(desk.day.session_bars):
            wall_at = time.time()
            if number in steps:
                _step_up(control, plan, steps[number])
            desk.take(number, pool)
            minutes.append(_minute(wall_at, control.call(calls.rollout()), desk))
    return minutes


def _for_rehearsal(settings: Settings, folder: Path) -> Settings:
    """Its own folder, and no time limits but those of a service that hangs."""
    performance, triggers, ladder = settings.performance, settings.triggers, settings.ladder
    serving = settings.serving.model_copy(update={"host": "127.0.0.1", "workers": 1, "book_model": None})
    return settings.model_copy(
        update={
            "paths": settings.paths.model_copy(update={"state_dir": folder / "service"}),
            "serving": serving,
            "performance": performance.model_copy(update={"inference_timeout_ms": BUSY_MACHINE_MS}),
            "triggers": triggers.model_copy(update={"latency_ms": BUSY_MACHINE_MS}),
            "ladder": ladder.model_copy(update={"latency_ms": BUSY_MACHINE_MS}),
        }
    )


def _publish(store: Path, observation: ObservationSchema, breaks_at: float) -> None:
    publish_day_policy(store, CHAMPION, observation, span=CHAMPION_SPAN)
    publish_day_policy(store, CHALLENGER, observation, span=CHALLENGER_SPAN, breaks_at=breaks_at)


def _steps(plan: Plan, breaks_at: int) -> dict[int, int]:
    """By bar the weight that it begins with: evenly over the time in which the challenger is sound."""
    weights = [stage.weight for stage in plan.stages[1:]]
    return {round(breaks_at * (place + 1) / (len(weights) + 1)): weight for place, weight in enumerate(weights)}


def _step_up(control: ServiceClient, plan: Plan, weight: int) -> None:
    """Say go where the plan waits for a person, and let its own gates pass. A rollout that is over stays so.

    Raises RolloutError where a gate does not pass in time.
    """
    deadline = time.monotonic() + STEP_LIMIT_S
    while (state := control.call(calls.rollout())).weight != weight and not state.latched:
        if time.monotonic() > deadline:
            raise RolloutError(f"{weight} % was not reached: {state.waits_for}", code="rehearsal_stuck")
        if _waits_for_a_person(state, plan):
            control.call(calls.command("promote", reason=f"to {weight} % of the symbols", version=state.version))
        else:
            time.sleep(0.05)


def _waits_for_a_person(state: RolloutResponse, plan: Plan) -> bool:
    gates = plan.stages[state.step].gates[state.gate :]
    return bool(gates) and isinstance(gates[0], Pause) and gates[0].indefinite


def _minute(wall_at: float, state: RolloutResponse, desk: Desk) -> Minute:
    books = [desk.gateway.book(symbol) for symbol in desk.day.bars]
    held = {book.symbol: book for book in books if book.units}
    losses = state.statistics["losses"]
    return Minute(
        wall_at,
        str(state.phase),
        state.weight,
        state.epoch,
        losses["champion"]["drawdown_bps"],
        losses["challenger"]["drawdown_bps"],
        {symbol: str(book.acting) for symbol, book in held.items()},
        {symbol: book.units for symbol, book in held.items()},
        [book.symbol for book in books if book.mode != "normal"],
        desk.gateway.ledger.discrepancies(),
    )
