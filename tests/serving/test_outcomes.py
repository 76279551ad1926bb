"""Limits of money in a running service: over HTTP, in several processes, over a kill, and without a database."""

from __future__ import annotations

import asyncio
import signal
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from canaries import canary_of, post, rollout_of, settings_of, start_canary

from core.settings import load_settings
from delivery.losses import BOOK, EVER, Ledger, LossStore, Outcome, Page, today
from delivery.plan import Plan
from delivery.store import RolloutStore
from flows.drill_models import SCHEMA
from flows.service_process import ServiceProcess, service_process
from serving.guard import Guard, Trigger
from serving.outcomes import Outcomes
from serving.telemetry import Telemetry

W, F, A = SCHEMA.window, len(SCHEMA.bar_features), len(SCHEMA.account_features)
DAY = "2026-03-02"


def plan(**limits: Any) -> Plan:
    return Plan.model_validate(
        {
            "steps": [{"setWeight": 100}, {"pause": {}}],
            "limits": limits,
            "handover": {"default": "adopt", "triggers": {"drawdown_exceeded": "reduce_only"}},
        }
    )


ONE_PERCENT = plan(symbol={"maxDrawdownPct": 1})


def lose(process: ServiceProcess, bps: float, symbol: str = "A", **fields: Any) -> dict[str, Any]:
    outcome = {"symbol": symbol, "champion_bps": 1.0, "challenger_bps": -bps} | fields
    return dict(post(process, "/v1/outcomes", outcome))


def decide(process: ServiceProcess) -> dict[str, Any]:
    account = {"features": [0.0] * A, "position": 0}
    accounts = {"champion": account, "challenger": account | {"position": 1}}
    asked = {"symbol": "A", "bars": [[0.5] * F] * W, "complexity": 0.2, "accounts": accounts, "acting": "challenger"}
    return dict(post(process, "/v1/decisions", asked))


def on_disk(folder: Path, symbol: str = BOOK, day: str = EVER) -> tuple[int, float]:
    """Outcomes and the challenger's sum, bps."""
    page = Page(1, day, symbol)
    with closing(sqlite3.connect(folder / "rollout.db")) as connection:
        query = "SELECT outcomes, challenger_bps FROM equity WHERE attempt = ? AND day = ? AND symbol = ?"
        return connection.execute(query, page).fetchone() or (0, 0.0)


def until(condition: Callable[[], object], limit_s: float = 20.0) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def test_a_drawdown_rolls_back_with_the_outcome_that_passes_the_limit(tmp_path: Path) -> None:
    with canary_of(ONE_PERCENT, tmp_path) as process:
        assert decide(process)["role"] == "challenger"
        for n in (1, 2):
            assert lose(process, 50.0, day=DAY) == {"outcomes": n, "phase": "canary", "durable": True}
        assert lose(process, 400.0, "B", day=DAY, champion_bps=-400.0, challenger_bps=400.0)["phase"] == "canary"
        assert lose(process, 1.0, day=DAY)["phase"] == "rolled_back"
        state, answer = rollout_of(process), decide(process)
        assert (state["reason"], state["weight"]) == ("drawdown_exceeded", 0)
        assert (answer["role"], answer["handover"]["mode"]) == ("champion", "reduce_only")
        losses = state["statistics"]["losses"]
        assert losses["breach"] == {"kind": "drawdown_exceeded", "symbol": "A", "lost_pct": 1.01, "limit_pct": 1.0}
        assert (losses["symbols"], losses["day"]) == (2, DAY)
        assert losses["challenger"] == {"equity_bps": 149.5, "drawdown_bps": 0.5, "daily_loss_bps": 0.0}
        assert losses["champion"] == {"equity_bps": -198.5, "drawdown_bps": 199.5, "daily_loss_bps": 198.5}
        text = httpx.get(f"{process.url}/metrics", trust_env=False).text
        for line in (
            'hrm_drawdown_ratio{arm="champion"} 0.01995',
            'hrm_equity_ratio{arm="challenger"} 0.01495',
            'hrm_daily_loss_ratio{arm="champion"} 0.01985',
            'hrm_rollback_total{trigger="drawdown_exceeded"} 1.0',
        ):
            assert line in text


