"""A desk to look at: a real inference service, a real backend, a rollout, and a day of trading on record.

The records are written by those who write them in earnest (records, ledger, gateway, losses), with a clock of their
own: a day of decisions need not be waited for.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
from test_backend_app import backend

from core.actions import Action
from core.settings import Settings
from delivery.earned import Earned
from delivery.losses import LossStore, Outcome, joined
from delivery.state_database import open_engine
from flows.service_process import ServiceProcess, service_process
from serving import calls
from serving.client import ServiceClient
from serving.question import Account, Question
from serving.record_format import Answer, DecisionFacts, Record
from serving.records import Records
from trading.costs import flat_costs
from trading.events import EventLog, bar_body, clock_body
from trading.gateway import OrderGateway
from trading.ledger import Ledger, Order
from trading.paper import PaperBroker
from trading.stream import Bar

sys.path.append(str(Path(__file__).parents[1] / "serving"))  # where tiny_models is; pytest adds it for its own tests
from tiny_models import publish_all, settings_in

SYMBOLS = {"NIFTY": 24_800.0, "BANKNIFTY": 56_300.0}
BARS, BAR_S = 75, 300.0
REASONS = ("q_learning_decision", "q_learning_decision", "q_learning_decision", "max_segments_reached")


@dataclass(frozen=True)
class Desk:
    """`url` is the backend's; whoever has `token` may do everything."""

    url: str
    token: str
    settings: Settings
    service: ServiceProcess

    def post(self, path: str, **body: object) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self.token}"}
        return httpx.post(self.service.url + path, json=body, headers=headers, trust_env=False, timeout=30.0)

    def rollout(self) -> dict[str, object]:
        headers = {"Authorization": f"Bearer {self.token}"}
        answer = httpx.get(f"{self.service.url}/v1/rollout", headers=headers, trust_env=False, timeout=30.0)
        found: dict[str, object] = answer.json()
        return found


@contextmanager
def desk(folder: Path, *, traded: bool = True) -> Iterator[Desk]:
    """ppo/v1 decides, hrm/v1 challenges; `traded`: there is a day behind it."""
    settings = settings_in(folder, rollout={"cool_down_s": 0.0})
    publish_all(folder / "models")
    with service_process(settings, champion="ppo/v1") as service:
        port = {"HRM_SERVING__PORT": service.url.rpartition(":")[2]}
        with backend(folder, environment=port) as (_, listening):
            running = Desk(f"http://127.0.0.1:{listening['port']}", service.token, settings, service)
            assert running.post("/v1/rollout/start", champion="ppo/v1", challenger="hrm/v1").status_code == 200
            if traded:
                _decide(running)
                decided(folder)
                earned(folder, int(str(running.rollout()["attempt"])))
                trade(settings)
            yield running


def _decide(running: Desk) -> None:
    """Some decisions by the service itself."""
    rng = np.random.default_rng(0)
    flat = Account(np.array([0.5, 0.3], np.float32), 0)
    questions = [
        Question(symbol, rng.normal(size=(4, 2)).astype(np.float32), float(rng.uniform()), flat)
        for symbol in SYMBOLS
        for _ in range(8)
    ]
    with ServiceClient(running.service.url, running.token) as client:
        client.call(calls.decisions(questions))


