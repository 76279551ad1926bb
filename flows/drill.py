"""The rollback drill: break a live challenger in each of the six ways and measure how it loses its traffic.

Each trigger gets a real service process with a healthy champion and a challenger that decides for every symbol. Eight
keep-alive clients ask for decisions; after healthy traffic the input changes so that the challenger's own graph fails
(flows/drill_models.py): nothing in the service knows about drills. All of it is bounded in time and ended at the end.

    detected_ms                    fault onset -> the guard fires (time stamp of the rollback in the service's log)
    last_challenger_ms             the guard fires -> the last challenger decision a client received; 0 if none after
    last_challenger_since_fault_ms the same, from fault onset
    lost_decisions                 requests without a model's decision: refused, broken off, HOLD for want of one
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.actions import Action
from core.errors import HrmSystemError, RolloutError
from core.settings import Settings
from delivery.default_plan import default_plan
from delivery.handover import mode_for
from delivery.plan import Limits, LossLimits, Plan
from flows.drill_models import FAULT_LEVEL, SCHEMA, Fault, publish_policy, slow_products
from flows.service_process import ServiceProcess, service_process
from serving import calls
from serving.client import AsyncServiceClient
from serving.question import Account, Question
from serving.schemas import DecisionResponse

Bars = NDArray[np.float32]

CHAMPION, CHALLENGER = "ppo/v1", "challenger/v1"
CLIENTS = 8
SYMBOLS = 40
HEALTHY_S = 0.8
FAULT_LIMIT_S = 60.0  # a trigger that has not fired by then does not work; money needs a thousand outcomes
AFTERWARDS_S = 0.5
PAUSE_S = 0.002  # of a client between two requests: load, not starvation of the machine
MEMORY_HEADROOM_GB = 0.15  # over the resident set under healthy load
DRIFT_BPS, NOISE_BPS = 5.0, 5.0  # of the market that the challenger bets against


@dataclass(frozen=True)
class Scenario:
    """`limits` of the plan, narrow enough to be passed before the thousand outcomes of performance_degradation."""

    trigger: str
    fault: Fault
    limits: Limits = field(default_factory=Limits)


SCENARIOS = (
    Scenario("error_rate_exceeded", "not_finite"),
    Scenario("latency_violation", "slow"),
    Scenario("memory_overflow", "hungry"),
    Scenario("performance_degradation", "opposite"),
    Scenario("drawdown_exceeded", "opposite", Limits(book=LossLimits(max_drawdown_pct=0.2))),
    Scenario("daily_loss_exceeded", "opposite", Limits(book=LossLimits(max_daily_loss_pct=0.2))),
)


@dataclass
class Load:
    """What the clients do now and what they saw. Times are Unix seconds, the clock of the service's log."""

    faulty: bool = False
    stop: bool = False
    decisions: int = 0
    lost: int = 0
    last_challenger_at: float | None = None
    challenger_decisions: int = 0
    problems: list[str] = field(default_factory=list)


def run_drill(settings: Settings, work_dir: Path, triggers: tuple[str, ...] | None = None) -> list[dict[str, Any]]:
    """Drill each trigger (all six by default), each in its own folder of `work_dir`, about five seconds each.

    Raises RolloutError when a trigger does not fire, or the wrong one does.
    """
    chosen = [scenario for scenario in SCENARIOS if triggers is None or scenario.trigger in triggers]
    return [_drill(settings, work_dir / scenario.trigger, scenario) for scenario in chosen]


def _drill(settings: Settings, state_dir: Path, scenario: Scenario) -> dict[str, Any]:
    store = state_dir / "models"
    publish_policy(store, CHAMPION)
    publish_policy(store, CHALLENGER, scenario.fault, products=slow_products(settings.triggers.latency_ms))
    settings = _in_folder(settings, state_dir)
    if scenario.trigger == "memory_overflow":
        with service_process(settings, champion=CHAMPION) as service:
            resident_gb = asyncio.run(_resident_under_load(service))
        settings = _with_memory_limit(settings, resident_gb + MEMORY_HEADROOM_GB)
    with service_process(settings, champion=CHAMPION) as service:
        return asyncio.run(_break_challenger(service, scenario, _plan(settings, scenario.limits)))


def _in_folder(settings: Settings, state_dir: Path) -> Settings:
    paths = settings.paths.model_copy(update={"state_dir": state_dir})
    serving = settings.serving.model_copy(update={"host": "127.0.0.1"})
    return settings.model_copy(update={"paths": paths, "serving": serving})


def _with_memory_limit(settings: Settings, limit_gb: float) -> Settings:
    return settings.model_copy(update={"triggers": settings.triggers.model_copy(update={"memory_gb": limit_gb})})


def _plan(settings: Settings, limits: Limits) -> Plan:
    return Plan.model_validate(default_plan(settings).model_dump(exclude={"limits"}) | {"limits": limits})


async def _resident_under_load(service: ServiceProcess) -> float:
    """Bring the challenger to full weight, load it healthily, and read the resident set, GB."""
    async with AsyncServiceClient(service.url, service.token) as control:
        await _to_full_weight(control)
        load = Load()
        clients = [asyncio.create_task(_client(service, load, seed)) for seed in range(CLIENTS)]
        await asyncio.sleep(HEALTHY_S)
        load.stop = True
        await asyncio.gather(*clients)
        state = await control.call(calls.rollout())
    return float(state.statistics["rss_gb"])