def test_a_days_loss_is_that_days_and_by_default_todays(tmp_path: Path) -> None:
    with canary_of(plan(book={"maxDailyLossPct": 1}), tmp_path) as process:
        assert lose(process, 90.0, day=DAY)["phase"] == "canary"
        assert lose(process, 90.0)["phase"] == "canary"  # today
        assert on_disk(tmp_path, "A", today()) == (1, -90.0)
        assert lose(process, 20.0, day=DAY)["phase"] == "rolled_back"
        assert rollout_of(process)["reason"] == "daily_loss_exceeded"


def test_what_was_lost_before_a_kill_counts_after_it(tmp_path: Path) -> None:
    with canary_of(ONE_PERCENT, tmp_path) as process:
        assert lose(process, 60.0)["durable"]
        process.process.send_signal(signal.SIGKILL)
        process.process.wait(20)
    with service_process(settings_of(tmp_path)) as process:
        assert rollout_of(process)["statistics"]["losses"]["challenger"]["equity_bps"] == -60.0
        assert lose(process, 60.0)["phase"] == "rolled_back"


def test_several_workers_add_up_what_each_of_them_hears(tmp_path: Path) -> None:
    with canary_of(ONE_PERCENT, tmp_path, serving={"workers": 2}) as process:
        phases = [lose(process, 5.0)["phase"] for _ in range(21)]
        assert phases[:20] == ["canary"] * 20
        assert phases[20] == "rolled_back"
        until(lambda: rollout_of(process)["phase"] == "rolled_back")