def decided(folder: Path, count: int = 600) -> None:
    """Decisions of the hours before, on record as the service writes them."""
    rng, begins = np.random.default_rng(1), time.time() - BARS * BAR_S
    now = [begins]
    records = Records(folder / "decisions", settings_in(folder).records, clock=lambda: now[0])
    for number in range(count):
        now[0] = begins + number * BARS * BAR_S / count
        decision_id, at = records.new_id()
        complexity = float(rng.beta(2, 3))
        depth = int(np.clip(rng.poisson(1 + 4 * complexity), 1, 6))
        first = int(rng.choice(5, p=[0.15, 0.12, 0.08, 0.05, 0.6]))
        second = first if rng.uniform() < 0.86 else int(rng.integers(5))
        facts = DecisionFacts(
            decision_id=decision_id,
            at=at,
            deadline_ms=None,
            latency_ms=float(4 + rng.gamma(2, 3) + depth),
            request_id=f"{number}",
            symbol=list(SYMBOLS)[number % 2],
            complexity=complexity,
            epoch=1,
            rung="full",
            fallback=False,
            errors={},
            answer=_answer("ppo/v1", "champion", first, 1, "single_pass"),
            shadow=_answer("hrm/v1", "challenger", second, depth, REASONS[number % 4] if depth < 6 else REASONS[3]),
        )
        assert records.write(Record(facts, {"bars": np.zeros((4, 2), np.float32), "account": np.zeros(2, np.float32)}))
    records.close()


def _answer(model: str, role: str, action: int, segments: int, reason: str) -> Answer:
    return Answer(
        model=model,
        manifest_sha256="0" * 64,
        onnx_sha256="0" * 64,
        provider="CPUExecutionProvider",
        storage="fp32",
        role=role,  # type: ignore[arg-type] # one of the two
        position=0,
        segment_cap=None,
        action=action,
        quantity=75.0,
        probabilities=tuple(0.2 for _ in Action),
        value=0.1,
        segments=segments,
        halt_reason=reason,
    )


def earned(folder: Path, attempt: int, count: int = 2 * BARS) -> None:
    """What both arms earned, tick by tick, in the state database."""
    rng, begins = np.random.default_rng(2), time.time() - BARS * BAR_S
    engine = open_engine(folder / "rollout.db")
    pages: dict[object, object] = {}
    outcomes = []
    for number in range(count):
        champion, challenger = float(rng.normal(0.3, 4)), float(rng.normal(0.7, 4))
        outcome = Outcome(list(SYMBOLS)[number % 2], "2026-11-23", champion, challenger)
        pages = joined(pages, dict.fromkeys(outcome.pages(attempt), outcome.arms))  # type: ignore[arg-type, assignment]
        outcomes.append(Earned(attempt, begins + number * BARS * BAR_S / count, outcome))
    LossStore(engine).write(pages, outcomes)  # type: ignore[arg-type]
    engine.dispose()


def trade(settings: Settings) -> None:
    """A day of a live desk on paper: bars, fills of both arms, the clock at its end."""
    ledger = Ledger(settings.paths.state_dir / "live-paper.db")
    gateway, log, rng = OrderGateway(ledger, settings.trading), EventLog(ledger), np.random.default_rng(3)
    broker, begins_ns = PaperBroker(gateway, flat_costs(1.5)), int((time.time() - BARS * BAR_S) * 1e9)
    prices = dict(SYMBOLS)
    held = dict.fromkeys(SYMBOLS, 0.0)
    for number in range(BARS):
        at_ns = begins_ns + int(number * BAR_S * 1e9)
        for symbol, opened in prices.items():
            close = opened * float(np.exp(rng.normal(0, 6e-4)))
            high, low = max(opened, close) * 1.0002, min(opened, close) * 0.9998
            bar = Bar(at_ns, opened, high, low, close, float("nan"), 0, number == BARS - 1)
            log.append("bar", bar_body(bar, {}), at_ns=at_ns, symbol=symbol)
            prices[symbol] = close
            if rng.uniform() < 0.12:
                units = -held[symbol] if held[symbol] else float(rng.choice([-75.0, 75.0]))
                owner = "challenger:hrm/v1" if symbol == "BANKNIFTY" else "champion:ppo/v1"
                order = Order(f"{symbol}:{number}", symbol, units, owner, epoch=1, at_ns=at_ns, bar_ns=at_ns)
                gateway.submit(order)
                broker.fill(order, close, bar_ns=at_ns)
                held[symbol] += units
    at_ns = time.time_ns()
    log.append("clock", clock_body({name: (price, at_ns) for name, price in prices.items()}, None), at_ns=at_ns)
    ledger.close()