async def _break_challenger(service: ServiceProcess, scenario: Scenario, plan: Plan) -> dict[str, Any]:
    load = Load()
    async with AsyncServiceClient(service.url, service.token) as control:
        await _to_full_weight(control, plan)
        ask = _trade if scenario.fault == "opposite" else _ask
        clients = [asyncio.create_task(_client(service, load, seed, ask)) for seed in range(CLIENTS)]
        try:
            await asyncio.sleep(HEALTHY_S)
            healthy = await control.call(calls.rollout())
            _require(not healthy.latched, f"rolled back before the fault: {healthy.reason}")
            fault_at = time.time()
            load.faulty = True
            await _until_latched(control, scenario)
            await asyncio.sleep(AFTERWARDS_S)
        finally:
            load.stop = True
            await asyncio.gather(*clients)
        events = (await control.call(calls.events())).events
    rollback = next(event for event in events if event.command == "rollback")
    fired = json.loads(rollback.state)["trigger"]  # of the guard, or of the background analysis that watches the same
    _require(fired == scenario.trigger, f"{scenario.trigger} expected, {rollback.reason} fired")
    return _report(scenario, load, fault_at, rollback.at) | {"handover": mode_for(plan.handover, fired, "")}


def _report(scenario: Scenario, load: Load, fault_at: float, fired_at: float) -> dict[str, Any]:
    last_at = load.last_challenger_at
    _require(last_at is not None, "the challenger never decided: there was nothing to roll back")
    assert last_at is not None  # noqa: S101 - required above; for the type checker
    return {
        "trigger": scenario.trigger,
        "detected_ms": (fired_at - fault_at) * 1e3,
        "last_challenger_ms": max(0.0, last_at - fired_at) * 1e3,
        "last_challenger_since_fault_ms": max(0.0, last_at - fault_at) * 1e3,
        "decisions": load.decisions,
        "challenger_decisions": load.challenger_decisions,
        "lost_decisions": load.lost,
        "problems": load.problems[:5],
    }


async def _to_full_weight(control: AsyncServiceClient, plan: Plan | None = None) -> None:
    """A fresh rollout of the challenger up to the last step; a service that has it there already is left alone."""
    state = await control.call(calls.rollout())
    if state.phase == "idle":
        state = await control.call(calls.start(CHAMPION, CHALLENGER, plan=plan, reason="drill", actor="drill"))
    while state.weight < 100:
        state = await control.call(calls.command("promote", reason="drill", actor="drill"))


async def _until_latched(control: AsyncServiceClient, scenario: Scenario) -> None:
    deadline = time.monotonic() + FAULT_LIMIT_S
    while time.monotonic() < deadline:
        state = await control.call(calls.rollout())
        if state.latched and state.durable:
            return
        await asyncio.sleep(0.02)
    raise RolloutError(f"{scenario.trigger} did not fire within {FAULT_LIMIT_S:g} s; statistics: {state}")


Ask = Callable[[AsyncServiceClient, Load, np.random.Generator], Any]


async def _ask(control: AsyncServiceClient, load: Load, rng: np.random.Generator) -> None:
    """One decision; on faulty input one bar is beyond the level that wakes the fault."""
    bars = _bars(rng)
    if load.faulty:
        bars[0, 0] = FAULT_LEVEL + 10.0
    await _decide(control, load, bars, rng)


async def _trade(control: AsyncServiceClient, load: Load, rng: np.random.Generator) -> None:
    """One decision of each arm and what it earned. While healthy the market is noise; then it follows its bars."""
    bars = _bars(rng)
    answer = await _decide(control, load, bars, rng)
    if answer is None or answer.shadow is None:
        return
    drift = DRIFT_BPS * float(np.sign(np.sum(bars))) if load.faulty else 0.0
    market_bps = drift + NOISE_BPS * float(rng.standard_normal())
    earned = {arm.role: _side(arm.action) * market_bps for arm in (answer, answer.shadow)}
    if earned.keys() == {"champion", "challenger"}:
        report = calls.outcome(answer.symbol, champion_bps=earned["champion"], challenger_bps=earned["challenger"])
        await control.call(report)


async def _decide(
    control: AsyncServiceClient, load: Load, bars: Bars, rng: np.random.Generator
) -> DecisionResponse | None:
    flat = Account(np.zeros(len(SCHEMA.account_features), np.float32), 0)
    load.decisions += 1
    try:
        answer = await control.call(calls.decision(Question(f"S{rng.integers(SYMBOLS)}", bars, 0.2, flat, flat)))
        _require(answer.role != "safe", "HOLD was answered although the champion is healthy")
    except HrmSystemError as error:
        load.lost += 1
        load.problems.append(f"{type(error).__name__}: {error}")
        return None
    if answer.role == "challenger":
        load.challenger_decisions += 1
        load.last_challenger_at = time.time()
    return answer


async def _client(service: ServiceProcess, load: Load, seed: int, ask: Ask = _ask) -> None:
    rng = np.random.default_rng(seed)
    async with AsyncServiceClient(service.url, service.token) as control:
        while not load.stop:
            await ask(control, load, rng)
            await asyncio.sleep(PAUSE_S)


def _bars(rng: np.random.Generator) -> Bars:
    return rng.normal(size=(SCHEMA.window, len(SCHEMA.bar_features))).astype(np.float32)


def _side(action: int) -> int:
    return {Action.BUY_LONG: 1, Action.SELL_SHORT: -1}.get(Action(action), 0)


def _require(holds: bool, why: str) -> None:
    if not holds:
        raise RolloutError(f"the drill is void: {why}", code="drill_failed")