def test_without_the_database_a_breach_still_fires_and_is_written_when_it_is_back(tmp_path: Path) -> None:
    with canary_of(ONE_PERCENT, tmp_path) as process:
        assert lose(process, 30.0)["durable"]
        with closing(sqlite3.connect(tmp_path / "rollout.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            answers = [lose(process, 30.0) for _ in range(2)]
            assert [(answer["phase"], answer["durable"]) for answer in answers] == [("canary", False)] * 2
            assert lose(process, 30.0) == {"outcomes": 4, "phase": "rolled_back", "durable": False}
            assert decide(process)["role"] == "champion"
            assert on_disk(tmp_path) == (1, -30.0)
            other.execute("ROLLBACK")
        until(lambda: on_disk(tmp_path) == (4, -120.0))
        with closing(sqlite3.connect(tmp_path / "rollout.db")) as other:
            one_by_one = other.execute("SELECT id, challenger_bps FROM outcome ORDER BY id").fetchall()
        assert one_by_one == [(n, -30.0) for n in (1, 2, 3, 4)]
        until(lambda: rollout_of(process)["durable"])
        assert rollout_of(process)["reason"] == "drawdown_exceeded"


def test_a_loss_that_was_written_before_its_rollback_was_rolls_back_at_the_next_start(tmp_path: Path) -> None:
    start_canary(ONE_PERCENT, tmp_path)
    store = RolloutStore(tmp_path / "rollout.db", settings_of(tmp_path).rollout)
    LossStore(store.engine).write(Ledger(1).add(Outcome("A", DAY, 0.0, -120.0)))
    store.close()
    with service_process(settings_of(tmp_path)) as process:
        until(lambda: rollout_of(process)["phase"] == "rolled_back")
        assert rollout_of(process)["reason"] == "drawdown_exceeded"


def promoted_earns(process: ServiceProcess, bps: float, symbol: str = "A") -> dict[str, Any]:
    return lose(process, 0.0, symbol, champion_bps=bps)


def test_what_a_promoted_model_loses_beside_the_one_before_it_rolls_it_back(tmp_path: Path) -> None:
    with canary_of(ONE_PERCENT, tmp_path) as process:
        assert lose(process, 40.0)["outcomes"] == 1
        post(process, "/v1/rollout/promote", {})
        answer = decide(process)
        assert (answer["role"], answer["model"], answer["promoted"]) == ("champion", "hrm", True)
        assert (answer["shadow"]["role"], answer["shadow"]["model"]) == ("challenger", "ppo")
        assert lose(process, -900.0, champion_bps=-900.0)["outcomes"] == 0  # decided before: who earned it is unsaid
        assert promoted_earns(process, -50.0) == {"outcomes": 1, "phase": "promoted", "durable": True}
        assert promoted_earns(process, -20.0)["phase"] == "rolled_back"  # on top of what it lost as challenger
        state, answer = rollout_of(process), decide(process)
        assert (state["reason"], state["champion"], state["weight"]) == ("drawdown_exceeded", "ppo/v1", 0)
        assert (answer["model"], answer["promoted"], answer["shadow"]) == ("ppo", False, None)
        assert state["statistics"]["losses"]["challenger"]["equity_bps"] == -110.0
        until(lambda: on_disk(tmp_path) == (3, -110.0))


def test_losses_of_a_promoted_model_in_two_workers_add_up(tmp_path: Path) -> None:
    with canary_of(ONE_PERCENT, tmp_path, serving={"workers": 2}) as process:
        post(process, "/v1/rollout/promote", {})
        until(lambda: rollout_of(process)["phase"] == "promoted")
        deadline = time.monotonic() + 60
        while promoted_earns(process, -9.0)["phase"] != "rolled_back":  # each worker leaves the first one out
            assert time.monotonic() < deadline, "waited in vain"
        until(lambda: rollout_of(process)["champion"] == "ppo/v1")
        assert on_disk(tmp_path) == (12, -108.0)


def test_nobody_goes_on_beside_a_promoted_model_once_the_plan_looks_back_no_more(tmp_path: Path) -> None:
    over = Plan.model_validate(ONE_PERCENT.model_dump(mode="json", by_alias=True) | {"rollbackWindow": 0})
    with canary_of(over, tmp_path) as process:
        post(process, "/v1/rollout/promote", {})
        answer = decide(process)
        assert (answer["model"], answer["promoted"], answer["shadow"]) == ("hrm", False, None)
        for _ in range(3):
            assert promoted_earns(process, -900.0) == {"outcomes": 0, "phase": "promoted", "durable": True}
        assert on_disk(tmp_path) == (0, 0.0)


def test_a_breach_waits_for_no_disk(tmp_path: Path) -> None:
    guard, judged = Guard(load_settings(environ={}).triggers), list[Trigger | None]()
    store = RolloutStore(tmp_path / "rollout.db", settings_of(tmp_path).rollout)

    async def story() -> None:
        outcomes = Outcomes(
            LossStore(store.engine),
            guard,
            Telemetry(),
            judge=lambda: judged.append(guard.verdict("challenger")),
            spawn=asyncio.create_task,
        )
        outcomes.begin(1, ONE_PERCENT.limits)
        answered = asyncio.create_task(outcomes.add(Outcome("A", DAY, 0.0, -101.0)))
        await asyncio.sleep(0)  # one turn of the loop: no thread has written anything
        assert judged == [Trigger.DRAWDOWN]
        assert not answered.done()
        assert await answered
        await outcomes.close()

    asyncio.run(story())
    assert on_disk(tmp_path) == (1, -101.0)
    store.close()


@pytest.mark.parametrize("day", ["2026-02-30", "today", 20260302, "2026-03-02T09:15:00", "", True])
def test_a_day_that_is_none_is_refused(http: httpx.Client, day: object) -> None:
    outcome = {"symbol": "A", "champion_bps": 1.0, "challenger_bps": 1.0, "day": day}
    response = http.post("/v1/outcomes", json=outcome)
    assert response.status_code == 422
    assert "day" in response.json()["detail"]


def test_without_a_rollout_no_ledger_is_kept(running: ServiceProcess, http: httpx.Client) -> None:
    outcome = {"symbol": "A", "champion_bps": 1.0, "challenger_bps": -9000.0}
    assert http.post("/v1/outcomes", json=outcome).json()["durable"]
    assert on_disk(running.log.parent) == (0, 0.0)
